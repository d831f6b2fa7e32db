"""A kernel that may die alone: each run happens in a process of its own.

`python -m workers.isolate` imports the runtime once and forks for every run, so that a death costs milliseconds.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from typing import IO, Any

from schemas.errors import LraiError

RUN_S_MAX = 5.0
START_S_MAX = 60.0
BEAT_S = 0.5
_SIZE = struct.Struct("<Q")


class IsolatedKernel:
    """Runs a model in throwaway processes. `run` raises KernelError also when the model kills its process or hangs.

    `how`: the arguments of its Session; `beat` is called while a run takes its time. The
    process ends with this one, at the end of its input.
    """

    def __init__(
        self, how: tuple[Any, ...], beat: Callable[[], object] = lambda: None, run_s_max: float = RUN_S_MAX
    ) -> None:
        self._run_s_max = run_s_max
        self._beat = beat
        self._process: subprocess.Popen[bytes] | None = None
        self._how = how

    def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        from kernels.session import KernelError

        process = self._started()
        assert process.stdin and process.stdout
        _send(process.stdin, inputs)
        while not select.select([process.stdout], [], [], BEAT_S)[0]:  # ends: the other side has its own limits
            self._beat()
        ok, answer = _receive(process.stdout)
        if not ok:
            raise KernelError(answer)
        found: dict[str, Any] = answer
        return found

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "workers.isolate"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "ORT_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"},
            )
            assert self._process.stdin
            _send(self._process.stdin, (self._how, self._run_s_max))
        return self._process


def _send(pipe: IO[bytes], value: object) -> None:
    packed = pickle.dumps(value)
    pipe.write(_SIZE.pack(len(packed)) + packed)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> Any:
    """Raises EOFError at the end of the pipe."""
    head = pipe.read(_SIZE.size)
    if len(head) < _SIZE.size:
        raise EOFError
    return pickle.loads(pipe.read(_SIZE.unpack(head)[0]))


def serve() -> None:
    """Reads inputs, forks, answers, until the input ends."""
    import kernels.session  # noqa: F401  once, before the forks

    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    how, run_s_max = _receive(stdin)
    while True:
        try:
            inputs = _receive(stdin)
        except EOFError:
            return
        _send(stdout, _trial(how, run_s_max, inputs))


def _trial(how: tuple[Any, ...], run_s_max: float, inputs: dict[str, Any]) -> tuple[bool, Any]:
    """One run in a fork: (True, outputs) or (False, why)."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        _run_and_exit(how, inputs, write_end)
    os.close(write_end)
    with os.fdopen(read_end, "rb", 0) as pipe:
        late = _late(pipe, child, START_S_MAX, "loading the model")
        loaded = b"" if late else pipe.read(1)
        late = late or _late(pipe, child, run_s_max, "the run")
        packed = b"" if late else b"".join(iter(lambda: pipe.read(1 << 20), b""))
    _, status = os.waitpid(child, 0)
    if late:
        return False, late
    if not (loaded and packed):
        number = os.waitstatus_to_exitcode(status)
        return False, f"the run killed its process ({signal.Signals(-number).name if number < 0 else f'exit {number}'})"
    found: tuple[bool, Any] = pickle.loads(packed)
    return found


def _late(pipe: IO[bytes], child: int, limit_s: float, what: str) -> str:
    """Waits for the pipe; kills the child and says why when it takes too long, or when nobody waits any more."""
    ready, _, _ = select.select([pipe, sys.stdin.buffer], [], [], limit_s)
    if pipe in ready:
        return ""
    os.kill(child, signal.SIGKILL)
    return f"{what} took more than {limit_s:.0f} s"


def _run_and_exit(how: tuple[Any, ...], inputs: dict[str, Any], write_end: int) -> None:
    from kernels.session import Session

    answer: tuple[bool, Any]
    try:
        session = Session(*how)
        os.write(write_end, b"L")
        answer = True, session.run(inputs)
    except LraiError as err:
        answer = False, str(err)
    with os.fdopen(write_end, "wb") as pipe:
        pickle.dump(answer, pipe)
    os._exit(0)


if __name__ == "__main__":
    serve()
