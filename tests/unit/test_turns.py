"""Who runs next: the highest waiting lane, and none starves."""

from __future__ import annotations

import threading
import time

import pytest

from workers.turns import PASSED_MAX, Turns

WAIT_S = 10.0


class Queue:
    """Lanes that wait for a turn which the test holds; `order` says who got it."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.order: list[int] = []
        self.threads: list[threading.Thread] = []

    def ask(self, lane: int) -> None:
        before = sum(self.turns._waiting)
        thread = threading.Thread(target=self._take, args=(lane,))
        thread.start()
        self.threads.append(thread)
        end = time.monotonic() + WAIT_S
        while sum(self.turns._waiting) == before:
            assert time.monotonic() < end
            time.sleep(0.001)

    def _take(self, lane: int) -> None:
        with self.turns.turn(lane):
            self.order.append(lane)

    def done(self) -> list[int]:
        for thread in self.threads:
            thread.join(WAIT_S)
            assert not thread.is_alive()
        return self.order


def test_the_highest_waiting_lane_goes_first() -> None:
    queue = Queue(Turns(3))
    with queue.turns.turn(2):
        for lane in (2, 1, 0, 1):
            queue.ask(lane)
    assert queue.done() == [0, 1, 1, 2]


def test_a_lane_that_was_passed_over_goes_next() -> None:
    queue = Queue(Turns(2))
    with queue.turns.turn(1):
        queue.ask(1)
        for _ in range(3 * PASSED_MAX):
            queue.ask(0)
    order = queue.done()
    assert order.index(1) == PASSED_MAX
    assert order.count(0) == 3 * PASSED_MAX


def test_an_error_gives_the_turn_back() -> None:
    turns = Turns(1)
    for _ in range(2):
        try:
            with turns.turn(0):
                raise KeyError
        except KeyError:
            pass
    with turns.turn(0):
        assert turns._free == 0


def test_two_at_once_where_there_are_two_cores() -> None:
    turns = Turns(2, 2)
    with turns.turn(1), turns.turn(1):
        assert turns._free == 0
    with turns.turn(0), turns.turn(1):
        assert turns._free == 0


@pytest.mark.parametrize("runs", [1, 2])
def test_no_more_at_once(runs: int) -> None:
    turns, inside, most = Turns(3, runs), [0], [0]
    count = threading.Lock()

    def work(lane: int) -> None:
        for _ in range(50):
            with turns.turn(lane):
                with count:
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                with count:
                    inside[0] -= 1

    threads = [threading.Thread(target=work, args=(lane,)) for lane in (0, 1, 2, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
        assert not thread.is_alive()
    assert 1 <= most[0] <= runs
