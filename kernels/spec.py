"""What the stages know of a model: a plain, picklable description. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import PurePath

from schemas.tensors import FLOATS

DEVICE = r"^(cpu|((cuda|tensorrt)(:[0-9]{1,3})?)|(openvino(:[A-Za-z0-9_.,:-]{1,100})?))$"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output. `shape` leaves out the rows; an int is a fixed size, a str the name of a varying one."""

    name: str
    datatype: str
    shape: tuple[int | str, ...]

    @property
    def width(self) -> int | None:
        """Numbers a row, None where it varies."""
        width = 1
        for size in self.shape:
            if isinstance(size, str):
                return None
            width *= size
        return width

    @property
    def varying(self) -> tuple[str, ...]:
        """The names of the sizes that vary."""
        return tuple(size for size in self.shape if isinstance(size, str))

    def concrete(self, rows: int, sizes: dict[str, int]) -> tuple[int, ...]:
        """The shape with rows, where a varying size is the one in `sizes`, else 1."""
        return (rows, *(sizes.get(size, 1) if isinstance(size, str) else size for size in self.shape))


@dataclass(frozen=True, slots=True)
class VariantSpec:
    """A compiled variant, from its graph; `problem`: why it cannot be served."""

    name: str
    zipmap: bool = False
    external: tuple[str, ...] = ()
    rows_fixed: int | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model of the repository, from its graph and its model.toml."""

    model: str
    version: str
    path: str  # of model.onnx
    sha256: str  # of model.onnx and the files with its weights, in the order of their names
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    padded: str | None = None  # the varying size that the buckets are for
    buckets: tuple[int, ...] = ()  # ascending
    pad_values: dict[str, float] = field(default_factory=dict)  # by input; 0 where missing
    request_rows_max: int = 1024
    batch_rows: int | None = None  # the best rows of a run where the operator states it
    rows_fixed: int | None = None  # the first dimension where the graph fixes it
    allow_nan: bool = False
    score: tuple[str, int | None] | None = None  # output and column; no column: the largest of the row
    threshold: float | None = None  # the decision is score >= threshold
    decision: str | None = None  # the output that decides where there is no threshold
    classes: tuple[int, ...] | None = None  # the values of an integer decision output, in the order of `labels`
    labels: tuple[str, ...] | None = None
    favourable: str | None = None  # the decision that a person would want
    sensitive_features: tuple[str, ...] = ()
    risk_class: str = "limited"  # or "minimal" or "high"
    disparity_limit: float = 0.05  # of selection rates
    reference_group: dict[str, str] = field(default_factory=dict)  # by feature or intersection; else all other groups
    intersections: tuple[tuple[str, ...], ...] = ()  # features that are compared together, too
    groups_max: int = 64  # of a feature or intersection; further ones are counted together
    freeze_on: str = "established"  # or "excludes_limit" or "never"
    on_freeze: str = "reject"  # or "flag" or a version
    fallback: ModelSpec | None = None  # the version that `on_freeze` names
    on_missing: str = "count"  # of consent or a sensitive feature; or "flag" or "reject"
    slo_p95_ms: dict[str, float] = field(default_factory=dict)  # by priority
    scheduler: str | None = None  # "static" or "adaptive", the setting's without
    zipmap: bool = False  # the graph has ZipMap nodes, which the session takes out
    external: tuple[str, ...] = ()  # files with weights, beside model.onnx
    variants: tuple[VariantSpec, ...] = ()  # those that may be served
    prefer: tuple[str, ...] = ()  # names of variants, the first that loads answers
    under_load: tuple[str, ...] = ()  # ever cheaper ones
    require_certificate: str = "statistical"  # of a variant; or "proved" or "none"
    coverage_min: float = 0.0  # the share of held-out rows in its region
    epsilon_max: float = 0.01  # how far it may be from the original
    device: str | None = None  # that its actors run on, the setting's without: see kernels/devices.py

    def of(self, variant: VariantSpec) -> ModelSpec:
        """The same model, answered by this variant."""
        path = PurePath(self.path).parent / "variants" / variant.name / "model.onnx"
        return replace(
            self, path=str(path), sha256="", zipmap=variant.zipmap, external=variant.external,
            rows_fixed=variant.rows_fixed, variants=(),
        )  # fmt: skip

    def input(self, name: str) -> TensorSpec | None:
        """The input of that name."""
        return next((each for each in self.inputs if each.name == name), None)

    def objective_s(self, priority: str) -> float | None:
        """The promised p95 from append to answer, seconds."""
        stated = self.slo_p95_ms.get(priority)
        return None if stated is None else stated / 1000

    @property
    def floats(self) -> tuple[str, ...]:
        """The inputs that could hold NaN."""
        return tuple(each.name for each in self.inputs if each.datatype in FLOATS)

    @property
    def smallest(self) -> dict[str, int]:
        """The smallest size that each varying dimension takes in a trial run."""
        return {self.padded: self.buckets[0]} if self.padded and self.buckets else {}


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in the repository that the operator must correct."""

    path: str
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}; {self.fix}"
