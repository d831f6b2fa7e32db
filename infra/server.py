"""One server process of our own: a folder, a port, a start, an end."""

from __future__ import annotations

import contextlib
import os
import random
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

import psutil  # type: ignore[import-untyped,unused-ignore]

from schemas.errors import LraiError

Progress = Callable[[str], None]

START_S_MAX = 60.0
STOP_S_MAX = 30.0
# below the ephemeral range (32768-60999 on Linux): while a server is down, a client that keeps trying its port could
# otherwise be given that very port as its own, connect to itself, and keep the server from coming back
PORTS = range(20_000, 32_000)
_WATCH = Path(__file__).with_name("watch.py")


class PartsError(LraiError):
    """An embedded part (Kafka or Postgres) cannot run here."""


def cache_folder(name: str) -> Path:
    """The folder of that name in the user's cache, made when missing. Raises PartsError when it cannot be written."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lrai" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise PartsError(f"cache folder {folder} cannot be made ({err.strerror}): set XDG_CACHE_HOME") from err
    return folder


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on. Raises PartsError after 200 tries."""
    for port in random.sample(PORTS, 200):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise PartsError(f"no free port of 127.0.0.1 among 200 tried in {PORTS.start}-{PORTS.stop}: close some programs")


def _wait_dead(processes: list[psutil.Process]) -> None:
    """Waits for processes that somebody else reaps: a zombie holds nothing any more."""
    until = time.monotonic() + STOP_S_MAX
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            while process.status() != psutil.STATUS_ZOMBIE and time.monotonic() < until:
                time.sleep(0.002)


class Server(ABC):
    """A server on 127.0.0.1 that ends with this process.

    `directory` None means a temporary folder that `close()` removes. `port` 0 means a free one, kept over restarts.
    The methods are for one thread at a time. All of them raise PartsError with the end of the server's log.
    """

    name: ClassVar[str]
    # what the watcher sends when this process is gone
    end_signal: ClassVar[signal.Signals]
    # what stop() sends
    stop_signal: ClassVar[signal.Signals]

    def __init__(self, directory: Path | None = None, port: int = 0, on_progress: Progress | None = None) -> None:
        self._temporary = directory is None
        self.directory = directory or Path(tempfile.mkdtemp(prefix=f"lrai-{self.name.lower()}-"))
        self.port = port or free_port()
        self.pid = 0
        # whose the server is when not our own
        self._user = ""
        self._tell = on_progress or (lambda _: None)
        self._watcher: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def _prepare(self) -> list[str]:
        """Makes what the server needs and returns its command."""

    @abstractmethod
    def _answers(self) -> bool:
        """Whether the server does its work; may take up to a second."""

    @property
    def log_path(self) -> Path:
        """Where the server's output goes."""
        return self.directory / "server.log"

    def start(self) -> Self:
        """Starts the server and waits until it answers, at most START_S_MAX. On the same folder: with what it held."""
        if self.pid and not self._ended(0):
            raise PartsError(f"{self.name} runs already (pid {self.pid})")
        self.directory.mkdir(parents=True, exist_ok=True)
        command = self._prepare()
        self._tell(f"{self.name}: starting")
        self._spawn(command)
        until = time.monotonic() + START_S_MAX
        while not self._answers():
            if self._ended(0.01):
                self._fail("ended while it started")
            if time.monotonic() > until:
                self.kill()
                self._fail(f"did not answer within {START_S_MAX:.0f} s")
        self._tell(f"{self.name}: ready")
        return self

    def stop(self) -> None:
        """Ends the server cleanly; killed when it takes longer than STOP_S_MAX. The folder stays."""
        if not self.pid:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, self.stop_signal)
        if not self._ended(STOP_S_MAX):
            self.kill()

    def kill(self) -> None:
        """Kills the server and its children with SIGKILL, as a crash would. The folder stays."""
        if not self.pid:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            server = psutil.Process(self.pid)
            children = server.children(recursive=True)
            server.kill()
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            _wait_dead(children)
        if not self._ended(STOP_S_MAX):
            self._fail("did not die of SIGKILL")

    def close(self) -> None:
        """Stops the server and removes its folder when that was a temporary one."""
        self.stop()
        if self._temporary:
            shutil.rmtree(self.directory, ignore_errors=True)
        self._dismiss()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _spawn(self, command: list[str]) -> None:
        before, folder = self._watcher, str(self.directory) if self._temporary else ""
        arguments = [str(os.getpid()), str(int(self.end_signal)), folder, self._user, *command]
        with self.log_path.open("ab") as log:
            # a session of its own: Ctrl-C of this process must not end the server before a clean stop
            self._watcher = subprocess.Popen(
                [sys.executable, "-S", "-E", str(_WATCH), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                start_new_session=True,
            )
        self._release(before)
        self.pid = int(self._line(START_S_MAX) or 0)
        if not self.pid:
            self._fail("could not be started")

    def _line(self, timeout_s: float) -> str:
        """The watcher's next line, "" when none came in time."""
        if self._watcher is None or self._watcher.stdout is None:
            return ""
        with selectors.DefaultSelector() as ready:
            ready.register(self._watcher.stdout, selectors.EVENT_READ)
            return self._watcher.stdout.readline().decode().strip() if ready.select(timeout_s) else ""

    def _ended(self, timeout_s: float) -> bool:
        """Whether the server ended within the timeout; then `pid` is 0."""
        if self._line(timeout_s).startswith("exit"):
            self.pid = 0
        return self.pid == 0

    def _dismiss(self) -> None:
        self._release(self._watcher)
        self._watcher = None

    @staticmethod
    def _release(watcher: subprocess.Popen[bytes] | None) -> None:
        """Lets a watcher end whose server has ended, without removing the folder."""
        if watcher is None or watcher.stdin is None or watcher.stdout is None:
            return
        with contextlib.suppress(BrokenPipeError):
            watcher.stdin.write(b"keep\n")
            watcher.stdin.flush()
        with contextlib.suppress(BrokenPipeError):
            watcher.stdin.close()
        watcher.stdout.close()
        watcher.wait(STOP_S_MAX)

    def _fail(self, what: str) -> None:
        log = self.log_path.read_text(errors="replace").splitlines() if self.log_path.exists() else []
        end = "\n  ".join(log[-8:]) or "(nothing)"
        raise PartsError(f"{self.name} (port {self.port}) {what}; the end of its log:\n  {end}")
