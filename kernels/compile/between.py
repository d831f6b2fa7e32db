"""Whether a variant will keep its decisions on new rows: judged on many rows made up between pairs of judging rows.

They lie where decisions change, of which few real rows see anything. Of the pairs one half decides alike and the other
does not. Floats and bytes are blended; of anything else, such as ids and words, each element is one row's or the
other's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from kernels.compile import rows
from kernels.compile.judge import DOUBT_MAX, Comparison, Refused, decisions, doubt
from kernels.compile.net import Array
from kernels.compile.runtime import Tensors
from kernels.session import Session
from kernels.spec import ModelSpec

ROWS_MAX = 16_384
ROWS_MIN = 480  # of a slow model: fewer promise nothing, even where no decision changes
FRESH_ROWS_MIN = 200
_RUN_S = 4.0  # of the original on these rows
_RUN_S_MAX = 60.0  # and that for ROWS_MIN
_DRAWN = 12  # pairs for each that is wanted, so that enough of them decide alike

Decided = list[str | None]


class Between:
    """The rows, and what the original decides there. Makes up none where no decision has to be kept."""

    def __init__(
        self, spec: ModelSpec, judged: Sequence[Tensors], answers: Sequence[Tensors], row_s: float, agreement_min: float
    ) -> None:
        """`judged`: runs of real rows and the original's answers to them; `row_s`: seconds a row of the original."""
        self._spec, self._agreement_min = spec, agreement_min
        self._groups = rows.grouped(iter(judged))
        self._known = [each for feed, found in zip(judged, answers, strict=True) for each in self._decided(feed, found)]
        most = max(min(ROWS_MIN, int(_RUN_S_MAX / row_s)), min(ROWS_MAX, int(_RUN_S / row_s)))
        self._rows = most if agreement_min and any(each is not None for each in self._known) else 0
        self._wanted: list[Decided] = []

    def check(self, original: Session, session: Session, requests_per_run: int, compared: Comparison) -> None:
        """Raises Refused where, of as many new rows as were given, a variant may keep too few decisions."""
        if not self._rows:
            return
        if not self._wanted:
            self._wanted = [self._decided(feed, original.run(feed)) for feed in self.batches()]
        changed, seen = compared.decided - compared.agreed, compared.decided
        fresh = max(FRESH_ROWS_MIN, 2 * seen)
        seen += sum(each is not None for wanted in self._wanted for each in wanted)
        for feed, wanted in zip(self.batches(), self._wanted, strict=True):
            found = self._decided(feed, rows.answered(session, feed, requests_per_run))
            changed += sum(a != b for a, b in zip(found, wanted, strict=True) if b is not None)
            if doubt(changed, seen, fresh, self._agreement_min) > DOUBT_MAX:
                share = f"more than {1 - self._agreement_min:.0%} of {fresh} new ones may"
                raise Refused(f"{changed} or more of {seen} decisions on and between the judging rows change: {share}")

    def batches(self) -> Iterator[Tensors]:
        """The same rows each time."""
        rng = np.random.default_rng(0)
        at, total, fixed = 0, len(self._known), self._spec.rows_fixed
        for group in self._groups:
            size, step = rows.count([group]), rows.run_rows(group, fixed)
            one, other = _pairs(self._known[at : at + size], -(-self._rows * size // total), rng)
            at += size
            end = len(one) - len(one) % step if fixed else len(one)
            for start in range(0, end, step):
                a, b = one[start : start + step], other[start : start + step]
                share = np.random.default_rng(start).random(len(a))
                yield {name: _blend(array[a], array[b], share, start) for name, array in group.items()}

    def _decided(self, feed: Tensors, answers: Tensors) -> Decided:
        return decisions(self._spec, answers, rows.count([feed]))


def _pairs(decided: Decided, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Places int64[n] of both rows of each pair, in a random order."""
    words: Array = np.unique([str(each) for each in decided], return_inverse=True)[1]
    drawn = rng.integers(0, len(words), (2, _DRAWN * n))
    alike = words[drawn[0]] == words[drawn[1]]
    chosen = np.concatenate([np.flatnonzero(alike)[: n // 2], np.flatnonzero(~alike)[: n - n // 2]])
    one, other = drawn[:, rng.permutation(chosen)]
    return one, other


def _blend(a: Array, b: Array, share: npt.NDArray[np.float64], seed: int) -> Array:
    """`share` of b: float64[rows]. Inputs of one shape take the same elements from b, as ids and their mask."""
    wide = share.reshape(-1, *(1,) * (a.ndim - 1))
    if a.dtype.kind == "f" or a.dtype in (np.uint8, np.int8):
        blended = a.astype(np.float64) * (1 - wide) + b.astype(np.float64) * wide
        return (blended if a.dtype.kind == "f" else np.rint(blended)).astype(a.dtype)
    taken = np.random.default_rng(seed).random(a.shape) < wide
    return np.where(taken, b, a)
