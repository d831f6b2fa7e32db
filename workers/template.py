"""A warm template process: children start by fork from it, in milliseconds, with all modules already imported.

The template is single-threaded, runs no code of the application and talks to its supervisor over a socketpair:
a packet in is a child to start (empty: end), a packet out is `(kind, pid, status)`, with a pidfd for a started child.
multiprocessing's forkserver is not used: it imports the main module again in every child (118 ms for `lrai`), and a
forkserver that was stopped or killed hides the deaths of its children.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import pickle
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from schemas.errors import BadSetting, LraiError
from workers.slot import Slot

# a child that ends with one of these is not restarted: its id is in use elsewhere; a setting must be corrected
FENCED = 75
BAD_SETTING = 78
COMMAND_BYTES_MAX = 64 * 1024

_ANSWER = struct.Struct("@cii")
_READY, _STARTED, _EXITED, _FAILED = b"r", b"s", b"x", b"f"
_FAILURE_BYTES_MAX = 1024
_PARENT_CHECK_S = 1.0
_START_S_MAX = 60.0
_FORK_S_MAX = 2.0
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from workers.template import serve; serve()"


class TemplateLost(LraiError):
    """The template process ended or does not answer."""


class StartFailed(LraiError):
    """The operating system refused a further process; raise its limits (pids, memory)."""


class Template:
    """The supervisor's end. Starting takes as long as the imports of `preload`.

    Raises BadSetting when a module cannot be imported, TemplateLost when the process does not come up.
    """

    def __init__(self, preload: Sequence[str]) -> None:
        self.exits: dict[int, int] = {}
        self.lost = False
        self._failure = ""
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            argv = [json.dumps(sys.path), str(theirs.fileno()), str(os.getpid()), json.dumps(list(preload))]
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, *argv],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={"MALLOC_ARENA_MAX": "2", **os.environ},  # else each thread keeps what it once needed
            )
        try:
            kind, _, _ = self._answer(time.monotonic() + _START_S_MAX)
        except BaseException:
            self.close()
            raise
        if kind == _FAILED:
            self.close()
            raise BadSetting(f"preload: {', '.join(preload)}: {self._failure}; install or correct the module")

    def fileno(self) -> int:
        return self._sock.fileno()

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(
        self, target: Callable[..., object], args: tuple[Any, ...], slot: Path, lanes: int, nice: int
    ) -> tuple[int, int]:
        """Forks a child that calls `target(*args, slot=..., stop=...)`; returns its pid and a pidfd to be closed.

        Raises BadSetting (arguments too large), StartFailed (no further process), TemplateLost.
        """
        command = pickle.dumps((str(slot), lanes, nice, pickle.dumps((target, args))))
        if len(command) > COMMAND_BYTES_MAX:
            raise BadSetting(f"arguments of {target.__qualname__} take {len(command)} bytes; max {COMMAND_BYTES_MAX}")
        deadline = time.monotonic() + _FORK_S_MAX
        try:
            self._sock.settimeout(_FORK_S_MAX)
            self._sock.send(command)
        except OSError as err:
            self.lost = True
            raise TemplateLost() from err
        kind, pid, pidfd = self._answer(deadline)
        while kind == _EXITED:
            kind, pid, pidfd = self._answer(deadline)
        if kind == _FAILED:
            raise StartFailed()
        return pid, pidfd

    def collect(self) -> None:
        """Takes the exits that were reported into `exits` without waiting; sets `lost` when the template is gone."""
        while not self.lost and select.select([self._sock], [], [], 0)[0]:
            try:
                self._answer(time.monotonic() + _FORK_S_MAX)
            except TemplateLost:
                return

    def close(self) -> None:
        """Ends the template; children that still live die with it."""
        self.lost = True
        self._process.kill()
        self._process.wait()
        self._sock.close()

    def _answer(self, deadline: float) -> tuple[bytes, int, int]:
        """Receives one packet: its kind, a pid, and a pidfd (of a started child) or the status (of an ended one)."""
        try:
            self._sock.settimeout(max(0.001, deadline - time.monotonic()))
            packet, fds, _, _ = socket.recv_fds(self._sock, _ANSWER.size + _FAILURE_BYTES_MAX, 1)
        except OSError as err:
            self.lost = True
            raise TemplateLost() from err
        if not packet:
            self.lost = True
            raise TemplateLost()
        kind, pid, status = _ANSWER.unpack_from(packet)
        self._failure = packet[_ANSWER.size :].decode("utf-8", "replace")
        if kind == _EXITED:
            self.exits[pid] = os.waitstatus_to_exitcode(status)
        return kind, pid, fds[0] if fds else status


def serve() -> NoReturn:
    """The template process: imports, then forks children and reports their exits until the supervisor is gone."""
    fd, supervisor = int(sys.argv[2]), int(sys.argv[3])
    # Ctrl-C reaches the whole process group, and systemd sends SIGTERM to all: only the supervisor acts on them.
    # SIGTERM is blocked, not ignored, so that one that comes between fork and the child's first line is kept.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    _die_with(supervisor)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    sock = socket.socket(fileno=fd)
    try:
        _import(json.loads(sys.argv[4]))
    except BaseException as err:
        sock.send(_ANSWER.pack(_FAILED, 0, 0) + f"{type(err).__name__}: {err}".encode()[:_FAILURE_BYTES_MAX])
        os._exit(BAD_SETTING)
    wake_r, wake_w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
    gc.collect()
    gc.freeze()
    try:
        sock.send(_ANSWER.pack(_READY, 0, 0))
        _serve(sock, wake_r, wake_w)
    finally:
        os._exit(0)


def _import(modules: Sequence[str]) -> None:
    # before the first import of a numeric library: a fork copies only the thread that calls it, so none may start
    # threads; ONNX Runtime's telemetry starts one, and would send facts about models and hosts to its vendor
    os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", ORT_DISABLE_TELEMETRY="1")
    for module in modules:
        importlib.import_module(module)
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise ImportError(f"the modules {', '.join(modules)} started {threads - 1} threads; a template forks safely "
                          "only without; import the module that does so in the child")


def _serve(sock: socket.socket, wake_r: int, wake_w: int) -> None:
    template, children = os.getpid(), set[int]()
    while True:
        readable, _, _ = select.select([sock.fileno(), wake_r], [], [])
        if wake_r in readable:
            os.read(wake_r, 4096)
            _reap(sock, children)
        if sock.fileno() not in readable:
            continue
        command = sock.recv(COMMAND_BYTES_MAX)
        if not command:
            return
        try:
            pid = os.fork()
        except OSError:
            sock.send(_ANSWER.pack(_FAILED, 0, 0))
            continue
        if pid == 0:
            sock.close()
            signal.set_wakeup_fd(-1)
            os.close(wake_r)
            os.close(wake_w)
            _child(command, template)
        # opened before the child can be reaped, so it never names another process
        children.add(pid)
        pidfd = os.pidfd_open(pid)
        socket.send_fds(sock, [_ANSWER.pack(_STARTED, pid, 0)], [pidfd])
        os.close(pidfd)


def _reap(sock: socket.socket, children: set[int]) -> None:
    """Reports every ended child; orphans of children end here too (subreaper), of which nobody has to know."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        if pid in children:
            children.remove(pid)
            sock.send(_ANSWER.pack(_EXITED, pid, status))


def _child(command: bytes, template: int) -> NoReturn:
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _die_with(template)
        path, lanes, nice, call = pickle.loads(command)
        os.nice(nice)
        with Slot(Path(path), lanes) as slot:
            slot.begin()
            code = _call(call, slot, template)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _call(call: bytes, slot: Slot, template: int) -> int:
    stop = threading.Event()
    # SIGTERM stays blocked and a thread waits for it: a Python signal handler that sets an Event can deadlock with
    # the main thread that waits on it, and runs late while the main thread is inside a kernel
    threading.Thread(target=_watch, args=(stop, template), name="signals", daemon=True).start()
    try:
        target, args = pickle.loads(call)
        target(*args, slot=slot, stop=stop)
    except SystemExit as err:
        return err.code if isinstance(err.code, int) else int(err.code is not None)
    except BadSetting as err:
        slot.error(str(err))
        return BAD_SETTING
    except BaseException as err:
        slot.error(f"{type(err).__name__}: {err}\n{traceback.format_exc()}")
        return int(getattr(err, "exit_code", 1))
    return 0


def _watch(stop: threading.Event, template: int) -> None:
    while True:
        if signal.sigtimedwait({signal.SIGTERM}, _PARENT_CHECK_S) is not None:
            stop.set()
        # PR_SET_PDEATHSIG has ended this process already unless something it ran has cleared it
        if os.getppid() != template:
            os.kill(os.getpid(), signal.SIGKILL)


def _die_with(parent: int) -> None:
    """Lets the kernel kill this process when its parent dies, however it dies."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
