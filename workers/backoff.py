"""When to restart a process that died: a pure policy."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Restart:
    """Start again after `after_s` seconds; `stand_in`: start the stand-in instead, for `stand_in_s` seconds."""

    after_s: float
    stand_in: bool
    stand_in_s: float = 0.0


@dataclass(frozen=True)
class BackoffLimits:
    """The limits of a restart policy; times in seconds.

    The first death is followed by a restart at once, the second by `first_s`, each further one by `factor` times
    more, up to `cap_s`. A process that had worked for `quiet_s` before it died starts over with the first death.
    From the `deaths_max`-th death within `window_s` on, the stand-in is due: first for `stand_in_s`, then, while the
    real process dies without a quiet time, each time `factor` times longer, up to `stand_in_cap_s`.
    """

    first_s: float = 0.2
    factor: float = 2.0
    cap_s: float = 10.0
    quiet_s: float = 5.0
    deaths_max: int = 5
    window_s: float = 60.0
    stand_in_s: float = 10.0
    stand_in_cap_s: float = 300.0


@dataclass
class Backoff:
    """The deaths of one process in a row and what follows from them.

    >>> backoff = Backoff(BackoffLimits(first_s=0.5, deaths_max=4))
    >>> [backoff.died(now, healthy_s=0.1).after_s for now in (10.0, 11.0, 12.0)]
    [0.0, 0.5, 1.0]
    >>> backoff.died(13.0, healthy_s=0.1)
    Restart(after_s=2.0, stand_in=True, stand_in_s=10.0)
    """

    limits: BackoffLimits = field(default_factory=BackoffLimits)
    deaths: int = 0
    stand_ins: int = 0
    recent: tuple[float, ...] = ()

    def died(self, now: float, healthy_s: float) -> Restart:
        """Decides after a death at `now`; `healthy_s` is how long the process had worked since it was ready."""
        limits = self.limits
        if healthy_s >= limits.quiet_s:
            self.deaths, self.stand_ins, self.recent = 0, 0, ()
        self.deaths += 1
        self.recent = (*(at for at in self.recent if now - at <= limits.window_s), now)[-limits.deaths_max :]
        after_s = 0.0 if self.deaths == 1 else self._grown(limits.first_s, self.deaths - 2, limits.cap_s)
        # once replaced, one more death without a quiet time is enough: the window counts for the first time only
        if self.stand_ins == 0 and len(self.recent) < limits.deaths_max:
            return Restart(after_s, stand_in=False)
        self.stand_ins += 1
        stand_in_s = self._grown(limits.stand_in_s, self.stand_ins - 1, limits.stand_in_cap_s)
        return Restart(after_s, stand_in=True, stand_in_s=stand_in_s)

    def _grown(self, first: float, times: int, cap: float) -> float:
        # 64 doublings pass every cap; without a bound the power would overflow after a thousand deaths
        return min(cap, float(first * self.limits.factor ** min(times, 64)))
