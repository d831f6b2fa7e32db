"""The answer to: does the variant stay within epsilon of its original on these boxes?"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kernels.proof import resume
from kernels.proof.ir import F64, BadProblem
from kernels.proof.outputs import Quantity
from kernels.proof.question import Question, ask
from kernels.proof.runtime import Options
from kernels.proof.split import Outcome, Progress, Search
from kernels.proof.stat import Statistics, tested

QUANTITIES = ("raw", "softmax", "label")
_TESTS_BY_DEFAULT = 4_000
_TESTS = 100_000  # random runs a task where nothing is proved, in the time that is left


@dataclass
class Verification:
    """All outcomes and what they are about."""

    question: Question
    epsilon: float
    outcomes: list[Outcome]
    statistics: list[Statistics | None]
    seconds: float

    @property
    def exit_code(self) -> int:
        """0 all proved, 1 any refuted, else 2."""
        verdicts = {each.verdict for each in self.outcomes}
        return 1 if "REFUTED" in verdicts else 0 if verdicts == {"PROVED"} else 2

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        tasks = [_task(*each, self.epsilon) for each in zip(self.outcomes, self.statistics, strict=True)]
        found = [each.verdict for each in self.outcomes]
        counts = {name: found.count(name) for name in ("PROVED", "REFUTED", "UNKNOWN")}
        return {
            "tasks": tasks,
            "counts": counts,
            "output": self.question.quantity,
            "output_tensors": list(self.question.outputs),
            "semantics": self.question.semantics,
            "seconds": round(self.seconds, 3),
        }


def _task(outcome: Outcome, statistics: Statistics | None, epsilon: float) -> dict[str, Any]:
    found: dict[str, Any] = {
        "verdict": outcome.verdict,
        "epsilon": epsilon,
        "bound": _finite(outcome.bound),
        "bound_real": _finite(outcome.real),
        "seen": _finite(outcome.seen),
        "seconds": round(outcome.seconds, 4),
        "boxes": sum(1 for _ in outcome.root.leaves()),
    }
    if outcome.x is not None:
        found["x"] = [float(each) for each in outcome.x]
    if outcome.reason:
        found["reason"] = outcome.reason
    if not np.isfinite(outcome.seen):
        found["reason"] = "an answer is NaN or infinite"
    if statistics is not None:
        found["statistical"] = statistics.as_dict()
    return found


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def verify(
    original: Path, variant: Path, low: F64, high: F64, epsilon: float, quantity: Quantity = "softmax",
    timeout_s: float = 60.0, options: Options | None = None, on_progress: Progress = lambda done, total: None,
    statistics: bool = True, floats: bool = True, state: Path | None = None, neurons: bool = True,
) -> Verification:  # fmt: skip
    """Verdicts for boxes float64[tasks, features]; without `floats` about real arithmetic alone. Raises BadProblem.

    neurons: functions inside the nets are split, too, which a certificate cannot show.
    state: a file. The work goes on from there if it exists, and is kept there when it ends or Ctrl-C is pressed.
    """
    began = time.monotonic()
    if not (np.isfinite(epsilon) and epsilon >= 0):
        raise BadProblem(f"--epsilon {epsilon}: it must be a finite number, 0 or more")
    question = ask(original, variant, quantity, options)
    check_box(low, high, question.features)
    if not floats:
        question.semantics["arithmetic"] = "real"
    search = Search(question, low, high, epsilon, began + 0.92 * timeout_s, floats=floats, neurons=neurons)
    outcomes = search.run(on_progress) if state is None else _resumed(search, state, original, variant, on_progress)
    _by_default(question, outcomes, low, high, epsilon, began + timeout_s)
    found: list[Statistics | None] = [None] * len(outcomes)
    unknown = [place for place, each in enumerate(outcomes) if each.verdict == "UNKNOWN"] if statistics else []
    for done, place in enumerate(unknown):
        left_s = (began + 0.98 * timeout_s - time.monotonic()) / (len(unknown) - done)
        found[place] = tested(question, low[place], high[place], epsilon, _TESTS, min(left_s, 10.0))
        _hit(outcomes[place], found[place])
    return Verification(question, epsilon, outcomes, found, time.monotonic() - began)


def _resumed(search: Search, state: Path, original: Path, variant: Path, on_progress: Progress) -> list[Outcome]:
    asked = resume.identity(original, variant, search.question, search.low, search.high, search.epsilon)
    if state.exists():
        resume.restore(state, asked, search)
    try:
        return search.run(on_progress)
    finally:
        resume.save(state, asked, search)


def certify(
    original: Path, variant: Path, low: F64, high: F64, epsilon: float, budget_s: float,
    quantity: Quantity = "softmax", options: Options | None = None,
) -> Outcome:  # fmt: skip
    """The verdict on one box float64[features], for a search over variants. Raises BadProblem."""
    found = verify(original, variant, low[None], high[None], epsilon, quantity, budget_s, options, statistics=False,
                   neurons=False)  # fmt: skip
    return found.outcomes[0]


def _by_default(
    question: Question, outcomes: list[Outcome], low: F64, high: F64, epsilon: float, deadline: float
) -> None:
    """Tests what is not refuted in default sessions, where those compute something else than the graphs say."""
    other = question.by_default()
    for place, outcome in enumerate(outcomes if other else ()):
        if other is None or outcome.verdict == "REFUTED" or time.monotonic() > deadline:
            continue
        statistics = tested(other, low[place], high[place], epsilon, _TESTS_BY_DEFAULT, 1.0)
        _hit(outcome, statistics)
        if outcome.verdict == "REFUTED":
            outcome.reason = f"in the runtime's default session, where {question.semantics['notes'][0]}"  # type: ignore[index]


def _hit(outcome: Outcome, statistics: Statistics | None) -> None:
    """A random test that shows the violation refutes."""
    if statistics is None:
        return
    outcome.seen = max(outcome.seen, statistics.seen)
    if statistics.x is not None:
        outcome.verdict, outcome.x, outcome.reason = "REFUTED", statistics.x, ""


def check_box(low: F64, high: F64, features: int) -> None:
    """Raises BadProblem for what is no box."""
    if low.ndim != 2 or low.shape != high.shape or not len(low):
        raise BadProblem(f"the box has shapes {list(low.shape)} and {list(high.shape)}; they must be [tasks, features]")
    if low.shape[1] != features:
        raise BadProblem(f"the box has {low.shape[1]} features, the models take {features}")
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        task = int(np.flatnonzero(~(np.isfinite(low) & np.isfinite(high)).all(1))[0])
        raise BadProblem(f"the box of task {task} holds NaN or infinity")
    if (low > high).any():
        task, axis = (int(each[0]) for each in np.nonzero(low > high))
        raise BadProblem(f"the box of task {task} is empty: low {low[task, axis]} > high {high[task, axis]} at {axis}")
    if max(np.abs(low).max(), np.abs(high).max()) > np.finfo(np.float32).max:
        raise BadProblem("the box reaches beyond float32")
