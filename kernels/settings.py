"""model.toml: what an operator says of a model. Every key is optional; docs/models.md lists them."""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails

from kernels.spec import DEVICE, Problem

ROWS_MAX = 65_536  # of one request; the bound of every run
Rows = Annotated[int, Field(ge=1, le=ROWS_MAX)]
_TOGETHER = {"padded", "buckets"}  # one says nothing without the other
Word = Annotated[str, Field(min_length=1, max_length=256)]
Member = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,64}/(0|[1-9][0-9]{0,8})$")]  # <model>/<version>
WATCH = ("disparity_limit", "reference_group", "intersections", "groups_max", "freeze_on", "on_freeze")


class Score(BaseModel):
    """Which number of a row is its score."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    output: Word
    index: Annotated[int, Field(ge=0)] | None = None


Milliseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Objectives(BaseModel):
    """The promised p95 latency by priority."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    interactive: Milliseconds | None = None
    standard: Milliseconds | None = None
    bulk: Milliseconds | None = None


class Variants(BaseModel):
    """Which compiled variants may answer, and when."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    prefer: list[Word] = Field(default_factory=list, max_length=64)
    under_load: list[Word] = Field(default_factory=list, max_length=64)
    never: list[Word] = Field(default_factory=list, max_length=64)


class ModelSettings(BaseModel):
    """The keys of model.toml."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    padded: Word | None = None
    buckets: list[Annotated[int, Field(ge=1)]] = Field(default_factory=list, max_length=64)
    pad_values: dict[str, float] = Field(default_factory=dict)
    request_rows_max: Rows = 1024
    batch_rows: Rows | None = None
    allow_nan: bool | None = None
    score: Score | None = None
    threshold: Annotated[float, Field(allow_inf_nan=False)] | None = None
    decision: Word | None = None
    labels: list[Word] | None = Field(default=None, min_length=2, max_length=10_000)
    favourable: Word | None = None
    sensitive_features: list[Word] = Field(default_factory=list, max_length=64)
    disparity_limit: Annotated[float, Field(gt=0, le=1)] = 0.05
    reference_group: dict[Word, Word] = Field(default_factory=dict)
    intersections: list[Annotated[list[Word], Field(min_length=2, max_length=8)]] = Field(
        default_factory=list, max_length=16
    )
    groups_max: Annotated[int, Field(ge=2, le=1024)] = 64
    freeze_on: Literal["established", "excludes_limit", "never"] = "established"
    on_freeze: str = "reject"
    on_missing: Literal["count", "flag", "reject"] | None = None
    slo_p95_ms: Objectives = Objectives()
    scheduler: Literal["static", "adaptive"] | None = None
    variants: Variants = Variants()
    members: list[Member] = Field(default_factory=list, max_length=64)
    joined: bool = False
    risk_class: Literal["minimal", "limited", "high"] = "limited"
    require_certificate: Literal["proved", "statistical", "none"] | None = None
    coverage_min: Annotated[float, Field(ge=0, le=1)] = 0.0
    epsilon_max: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    device: Annotated[str, Field(pattern=DEVICE)] | None = None

    @field_validator("slo_p95_ms", mode="before")
    @classmethod
    def _objectives(cls, stated: object) -> object:
        """A number is the promise to those who wait: the interactive and the standard lane."""
        return {"interactive": stated, "standard": stated} if isinstance(stated, int | float) else stated

    @field_validator("buckets")
    @classmethod
    def _order(cls, buckets: list[int]) -> list[int]:
        if buckets != sorted(set(buckets)):
            raise ValueError(f"buckets is {buckets}, not ascending; write {sorted(set(buckets))}")
        return buckets

    @field_validator("on_freeze")
    @classmethod
    def _policy(cls, policy: str) -> str:
        if not re.fullmatch(r"reject|flag|0|[1-9][0-9]{0,8}", policy):
            raise ValueError(f'on_freeze is {policy!r}; write "reject", "flag" or an earlier version, such as "1"')
        return policy


def read(path: Path) -> tuple[ModelSettings, list[Problem]]:
    """The settings of a model.toml, defaults for what is missing or wrong, and every problem in it."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ModelSettings(), []
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as err:
        return ModelSettings(), [Problem(str(path), f"not valid TOML ({err})", "correct it at the place named")]
    try:
        return ModelSettings.model_validate(table), []
    except ValidationError as err:
        details = err.errors(include_url=False)
    wrong = {detail["loc"][0] for detail in details}
    if wrong & _TOGETHER:
        wrong |= _TOGETHER
    rest = {key: value for key, value in table.items() if key not in wrong}
    return ModelSettings.model_validate(rest), [_problem(path, detail) for detail in details]


def _problem(path: Path, detail: ErrorDetails) -> Problem:
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        tables: dict[object, type[BaseModel]] = {"score": Score, "variants": Variants, "slo_p95_ms": Objectives}
        known = list((tables[detail["loc"][0]] if len(detail["loc"]) > 1 else ModelSettings).model_fields)
        near = difflib.get_close_matches(str(detail["loc"][-1]), known, 1, 0.5)
        fix = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(known)}"
        return Problem(str(path), f"unknown key {key!r}", fix)
    if detail["type"] == "value_error":
        what, _, fix = detail["msg"].removeprefix("Value error, ").partition("; ")
        return Problem(str(path), what, fix)
    value = repr(detail["input"])[:80]
    return Problem(str(path), f"{key} is {value}", f"correct it: {detail['msg'][0].lower()}{detail['msg'][1:]}")
