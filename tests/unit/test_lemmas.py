"""Z3 proves the relaxation rules of the prover, and refutes each of them with one thing changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import pytest
import z3

TIMEOUT_MS = 10_000
Term: TypeAlias = z3.ArithRef
Claim: TypeAlias = z3.BoolRef

h, d, low, up, p, q = z3.Reals("h d low up p q")  # original's input, difference; bounds of h (low, up) and of d (p, q)
alpha, c, s, e, a, b, t = z3.Reals("alpha c s e a b t")
n = z3.Int("n")


@dataclass(frozen=True)
class Lemma:
    """`claim` holds wherever `given` does; `wrong` is the same with one thing changed, and does not."""

    name: str
    given: tuple[Claim, ...]
    claim: Claim
    wrong: Claim


def relu(x: Term) -> Term:
    return z3.If(x > 0, x, 0)


def clip(x: Term) -> Term:
    return z3.If(x < 0, 0, z3.If(x > c, c, x))


def leaky(x: Term) -> Term:
    return z3.If(x > 0, x, alpha * x)


def largest(x: Term, y: Term) -> Term:
    return z3.If(x >= y, x, y)


def least(x: Term, y: Term) -> Term:
    return z3.If(x <= y, x, y)


def between(low: Term | int, x: Term, high: Term | int) -> Claim:
    return z3.And(low <= x, x <= high)


def moved(f: Callable[[Term], Term]) -> Term:
    """How far the output of f moves when its input moves from h by d."""
    return f(h + d) - f(h)


BOUNDED = (low <= h, h <= up)
MOVED = (p <= d, d <= q)
UNSTABLE = (*BOUNDED, low < 0, up > 0)
BOTH_WAYS = (*MOVED, p < 0, q > 0)
chord = up * (h - low)  # over up - low, which is positive: the rules are stated without the division

ONE_NET = [
    Lemma("relu upper chord", UNSTABLE, relu(h) * (up - low) <= chord, relu(h) * (up - low) <= up * h),
    Lemma("relu lower line", (alpha >= 0, alpha <= 1), relu(h) >= alpha * h, relu(h) >= alpha * h + (1 - alpha)),
    Lemma("relu lower slope above one", (alpha >= 0, alpha <= 1), relu(h) >= alpha * h, relu(h) >= 2 * alpha * h),
    Lemma("relu active", (low >= 0, *BOUNDED), relu(h) == h, relu(h) == 0),
    Lemma("relu inactive", (up <= 0, *BOUNDED), relu(h) == 0, relu(h) == h),
    Lemma("relu interval", BOUNDED, between(relu(low), relu(h), relu(up)), between(low, relu(h), up)),
    Lemma(
        "leaky relu upper chord",
        (*UNSTABLE, alpha >= 0, alpha < 1),
        leaky(h) * (up - low) <= up * (h - low) + alpha * low * (up - h),
        leaky(h) * (up - low) <= up * (h - low) + low * (up - h),
    ),
    Lemma(
        "leaky relu lower line",
        (alpha >= 0, alpha <= 1, alpha <= s, s <= 1),
        leaky(h) >= s * h,
        leaky(h) >= (s + alpha) * h,
    ),
    Lemma(
        "clip interval",
        (c > 0, *BOUNDED),
        between(clip(low), clip(h), clip(up)),
        between(clip(low), clip(h), clip(low)),
    ),
    Lemma(
        "clip upper chord at saturation",
        (*BOUNDED, c > 0, low < 0, c < up),
        clip(h) * (c - low) <= c * (h - low),
        clip(h) * (up - low) <= c * (h - low),
    ),
    Lemma(
        "clip lower chord at saturation",
        (*BOUNDED, c > 0, low < c, low >= 0, c < up),
        (clip(h) - low) * (up - low) >= (c - low) * (h - low),
        (clip(h) - low) * (up - low) >= (up - low) * (h - low),
    ),
    Lemma(
        "clip lower line from saturation",
        (*BOUNDED, c > 0, c < up),
        clip(h) * up >= c * h,
        clip(h) * c >= up * h,
    ),
]

DIFFERENCE = [
    Lemma(
        "difference of relu lies between 0 and d",
        (),
        between(least(d, z3.RealVal(0)), moved(relu), largest(d, z3.RealVal(0))),
        between(0, moved(relu), d),
    ),
    Lemma("difference upper chord", BOTH_WAYS, moved(relu) * (q - p) <= q * (d - p), moved(relu) * (q - p) <= q * d),
    Lemma("difference lower chord", BOTH_WAYS, moved(relu) * (q - p) >= p * (q - d), moved(relu) * (q - p) >= -p * d),
    Lemma("difference upper line, d >= 0", (*MOVED, p >= 0), moved(relu) <= d, moved(relu) <= 0),
    Lemma("difference lower line, d >= 0", (*MOVED, p >= 0), moved(relu) >= 0, moved(relu) >= d),
    Lemma("difference upper line, d <= 0", (*MOVED, q <= 0), moved(relu) <= 0, moved(relu) <= d),
    Lemma("difference, both active", (h >= 0, h + d >= 0), moved(relu) == d, moved(relu) == 0),
    Lemma("difference, both inactive", (h <= 0, h + d <= 0), moved(relu) == 0, moved(relu) == d),
    Lemma("difference, original active", (h >= 0,), moved(relu) == largest(d, -h), moved(relu) == least(d, -h)),
    Lemma("difference, original inactive", (h <= 0,), moved(relu) == relu(h + d), moved(relu) == relu(d)),
    Lemma("difference, variant inactive", (h + d <= 0,), moved(relu) == -relu(h), moved(relu) == relu(-h)),
    Lemma("difference, variant active", (h + d >= 0,), moved(relu) == d + least(h, z3.RealVal(0)), moved(relu) == d),
    Lemma("difference below variant", (), moved(relu) <= relu(h + d), moved(relu) <= h + d),
    Lemma("difference above original", (), moved(relu) >= -relu(h), moved(relu) >= -h),
    Lemma(
        "difference, original active, upper chord",
        (*BOTH_WAYS, h >= 0, h <= up, up + p < 0),
        moved(relu) >= -relu(h),
        moved(relu) >= d + h,
    ),
    Lemma(
        "difference of clip lies between 0 and d",
        (c > 0,),
        between(least(d, z3.RealVal(0)), moved(clip), largest(d, z3.RealVal(0))),
        between(least(d, -d), moved(clip), 0),
    ),
    Lemma(
        "difference of clip upper chord",
        (c > 0, *BOTH_WAYS),
        moved(clip) * (q - p) <= q * (d - p),
        moved(clip) * (q - p) <= p * (d - q),
    ),
    Lemma(
        "difference of leaky relu",
        (alpha >= 0, alpha <= 1, d >= 0),
        between(alpha * d, moved(leaky), d),
        between(d, moved(leaky), d),
    ),
    Lemma(
        "difference of the larger of two",
        (),
        between(least(d, e), largest(a + d, b + e) - largest(a, b), largest(d, e)),
        between(least(d, e), largest(a + d, b + e) - largest(a, b), largest(a, b)),
    ),
    Lemma(
        "relu of one net, clip of the other",
        (c > 0, h + d <= c),
        clip(h + d) - relu(h) == moved(relu),
        clip(h + d) - relu(h) == moved(clip),
    ),
    Lemma(
        "relu of one net, saturating clip of the other",
        (c > 0, up > c, h + d <= up),
        between(moved(relu) - (up - c), clip(h + d) - relu(h), moved(relu)),
        between(moved(relu), clip(h + d) - relu(h), moved(relu)),
    ),
    Lemma(
        "product rule of affine layers",
        (),
        b * (h + d) - a * h == (b - a) * h + b * d,
        b * (h + d) - a * h == (b - a) * h + a * d,
    ),
]

whole = z3.ToReal(n)
HALF_EVEN = (2 * (whole - t) <= 1, 2 * (t - whole) <= 1, z3.Implies(2 * (whole - t) == 1, n % 2 == 0))
low_step, high_step = z3.Ints("low_step high_step")
clamped = z3.If(n < low_step, low_step, z3.If(n > high_step, high_step, n))
level = z3.Int("level")  # of the input kept between the lowest and the highest step
inside = z3.If(t < low_step, z3.ToReal(low_step), z3.If(t > high_step, z3.ToReal(high_step), t))
QUANTIZER = [
    Lemma(
        "a quantizer is within half a step of the clipped input",
        (*HALF_EVEN, low_step < high_step),
        between(z3.RealVal("-1/2"), z3.ToReal(clamped) - inside, z3.RealVal("1/2")),
        between(z3.RealVal("-1/4"), z3.ToReal(clamped) - inside, z3.RealVal("1/4")),
    ),
    Lemma(
        "within half a step of the input itself, unless it saturates",
        (*HALF_EVEN, low_step < high_step, between(z3.ToReal(low_step), t, z3.ToReal(high_step))),
        between(z3.RealVal("-1/2"), z3.ToReal(clamped) - t, z3.RealVal("1/2")),
        between(z3.RealVal(0), z3.ToReal(clamped) - t, z3.RealVal("1/2")),
    ),
    Lemma(
        "a staircase lies below the line through its corners",
        HALF_EVEN,
        whole <= t + z3.RealVal("1/2"),
        whole <= t + z3.RealVal("1/4"),
    ),
    Lemma(
        "up to its first jump a staircase has its first level",
        (*HALF_EVEN, t < low_step + z3.RealVal("1/2")),
        n <= low_step,
        n <= low_step - 1,
    ),
    Lemma(
        "a quantizer of a clip is a quantizer with fewer levels",
        (
            *HALF_EVEN,
            low_step < high_step,
            2 * (level - inside) <= 1,
            2 * (inside - level) <= 1,
            z3.Implies(2 * (level - inside) == 1, level % 2 == 0),
            z3.Implies(2 * (inside - level) == 1, level % 2 == 0),
            z3.Implies(2 * (t - whole) == 1, n % 2 == 0),
        ),
        level == clamped,
        level == n,
    ),
    Lemma(
        "an input that stays in one cell has one output",
        (*HALF_EVEN, t > low_step - z3.RealVal("1/2"), t < low_step + z3.RealVal("1/2"), low_step < high_step),
        clamped == low_step,
        clamped == low_step + 1,
    ),
    Lemma(
        "rounding of a scale that is off by 2^-20 relative",
        (s > 0, h == s * t, e <= s / 2, e >= -s / 2, a <= 1, a >= -1, b == h + e + a * s / 2 / 2**20),
        between(-s / 2 * (1 + z3.RealVal(2) ** -20), b - h, s / 2 * (1 + z3.RealVal(2) ** -20)),
        between(-s / 2, b - h, s / 2),
    ),
]

# branch and bound: what a known level says of the argument, and weak duality
half = z3.RealVal("1/2")
SPLITS = [
    Lemma(
        "a level up to k has its argument below the jump behind k",
        (*HALF_EVEN, n <= low_step),
        t <= low_step + half,
        t <= low_step,
    ),
    Lemma(
        "a level from k + 1 on has its argument above that jump",
        (*HALF_EVEN, n >= low_step + 1),
        t >= low_step + half,
        t >= low_step + 1,
    ),
    Lemma(
        "each level is on one side of a cut",
        (),
        z3.Or(n <= low_step, n >= low_step + 1),
        z3.Or(n <= low_step, n >= low_step + 2),
    ),
    Lemma(
        "a staircase whose levels are known to end at k lies below the line through its corners, and below k",
        (*HALF_EVEN, n <= high_step),
        z3.And(whole <= t + half, n <= high_step),
        z3.And(whole <= t, n <= high_step),
    ),
    Lemma(
        "any multiplier bounds what is linked by an equation with an error",
        (p * b - q * a <= c, q * h <= d, a == h + t + e, between(-s, e, s)),
        p * b <= c + d + q * t + z3.If(q > 0, q, -q) * s,
        p * b <= c + d + q * t,
    ),
    Lemma(
        "a linear function on an edge is largest at one of its ends",
        (low <= up, between(low, h, up)),
        a * h + b <= largest(a * low + b, a * up + b),
        a * h + b <= a * up + b,
    ),
]

# exp is no term of Z3's: a = exp(z) > 0 stands for it, t = exp(delta / 2) >= 1, and tanh(delta / 4) = (t - 1) / (t + 1)
EXPONENTIAL = [
    Lemma(
        "sigmoid moves at most by tanh(delta / 4)",
        (a > 0, t >= 1),
        (a * t * t * (1 + a) - a * (1 + a * t * t)) * (t + 1) <= (t - 1) * (1 + a * t * t) * (1 + a),
        (a * t * t * (1 + a) - a * (1 + a * t * t)) * 2 * (t + 1) <= (t - 1) * (1 + a * t * t) * (1 + a),
    ),
    Lemma(
        "softmax of three moves as a sigmoid of the pairwise changes",
        (a > 0, b > 0, t >= 1, between(1, p * t, t * t), between(1, q * t, t * t)),
        between(a + b, (a * p + b * q) * t, (a + b) * t * t),
        between(a + b, a * p + b * q, (a + b) * t),
    ),
    Lemma("sigmoid slope", (p > 0, p < 1), between(0, 4 * p * (1 - p), 1), between(0, 8 * p * (1 - p), 1)),
    Lemma("tanh slope", (p > -1, p < 1), between(0, 1 - p * p, 1), between(p, 1 - p * p, 1)),
]

LEMMAS = [*ONE_NET, *DIFFERENCE, *QUANTIZER, *SPLITS, *EXPONENTIAL]


def decide(given: tuple[Claim, ...], claim: Claim) -> z3.CheckSatResult:
    """unsat: the claim is proved; sat: there is a counterexample."""
    solver = z3.Solver()
    solver.set("timeout", TIMEOUT_MS)
    solver.add(*given, z3.Not(claim))
    return solver.check()


@pytest.mark.parametrize("lemma", LEMMAS, ids=lambda lemma: lemma.name)
def test_rule_is_proved(lemma: Lemma) -> None:
    assert decide(lemma.given, lemma.claim) == z3.unsat


@pytest.mark.parametrize("lemma", LEMMAS, ids=lambda lemma: lemma.name)
def test_changed_rule_is_refuted(lemma: Lemma) -> None:
    assert decide(lemma.given, lemma.wrong) == z3.sat


def test_hypotheses_can_be_met() -> None:
    """A lemma whose hypotheses contradict each other would prove anything."""
    assert [lemma.name for lemma in LEMMAS if decide(lemma.given, z3.BoolVal(False)) != z3.sat] == []


@pytest.mark.parametrize("terms", range(1, 7))
def test_accumulated_rounding_is_within_gamma(terms: int) -> None:
    """(1 + e1)...(1 + en) differs from 1 by n u / (1 - n u) at most, |e| <= u (Higham, Accuracy and Stability, 3.1).

    By induction: of the step from n - 1 to n the extremes are e = u and e = -u.
    """
    unit, factor = z3.Reals("unit factor")
    small = (unit > 0, terms * unit < 1)
    before, after = (terms - 1) * unit / (1 - (terms - 1) * unit), terms * unit / (1 - terms * unit)
    step = (*small, between(1 - before, factor, 1 + before), between(-unit, e, unit))
    assert decide(step, between(1 - after, factor * (1 + e), 1 + after)) == z3.unsat
    assert decide(step, between(1 - terms * unit / 2, factor * (1 + e), 1 + terms * unit / 2)) == z3.sat


def test_int32_accumulator_cannot_overflow_below_its_bound() -> None:
    """u8 times s8 summed over at most 2^31 / (255 * 128) products stays in int32: exact integer semantics."""
    products, total = z3.Ints("products total")
    given = (products <= 2**31 // (255 * 128) - 1, total <= products * 255 * 128)
    assert decide(given, total < 2**31) == z3.unsat
    assert decide((products <= 67_000, total <= products * 255 * 128), total < 2**31) == z3.sat


def test_saturation_of_int8_requantization() -> None:
    """Bit-exact: clamping a 32-bit sum to int8 loses nothing inside, and never crosses over."""
    total = z3.BitVec("total", 32)
    clamped8 = z3.If(total > 127, z3.BitVecVal(127, 32), z3.If(total < -128, z3.BitVecVal(-128, 32), total))
    low8 = z3.SignExt(24, z3.Extract(7, 0, total))
    solver = z3.Solver()
    solver.add(z3.Extract(7, 0, clamped8) != z3.Extract(7, 0, total), total >= -128, total <= 127)
    assert solver.check() == z3.unsat
    wraps = z3.Solver()
    wraps.add(low8 != clamped8)
    assert wraps.check() == z3.sat
