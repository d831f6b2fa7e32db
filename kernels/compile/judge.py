"""Whether a variant may stand in for its original: its errors, its decisions, and whether batch-mates change them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from kernels.compile import rows
from kernels.compile.net import Array
from kernels.compile.runtime import Tensors
from kernels.manifest import OutputError, VariantError
from kernels.outcome import outcome
from kernels.session import Session
from kernels.spec import ModelSpec

AGREEMENT_MIN = 0.99
DOUBT_MAX = 0.01
MEAN_ERROR_MAX = 0.01  # where the model decides nothing
OUTLIER = 50.0
_COMPARED_ROWS = 8
_ALONE_ROWS = 3
_ALONE_WITHIN = 1e-5  # float kernels add up in another order for another number of rows


class Refused(Exception):
    """A variant that must not serve; the message says why. Caught by the compiler, which goes on without it."""


@dataclass(slots=True)
class _Sums:
    """Of one output: what errors and magnitudes came up."""

    most: float = 0.0
    total: float = 0.0
    count: int = 0
    magnitude: float = 0.0
    squares: float = 0.0
    power: float = 0.0

    def update(self, wanted: Array, found: Array) -> None:
        both = np.isnan(wanted) & np.isnan(found)
        with np.errstate(invalid="ignore"):
            apart = np.where(both | (wanted == found), 0.0, np.abs(wanted.astype(np.float64) - found))
        if not np.isfinite(apart).all():
            raise Refused("it answers NaN or infinity where the original does not")
        finite = np.where(np.isfinite(wanted), wanted, 0).astype(np.float64)
        self.most = max(self.most, float(apart.max(initial=0)))
        self.total += float(apart.sum())
        self.count += apart.size
        self.magnitude = max(self.magnitude, float(np.abs(finite).max(initial=0)))
        self.squares += float((apart**2).sum())
        self.power += float((finite**2).sum())


@dataclass(slots=True)
class Comparison:
    """Answers of a variant beside the original's, batch by batch."""

    spec: ModelSpec
    outputs: dict[str, _Sums] = field(default_factory=dict)
    agreed: int = 0
    decided: int = 0
    rows: int = 0

    def update(self, wanted: Tensors, found: Tensors) -> None:
        """Outputs of the same rows. Raises Refused."""
        n = len(next(iter(wanted.values())))
        self.rows += n
        for name, array in wanted.items():
            if array.shape != found[name].shape:
                raise Refused(f"output {name!r} has shape {found[name].shape}, the original's has {array.shape}")
            if array.dtype.kind == "f":
                self.outputs.setdefault(name, _Sums()).update(array, found[name])
        ours, theirs = decisions(self.spec, found, n), decisions(self.spec, wanted, n)
        self.decided += sum(each is not None for each in theirs)
        self.agreed += sum(a == b for a, b in zip(ours, theirs, strict=True) if b is not None)

    @property
    def relative(self) -> float:
        """Root of the mean square error, as a share of the outputs' own root mean square; the worst output's."""
        shares = [np.sqrt(each.squares / each.power) for each in self.outputs.values() if each.power]
        return float(max(shares, default=0.0))

    def error(self) -> VariantError:
        """What the manifest says of it."""
        per_output = {
            name: OutputError(each.most, each.total / max(each.count, 1)) for name, each in self.outputs.items()
        }
        scales = {name: each.magnitude or 1.0 for name, each in self.outputs.items()}
        return VariantError(
            max=max((each.max / scales[name] for name, each in per_output.items()), default=0.0),
            mean=max((each.mean / scales[name] for name, each in per_output.items()), default=0.0),
            label_agreement=self.agreed / self.decided if self.decided else None,
            rows=self.rows,
            per_output=per_output,
        )


def decisions(spec: ModelSpec, outputs: Tensors, n: int) -> list[str | None]:
    """The decision of each row in words, None where the model decides nothing."""
    _, codes, words = outcome(spec, outputs, np.arange(n), np.ones(n, np.int32))
    return [words[code] if code >= 0 else None for code in codes.tolist()]


def acceptable(error: VariantError, agreement_min: float) -> None:
    """Raises Refused where too many decisions change, or values do where there are no decisions."""
    agreement = error.label_agreement
    if agreement is not None and agreement < agreement_min:
        raise Refused(f"{agreement:.2%} of {error.rows} decisions agree, {agreement_min:.0%} are needed")
    if agreement is None and error.mean > MEAN_ERROR_MAX and agreement_min > 0:
        raise Refused(f"the mean error is {error.mean:.2%} of the largest output, not within {MEAN_ERROR_MAX:.0%}")


def doubt(changed: int, seen: int, fresh: int, agreement_min: float) -> float:
    """The probability that of `fresh` new rows too many change, when `changed` of `seen` did: beta-binomial, Jeffreys.

    >>> [round(doubt(changed, 16_384, 265, 0.99), 4) for changed in (0, 20, 60)]
    [0.0, 0.0052, 0.0775]
    """
    a, b = changed + 0.5, seen - changed + 0.5
    few = range(int((1 - agreement_min) * fresh + 1e-9) + 1)
    logs = [_log_beta(x + a, fresh - x + b) - _log_beta(a, b) - _log_beta(x + 1, fresh - x + 1) for x in few]
    return max(0.0, 1 - sum(math.exp(each) for each in logs) / (fresh + 1))


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def batch_invariant(
    session: Session, pool: Tensors, most: int = _COMPARED_ROWS, within: float = _ALONE_WITHIN
) -> None:
    """Some rows alone, in a batch, and beside a row 50 times as large. Raises Refused where an answer changes.

    Beside other batch-mates answers must be equal bit for bit. Alone they must be so too, but for the rounding of float
    kernels, which may add up in another order for one row: `within`, as a share of the largest.
    """
    n = min(most, rows.count([pool]))
    batch = {name: array[:n].copy() for name, array in pool.items()}
    if session.spec.rows_fixed or n < 2:
        return
    together = session.run(batch)
    extreme = {name: _extreme(array, session.spec, name) for name, array in batch.items()}
    beside = session.run(extreme)
    for name, array in together.items():
        if not _equal(array[: n - 1], beside[name][: n - 1]):
            raise Refused(f"a {OUTLIER:.0f}-fold outlier changes its batch-mates' {name!r}")
    for row in range(min(n, _ALONE_ROWS)):
        alone = session.run({name: array[row : row + 1] for name, array in batch.items()})
        for name, array in together.items():
            if not _close(array[row : row + 1], alone[name], max(within, _ALONE_WITHIN)):
                raise Refused(f"{name!r} of a row alone differs from that in a batch")


def literal_deviation(spec: ModelSpec, executed: Sequence[Tensors], literal: Sequence[Tensors]) -> float:
    """How far what the runtime executes is from what the file says, as `Comparison.relative`."""
    found = Comparison(spec)
    for wanted, got in zip(literal, executed, strict=True):
        found.update(wanted, got)
    return found.relative


def _extreme(array: Array, spec: ModelSpec, name: str) -> Array:
    """With the last row multiplied where it is of floats, else as far as the type reaches without leaving a table."""
    changed = array.copy()
    if array.dtype.kind == "f":
        changed[-1] = changed[-1] * array.dtype.type(OUTLIER) + array.dtype.type(1)
    elif array.dtype in (np.uint8, np.int8):
        changed[-1] = np.iinfo(array.dtype).max
    return changed


def _equal(left: Array, right: Array) -> bool:
    return left.tolist() == right.tolist() if left.dtype == object else left.tobytes() == right.tobytes()


def _close(left: Array, right: Array, within: float) -> bool:
    if left.dtype.kind != "f":
        return _equal(left, right)
    largest = float(np.abs(left[np.isfinite(left)]).max(initial=0))
    return bool(np.allclose(left, right, rtol=within, atol=within * largest, equal_nan=True))
