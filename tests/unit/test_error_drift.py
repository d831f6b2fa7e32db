"""The share of wrong decisions, by the totals of labels: a jump is found and told once, a stable share is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from audit.counts import Counts
from tests.produced_tallies import AT_MS, tally
from tests.unit.test_watching import counted, kinds, watch

GROUPS = ("F", "M", None)  # who did not say is judged, too


class Labels:
    """Totals that grow, as the audit writer sends them."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.totals = {group: np.zeros(4, int) for group in GROUPS}
        self.sent = 0

    def more(self, labels: int, rate: float, ended: str | None = None) -> dict[str, Any]:
        """With so many more labels; decisions are wrong at the rate."""
        for group, n in zip(GROUPS, self.rng.multinomial(labels, [0.45, 0.45, 0.1]), strict=True):
            positive, wrong = self.rng.random(n) < 0.4, self.rng.random(n) < rate
            favourable = positive ^ wrong
            self.totals[group] += [n, favourable.sum(), positive.sum(), (favourable & positive).sum()]
        self.sent += 1
        groups = {"sex": {group: tuple(each.tolist()) for group, each in self.totals.items()}}
        return tally(groups, kind="labels", at=AT_MS + self.sent, ended=ended)

    def anew(self) -> None:
        self.totals = {group: np.zeros(4, int) for group in GROUPS}


@pytest.mark.parametrize(("rate", "step"), [(0.02, 250), (0.1, 100), (0.3, 1000)])
def test_a_stable_share_of_a_million_labels_is_silent(rate: float, step: int) -> None:
    labels, counts = Labels(1), Counts("net", "1")
    for offset in range(1_000_000 // step):
        assert counts.add(labels.more(step, rate), "t/0", offset) == ""
    assert counts.errors is not None and counts.errors.changes == 0
    assert counts.judged[""][0] == sum(each[0] for each in labels.totals.values())
    assert counts.judged[""][1] / counts.judged[""][0] == pytest.approx(rate, abs=0.01)


@pytest.mark.parametrize(("before", "after"), [(0.05, 0.25), (0.1, 0.3), (0.4, 0.2)])
@pytest.mark.parametrize("step", [10, 64])
def test_a_jump_is_found_within_two_thousand_labels_and_told_once(before: float, after: float, step: int) -> None:
    labels, counts, watching = Labels(2), counted(), watch()
    for offset in range(5_000 // step):
        counts.add(labels.more(step, before), "t/0", offset)
    assert "drift" not in kinds(watching.look(counts, True, 0))
    for _ in range(2_000 // step):
        offset += 1
        counts.add(labels.more(step, after), "t/0", offset)
        if counts.errors and counts.errors.changes:
            break
    counts = Counts.decode(counts.encode(), {})  # a restart in between
    (told,) = [each.record for each in watching.look(counts, True, 2000) if each.record.get("kind") == "drift"]
    assert told["severity"] == ("warning" if after > before else "info") and told["at"] == AT_MS + labels.sent
    assert counts.errors and counts.errors.last == pytest.approx([before, after], abs=0.08), told["message"]
    assert "drift" not in kinds(watching.look(counts, True, 4000))
    (again,) = [each.record for each in watch().look(counts, True, 6000) if each.record.get("kind") == "drift"]
    assert again == told


def test_replays_and_restarts_change_nothing() -> None:
    labels, whole = Labels(3), Counts("net", "1")
    sent = [labels.more(100, 0.1 if number < 50 else 0.4) for number in range(70)]
    for offset, each in enumerate(sent):
        whole.add(each, "t/0", offset)
    killed = Counts("net", "1")
    for offset, each in enumerate(sent[:40]):
        killed.add(each, "t/0", offset)
    killed = Counts.decode(killed.encode(), {})
    for offset, each in [*enumerate(sent)][30:]:
        killed.add(each, "t/0", offset)
    assert killed.errors and whole.errors and killed.errors.changes == whole.errors.changes >= 1
    assert killed.judged == whole.judged and killed.errors_at == whole.errors_at


def test_totals_that_begin_anew_go_on_and_a_recount_counts_nothing() -> None:
    labels, counts = Labels(4), Counts("net", "1")
    counts.add(labels.more(640, 0.1), "t/0", 0)
    assert counts.errors and counts.errors.blocks
    counts.begin_epoch("f1")
    labels.anew()
    counts.add(labels.more(64, 0.1, ended="f1"), "t/0", 1)
    assert len(counts.errors.blocks) == 2 and set(counts.judged) == {"", "f1"}
    for group in ("F", "M"):  # another outcome is the favourable one now: more are wrong than labels came
        labels.totals[group][1:] = labels.totals[group][0], 0, 0
    counts.add(labels.more(1, 0.1, ended="f1"), "t/0", 2)
    assert len(counts.errors.blocks) == 2 and counts.errors.rows == 0
