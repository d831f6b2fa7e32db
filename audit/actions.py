"""What the monitor does about an early warning by itself, where the settings allow it. Pure.

Of the warnings, a risen latency alone is something that LRAI can do something about: a cheaper variant answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernels.spec import ModelSpec

if TYPE_CHECKING:
    from streams.control import Control

MONITOR = "monitor"


def variant(spec: ModelSpec, now: Control | None, name: str, at: int) -> str | None:
    """The variant to force because of the warning `name` of the time `at`, ms: the next one of `under_load`, which the
    owner names from dear to cheap. `now`: the newest change of which variant answers.

    None where no cheaper one is left, where variants serve without a certificate, where a person forced one, or where a
    person let policy and load choose since `at`.
    """
    if spec.require_certificate == "none":
        return None
    if now and now.by == MONITOR and now.id == name:
        return now.variant  # done already, before a restart
    if now and now.by != MONITOR and (now.variant or now.at >= at):
        return None
    served = [each.name for each in spec.variants if not each.problem]
    ladder = [each for each in spec.under_load if each in served and each not in spec.prefer[:1]]
    if now and now.variant in ladder:
        ladder = ladder[ladder.index(now.variant) + 1 :]
    return next(iter(ladder), None)


def taken(spec: ModelSpec, variant: str, proposed: str) -> str:
    """What was done, how to take it back, and what remains to be done."""
    back = f"lrai variant clear {spec.model} --version {spec.version}"
    return f"{variant} answers where its certificate admits it, until {back}; {proposed}"
