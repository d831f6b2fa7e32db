"""What the children of the supervisor tests run; imports nothing slow, because every child imports it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from workers.slot import Slot
from workers.supervisor import ChildSpec, Supervisor
from workers.template import FENCED


def note(log: Path, word: str) -> None:
    with log.open("a") as file:
        file.write(f"{word} {os.getpid()} {time.monotonic()}\n")


def work(log: Path, slot: Slot, stop: threading.Event) -> None:
    """Beats until it is told to stop, then drains."""
    note(log, "work")
    slot.ready(time.monotonic())
    while not stop.wait(0.02):
        slot.beat(0, time.monotonic())
    note(log, "drained")


def crash_while_broken(log: Path, slot: Slot, stop: threading.Event) -> None:
    if log.with_name("broken").exists():
        note(log, "crash")
        os.kill(os.getpid(), signal.SIGKILL)
    work(log, slot, stop)


def stand_in(log: Path, slot: Slot, stop: threading.Event) -> None:
    note(log, "stand_in")
    slot.ready(time.monotonic())
    stop.wait()


def fenced(log: Path, slot: Slot, stop: threading.Event) -> None:
    note(log, "fenced")
    sys.exit(FENCED)


def fail(log: Path, slot: Slot, stop: threading.Event) -> None:
    raise RuntimeError("the model has no output")


def stubborn(log: Path, slot: Slot, stop: threading.Event) -> None:
    note(log, "work")
    slot.ready(time.monotonic())
    while True:
        slot.beat(0, time.monotonic())
        time.sleep(0.02)


def threads(log: Path, slot: Slot, stop: threading.Event) -> None:
    """Tells how warm the child is: the modules that it found imported."""
    note(log, ",".join(name for name in ("numpy", "onnxruntime", "typer") if name in sys.modules) or "none")
    stop.wait()


def no_fence(ids: Sequence[str]) -> None:
    return None


def supervise(folder: Path) -> None:
    """The main of a supervisor process with two children."""
    specs = [
        ChildSpec(f"child-{n}", work, (folder / f"log-{n}",), folder / f"slot-{n}", lanes=1, start_s_max=5.0)
        for n in range(2)
    ]
    print(os.getpid(), flush=True)
    supervisor = Supervisor(specs, no_fence, 5.0, lambda event: print(event.kind, event.pid, flush=True))
    sys.exit(supervisor.run(threading.Event()))
