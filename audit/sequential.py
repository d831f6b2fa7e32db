"""Tests of two rates that hold at every moment: look as often as you like, the error stays below alpha.

All on counts (decided, favourable) since the beginning, in any order: merged counts give the merged result.

Normal mixture: with d the difference of the rates and I the inverse of its variance, S = d I is a random walk of
variance I (Jennison & Turnbull, Group Sequential Methods, 2000, ch. 3: the canonical joint distribution), so
    M = sqrt(rho / (I + rho)) exp(S^2 / (2 (I + rho)))
is a martingale from 1 when the rates are equal and exceeds 1 / alpha with probability at most alpha, ever (Howard,
Ramdas, McAuliffe & Sekhon, Ann. Statist. 49, 2021). It is asymptotic; the betting test is exact for all counts, slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, inf, lgamma, log, pi, sqrt

Count = tuple[int, int]  # decided, of them favourable

RHO = 100.0  # 1 / (differences of about 0.1)^2: where the mixture is narrowest
EXPECTED_MIN = 30  # positives and negatives a group, for the normal approximation
WILSON_Z = 1.959963984540054  # 95 %


def wilson(count: Count) -> tuple[float, float]:
    """The 95 % interval of a rate at one look (Wilson, JASA 22, 1927); all of [0, 1] without decisions.

    >>> [round(bound, 4) for bound in wilson((100, 30))]
    [0.2189, 0.3958]
    """
    decided, favourable = count
    if decided == 0:
        return 0.0, 1.0
    rate, z2 = favourable / decided, WILSON_Z**2 / decided
    centre, half = rate + z2 / 2, sqrt(z2 * rate * (1 - rate) + z2**2 / 4)
    return min(max((centre - half) / (1 + z2), 0.0), rate), max(min((centre + half) / (1 + z2), 1.0), rate)


def sufficient(a: Count, b: Count) -> bool:
    """Whether each side would expect 30 positives and 30 negatives if the rates were equal."""
    decided, favourable = a[0] + b[0], a[1] + b[1]
    return min(a[0], b[0]) * min(favourable, decided - favourable) >= EXPECTED_MIN * decided > 0


def information(a: Count, b: Count) -> float:
    """Inverse variance of the difference of two rates, assumed equal or not: the lesser of the two.

    Without the assumption it is too large when a small group happens to lie near 0 or 1. 0 where all decide alike.
    """
    if not a[0] or not b[0] or not 0 < a[1] + b[1] < a[0] + b[0]:
        return 0.0
    rate_a, rate_b, pooled = a[1] / a[0], b[1] / b[0], (a[1] + b[1]) / (a[0] + b[0])
    apart = rate_a * (1 - rate_a) / a[0] + rate_b * (1 - rate_b) / b[0]
    together = pooled * (1 - pooled) * (1 / a[0] + 1 / b[0])
    return 1 / max(apart, together)


def p_value(difference: float, information: float) -> float:
    """Anytime-valid p-value of a difference: 1 over the martingale.

    >>> round(p_value(0.06, 1600 / 0.44), 4)
    0.0105
    """
    together = information + RHO
    return min(1.0, sqrt(together / RHO) * exp(-((difference * information) ** 2) / (2 * together)))


def half_width(information: float, alpha: float) -> float:
    """Of the confidence sequence at level 1 - alpha: where `p_value` is alpha."""
    if information <= 0:
        return inf
    together = information + RHO
    return sqrt(together * log(together / (RHO * alpha**2))) / information


def betting(a: Count, b: Count) -> float:
    """The log of what 1 has become for one who bets on each decision of two groups, against the best equal rate.

    Each bet is by the rule of Krichevsky & Trofimov (IEEE Trans. Inf. Theory 27, 1981), the opponent has hindsight
    (Wasserman, Ramdas & Balakrishnan, PNAS 117, 2020): under equality the expectation is at most 1 at every moment,
    so exp(-betting) is an anytime-valid p-value, exact for all counts.

    >>> round(betting((2000, 600), (2000, 800)), 1), round(betting((2000, 700), (2000, 700)), 1)
    (14.0, -8.1)
    """
    decided, favourable = a[0] + b[0], a[1] + b[1]
    hindsight = _power(favourable, decided) + _power(decided - favourable, decided)
    return _mixture(a) + _mixture(b) - hindsight


def _mixture(count: Count) -> float:
    """log B(k + 1/2, n - k + 1/2) - log B(1/2, 1/2)."""
    decided, favourable = count
    return lgamma(favourable + 0.5) + lgamma(decided - favourable + 0.5) - lgamma(decided + 1) - log(pi)


def _power(times: int, of: int) -> float:
    return times * log(times / of) if times else 0.0


def holm(p_values: Sequence[float], alpha: float) -> list[float]:
    """The level at which each hypothesis is judged (Holm, Scand. J. Statist. 6, 1979): rejected where p <= its level.

    With p-values that hold at every moment, so does the correction.
    >>> holm([0.004, 0.2, 0.006], 0.012)
    [0.004, 0.012, 0.006]
    """
    levels, left, open_ = [0.0] * len(p_values), len(p_values), True
    for index in sorted(range(len(p_values)), key=lambda each: p_values[each]):
        levels[index] = alpha / left
        open_ = open_ and p_values[index] <= levels[index]
        left -= open_
    return levels
