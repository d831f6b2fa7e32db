"""What a lane runs, in its slot file; and what to do about what killed the process that ran it before."""

from __future__ import annotations

import json
from collections.abc import Sequence

from streams.log import log
from streams.window import Range, Window
from workers.slot import RUNNING_BYTES_MAX, Slot

DEATHS_MAX = 2
Place = tuple[str, int, int, int]


class LaneJournal:
    """One lane's. A process that died in a run leaves its place in the slot; after the second death there, the window
    that covers it runs in a kernel that may die alone."""

    def __init__(self, slot: Slot, lane: int) -> None:
        self.slot = slot
        self.lane = lane
        self.ranges: Sequence[Range] = []
        self.deaths, self.places = _read(slot.read().lanes[lane].running)

    def begins(self, window: Window) -> bool:
        """Writes the place down; whether the window is to run in a kernel that may die alone."""
        self.ranges = window.ranges
        deaths = self.deaths if self._covers(window) else 0
        places = [(each.topic, each.partition, each.start, each.stop) for each in window.ranges]
        self.slot.running(self.lane, _text(deaths, places))
        if deaths >= DEATHS_MAX:
            log("warning", "this window killed the process before; running it apart", lane=self.lane, deaths=deaths)
        return deaths >= DEATHS_MAX

    def ended(self) -> None:
        """The run survived: what killed the process lies behind this window, if the window was a shorter one."""
        self.slot.done(self.lane)
        self.places = [each for place in self.places if (each := self._behind(place))[2] < each[3]]
        self.deaths = self.deaths if self.places else 0

    def _behind(self, place: Place) -> Place:
        """What remains of a place after this window."""
        topic, partition, start, stop = place
        reached = [each.stop for each in self.ranges if (each.topic, each.partition) == (topic, partition)]
        return topic, partition, max([start, *reached]), stop

    def _covers(self, window: Window) -> bool:
        """Whether the window reaches into the places of the last death; boundaries may lie elsewhere now."""
        return any(
            topic == each.topic and partition == each.partition and start < each.stop and each.start < stop
            for topic, partition, start, stop in self.places
            for each in window.ranges
        )


def _read(text: bytes) -> tuple[int, list[Place]]:
    """How often a process died at these places, the last death counted in."""
    if not text:
        return 0, []
    try:
        found = json.loads(text)
        return int(found["deaths"]) + 1, [(str(t), int(p), int(a), int(b)) for t, p, a, b in found["places"]]
    except (ValueError, KeyError, TypeError):  # torn by the death itself
        return 0, []


def _text(deaths: int, places: list[Place]) -> bytes:
    while len(text := json.dumps({"deaths": deaths, "places": places}).encode()) > RUNNING_BYTES_MAX:
        places = places[: len(places) // 2]
    return text
