"""What `lrai compile` found out about a variant of a model: variants/<name>/manifest.json, read by the serving engine.

The original has the same record in variants/original.json, so that an actor need not measure when it starts.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from schemas.errors import LraiError

FORMAT = 1
FOLDER = "variants"
MANIFEST = "manifest.json"
GOLDEN = "golden.npz"
ORIGINAL = "original"
ORIGINAL_FILE = "original.json"
OPTIMIZATIONS = ("disabled", "basic", "extended", "all")


class BadManifest(LraiError):
    """A manifest cannot be used; compile the model again."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """The rows that the ranges come from; `sha256` is of their bytes, "" without rows."""

    source: Literal["file", "ranges", "topic", "none"] = "none"
    sha256: str = ""
    rows: int = 0


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Session options under which the runtime computes what the graph says; `config` are its session config entries."""

    graph_optimization_level: Literal["disabled", "basic", "extended", "all"] = "all"
    disabled_optimizers: tuple[str, ...] = ()
    config: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BatchProfile:
    """Seconds of a run by its rows and the fit `fixed_s + row_s * rows`, which holds up to `knee_rows`."""

    best_rows: int
    fixed_s: float
    row_s: float
    knee_rows: int
    seconds: dict[int, float]


@dataclass(frozen=True, slots=True)
class OutputError:
    """Largest and mean absolute difference of one output, in its units."""

    max: float
    mean: float


@dataclass(frozen=True, slots=True)
class VariantError:
    """How the answers differ from the original's on `rows` rows that calibration did not see.

    `max` and `mean` are fractions of the original output's largest magnitude, the worst output's;
    `label_agreement` is the share of rows with the same decision, None where the model decides nothing.
    """

    max: float
    mean: float
    label_agreement: float | None
    rows: int
    per_output: dict[str, OutputError] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GroupFlips:
    """Decisions of a group's rows by the original and the variant. `lost`: favourable ones that are so no more."""

    group: str
    rows: int
    favourable_before: int
    favourable_after: int
    flips: int
    lost: int


@dataclass(frozen=True, slots=True)
class Disparity:
    """How the variant's decisions differ by an attribute of the calibration rows, beside the original's.

    `before`, `after`: largest rate of `decision` less the smallest, of original and variant; `widened`: by how much the
    gap of some two groups grew, at most `limit`; `p_value`: of flips being as frequent in every group (Fisher's exact
    test of each group against all others, Holm); `missing`: rows that do not say.
    """

    attribute: str
    decision: str
    before: float
    after: float
    widened: float
    p_value: float
    limit: float
    missing: int
    groups: tuple[GroupFlips, ...]


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer and why it has its widths; 32 bits are floats. `sensitivity`: the error of this layer quantized alone.

    `clipped`: the share of calibration values beyond the range of its activations.
    """

    name: str
    op: str
    weight_bits: int
    activation_bits: int
    sensitivity: float
    why: str
    clipped: float = 0.0


@dataclass(frozen=True, slots=True)
class Golden:
    """golden.npz: arrays `input/<name>` and `output/<name>`, the answers of the variant where it was compiled.

    `within`: how far an actor's may be away, as a share of the largest number of an output; 0 is bit for bit.
    """

    file: str = GOLDEN
    rows: int = 0
    within: float = 0.0


@dataclass(frozen=True, slots=True)
class Manifest:
    """A variant. `requests_per_run`: 0 any number, 1 where a request's batch-mates would change its answer."""

    name: str
    kind: str
    bits: str
    original_sha256: str
    model_sha256: str
    calibration: Calibration
    compiler: str
    runtime: str
    cpu_features: tuple[str, ...]
    provider: str
    provider_options: dict[str, str]
    session: RunOptions
    requests_per_run: int
    profile: BatchProfile
    file_bytes: int
    memory_bytes: int
    error: VariantError
    layers: tuple[Layer, ...] = ()
    golden: Golden | None = None
    certificate: str | None = None
    disparity: tuple[Disparity, ...] = ()
    format: int = FORMAT

    def write(self, path: Path) -> None:
        """Writes the JSON beside its place, then renames it. Raises OSError."""
        aside = path.with_name(f".{path.name}.part")
        try:
            aside.write_text(json.dumps(asdict(self), indent=1, allow_nan=False) + "\n", encoding="utf-8")
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)


_ADAPTER = TypeAdapter(Manifest)


def read(path: Path) -> Manifest:
    """The manifest in a file. Raises BadManifest that names the problem."""
    again = "run `lrai compile` again"
    try:
        text = path.read_bytes()
        stated = json.loads(text)
    except OSError as err:
        raise BadManifest(f"{path}: cannot be read ({err.strerror or err}); {again}") from None
    except ValueError as err:
        raise BadManifest(f"{path}: is no JSON ({err}); {again}") from None
    if not isinstance(stated, dict) or stated.get("format") != FORMAT:
        found = stated.get("format") if isinstance(stated, dict) else type(stated).__name__
        raise BadManifest(f"{path}: format is {found!r}, this version reads {FORMAT}; {again}")
    try:
        return _ADAPTER.validate_json(text, strict=True)
    except ValidationError as err:
        first = err.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise BadManifest(f"{path}: {place}: {first['msg'].lower()}; {again}") from None


def read_original(version: Path) -> Manifest | None:
    """The record of the original of <model>/<version>; None where it was never compiled. Raises BadManifest."""
    path = version / FOLDER / ORIGINAL_FILE
    return read(path) if path.is_file() else None


def read_variants(version: Path) -> dict[str, Manifest]:
    """Every variant of <model>/<version> by name. Raises BadManifest."""
    found = {}
    for path in sorted((version / FOLDER).glob(f"*/{MANIFEST}")):
        if path.parent.name.startswith("."):  # written aside by a compiler that is at work or died
            continue
        manifest = read(path)
        if manifest.name != path.parent.name:
            raise BadManifest(f"{path}: name is {manifest.name!r}, the folder {path.parent.name!r}; rename the folder")
        found[manifest.name] = manifest
    return found


def sha256(folder: Path, names: Iterable[str]) -> str:
    """Of the files one after the other, model.onnx first: as ModelSpec.sha256."""
    digest = hashlib.sha256()
    for name in names:
        with (folder / name).open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
