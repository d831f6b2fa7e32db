"""How long the windows of a lane stay open: as long as its objective allows, by a formula and then by experience. Pure.

A window of w seconds costs c seconds of work, its function and its transaction. A request waits for the window before,
its own and the next stage, about three times the work, and the more of the time a lane works (u = c / (w + c)), the
longer the work takes on a broker and cores that it shares:

    p95(w) = w + 3 c / (1 - u) = w + 3 c + 3 c^2 / w,      least at w = sqrt(3) c

Transactions are what all lanes share, so a lane begins with the longest window whose p95 stays within `TARGET` of the
objective, up to `WORK_TIMES` times its work. From there a contextual bandit learns: its contexts are the octaves of the
arrival rate, its arms windows from 1/50 to half of the objective, and the static setting. A lane that is behind takes
the longest window: it is late already, and long windows are answered at the highest rate.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, variance
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from random import Random

STAGES = 3.0
SHARES = (0.02, 0.035, 0.06, 0.1, 0.15, 0.22, 0.33, 0.5)  # of the objective
LONGEST = len(SHARES) - 1
STATIC = len(SHARES)  # the arm that is the static setting
ARMS = STATIC + 1
TARGET = 0.9
WORK_TIMES = 10  # a window longer than so many times its work saves less than a tenth of it, and costs latency
WINDOW_S_MIN = 0.0005
MEMORY = 30  # epochs that an estimate remembers
EXPLORE = 1 / 32  # of the epochs, once a load is known
EAGER = 8  # epochs after which it tries half as often as at first
NEAR, PRESSED_NEAR = 0.02, 0.1  # in reward: so little is not worth the transactions that a shorter window costs others
SPEED_WEIGHT, CORES_WEIGHT = 0.1, 0.05
CONTEXTS_MAX = 128


@dataclass(frozen=True, slots=True)
class Features:
    """What a lane sees: records a second; seconds of work a window; the objective; whether more waits than a window
    takes, or for longer than the objective; `pressed`: the objective was missed by the epoch before."""

    rate: float
    busy_s: float
    objective_s: float
    behind: bool = False
    pressed: bool = False

    @property
    def context(self) -> str:
        return str(round(math.log2(max(self.rate, 1.0))))


@dataclass(frozen=True, slots=True)
class Plan:
    """What a lane does for an epoch. `expected_s`: the p95 that is expected; `tried`: for the sake of learning."""

    arm: int
    window_s: float
    expected_s: float
    tried: bool = False

    @property
    def static(self) -> bool:
        return self.arm == STATIC


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an epoch: answers, those within their objective, the largest p95 over its objective among models,
    and cores that the lane's process was busy."""

    answers: int
    within: int
    ratio: float
    cores: float = 0.0

    @property
    def share(self) -> float:
        return self.within / self.answers

    @property
    def reward(self) -> float:
        """The share within the objective; among equals the faster one, then the one that costs less."""
        return self.share + SPEED_WEIGHT * min(1.0, 1 / max(self.ratio, 1e-9)) - CORES_WEIGHT * self.cores


@dataclass(slots=True)
class Estimate:
    """The mean reward and p95 over objective of an arm, over about the last MEMORY epochs."""

    epochs: int = 0
    reward: float = 0.0
    ratio: float = 0.0

    def add(self, outcome: Outcome) -> None:
        self.epochs += 1
        weight = 1 / min(self.epochs, MEMORY)
        self.reward += weight * (outcome.reward - self.reward)
        self.ratio += weight * (outcome.ratio - self.ratio)


class Scheduler:
    """One lane's. `static_s`: the window of the settings."""

    def __init__(self, static_s: float) -> None:
        self.static_s = static_s
        self.estimates: dict[str, list[Estimate]] = {}

    def decide(self, features: Features, rng: Random) -> Plan:
        """The best arm that is known for this load; now and then, where it is safe, a neighbour of it."""
        if features.behind:
            return self._plan(LONGEST, features)
        best, arms = self._best(features), self.estimates.get(features.context)
        if arms and features.pressed and not arms[LONGEST].epochs:
            return self._plan(LONGEST, features)
        known = sum(each.epochs for each in arms or ())
        if arms is None or features.pressed or rng.random() >= max(EXPLORE, 1 / (1 + known / EAGER)):
            return self._plan(best, features)
        arm = self._first(features) if best == STATIC else min(max(best + rng.choice((-1, 1)), 0), LONGEST)
        tried = self._plan(arm, features, tried=True)
        return tried if self.safe(tried, features) else self._plan(best, features)

    def safe(self, plan: Plan, features: Features) -> bool:
        """Whether it may be tried: its p95 is expected to stay within the objective."""
        return plan.expected_s <= TARGET * features.objective_s

    def learn(self, features: Features, plan: Plan, outcome: Outcome) -> None:
        """What came of a plan under these features. A lane that was behind says nothing of windows."""
        if features.behind:
            return
        arms = self.estimates.get(features.context)
        if arms is None:
            if len(self.estimates) >= CONTEXTS_MAX:
                self.estimates.pop(next(iter(self.estimates)))
            arms = self.estimates[features.context] = [Estimate() for _ in range(ARMS)]
        arms[plan.arm].add(outcome)

    def static(self, features: Features) -> Plan:
        """The static setting."""
        return self._plan(STATIC, features)

    def window_s(self, arm: int, features: Features) -> float:
        """Seconds from a window's first record to its end."""
        if arm == STATIC:
            return self.static_s
        most_s = max(WORK_TIMES * features.busy_s, self.static_s)
        return min(max(SHARES[arm] * features.objective_s, WINDOW_S_MIN), most_s)

    def state(self) -> dict[str, Any]:
        """What was learned, for another process to begin with; JSON."""
        return {name: [[e.epochs, e.reward, e.ratio] for e in arms] for name, arms in self.estimates.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes over what another process learned. Raises ValueError, TypeError."""
        found = {name: [Estimate(int(e), float(r), float(p)) for e, r, p in arms] for name, arms in state.items()}
        sound = (len(arms) == ARMS and all(math.isfinite(e.reward + e.ratio) for e in arms) for arms in found.values())
        if not all(sound):
            raise ValueError("it is not of this version")
        self.estimates = dict(list(found.items())[:CONTEXTS_MAX])

    def _first(self, features: Features) -> int:
        """The longest window that the formula allows; where it allows none, the longest, as nothing costs less."""
        expected = [p95_s(self.window_s(arm, features), features.busy_s) for arm in range(STATIC)]
        allowed = [arm for arm in range(STATIC) if expected[arm] <= TARGET * features.objective_s]
        return max(allowed, default=LONGEST)

    def _best(self, features: Features) -> int:
        """The longest window whose mean reward is about the best; of a load never seen, that of the nearest one."""
        arms = self.estimates.get(features.context)
        if arms is None and self.estimates:
            octave = int(features.context)
            arms = self.estimates[min(self.estimates, key=lambda each: abs(int(each) - octave))]
        tried = [arm for arm in range(STATIC) if arms and arms[arm].epochs]
        if not arms or not tried:
            return self._first(features)
        best = max(arms[arm].reward for arm in tried)
        if arms[STATIC].epochs and arms[STATIC].reward > best:
            return STATIC
        near = PRESSED_NEAR if features.pressed else NEAR
        return max(arm for arm in tried if arms[arm].reward >= best - near)

    def _plan(self, arm: int, features: Features, tried: bool = False) -> Plan:
        return Plan(arm, self.window_s(arm, features), self._expected(arm, features), tried)

    def _expected(self, arm: int, features: Features) -> float:
        """The p95 in seconds: as measured; else as the formula goes on from the nearest arm that was measured."""
        arms = self.estimates.get(features.context)
        tried = [each for each in range(ARMS) if arms and arms[each].epochs]
        formula_s = p95_s(self.window_s(arm, features), features.busy_s)
        if not arms or not tried:
            return formula_s
        window_s = max(self.window_s(arm, features), WINDOW_S_MIN)
        windows_s = {each: max(self.window_s(each, features), WINDOW_S_MIN) for each in tried}
        nearest = min(tried, key=lambda each: abs(math.log(windows_s[each] / window_s)))
        measured_s = arms[nearest].ratio * features.objective_s
        return measured_s * formula_s / p95_s(self.window_s(nearest, features), features.busy_s)


def p95_s(window_s: float, busy_s: float) -> float:
    """The formula above.

    >>> round(p95_s(0.0173, 0.01), 4), round(p95_s(0.005, 0.01), 4)
    (0.0646, 0.095)
    """
    window_s = max(window_s, WINDOW_S_MIN)
    return window_s + STAGES * busy_s + STAGES * busy_s**2 / window_s


class Guard:
    """Whether the learned plans may be used: not while they do worse than the static setting under the same load.

    Where learned epochs keep less than `ENOUGH` of the answers within their objective, it asks for static ones: one in
    `ASKS` until it has seen `BASELINE`, then one in `AGAIN`; as seldom from the first while the static setting is not
    expected to keep the objective, as near the capacity each such epoch leaves a backlog. Where learned epochs fall
    short of the static ones by over `MARGIN` and `ERRORS` standard errors of both means, the static setting holds for
    `HOLD_S`, and twice as long each time again.
    """

    MARGIN, ERRORS = 0.02, 3.0
    ENOUGH = 0.98
    BASELINE, ASKS, AGAIN = 3, 4, 64
    EPOCHS, EPOCHS_MAX = 5, 20  # learned ones, in a row
    HOLD_S = 30.0
    HOLD_S_MAX = 3600.0

    def __init__(self) -> None:
        self.until_s = -math.inf
        self.trips = 0
        self._hold_s = self.HOLD_S
        self._static: dict[str, deque[float]] = {}
        self._learned: dict[str, float] = {}  # the share of about the last ten epochs
        self._epochs: Counter[str] = Counter()
        self._differences: deque[tuple[float, float]] = deque(maxlen=self.EPOCHS_MAX)

    def holds(self, at_s: float) -> bool:
        """Whether the static setting must be used at that time."""
        return at_s < self.until_s

    def asks(self, context: str, safe: bool) -> bool:
        """Whether the next epoch of this load is to be a static one. `safe`: it is expected to keep the objective."""
        if self._learned.get(context, 1.0) >= self.ENOUGH:
            return False
        self._epochs[context] += 1
        known = len(self._static.get(context, ())) >= self.BASELINE
        return self._epochs[context] % (self.AGAIN if known or not safe else self.ASKS) == 0

    def static_share(self, context: str) -> float | None:
        """The share of answers within their objective that the static setting kept under this load."""
        static = self._static.get(context)
        return fmean(static) if static else None

    def seen(self, context: str, plan: Plan, outcome: Outcome, at_s: float) -> bool:
        """Takes an epoch into account; True where it makes the static setting take over."""
        if plan.static:
            if context not in self._static and len(self._static) >= CONTEXTS_MAX:
                self._static.clear()
            self._static.setdefault(context, deque(maxlen=MEMORY)).append(outcome.share)
            return False
        if context not in self._learned and len(self._learned) >= CONTEXTS_MAX:
            self._learned.clear()
            self._epochs.clear()
        share = self._learned.get(context, outcome.share)
        self._learned[context] = share + (outcome.share - share) / 10
        static = self._static.get(context, ())
        if len(static) < self.BASELINE:
            return False
        self._differences.append((outcome.share - fmean(static), variance(static) / len(static)))
        count = len(self._differences)
        if count < self.EPOCHS:
            return False
        apart = [each for each, _ in self._differences]
        error = math.sqrt(variance(apart) / count + fmean(each for _, each in self._differences))
        if fmean(apart) + self.ERRORS * error >= -self.MARGIN:
            return False
        self.until_s, self._hold_s = at_s + self._hold_s, min(2 * self._hold_s, self.HOLD_S_MAX)
        self.trips += 1
        self._differences.clear()
        return True


class Rest:
    """How long a lower lane rests between windows while a higher one misses its objective; at most `most_s`.

    Doubled at each report of a miss, cut by a fifth at each one of none: a higher lane is helped at once, a lower one
    finds out slowly how much it may take.

    >>> rest = Rest()
    >>> [round(rest.reported(missed), 4) for missed in (True, True, False)]
    [0.01, 0.02, 0.016]
    """

    FIRST_S = 0.01
    MOST_S = 0.5
    EASES = 0.8

    def __init__(self, most_s: float = MOST_S) -> None:
        self.most_s, self.rest_s = most_s, 0.0

    def reported(self, missed: bool) -> float:
        """A report of a higher lane came."""
        if missed:
            self.rest_s = min(max(2 * self.rest_s, self.FIRST_S), self.most_s)
        else:
            self.rest_s = self.rest_s * self.EASES if self.rest_s > self.FIRST_S / 2 else 0.0
        return self.rest_s
