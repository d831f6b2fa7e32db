"""What the statistics of the watch do on simulated streams, as Markdown tables: false freezes, detection, drift.

python -m tests.bench.equity [--streams 1000]

Seeds are fixed, so a second run prints the same figures. A freeze is what `audit.fairness` says of the counts, at level
0.01 and a disparity limit of 0.05; each window is judged.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from math import log

import numpy as np

from audit.drift import Means, Recent, assess
from audit.sequential import Count
from tests.simulated import betting, counted, false_freezes, median_detection, p_values, streams

WINDOWS = 100
ALPHA = 0.01
SHAPES: dict[str, tuple[list[float], list[int]]] = {
    "2 groups, rate .30, 100 decisions each a window": ([0.3] * 2, [100] * 2),
    "2 groups, rate .30, 20 decisions each": ([0.3] * 2, [20] * 2),
    "2 groups, rate .05, 10 and 500 decisions": ([0.05] * 2, [10, 500]),
    "8 groups, rate .30, 100 decisions each": ([0.3] * 8, [100] * 8),
    "8 groups, rate .10, 20 to 400 decisions": ([0.1] * 8, [20, 20, 50, 50, 100, 100, 400, 400]),
}
APART = {".30 against .36": [0.30, 0.36], ".30 against .45": [0.30, 0.45]}
DRAWS = ("normal", "exponential", "beta(2, 5)")


def threshold_freezes(rates: list[float], step: list[int], count: int) -> float:
    """Share of streams in which some window alone has a ratio under four fifths: what a plain rule does."""
    decided, favourable = streams(1, rates, step, WINDOWS, count)
    alone = np.diff(favourable, axis=1, prepend=0) / np.diff(decided, axis=1, prepend=0)
    return float((alone.min(-1) < 0.8 * alone.max(-1)).any(-1).mean())


def excluded(rates: list[float], step: list[int], count: int) -> float:
    """Share of streams in which the sequence excludes equality at all, however small the difference."""
    strongest = p_values(*streams(1, rates, step, WINDOWS, count)).min((-1, -2))
    return float((strongest <= ALPHA / (1 if len(rates) == 2 else len(rates))).mean())


def false(count: int) -> Iterator[str]:
    yield f"| equal rates, {WINDOWS} windows, {count} streams | frozen | equality excluded | a window under 4/5 |"
    yield "|---|---|---|---|"
    for name, (rates, step) in SHAPES.items():
        shares = (false_freezes(1, rates, step, count, WINDOWS), excluded(rates, step, count))
        yield f"| {name} | {shares[0]:.1%} | {shares[1]:.1%} | {threshold_freezes(rates, step, count):.0%} |"


def bet(rates: list[float], step: int, windows: int, count: int) -> float:
    """Median decisions a group until the betting test excludes equality."""
    wealth = betting(*streams(2, rates, [step] * 2, windows, count)) >= log(1 / ALPHA)
    found = np.where(wealth.any(-1), wealth.argmax(-1), windows) + 1
    return float(np.median(found)) * step


def detection(count: int) -> Iterator[str]:
    yield f"| median decisions a group to the freeze, {count} streams | established | excludes_limit | betting test |"
    yield "|---|---|---|---|"
    for name, rates in APART.items():
        soon = median_detection(2, rates, 10, 1_000, count)
        strict = [10, 500] if rates[1] > 0.4 else [500, 400]
        late = median_detection(2, rates, strict[0], strict[1], count, "excludes_limit")
        yield f"| {name} | {soon:,.0f} | {late:,.0f} | {bet(rates, 10, 1_000, count):,.0f} |"
    eight = [0.30] * 4 + [0.36] * 4
    yield f"| four groups .30, four .36 | {median_detection(2, eight, 20, 500, count):,.0f} | | |"


def drawn(rng: np.random.Generator, name: str, rows: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    draws = {"normal": rng.standard_normal, "exponential": rng.standard_exponential}
    return draws[name](rows) if name in draws else rng.beta(2.0, 5.0, rows)


def watched(name: str, tally: int) -> tuple[int, int, Count]:
    """Alarms of the histogram and of ADWIN in a million stable rows; rows until each finds half an sd."""
    rng = np.random.default_rng(11)
    sample = drawn(rng, name, 10_000)
    edges = np.quantile(sample, np.linspace(0, 1, 11))
    reference, recent, means = counted(sample, edges), Recent(), Means(float(sample.mean()), float(sample.std()))
    alarms, found = [0, 0], [0, 0]
    stable = 1_000_000 // tally * tally
    values = drawn(rng, name, stable + 20 * max(tally, 500) // tally * tally)
    values[stable:] += sample.std() / 2
    for number, rows in enumerate(values.reshape(-1, tally)):
        recent.add(counted(rows, edges))
        changed = means.add(tally, float(rows.sum()))
        drifted = assess(reference, recent.counts, edges).state == "alarm"
        after = (number + 1) * tally - stable
        for place, seen in enumerate((drifted, changed)):
            alarms[place] += seen and after <= 0
            found[place] = found[place] or (after if seen and after > 0 else 0)
    return alarms[0], alarms[1], (found[0], found[1])


def drift() -> Iterator[str]:
    yield "| drift, each tally judged | alarms in 1 M stable rows | of ADWIN | rows to find 0.5 sd | by ADWIN |"
    yield "|---|---|---|---|---|"
    for name in DRAWS:
        for tally in (50, 500):
            histogram, adwin, found = watched(name, tally)
            yield f"| {name}, tallies of {tally} rows | {histogram} | {adwin} | {found[0]:,} | {found[1]:,} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.bench.equity", description=__doc__)
    parser.add_argument("--streams", type=int, default=1_000)
    count = parser.parse_args().streams
    for table in (false(count), detection(count), drift()):
        for line in table:
            print(line, flush=True)
        print()


if __name__ == "__main__":
    main()
