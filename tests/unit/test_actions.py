"""What the monitor does about a risen latency, by simulated weeks: when allowed, once a day, never over a person."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from audit import actions
from audit.counts import DAY_MS
from audit.watching import Policy, Told, Watch
from kernels.spec import ModelSpec, VariantSpec
from schemas import framing
from schemas.errors import BadSetting
from streams.control import VARIANT, Control
from streams.meters import SECONDS
from streams.settings import load
from tests.produced_tallies import AT_MS, tally
from tests.unit.test_watching import SPEC, counted, kinds, watch

NAMES = ("int8", "mixed", "int4")
VARIANTS = (*(VariantSpec(name) for name in NAMES), VariantSpec("odd", problem="dynamic rows"))
LADDER = replace(SPEC, variants=VARIANTS, prefer=("int8",), under_load=("int8", "odd", "mixed", "int4"))
ALLOWED = Policy(latency_edges=SECONDS, actions_allowed=("latency",))


class Weeks:
    """A release whose p95 is usual until it rises; each day is looked at once it is over."""

    def __init__(self, spec: ModelSpec = LADDER, policy: Policy = ALLOWED) -> None:
        self.spec, self.policy = spec, policy
        self.watching, self.counts, self.days = watch(spec, policy), counted(), 0
        self.forced: Control | None = None

    def day(self, slow: bool) -> list[Told]:
        """What is told when the next day begins; what is forced holds from then on."""
        latency = [0] * (len(SECONDS) + 1)
        latency[8 if slow else 3] = 100
        at = AT_MS + self.days * DAY_MS
        window = tally({}, at=at, requests=100, latency=np.array(latency, "<i4").tobytes(), releases=[])
        self.counts.add(window, "t/0", self.days)
        self.days += 1
        return self.look()

    def look(self) -> list[Told]:
        told = self.watching.look(self.counts, False, AT_MS + self.days * DAY_MS, self.forced)
        kinds(told)
        for each in told:
            if each.kind == "control":
                self.forced = Control.decode(framing.encode("control", each.record))
        return [each for each in told if each.kind == "control" or each.record["kind"] == "latency"]

    def restart(self) -> None:
        self.watching = watch(self.spec, self.policy)

    def person(self, variant: str | None) -> None:
        at = AT_MS + (self.days - 1) * DAY_MS + 3_600_000
        self.forced = Control(VARIANT, "net", "1", variant, "ann", "", at)

    def told(self, days: Sequence[bool]) -> list[list[Told]]:
        return [self.day(slow) for slow in days]


USUAL, SLOW = [False] * 8, [True] * 3  # the first day is not whole; the third slow one is judged on the fourth


def alert(told: list[Told]) -> dict[str, Any]:
    (found,) = [dict(each.record) for each in told if each.kind == "alert"]
    return found


def forced(told: list[Told]) -> list[str]:
    return [each.record["variant"] for each in told if each.kind == "control"]


def test_it_is_proposed_where_nothing_is_allowed() -> None:
    weeks = Weeks(policy=Policy(latency_edges=SECONDS))
    assert not any(weeks.told([*USUAL, *SLOW]))
    told = weeks.day(True)
    assert [each.kind for each in told] == ["alert"] and not alert(told)["taken"]
    assert alert(told)["action"].startswith("proposed: re-tune quantization")


def test_it_is_taken_once_a_day_down_the_ladder_until_nothing_is_left() -> None:
    weeks = Weeks()
    assert not any(weeks.told([*USUAL, *SLOW]))
    first = weeks.day(True)
    assert [each.kind for each in first] == ["control", "alert"] and forced(first) == ["mixed"]
    assert (first[0].key, first[0].record["by"], first[0].record["id"]) == (
        "variant/net/1",
        "monitor",
        alert(first)["id"],
    )
    assert alert(first)["taken"] and alert(first)["action"].startswith("taken: mixed answers")
    assert "lrai variant clear net --version 1" in alert(first)["action"]
    assert weeks.look() == []
    assert forced(weeks.day(True)) == ["int4"]
    last = weeks.day(True)
    assert forced(last) == [] and not alert(last)["taken"] and alert(last)["action"].startswith("proposed: ")


def test_latency_that_is_usual_again_leaves_what_answers_alone() -> None:
    weeks = Weeks()
    weeks.told([*USUAL, *SLOW, False])
    assert weeks.forced and weeks.forced.variant == "mixed"
    assert not any(weeks.told([False] * 20))


def test_a_restart_takes_nothing_again() -> None:
    weeks = Weeks()
    before = weeks.told([*USUAL, *SLOW, True])[-1]
    for _ in range(3):
        weeks.restart()
        again = weeks.look()
        assert forced(again) == ["mixed"] and alert(again) == alert(before)
        assert again[0].record | {"at": 0} == before[0].record | {"at": 0}


def test_what_a_person_asked_for_holds() -> None:
    weeks = Weeks()
    weeks.told([*USUAL, *SLOW])
    weeks.person("int8")
    assert forced(weeks.day(True)) == []
    weeks = Weeks()
    weeks.told([*USUAL, *SLOW, True])
    weeks.person(None)
    weeks.restart()
    assert forced(weeks.look()) == []  # taken back today
    assert forced(weeks.day(True)) == ["mixed"]


@pytest.mark.parametrize(
    "spec",
    [
        replace(LADDER, require_certificate="none"),
        replace(LADDER, under_load=()),
        replace(LADDER, under_load=("int8",)),
        replace(LADDER, variants=()),
    ],
    ids=["uncertified", "no ladder", "answers already", "not served"],
)
def test_nothing_is_forced_where_no_cheaper_certified_variant_is_named(spec: ModelSpec) -> None:
    told = Weeks(spec).told([*USUAL, *SLOW, True])[-1]
    assert forced(told) == [] and not alert(told)["taken"]


def test_a_variant_that_the_owner_took_away_begins_the_ladder_anew() -> None:
    gone = Control(VARIANT, "net", "1", "int2", actions.MONITOR, "", 0, "another day")
    assert actions.variant(LADDER, gone, "today", DAY_MS) == "mixed"


def test_idle_devices_are_told_with_who_has_to_act() -> None:
    watching: Watch = watch(LADDER, ALLOWED)
    counts = counted(*(tally({}, at=AT_MS + day * DAY_MS, requests=100, releases=[]) for day in range(9)))
    (told,) = [each.record for each in watching.look(counts, False, 0) if each.record["kind"] == "utilisation"]
    assert not told["taken"] and told["action"].startswith("proposed: ") and "by itself" in told["action"]


def test_settings_allow_what_can_be_done_alone() -> None:
    assert load(actions_allowed=("latency",)).actions_allowed == ("latency",)
    with pytest.raises(
        BadSetting, match=r"actions_allowed = .*names complaints, scale; the monitor can act on latency"
    ):
        load(actions_allowed=("scale", "latency", "complaints"))
