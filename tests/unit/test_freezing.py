"""A frozen version obeys its policy at once; requests that lack what the model's owner asks for, too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kernels.spec import ModelSpec
from streams.control import FREEZE, Control
from tests.samples import NOW_MS, encoded, request, spec, tensor
from tests.stages import Ends, Identity, actor, coalesce, outputs, through

FAIR = spec(score=("value", 0), threshold=0.5, labels=("no", "yes"), favourable="yes", sensitive_features=("sex",))
OLDER = replace(FAIR, labels=("deny", "grant"), favourable="grant")
NEWER = replace(FAIR, version="2", on_freeze="1", fallback=OLDER)
Frozen = Callable[[str], Control | None]


class Tripled(Identity):
    def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {name: 3 * each for name, each in super().run(inputs).items()}


def frozen(*versions: str) -> Frozen:
    def state(version: str) -> Control | None:
        if version not in versions:
            return None
        reason = "demographic parity of sex 0.12 > 0.05"
        return Control(FREEZE, "net", version, None, "monitor", reason, NOW_MS, f"freeze-{version}", "{}")

    return state


NOT = frozen()


def value(score: float = 0.9, attributes: dict[str, str] | None = None, consent: str | None = "c") -> bytes:
    rows = np.full((1, 3), score, np.float32)
    attributes = {"sex": "F"} if attributes is None else attributes
    return encoded(request([tensor("features", rows)], attributes=attributes, consent_id=consent))


def ended(
    model: ModelSpec, values: list[bytes], state: Frozen = NOT, kernel: Identity | None = None,
    fallback: Identity | None = None,
) -> Ends:  # fmt: skip
    lane = actor(model, kernel or Identity(), frozen=state, fallback=fallback)
    ends = through(values, coalesce([model]), [lane])
    ends.check(len(values))
    return ends


def header(ends: Ends, offset: int, name: str) -> bytes | None:
    (sent,) = ends.sent[offset]
    return dict(sent[3]).get(name)


def test_a_frozen_version_rejects_and_says_since_when_why_and_whom_to_ask() -> None:
    kernel = Identity()
    ends = ended(FAIR, [value()] * 3, frozen("1"), kernel)
    assert {(ends.code(i), ends.results[i][0]["status"]) for i in range(3)} == {("frozen", "REJECTED")}
    for part in (
        "2026-01-01T00:00:00+00:00",
        "demographic parity of sex 0.12 > 0.05",
        "by monitor",
        "ask the operator",
    ):
        assert part in ends.message(0)
    assert kernel.runs == []
    assert ends.decisions[0][0]["frozen"] == "freeze-1"
    (tally,) = ends.tallies
    assert (tally["frozen"], tally["outcomes"]) == ("freeze-1", {"frozen": 3})
    assert (tally["groups"], tally["releases"]) == ([], [])


def test_a_version_without_a_freeze_says_nothing_of_one() -> None:
    ends = ended(FAIR, [value()])
    assert (ends.code(0), header(ends, 0, "lrai_frozen"), ends.decisions[0][0]["frozen"]) == (None, None, None)
    assert ends.tallies[0]["frozen"] is None


def test_a_frozen_version_that_flags_answers_and_says_so() -> None:
    ends = ended(replace(FAIR, on_freeze="flag"), [value(), value(0.1)], frozen("1"))
    assert [ends.decisions[i][0]["decision"] for i in range(2)] == ["yes", "no"]
    assert {header(ends, i, "lrai_frozen") for i in range(2)} == {b"freeze-1"}
    assert ends.decisions[0][0]["frozen"] == "freeze-1"
    (tally,) = ends.tallies
    assert (tally["frozen"], tally["groups"][0]["decided"]) == ("freeze-1", 2)


def test_a_frozen_version_falls_back_to_the_one_it_names() -> None:
    kernel = Identity()
    ends = ended(NEWER, [value(0.25), value(0.1)], frozen("2"), kernel, Tripled())
    assert kernel.runs == []
    for i, (score, word) in enumerate([(0.75, "grant"), (0.3, "deny")]):
        (result,), (decision,) = ends.results[i], ends.decisions[i]
        assert outputs(result)["value"][0, 0] == pytest.approx(score)
        assert (result["version"], decision["version"], decision["frozen"]) == ("1", "1", "freeze-2")
        assert decision["decision"] == word
        assert float(decision["score"]) == pytest.approx(score)
        assert header(ends, i, "lrai_frozen") == b"freeze-2"
    (tally,) = ends.tallies
    assert (tally["version"], tally["frozen"], tally["groups"][0]["favourable"]) == ("1", "freeze-2", 1)


def test_without_a_freeze_the_version_itself_answers() -> None:
    ends = ended(NEWER, [value(0.25)], frozen(), Identity(), Tripled())
    assert (ends.results[0][0]["version"], ends.tallies[0]["version"]) == ("2", "2")


@pytest.mark.parametrize(("state", "fallback"), [(frozen("1", "2"), Tripled()), (frozen("2"), None)])
def test_a_fallback_that_is_frozen_itself_or_not_there_rejects(state: Frozen, fallback: Identity | None) -> None:
    ends = ended(NEWER, [value()], state, Identity(), fallback)
    assert (ends.code(0), ends.decisions[0][0]["version"]) == ("frozen", "2")


def test_a_freeze_holds_from_the_next_window_and_ends_with_it() -> None:
    state = {"now": NOT}
    lane = actor(FAIR, Identity(), frozen=lambda version: state["now"](version))

    def code(now: Frozen) -> str | None:
        state["now"] = now
        return through([value()], coalesce([FAIR]), [lane]).code(0)

    assert [code(now) for now in (NOT, frozen("1"), NOT)] == [None, "frozen", None]


CASES = [
    (value(), None, None),
    (value(consent=None), "consent_missing", b"consent_id"),
    (value(consent=""), "consent_missing", b"consent_id"),
    (value(attributes={}), "attributes_missing", b"attributes"),
    (value(attributes={"sex": ""}), "attributes_missing", b"attributes"),
    (value(attributes={"age": "9"}, consent=None), "consent_missing", b"consent_id,attributes"),
    (value(attributes={"sex": "M", "x": "y"}), None, None),
]


def test_what_is_missing_is_counted() -> None:
    ends = ended(FAIR, [each[0] for each in CASES])
    assert {ends.code(i) for i in range(len(CASES))} == {None}
    assert {header(ends, i, "lrai_missing") for i in range(len(CASES))} == {None}
    (tally,) = ends.tallies
    assert tally["consent_missing"] == 3
    assert {each["group"]: each["decided"] for each in tally["groups"]} == {"F": 3, None: 3, "M": 1}


def test_what_is_missing_is_flagged() -> None:
    ends = ended(replace(FAIR, on_missing="flag"), [each[0] for each in CASES])
    assert {ends.code(i) for i in range(len(CASES))} == {None}
    assert [header(ends, i, "lrai_missing") for i in range(len(CASES))] == [each[2] for each in CASES]


def test_what_is_missing_is_rejected() -> None:
    ends = ended(replace(FAIR, on_missing="reject"), [each[0] for each in CASES])
    assert [ends.code(i) for i in range(len(CASES))] == [each[1] for each in CASES]
    assert "send each of them" in ends.message(3)
    (tally,) = ends.tallies
    assert tally["outcomes"] == {"ok": 2, "consent_missing": 3, "attributes_missing": 2}
    assert {each["group"] for each in tally["groups"]} == {"F", "M"}


def test_all_rejected_runs_nothing() -> None:
    kernel = Identity()
    ended(replace(FAIR, on_missing="reject"), [value(consent=None)] * 2, kernel=kernel)
    assert kernel.runs == []
