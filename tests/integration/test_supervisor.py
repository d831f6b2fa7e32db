"""The supervisor with real processes: every way to die, and what has to follow."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from schemas.errors import BadSetting
from tests.integration import supervised as targets
from workers.backoff import BackoffLimits
from workers.slot import Slot
from workers.supervisor import ChildSpec, Event, Supervisor
from workers.template import FENCED, Template

FAST = BackoffLimits(first_s=0.05, cap_s=0.1, deaths_max=3, stand_in_s=0.3, quiet_s=0.2)


def wait_until(condition: Callable[[], bool], what: str, bound_s: float = 10.0) -> None:
    deadline = time.monotonic() + bound_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {bound_s} s for: {what}"
        time.sleep(0.01)


@dataclass
class Run:
    """A supervisor that runs in a thread, and what it told."""

    folder: Path
    stop: threading.Event = field(default_factory=threading.Event)
    events: list[Event] = field(default_factory=list)
    fenced: list[tuple[str, ...]] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)

    def fence(self, ids: Sequence[str]) -> None:
        self.fenced.append(tuple(ids))

    def kinds(self, child: str = "a") -> list[str]:
        return [event.kind for event in self.events if event.child == child]

    def last(self, kind: str, child: str = "a") -> Event:
        return next(event for event in reversed(self.events) if (event.kind, event.child) == (kind, child))

    def await_kind(self, kind: str, count: int = 1, child: str = "a") -> Event:
        wait_until(lambda: self.kinds(child).count(kind) >= count, f"{count} x {kind} of {child}: {self.events}")
        return self.last(kind, child)

    def words(self, child: str = "a") -> list[str]:
        log = self.folder / f"{child}.log"
        return [line.split()[0] for line in log.read_text().splitlines()] if log.exists() else []

    def spec(self, target: Callable[..., object], name: str = "a", *, replaced_by_stand_in: bool = False) -> ChildSpec:
        return ChildSpec(
            name, target, (self.folder / f"{name}.log",), self.folder / f"{name}.slot", lanes=1, start_s_max=1.0,
            transactional_ids=(f"id-{name}",), stand_in=targets.stand_in if replaced_by_stand_in else None,
        )


@contextmanager
def running(run: Run, *specs: ChildSpec, hang_s: float = 5.0, drain_s: float = 5.0) -> Iterator[Supervisor]:
    supervisor = Supervisor(specs, run.fence, hang_s, run.events.append, drain_s=drain_s, backoff=FAST)
    thread = threading.Thread(target=lambda: run.codes.append(supervisor.run(run.stop)))
    thread.start()
    try:
        yield supervisor
    finally:
        run.stop.set()
        thread.join(20.0)
    assert not thread.is_alive()


def test_killed_child_is_restarted_at_once_and_the_others_go_on(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with running(run, run.spec(targets.work), run.spec(targets.work, "b")):
        pid = run.await_kind("ready").pid
        run.await_kind("ready", child="b")
        run.await_kind("all_ready", child="")
        killed = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: run.words().count("work") == 2, "the first line of the restarted child")
        assert time.monotonic() - killed < 1.5
        assert run.await_kind("restarted").pid != pid
        assert run.last("died").exit_code == -signal.SIGKILL
        assert run.last("restarted").restarts == 1
    assert run.codes == [0]
    assert run.kinds("b") == ["started", "ready", "stopped"]
    assert run.fenced == []
    assert run.words()[-1] == "drained"


def test_stopped_child_is_found_killed_and_restarted(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with running(run, run.spec(targets.work), run.spec(targets.work, "b"), hang_s=0.5):
        os.kill(run.await_kind("ready").pid, signal.SIGSTOP)
        run.await_kind("ready", 2)
    assert run.kinds()[:5] == ["started", "ready", "hung", "died", "restarted"]
    assert run.last("died").exit_code == -signal.SIGKILL
    assert "hung" not in run.kinds("b")


def test_child_that_never_begins_is_hung_after_its_start_time(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with running(run, run.spec(targets.threads), hang_s=0.2):
        assert run.await_kind("hung").uptime_s >= 1.0


def test_crash_loop_leads_to_the_stand_in_and_back(tmp_path: Path) -> None:
    run = Run(tmp_path)
    broken = tmp_path / "broken"
    broken.touch()
    with running(run, run.spec(targets.crash_while_broken, replaced_by_stand_in=True)):
        run.await_kind("stand_in", 2)
        broken.unlink()
        wait_until(lambda: "work" in run.words(), "the real target works again")
        run.await_kind("ready", 3)
    assert run.codes == [0]
    # three crashes, the stand-in, one more try, the stand-in for longer, and back
    assert run.words() == ["crash"] * 3 + ["stand_in", "crash", "stand_in", "work", "drained"]
    # the delayed restarts, and each return of the real process
    assert len(run.fenced) >= 3 and set(run.fenced) == {("id-a",)}
    stand_ins = [event.uptime_s for event in run.events if event.kind == "stopped"]
    assert 0.3 <= stand_ins[0] < stand_ins[1]


def test_stand_in_that_dies_is_started_again(tmp_path: Path) -> None:
    run = Run(tmp_path)
    (tmp_path / "broken").touch()
    with running(run, run.spec(targets.crash_while_broken, replaced_by_stand_in=True)):
        os.kill(run.await_kind("ready").pid, signal.SIGKILL)
        run.await_kind("ready", 2)
    assert run.words()[:5] == ["crash"] * 3 + ["stand_in", "stand_in"]


def test_fenced_child_is_reported_and_not_restarted(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with running(run, run.spec(targets.fenced), run.spec(targets.work, "b")):
        run.await_kind("ready", child="b")
        pid = run.await_kind("fenced").pid
        os.kill(run.last("ready", "b").pid, signal.SIGKILL)
        run.await_kind("ready", 2, child="b")
        assert run.last("fenced").pid == pid
    assert run.codes == [FENCED]
    assert run.words() == ["fenced"]
    assert run.kinds() == ["started", "died", "fenced"]


def test_supervisor_of_one_fenced_child_ends_with_its_code(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with running(run, run.spec(targets.fenced)):
        wait_until(lambda: run.codes == [FENCED], "the end of the supervisor")


def test_error_of_a_child_is_told(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with running(run, run.spec(targets.fail)):
        died = run.await_kind("died")
    assert died.exit_code == 1
    assert died.error.splitlines()[0] == "RuntimeError: the model has no output"


def test_child_that_does_not_drain_is_killed(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with running(run, run.spec(targets.stubborn), run.spec(targets.work, "b"), drain_s=0.3):
        run.await_kind("all_ready", child="")
    assert run.codes == [1]
    assert run.last("stopped").exit_code == -signal.SIGKILL
    assert run.last("stopped", "b").exit_code == 0


def test_killed_template_takes_its_children_along_and_all_are_restarted(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with running(run, run.spec(targets.work), run.spec(targets.work, "b")) as supervisor:
        run.await_kind("all_ready", child="")
        os.kill(supervisor._template.pid, signal.SIGKILL)
        run.await_kind("ready", 2)
        run.await_kind("ready", 2, child="b")
    assert run.codes == [0]


def test_stopped_template_is_replaced_when_it_is_needed(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with running(run, run.spec(targets.work)) as supervisor:
        pid = run.await_kind("ready").pid
        os.kill(supervisor._template.pid, signal.SIGSTOP)
        os.kill(pid, signal.SIGKILL)
        run.await_kind("ready", 2)
    assert run.codes == [0]


def test_fifty_restarts_leak_no_file_descriptor_and_no_zombie(tmp_path: Path) -> None:
    run = Run(tmp_path)
    limits = BackoffLimits(first_s=0.0, cap_s=0.0, deaths_max=1000)
    supervisor = Supervisor([run.spec(targets.fail)], run.fence, 5.0, run.events.append, backoff=limits)
    thread = threading.Thread(target=lambda: run.codes.append(supervisor.run(run.stop)))
    thread.start()
    try:
        run.await_kind("died", 2)
        before = len(os.listdir("/proc/self/fd"))
        run.await_kind("died", 52)
        after = len(os.listdir("/proc/self/fd"))
        zombies = [pid for pid in family(supervisor._template.pid) if state_of(pid) == "Z"]
    finally:
        run.stop.set()
        thread.join(20.0)
    assert after <= before + 1  # the pidfd of a child that lives at that moment
    assert len(zombies) <= 1  # one that died at that moment


def test_missing_preload_module_is_a_bad_setting() -> None:
    with pytest.raises(BadSetting, match="No module named 'no_such_module'"):
        Template(["no_such_module"])


def test_children_that_share_a_slot_are_refused(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with pytest.raises(BadSetting, match="slot"):
        Supervisor([run.spec(targets.work)] * 2, run.fence, 5.0, run.events.append).run(run.stop)


def test_child_starts_fast_and_warm(tmp_path: Path) -> None:
    log = tmp_path / "log"
    template = Template(["numpy", "confluent_kafka", "fastavro", "onnxruntime", "tests.integration.supervised"])
    try:
        took = []
        for _ in range(5):
            started = time.monotonic()
            pid, pidfd = template.start(targets.threads, (log,), tmp_path / "slot", 1, 0)
            wait_until(lambda: log.exists() and log.read_text().endswith("\n"), "the child's first line")
            word, told_pid, at = log.read_text().split()
            assert (word, int(told_pid)) == ("numpy,onnxruntime", pid)
            took.append(float(at) - started)
            log.unlink()
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
    finally:
        template.close()
    print(f"start to first line: {sorted(round(s * 1e3, 1) for s in took)} ms")
    assert sorted(took)[2] < 0.2


@contextmanager
def supervisor_process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    code = f"import pathlib, sys; sys.path[:] = {sys.path}; from tests.integration import supervised as t; "
    process = subprocess.Popen(
        [sys.executable, "-c", f"{code}t.supervise(pathlib.Path({str(folder)!r}))"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                if line.startswith("all_ready"):
                    break
            yield process
    finally:
        process.kill()
        process.wait()


def family(pid: int) -> list[int]:
    """The process's descendants."""
    parents = {int(name): parent_of(int(name)) for name in os.listdir("/proc") if name.isdigit()}
    found = [pid]
    for member in found:
        found += [child for child, parent in parents.items() if parent == member]
    return found[1:]


def stat_of(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ["gone", "0"]


def parent_of(pid: int) -> int:
    return int(stat_of(pid)[1])


def state_of(pid: int) -> str:
    return stat_of(pid)[0]


def all_gone(pids: list[int]) -> bool:
    return all(state_of(pid) in ("gone", "Z", "X") for pid in pids)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_drains_and_ends_with_0(tmp_path: Path, number: signal.Signals) -> None:
    with supervisor_process(tmp_path) as process:
        pids = family(process.pid)
        process.send_signal(number)
        assert process.wait(10.0) == 0
        assert all_gone(pids)
    for n in range(2):
        assert (tmp_path / f"log-{n}").read_text().splitlines()[-1].startswith("drained")


@pytest.mark.parametrize("stop_template_first", [False, True])
def test_killed_supervisor_leaves_no_process_behind(tmp_path: Path, stop_template_first: bool) -> None:
    with supervisor_process(tmp_path) as process:
        pids = family(process.pid)
        assert len(pids) == 3
        if stop_template_first:
            os.kill(next(pid for pid in pids if parent_of(pid) == process.pid), signal.SIGSTOP)
        process.kill()
        process.wait()
        wait_until(lambda: all_gone(pids), "the children die with the supervisor", 2.0)
    assert not any("drained" in (tmp_path / f"log-{n}").read_text() for n in range(2))


def test_restarted_child_reads_what_its_predecessor_ran(tmp_path: Path) -> None:
    run = Run(tmp_path)
    spec = run.spec(targets.work)
    with Slot(spec.slot, 1) as slot:
        slot.running(0, b"lrai.batches.a.1.bulk 3 17")
    with running(run, spec):
        run.await_kind("ready")
    with Slot(spec.slot, 1) as slot:
        assert slot.read().lanes[0].running == b"lrai.batches.a.1.bulk 3 17"
