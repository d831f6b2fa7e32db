"""Labels from CSV files: what is read, and what the message says when it cannot be."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from infra.commands.label_files import read
from infra.commands.request_files import BadFile


def test_labels_are_read(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    lines = ["\ufeffoutcome,request_id,at,model", "yes,a,2026-01-31,m", "", "no,b,2026-01-31T12:00:00+02:00,"]
    path.write_text("\n".join(lines), "utf-8")
    first, second = [each.record for each in read(path, "the office")]
    at = int(datetime(2026, 1, 31, tzinfo=UTC).timestamp() * 1000)
    assert first == {"request_id": "a", "outcome": "yes", "model": "m", "by": "the office", "at": at}
    assert (second["model"], second["at"]) == (None, at + 10 * 3_600_000)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "no column 'request_id'"),
        (b"request_id\nr", "no column 'outcome'"),
        (b"request_id,outcome,colour\n", "'colour' is not known"),
        (b"request_id,outcome,outcome\n", "there 2 times"),
        (b"request_id,outcome\nr0\n", "line 2: has 1 values"),
        (b"request_id,outcome\nr0,\n", "line 2: outcome has 0 characters"),
        (b"request_id,outcome\n,yes\n", "line 2: request_id has 0 characters"),
        (b"request_id,outcome,at\nr0,yes,soon\n", "line 2: at = 'soon' is no time"),
        (b"request_id,outcome\nr0,a\0b\n", "line 2"),
        (b"request_id,outcome\n\xff,yes\n", "no UTF-8"),
        (b'request_id,outcome\n"r0,yes\n', "is no CSV"),
        (b"request_id,outcome\n" + b"x" * 200_000 + b",yes\n", "field larger"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes(content)
    with pytest.raises(BadFile, match=what):
        list(read(path, None))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="cannot be read"):
        list(read(tmp_path / "none.csv", None))
