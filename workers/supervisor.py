"""Supervises processes: starts them from a warm template, restarts the dead, kills the hung, drains on stop."""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from schemas.errors import BadSetting, LraiError
from workers.backoff import Backoff, BackoffLimits
from workers.slot import Slot, SlotState
from workers.template import BAD_SETTING, FENCED, StartFailed, Template, TemplateLost

TICK_S = 0.2
FENCE_CHECK_S = 0.02
# how long the template may take to report the exit of a process whose pidfd says that it is gone
REPORT_S_MAX = 1.0
START_FAILED_WAIT_S = 1.0
# not 2: a Ctrl-C reaches the process group and is often passed on by a parent a second time
SIGNALS_MAX = 3

EventKind = Literal[
    "started", "ready", "all_ready", "died", "hung", "restarted", "fenced", "refused", "stand_in", "stopped",
    "fence_failed",
]


class SlotTaken(LraiError):
    """Another supervisor has this slot: its children would be taken for hung, and fence ours."""

    exit_code = FENCED


class StopFlag(Protocol):
    """The part of threading.Event that the supervisor reads."""

    def is_set(self) -> bool: ...


@dataclass(frozen=True)
class ChildSpec:
    """A process to supervise; `target(*args, slot=Slot, stop=threading.Event)` is called in it.

    `target` and `stand_in` are importable functions and `args` can be pickled. SIGTERM sets `stop`: the target ends
    the windows in hand and returns. `transactional_ids` are fenced before a delayed restart. The process is not
    taken for hung in its first `start_s_max` seconds unless it says before that it is ready. The target runs in the
    main thread with SIGTERM blocked and SIGINT ignored; what it starts with exec inherits both. It may end with
    `sys.exit(code)` or an exception with an `exit_code`; BadSetting ends it with BAD_SETTING.
    """

    name: str
    target: Callable[..., object]
    args: tuple[Any, ...]
    slot: Path
    lanes: int
    start_s_max: float
    transactional_ids: tuple[str, ...] = ()
    stand_in: Callable[..., object] | None = None
    nice: int = 0


@dataclass(frozen=True)
class Event:
    """Something that happened to a child (`all_ready`: to all of them, told once).

    `died` is followed by `restarted` or `stand_in` (for a time; it ends with `stopped`), by `fenced` (its id is in
    use elsewhere) or by `refused` (a setting is wrong): the last two are final.

    `exit_code` is negative for a signal (-9: SIGKILL), None while the process lives. `error` is the child's own
    word for its end: one line, then details.
    """

    kind: EventKind
    child: str = ""
    pid: int = 0
    exit_code: int | None = None
    uptime_s: float = 0.0
    restarts: int = 0
    error: str = ""


@dataclass
class _Child:
    spec: ChildSpec
    slot: Slot
    backoff: Backoff
    template: Template | None = None
    pid: int = 0
    pidfd: int = -1
    restarts: int = -1
    started_at: float = 0.0
    start_at: float = 0.0
    gone_at: float = 0.0
    ready: bool = False
    stand_in: bool = False
    stand_in_s: float = 0.0
    retire_at: float = 0.0
    kill_at: float = 0.0
    hung: bool = False
    fencing: threading.Thread | None = None
    refused: int = 0
    drained: bool = True

    def event(self, kind: EventKind, now: float, exit_code: int | None = None, error: str = "") -> Event:
        uptime_s = now - self.started_at
        return Event(kind, self.spec.name, self.pid, exit_code, uptime_s, max(0, self.restarts), error)

    def send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def healthy_s(self, state: SlotState) -> float:
        """How long the process had worked: from ready to its last heartbeat, so a hang does not count as work."""
        if state.pid != self.pid or not state.ready:
            return 0.0
        return max(0.0, min(lane.heartbeat for lane in state.lanes) - state.ready_at)


@dataclass
class Supervisor:
    """Keeps `children` alive until it is told to stop. Blocking; one `run` for each object.

    `fence(transactional_ids)` aborts what a dead process left open. It runs in a thread before every delayed restart
    and after a stand-in, and the restart waits for it, or the fence would hit the new process: it must return or
    raise within a bound of its own. `hang_s`: heartbeats older than this end a process. `drain_s`: how long a process
    may take to end after SIGTERM. `preload`: modules that the template imports; they must start no threads.
    `on_event` is called in the thread of `run`; `fence_failed` in a thread of its own.
    """

    children: Sequence[ChildSpec]
    fence: Callable[[Sequence[str]], None]
    hang_s: float
    on_event: Callable[[Event], None]
    preload: Sequence[str] = ()
    drain_s: float = 8.0
    backoff: BackoffLimits = field(default_factory=BackoffLimits)

    def run(self, stop: StopFlag) -> int:
        """Runs until `stop`, SIGTERM or SIGINT (handled in the main thread), or until no child may be started.

        Returns 0 when all children drained; FENCED or BAD_SETTING when a child ended with that and was not
        restarted; else 1. Raises BadSetting when a preload fails or the children's slots are not distinct,
        SlotTaken when another supervisor has one of them, TemplateLost when no template process comes up.
        """
        slots = {spec.slot for spec in self.children}
        if not slots or len(slots) != len(self.children):
            raise BadSetting(f"children: {len(self.children)} with {len(slots)} slots; give each a slot of its own")
        self._signals = 0
        self._all_ready = False
        self._children: list[_Child] = []
        with self._handled_signals(), contextlib.ExitStack() as held:
            for slot in sorted(slots):
                held.enter_context(_held(slot))
            self._template = Template(self.preload)
            self._awake_since = self._last_tick = time.monotonic()
            try:
                for spec in self.children:
                    self._children.append(_Child(spec, Slot(spec.slot, spec.lanes), Backoff(self.backoff)))
                while not (stop.is_set() or self._signals or all(child.refused for child in self._children)):
                    self._tick()
                return self._drain()
            finally:
                self._close()

    def _tick(self) -> None:
        self._wait()
        now = time.monotonic()
        if now - self._last_tick > max(1.0, self.hang_s / 2):
            # this process was stopped itself (Ctrl-Z, a paused machine), and so, perhaps, were the children
            self._awake_since = now
        self._last_tick = now
        for child in self._children:
            if child.pid:
                self._watch(child, now)
            if not child.pid and not child.refused and now >= child.start_at and not _alive(child.fencing):
                self._start(child)
        if not self._all_ready and all(child.ready for child in self._children):
            self._all_ready = True
            self.on_event(Event("all_ready"))

    def _wait(self) -> None:
        """Waits for a death, a report of the template, the next start, or TICK_S."""
        if self._template.lost:
            self._template.close()
            self._template = Template(self.preload)
        now = time.monotonic()
        timeout_s = TICK_S
        for child in self._children:
            if not child.pid and not child.refused:
                timeout_s = min(timeout_s, FENCE_CHECK_S if _alive(child.fencing) else max(0.0, child.start_at - now))
        fds = [child.pidfd for child in self._children if child.pid and not child.gone_at]
        multiprocessing.connection.wait([self._template.fileno(), *fds], timeout_s)
        self._template.collect()

    def _start(self, child: _Child) -> None:
        spec = child.spec
        target = spec.stand_in if child.stand_in and spec.stand_in is not None else spec.target
        try:
            pid, pidfd = self._template.start(target, spec.args, spec.slot, spec.lanes, spec.nice)
        except TemplateLost:
            return
        except StartFailed:
            child.start_at = time.monotonic() + START_FAILED_WAIT_S
            return
        now = time.monotonic()
        child.template, child.pid, child.pidfd, child.started_at = self._template, pid, pidfd, now
        child.gone_at = child.kill_at = 0.0
        child.ready = child.hung = False
        child.retire_at = now + child.stand_in_s if child.stand_in else 0.0
        child.restarts += 1
        child.fencing = None
        kind: EventKind = "stand_in" if child.stand_in else "restarted" if child.restarts else "started"
        self.on_event(child.event(kind, now))

    def _watch(self, child: _Child, now: float) -> None:
        exit_code = self._exit_code(child, now)
        if exit_code is not None:
            self._died(child, exit_code, now)
        elif not child.gone_at:
            self._check(child, child.slot.read(), now)

    def _exit_code(self, child: _Child, now: float) -> int | None:
        """The exit code of a child that is gone; None while it lives or the template still owes its report."""
        template = child.template
        if template is None or not multiprocessing.connection.wait([child.pidfd], 0):
            return None
        child.gone_at = child.gone_at or now
        if child.pid in template.exits:
            return template.exits.pop(child.pid)
        if now - child.gone_at > REPORT_S_MAX:
            template.lost = True
        return -signal.SIGKILL if template.lost else None

    def _check(self, child: _Child, state: SlotState, now: float) -> None:
        begun = state.pid == child.pid
        if begun and state.ready and not child.ready:
            child.ready = True
            self.on_event(child.event("ready", now))
        if child.kill_at and now >= child.kill_at:
            child.send(signal.SIGKILL)
        elif child.retire_at and now >= child.retire_at and not child.kill_at:
            child.kill_at = now + self.drain_s
            child.send(signal.SIGTERM)
        if child.hung or (not child.ready and now - child.started_at < child.spec.start_s_max):
            return
        heartbeat = min(lane.heartbeat for lane in state.lanes) if begun else 0.0
        ready_at = state.ready_at if begun else 0.0
        if now - max(heartbeat, ready_at, child.started_at, self._awake_since) > self.hang_s:
            child.hung = True
            self.on_event(child.event("hung", now))
            child.send(signal.SIGKILL)

    def _died(self, child: _Child, exit_code: int, now: float) -> None:
        state = child.slot.read()
        error = state.last_error if state.error_pid == child.pid and exit_code > 0 else ""
        retired = child.kill_at > 0
        self.on_event(child.event("stopped" if retired else "died", now, exit_code, error))
        refusals: dict[int, EventKind] = {FENCED: "fenced", BAD_SETTING: "refused"}
        if exit_code in refusals:
            child.refused = exit_code
            self.on_event(child.event(refusals[exit_code], now, exit_code, error))
        elif retired:
            child.start_at, child.stand_in = now, False
            self._fence(child)
        else:
            self._plan_restart(child, state, now)
        self._release(child)

    def _plan_restart(self, child: _Child, state: SlotState, now: float) -> None:
        restart = child.backoff.died(now, child.healthy_s(state))
        stand_in = restart.stand_in and child.spec.stand_in is not None
        # the stand-in takes over at once, but one that dies itself has to wait
        after_s = 0.0 if stand_in and not child.stand_in else restart.after_s
        child.start_at, child.stand_in, child.stand_in_s = now + after_s, stand_in, restart.stand_in_s
        if after_s > 0:
            self._fence(child)

    def _fence(self, child: _Child) -> None:
        """Fences in a thread, so that a broker that is away does not keep the other children from being watched."""
        ids = child.spec.transactional_ids
        if ids:
            failed = child.event("fence_failed", time.monotonic())
            child.fencing = threading.Thread(target=self._fence_now, args=(ids, failed), daemon=True)
            child.fencing.start()

    def _fence_now(self, ids: Sequence[str], failed: Event) -> None:
        try:
            self.fence(ids)
        except Exception as err:
            self.on_event(Event(failed.kind, failed.child, failed.pid, error=str(err), restarts=failed.restarts))

    def _drain(self) -> int:
        """SIGTERM to all, SIGKILL after `drain_s` or when the operator insists."""
        deadline = time.monotonic() + self.drain_s
        for child in self._children:
            if child.pid:
                child.send(signal.SIGTERM)
        while any(child.pid for child in self._children):
            now = time.monotonic()
            if now >= deadline or self._signals >= SIGNALS_MAX:
                for child in self._children:
                    if child.pid:
                        child.send(signal.SIGKILL)
            self._collect_ends(now)
        refusal = next((child.refused for child in self._children if child.refused), 0)
        return refusal or int(not all(child.drained for child in self._children))

    def _collect_ends(self, now: float) -> None:
        fds = [child.pidfd for child in self._children if child.pid and not child.gone_at]
        own = [] if self._template.lost else [self._template.fileno()]
        multiprocessing.connection.wait([*own, *fds], TICK_S / 4)
        self._template.collect()
        for child in self._children:
            exit_code = self._exit_code(child, now) if child.pid else None
            if exit_code is not None:
                child.drained = exit_code == 0
                self.on_event(child.event("stopped", now, exit_code))
                self._release(child)

    def _release(self, child: _Child) -> None:
        with contextlib.suppress(ChildProcessError):
            # ours only when its template died and this process is the init of a container
            os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOHANG)
        os.close(child.pidfd)
        child.pid, child.pidfd, child.ready = 0, -1, False

    def _close(self) -> None:
        self._template.close()
        for child in self._children:
            if child.pid:
                child.send(signal.SIGKILL)
                self._release(child)
            child.slot.close()

    @contextlib.contextmanager
    def _handled_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def count(number: int, frame: object) -> None:
            # a plain number: setting an Event here could deadlock with the code that was interrupted
            self._signals += 1

        before = {number: signal.signal(number, count) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _held(slot: Path) -> Iterator[None]:
    """The lock of a slot; the operating system gives it back when this process ends, however it does."""
    slot.parent.mkdir(parents=True, exist_ok=True)
    with slot.with_suffix(".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            name = slot.stem
            raise SlotTaken(f"{name} runs already ({slot}); give each instance its own --slot, or stop it") from err
        yield


def _alive(thread: threading.Thread | None) -> bool:
    return thread is not None and thread.is_alive()
