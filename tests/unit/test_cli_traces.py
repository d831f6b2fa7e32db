"""`lrai trace`: what is kept of a request, which period the options ask for, what the table says."""

from __future__ import annotations

import io
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from infra.commands import shown
from infra.commands.traces import NO_ROWS, UNDECODABLE, UNKNOWN, Period, Recording, load_file, period_of, windows
from schemas import framing
from schemas.columns import varints
from schemas.errors import BadSetting
from streams.registry import Registry
from streams.trace import HEADER, BadTrace, write
from tests.unit.test_cli import lrai

NOW = 1_760_000_000_000  # 2025-10-09T08:53:20Z


def request(model: str = "mlp", rows: int | None = 1, deadline: int | None = None, **fields: Any) -> bytes:
    shape = [] if rows is None else [rows, 2]
    tensor = {"name": "x", "datatype": "FP32", "shape": shape, "data": bytes(8 * max(rows or 0, 0))}
    record = {
        "request_id": "person-17", "model": model, "inputs": [tensor], "deadline": deadline, "subject": "person-17",
        "attributes": {"sex": "f"}, "purpose": "credit", **fields,
    }  # fmt: skip
    return framing.encode("inference_request", record)


def recording(*known: str) -> Recording:
    return Recording(known, Registry(None, lambda: None))


def test_what_is_kept_of_requests() -> None:
    found = recording("mlp", "trees")
    values = [request(), request("trees", rows=3, version="2"), request(deadline=NOW + 250), request(deadline=NOW - 9)]
    found.add("bulk", [NOW + 5, NOW + 7, NOW, NOW + 1], values)
    found.add("interactive", [NOW + 6], [request()])
    lines = "".join(write(found.trace())).splitlines()
    sizes = [len(value) for value in values]
    assert lines == [
        HEADER, f"0,bulk,mlp,1,{sizes[2]},250", f"1000,bulk,mlp,1,{sizes[3]},0", f"5000,bulk,mlp,1,{sizes[0]},",
        f"6000,interactive,mlp,1,{sizes[0]},", f"7000,bulk,trees,3,{sizes[1]},",
    ]  # fmt: skip
    assert found.taken == 5 and not found.left_out_text


def test_what_cannot_be_kept_is_counted() -> None:
    found = recording("mlp")
    values = [
        request("Ann Smith"), request("ann-smith"), b"\xc3\x01nonsense", None, b"", request(rows=0), request(rows=None),
        request(rows=-1), request(inputs=[]), request(attributes={str(i): "x" for i in range(65)}), request(),
    ]  # fmt: skip
    found.add("standard", [NOW] * len(values), values)
    assert found.left_out == {UNKNOWN: 2, UNDECODABLE: 4, NO_ROWS: 4}
    assert found.taken == 1
    found.add("standard", [], [])
    found.add("standard", [NOW], [b"?"])
    assert found.left_out[UNDECODABLE] == 5
    assert found.left_out_text.startswith("; left out: 2 of models that never ran here, 5 that cannot be decoded, 4 ")


@pytest.mark.parametrize("deadline", [-(2**63), 2**63 - 2])
def test_absurd_deadlines_stay_inside_a_file(deadline: int, tmp_path: Path) -> None:
    found = recording("mlp")
    usual, absurd = (b"\2" + varints(np.array([each])).data.tobytes() for each in (NOW, deadline))
    value = request(deadline=NOW).replace(usual, absurd)
    assert len(value) > len(request(deadline=NOW))
    found.add("standard", [NOW], [value])
    path = tmp_path / "t.csv"
    path.write_text("".join(write(found.trace())))
    assert len(load_file(path)) == found.taken == 1


PERIODS: list[tuple[tuple[float | None, str | None, str | None], Period]] = [
    ((None, None, None), Period(None, None)),
    ((2.5, None, None), Period(None, NOW + 2500)),
    ((None, None, "2025-10-09T10:53:21+02:00"), Period(None, NOW + 1000)),
    ((None, "2025-10-09T08:53:10", None), Period(NOW - 10_000, NOW)),
    ((4, "2025-10-09T08:53:10Z", None), Period(NOW - 10_000, NOW - 6000)),
    ((None, "2025-10-09T08:53:10Z", "2025-10-09T08:53:19.5Z"), Period(NOW - 10_000, NOW - 500)),
]


@pytest.mark.parametrize(("given", "period"), PERIODS)
def test_periods(given: tuple[float | None, str | None, str | None], period: Period) -> None:
    assert period_of(*given, NOW) == period


NO_PERIODS: list[tuple[tuple[float | None, str | None, str | None], str]] = [
    ((0, None, None), "--seconds 0: name seconds above 0"),
    ((float("nan"), None, None), "--seconds nan: name seconds above 0"),
    ((float("inf"), None, None), "--seconds inf: name seconds above 0, at most 31622400"),
    ((1, None, "2030-01-01"), "--seconds 1 and --to '2030-01-01': each says when to end; name one"),
    ((None, "yesterday", None), "--from 'yesterday': is no time; write it like 2026-01-31T12:00:00+00:00"),
    ((None, None, "12"), "--to '12': is no time"),
    ((None, None, "2025-01-01"), "--to '2025-01-01' is not after now; name a later time"),
    ((None, "2025-01-02", "2025-01-01"), "--to '2025-01-01' is not after --from; name a later time"),
    ((None, "2030-01-01", None), "--from '2030-01-01' is not past; name an earlier time"),
]


@pytest.mark.parametrize(("given", "message"), NO_PERIODS)
def test_periods_that_cannot_be(given: tuple[float | None, str | None, str | None], message: str) -> None:
    with pytest.raises(BadSetting) as caught:
        period_of(*given, NOW)
    assert message in str(caught.value)


def test_what_is_wrong_with_a_file_names_it(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xff\xfe\0\1" * 1000)
    with pytest.raises(BadTrace, match=r"t\.csv, line 1: "):
        load_file(path)
    path.write_bytes(b"\xef\xbb\xbf" + HEADER.encode() + b"\r\n0,bulk,m\xfcll,1,1,\r\n")
    with pytest.raises(BadTrace, match=r"line 2: model = 'm\\\\xfcll'"):
        load_file(path)
    with pytest.raises(BadSetting, match="--gap-s-max nan: name seconds above 0"):
        load_file(path, float("nan"))


def test_the_table(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    lines = [f"{i * 250_000},standard,mlp-{i % 2},2,100,{'50' if i % 4 == 0 else ''}\n" for i in range(17)]
    path.write_text("".join([HEADER, "\n", *lines]))
    text = io.StringIO()
    shown.trace(Console(file=text, width=200), load_file(path))
    rows = [line.split() for line in text.getvalue().splitlines()]
    assert rows[1] == ["all", "17", "4.2/s", "4/s", "0.00", "2.0", "100", "29", "%"]
    assert rows[2] == ["mlp-0", "standard", "9", "2.2/s", "2/s", "0.00", "2.0", "100", "56", "%"]
    assert rows[4][:5] == ["17", "request(s)", "in", "4.000", "s"]


def test_commands_end_with_a_message(tmp_path: Path) -> None:
    (tmp_path / "cut.csv").write_text(f"{HEADER}\n5,bulk,m,1,")
    cases = [
        (["show", "cut.csv"], 1, "cut.csv, line 2: '5,bulk,m,1,' has no line break: the file was cut off"),
        (["record", "none/t.csv", "--kafka", "127.0.0.1:1"], 1, "none/.t.csv.part: No such file or directory"),
        (["record", ".", "--kafka", "127.0.0.1:1"], 78, ".: is a folder; name a file"),
    ]
    for args, code, message in cases:
        done = lrai("trace", *args, cwd=tmp_path)
        assert (done.returncode, message in done.stderr) == (code, True), done.stderr
        assert "Traceback" not in done.stderr
    assert sorted(each.name for each in tmp_path.iterdir()) == ["cut.csv"]


@dataclass
class Stamped:
    """A record on a partition."""

    part: int
    at_ms: int

    def topic(self) -> str:
        return "requests"

    def partition(self) -> int:
        return self.part

    def timestamp(self) -> tuple[int, int]:
        return (2, self.at_ms)


class Partitions:
    """What a reader takes, window by window: stamps by partition; a partition without any is at its end."""

    def __init__(self, *taken: dict[int, list[int]]) -> None:
        self.behind = {("requests", 0), ("requests", 1)}
        self.left = list(taken)

    def take(self) -> list[Stamped]:
        now = self.left.pop(0)
        self.behind = {("requests", part) for part, stamps in now.items() if stamps}
        return [Stamped(part, at) for part, stamps in now.items() for at in stamps]


def kept(reader: Partitions, period: Period, clock: list[int], stop: threading.Event | None = None) -> list[list[int]]:
    found = windows(reader, period, stop or threading.Event(), lambda: clock.pop(0))
    return [[each.at_ms for each in window] for window in found]


def test_a_period_past_ends_when_each_partition_was_read_so_far() -> None:
    reader = Partitions({0: [5, 10], 1: []}, {0: [15, 19, 20], 1: []}, {0: [99], 1: []})
    assert kept(reader, Period(10, 20), [10_000] * 3) == [[10], [15, 19]]
    assert len(reader.left) == 1  # partition 1 was at its end, 0 behind the period


def test_a_partition_that_never_comes_to_its_end_does_not_hold_up() -> None:
    # each is at its end once after the period, never both at once, and none has a record stamped later
    reader = Partitions({0: [11], 1: []}, {0: [], 1: [12]})
    assert kept(reader, Period(10, 20), [10_000] * 2) == [[11], [12]]


def test_a_live_period_waits_for_its_end() -> None:
    reader = Partitions({0: [], 1: []}, {0: [12], 1: []}, {0: [], 1: []})
    # over at 20, and what was stamped before it is waited for another second
    assert kept(reader, Period(None, 20), [15, 21, 1020]) == [[], [12], []]


def test_stop_ends_it_with_what_is_there() -> None:
    stop = threading.Event()
    found = windows(Partitions({0: [1], 1: []}), Period(None, None), stop, lambda: 0)
    assert [each.at_ms for each in next(found)] == [1]
    stop.set()
    assert not list(found)
