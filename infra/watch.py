"""Runs one server for a parent and ends it with that parent, whatever the parent dies of.

    python infra/watch.py PARENT_PID SIGNAL FOLDER USER COMMAND...

Prints the server's pid, later `exit <status>`. USER, when not empty, is whom the server runs as. When standard input
ends, or the parent is gone, the server gets SIGNAL, then SIGKILL, and FOLDER (when not empty) is removed; the line
`keep` leaves the folder alone.
Only the standard library is imported, and it starts with `-S`: it must be up in some 20 ms.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time

POLL_S = 0.5
GRACE_S = 5.0


def _said(children: int) -> str | None:
    """What the parent wrote: None for nothing in POLL_S or until a child ended, "" for the end of the pipe."""
    ready = select.select([0, children], [], [], POLL_S)[0]
    if children in ready:
        os.read(children, 64)
    return os.read(0, 64).decode() if 0 in ready else None


def _child_signals() -> int:
    """A pipe that can be read whenever a child ends."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return reading


def _tell(line: str) -> None:
    # a parent that is gone is noticed by the next look at standard input
    with contextlib.suppress(BrokenPipeError):
        os.write(1, f"{line}\n".encode())


def _end(server: subprocess.Popen[bytes], first: int) -> None:
    if server.poll() is not None:
        return
    server.send_signal(first)
    try:
        server.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _remove(folder: str) -> None:
    """Removes the folder; again for a while, for what dying children of the server may still write."""
    until = time.monotonic() + GRACE_S
    while os.path.exists(folder) and time.monotonic() < until:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.02)


def main(argv: list[str]) -> int:
    """Starts the command, waits for the end of the parent, cleans up."""
    parent, first, folder, user, command = int(argv[0]), int(argv[1]), argv[2], argv[3] or None, argv[4:]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the parent decides when the server ends
    children = _child_signals()
    # a child of an ignored signal ignores it too: the server must get its SIGTERM
    server = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=2, start_new_session=True, preexec_fn=_heed, user=user
    )
    _tell(str(server.pid))
    told = False
    while os.getppid() == parent:
        said = _said(children)
        if said is not None and said.startswith("keep"):
            folder = ""
        elif said == "":
            break
        if not told and server.poll() is not None:
            _tell(f"exit {server.returncode}")
            told = True
    _end(server, first)
    if folder:
        _remove(folder)
    return 0


def _heed() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
