"""Records of lrai.control: what is written is read; what is no such record is passed over."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import framing
from schemas.errors import BadRecord
from streams.control import Control, ControlState
from streams.settings import Settings

WORDS = st.text(st.characters(codec="utf-8"), max_size=20)
CONTROLS = st.builds(
    Control, st.just("variant"), WORDS, WORDS, st.none() | WORDS, WORDS, WORDS, st.integers(0, 2**62)
)


@given(CONTROLS)
def test_what_is_written_is_read(control: Control) -> None:
    assert Control.decode(control.encode()) == control
    assert control.key == f"variant/{control.model}/{control.version}"


@pytest.mark.parametrize("value", [b"", b"{}", framing.header("control"), framing.encode("source_ranges", {
    "topic": "t", "worker": "w", "ranges": []})])  # fmt: skip
def test_what_is_no_control_record_is_refused(value: bytes) -> None:
    with pytest.raises(BadRecord):
        Control.decode(value)


def change(model: str, variant: str | None) -> Control:
    return Control("variant", model, "1", variant, "ann", "a test", 0)


def test_the_newest_record_of_a_key_counts() -> None:
    """Without Kafka: a poll that nobody answers returns at once, and what is known holds."""
    state = ControlState(Settings(kafka="127.0.0.1:1", kafka_options={"log_level": "0"}), "test")
    try:
        for each in (change("a", "int8"), change("b", "int4"), change("a", "int4"), change("b", None)):
            state.put(each.key, each.encode())
        state.put("variant/b/1", b"no record")
        assert [state.variant(model, "1", now_s) for now_s, model in enumerate("abc")] == ["int4", None, None]
        assert state.variant("a", "2", 9) is None
        state.put("variant/a/1", None)
        assert state.variant("a", "1", 10) is None
    finally:
        state.close()
