"""Whether a variant treats groups of people as its original does: gaps between groups, and whose decisions flip.

Judged on all rows that say whose they are, bounded in number and time; a sample, and no promise for other rows.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from kernels.compile import rows
from kernels.compile.judge import Refused, decisions
from kernels.compile.net import Array
from kernels.compile.rows import ATTRIBUTE, Rows
from kernels.compile.runtime import Tensors
from kernels.manifest import Disparity, GroupFlips
from kernels.spec import ModelSpec

DISPARITY_MAX = 0.01  # by how much the gap of two groups' rates may widen
ALPHA = 0.05  # of the test of flips, for all groups of an attribute together
OTHERS = "(other)"
_RUN_S = 4.0  # of the original on these rows
_ROWS_MIN = 100  # of a slow model
_SHOWN_MAX = 8  # groups

Run = Callable[[Tensors], Tensors]


class Equity:
    """The rows, whose they are, and what the original decides. Measures nothing where one of these is not known."""

    def __init__(self, spec: ModelSpec, found: Rows, original: Run, row_s: float, disparity_max: float) -> None:
        self._spec, self._limit = spec, disparity_max
        groups = rows.first(found.attributed, max(_ROWS_MIN, int(_RUN_S / row_s))) if found.attributed else []
        runs = list(rows.batches(groups, spec.rows_fixed))
        self._feeds = [rows.inputs_alone(each) for each in runs]
        self._wanted = self._decided(original)
        told = _members(spec, runs)
        decides = any(each is not None for each in self._wanted)
        self._members = told if decides else {}
        left = [each for each in dict.fromkeys((*spec.sensitive_features, *told)) if each not in self._members]
        why = "there are no decisions to compare" if told else "give rows with such columns or attributes"
        said = f"whether variants treat groups alike was not measured for {', '.join(left)}: {why}"
        self.notes = [said] if left else []

    def measured(self, run: Run | None = None) -> tuple[Disparity, ...]:
        """Of a variant beside the original; of the original itself without one."""
        if not self._members:
            return ()
        found = self._wanted if run is None else self._decided(run)
        return tuple(
            disparity(self._spec, name, members, self._wanted, found, self._limit)
            for name, members in self._members.items()
        )

    def fair(self, run: Run) -> bool:
        """Whether these answers pass `check`."""
        try:
            check(self.measured(run))
        except Refused:
            return False
        return True

    def _decided(self, run: Run) -> list[str | None]:
        return [each for feed in self._feeds for each in decisions(self._spec, run(feed), rows.count([feed]))]


def check(found: Sequence[Disparity]) -> None:
    """Raises Refused where a gap widens beyond the limit or decisions flip unevenly; a limit of 1 takes any."""
    for each in found:
        if each.limit >= 1:
            continue
        if each.widened > each.limit + 1e-12:
            raise Refused(
                f"a gap between groups of {each.attribute} widens by {100 * each.widened:.2f} points, at most"
                f" {100 * each.limit:g} are allowed; flips: {flips(each)}"
            )
        if each.p_value <= ALPHA:
            raise Refused(
                f"decisions flip unevenly by {each.attribute}: {flips(each)} (Fisher's exact test, Holm:"
                f" p = {each.p_value:.1e})"
            )


def flips(found: Disparity) -> str:
    """By group, of the rows of each; those with most first, where they are many."""
    most = sorted(found.groups, key=lambda each: -each.flips / each.rows)[:_SHOWN_MAX]
    shown = ", ".join(f"{each.group} {each.flips}/{each.rows}" for each in found.groups if each in most)
    return shown + (f" and {len(found.groups) - len(most)} more" if len(found.groups) > len(most) else "")


def disparity(
    spec: ModelSpec, attribute: str, members: Array, before: Sequence[str | None], after: Sequence[str | None],
    limit: float,
) -> Disparity:  # fmt: skip
    """members: object[rows], "" where not said. Without a favourable decision that one whose gaps widen most."""
    names = sorted({str(each) for each in members if each})
    told = np.array([names.index(each) if each else -1 for each in members.tolist()], np.int64)
    was, now = np.array(before, object), np.array(after, object)
    words = [spec.favourable] if spec.favourable else sorted({str(each) for each in {*before, *after} if each})
    tables = {word: _counted(told, len(names), was, now, word) for word in words}
    word = max(tables, key=lambda each: widened(tables[each]))
    table = tables[word]
    rates = table[:, 1:3] / table[:, :1]
    gaps = np.ptp(rates, axis=0) if names else np.zeros(2)
    groups = tuple(GroupFlips(name, *map(int, row)) for name, row in zip(names, table, strict=True))
    return Disparity(
        attribute, word, float(gaps[0]), float(gaps[1]), widened(table), p_value(groups, bool(spec.favourable)), limit,
        int((told < 0).sum()), groups,
    )  # fmt: skip


def widened(table: Array) -> float:
    """How much the gap of two groups grew, the most of all pairs; int64[groups, 5] as `GroupFlips`."""
    if len(table) < 2:
        return 0.0
    gaps = [np.abs(rate[:, None] - rate[None]) for rate in (table[:, 1] / table[:, 0], table[:, 2] / table[:, 0])]
    return float(max((gaps[1] - gaps[0]).max(), 0.0))


def p_value(groups: Sequence[GroupFlips], with_losses: bool) -> float:
    """Of equal flip rates, and of equal losses of the favourable decision where one is stated: the least p-value.

    Fisher's exact test of each group against all others, times their number: by Holm's first step any is rejected.
    """
    pairs = [[(each.flips, each.rows) for each in groups]]
    pairs += [[(each.lost, each.favourable_before) for each in groups]] if with_losses else []
    found = []
    for counts in pairs:
        hits, total = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
        asked = counts[: 1 if len(counts) == 2 else len(counts)]  # of two groups either says the same
        found += [fisher(hit, of, hits - hit, total - of) for hit, of in asked]
    return min(1.0, len(found) * min(found, default=1.0))


def fisher(a: int, n: int, b: int, m: int) -> float:
    """Two-sided exact p-value of a of n against b of m (Fisher 1935): all tables that are no likelier.

    >>> round(fisher(8, 10, 1, 10), 6)
    0.005477
    """
    both = a + b
    logs = [_choose(n, x) + _choose(m, both - x) for x in range(max(0, both - m), min(both, n) + 1)]
    seen, top = logs[a - max(0, both - m)], max(logs)
    weights = [math.exp(each - top) for each in logs]
    return min(1.0, sum(w for w, each in zip(weights, logs, strict=True) if each <= seen + 1e-7) / sum(weights))


def _choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _counted(told: Array, groups: int, was: Array, now: Array, word: str) -> Array:
    """int64[groups, 5]: rows, favourable before and after, flips, favourable ones lost."""
    before, after = was == word, now == word
    columns = (np.ones(len(told), bool), before, after, was != now, before & ~after)
    known = told >= 0
    return np.stack([np.bincount(told[known & each], minlength=groups) for each in columns], axis=1)


def _members(spec: ModelSpec, runs: Sequence[Tensors]) -> dict[str, Array]:
    """By attribute and stated intersection: object[rows], "" where not said."""
    names = [name.removeprefix(ATTRIBUTE) for name in runs[0] if name.startswith(ATTRIBUTE)] if runs else []
    found = {name: np.concatenate([run[ATTRIBUTE + name] for run in runs]) for name in names}
    for parts in spec.intersections:
        if all(part in found for part in parts):
            rows_of_parts = zip(*(found[part].tolist() for part in parts), strict=True)
            found["+".join(parts)] = np.array(["+".join(each) if all(each) else "" for each in rows_of_parts], object)
    return {name: _bounded(members, spec.groups_max) for name, members in found.items() if any(members)}


def _bounded(members: Array, most: int) -> Array:
    """The largest groups by name; further ones together, as they are counted when the model serves."""
    counts = Counter(each for each in members.tolist() if each)
    kept = {"", *(name for name, _ in counts.most_common(most))}
    return np.array([each if each in kept else OTHERS for each in members.tolist()], object)
