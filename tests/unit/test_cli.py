"""The command line without a network: what is wrong ends it with a message and the right exit code."""

import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from infra.commands.deadletters import Letter, NoReplay, hexdump, replay
from infra.commands.reading import readable
from infra.commands.sending import Sent, inputs_of
from infra.commands.status import actors, status
from kernels.spec import ModelSpec, TensorSpec
from schemas.errors import BadSetting
from streams.settings import Settings, load
from tests.nets import mlp
from workers.pipeline import check
from workers.slot import Slot

NOBODY = "127.0.0.1:1"  # nothing listens there


def lrai(*args: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LRAI_")}
    return subprocess.run(
        [sys.executable, "-m", "lrai", *args], cwd=cwd, env={**clean, "LRAI_STATE": str(cwd / "state"), **environment},
        capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL,
    )  # fmt: skip


CASES = [
    (["up", "--models", "none"], {}, 78, "the model repository is no folder"),
    (["up"], {"LRAI_PARTITIONS": "0"}, 78, "partitions = '0'"),
    (["up", "--models", "good", "--kafka", "nowhere"], {}, 78, "kafka = 'nowhere'"),
    (["up", "--models", "good", "--store", "postgresql:/x y"], {}, 78, "store: "),
    (["run", "work", "--models", "good", "--model", "nett"], {}, 78, "--model 'nett': no such model; there are net"),
    (["models", "check", "none"], {}, 1, "1 problem(s) in none"),
    (["send", "net", "none.csv", "--models", "good"], {}, 1, "none.csv: cannot be read"),
    (["audit", "verify", "--store", f"postgresql://{NOBODY}/x"], {}, 1, "the audit store could not be verified"),
    (["deadletter", "replay"], {}, 78, "name PARTITION OFFSET, or --reason CODE, or --all"),
]


@pytest.mark.parametrize(("args", "environment", "code", "message"), CASES)
def test_what_is_wrong_is_said(
    tmp_path: Path, args: list[str], environment: dict[str, str], code: int, message: str
) -> None:
    mlp(tmp_path / "good/net/1/model.onnx")
    done = lrai(*args, cwd=tmp_path, **environment)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_version(tmp_path: Path) -> None:
    assert lrai("version", cwd=tmp_path).stdout.strip().count(".") == 2


def settings(folder: Path, **given: object) -> Settings:
    return load(kafka=NOBODY, store=f"postgresql://{NOBODY}/x", state=folder, models=folder / "models", **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kafka_options": {"no.such.property": "1"}}, "kafka_options: "),
        ({"request_bytes_max": 200_000, "record_bytes_max": 100_000}, "request_bytes_max = 200000: above"),
        ({"state": Path("/proc/nothing")}, "state = '/proc/nothing'"),
    ],
)
def test_settings_are_checked_before_kafka(tmp_path: Path, given: dict[str, object], message: str) -> None:
    with pytest.raises(BadSetting) as raised:
        check(settings(tmp_path).model_copy(update=given))
    assert message in str(raised.value)


def test_inputs_are_stated_or_read(tmp_path: Path) -> None:
    mlp(tmp_path / "models/net/1/model.onnx", (5, 2))
    mlp(tmp_path / "models/net/10/model.onnx", (7, 2))
    found = settings(tmp_path)
    assert inputs_of(found, "net", None, [])[0].shape == (7,)
    assert inputs_of(found, "net", "1", [])[0].shape == (5,)
    assert inputs_of(found, "other", None, []) == []
    assert inputs_of(found, "net", None, ["a:FP32:2,3", "b:BYTES"]) == [
        TensorSpec("a", "FP32", (2, 3)),
        TensorSpec("b", "BYTES", ()),
    ]
    with pytest.raises(BadSetting, match="write NAME:DATATYPE:SIZES"):
        inputs_of(found, "net", None, ["a:float"])


def test_status_without_kafka_shows_the_processes(tmp_path: Path) -> None:
    with Slot(tmp_path / "lrai-work-net-1-here-0.slot", 3) as slot:
        slot.begin()
        for lane in range(3):
            slot.beat(lane, time.monotonic())
        slot.ready(time.monotonic())
        slot.error("KernelError: no\nmore")
    with Slot(tmp_path / "lrai-audit-here-0.slot", 1):
        pass
    (tmp_path / "lrai-torn.slot").write_bytes(b"x")
    found = status(settings(tmp_path), time.monotonic())
    assert [(each.name, each.state, each.starts, each.last_error) for each in found.actors] == [
        ("lrai-audit-here-0", "stopped", 0, ""),
        ("lrai-work-net-1-here-0", "ready", 1, "KernelError: no"),
    ]
    assert found.problems and "does not answer" in found.problems[0]
    assert (tmp_path / "lrai-torn.slot").read_bytes() == b"x"
    hung = actors(settings(tmp_path), time.monotonic() + 60)[1]
    assert hung.state == "hung"


def letter(**named: str) -> Letter:
    return Letter(
        0, 7, datetime.now(UTC), None, b"x", [], {name.replace("_", "-"): text for name, text in named.items()}
    )


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (letter(), "which is no request topic"),
        (letter(original_topic="elsewhere", original_partition="0"), "which is no request topic"),
        (letter(original_topic="lrai.requests.bulk", original_partition="x"), "which is no request topic"),
        (
            letter(original_topic="lrai.requests.bulk", original_partition="0",
                   message="no; the value of 9 bytes was cut to 1"),
            "only the beginning",
        ),
    ],
)  # fmt: skip
def test_some_dead_letters_cannot_be_replayed(tmp_path: Path, found: Letter, message: str) -> None:
    with pytest.raises(NoReplay, match=message):
        replay(settings(tmp_path), [found])


def test_replays_are_counted() -> None:
    assert letter().replays == 0
    assert letter(replays="3").replays == 3
    assert letter(replays="many").replays == 0


def test_hexdump() -> None:
    lines = list(hexdump(bytes(range(60, 80))))
    assert lines[0].startswith("00000000  3c 3d") and lines[0].endswith("|<=>?@ABCDEFGHIJK|")
    assert lines[1].startswith("00000010  4c 4d 4e 4f")


def test_answers_become_json() -> None:
    tensor = {"name": "y", "datatype": "FP32", "shape": [1, 2], "data": b"\0\0\xc0\x7f\0\0\x80\x3f"}
    assert json.dumps(readable({"outputs": [tensor]})) == '{"outputs": {"y": [[null, 1.0]]}}'


def test_all_ok_means_every_one() -> None:
    sent = Sent(sent=2)
    sent.outcomes["OK", ""] += 1
    assert not sent.all_ok
    sent.outcomes["OK", ""] += 1
    assert sent.all_ok and sent.answered == 2


def test_models_are_chosen_by_number() -> None:
    from lrai import _chosen

    def spec(version: str) -> ModelSpec:
        return ModelSpec("m", version, "", "", (), ())

    specs = [spec("9"), spec("10")]
    assert _chosen(specs, "m", None).version == "10"
    assert _chosen(specs, "m", "9").version == "9"
    with pytest.raises(BadSetting, match="--version '3': model 'm' has the versions 9, 10"):
        _chosen(specs, "m", "3")
