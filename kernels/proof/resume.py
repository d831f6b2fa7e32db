"""What a search has found so far, as a file: work that was broken off goes on from its open leaves.

Of a refuted task only the input is kept, which the runtime must confirm again. Bounds of closed leaves are believed:
the file names the models, the boxes, the options and the versions that they hold for, and the digest of itself.
"""

from __future__ import annotations

import hashlib
import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from kernels.proof.attack import inside
from kernels.proof.ir import F64, BadProblem
from kernels.proof.lower import load
from kernels.proof.question import Question
from kernels.proof.split import Box, Search

FORMAT = 1
_BYTES_MAX = 1 << 30


def identity(original: Path, variant: Path, question: Question, low: F64, high: F64, epsilon: float) -> dict[str, Any]:
    """What a state is about; of another question it is of no use."""
    models = [hashlib.sha256(load(each).SerializeToString()).hexdigest() for each in (original, variant)]
    boxes = hashlib.sha256(np.ascontiguousarray(np.stack([low, high])).tobytes()).hexdigest()
    tools = {"lrai": version("lrai"), "numpy": np.__version__, "onnxruntime": onnxruntime.__version__}
    return {"models": models, "boxes": boxes, "epsilon": epsilon.hex(), "output": question.quantity,
            "semantics": question.semantics, "tools": tools}  # fmt: skip


def save(path: Path, asked: dict[str, Any], search: Search) -> None:
    """Writes the state beside its place, then renames. Raises OSError."""
    tasks = [
        {"tree": _listed(task.root), "x": None if task.x is None else [float(each).hex() for each in task.x]}
        for task in search.tasks
    ]
    state = {"format": FORMAT, "asked": asked, "tasks": tasks}
    aside = path.with_name(f".{path.name}.part")
    aside.write_text(json.dumps({**state, "sha256": _digest(state)}), encoding="utf-8")
    os.replace(aside, path)


def restore(path: Path, asked: dict[str, Any], search: Search) -> None:
    """Gives the search the trees of the file. Raises BadProblem where the file is broken or of another question."""
    try:
        if path.stat().st_size > _BYTES_MAX:
            raise BadProblem(f"--resume {path}: larger than {_BYTES_MAX >> 20} MiB")
        state = json.loads(path.read_text(encoding="utf-8"))
        whole = isinstance(state, dict) and state.pop("sha256", None) == _digest(state)
    except (OSError, ValueError) as err:
        raise BadProblem(f"--resume {path}: cannot be read ({err}); name another file, or remove it") from None
    if not whole or state.get("format") != FORMAT:
        raise BadProblem(f"--resume {path}: is no state of a search, or is damaged; name another file, or remove it")
    other = [name for name, value in json.loads(json.dumps(asked)).items() if state["asked"].get(name) != value]
    if other:
        raise BadProblem(f"--resume {path}: is of a question with other {' and '.join(other)}; name another file")
    for place, (task, kept) in enumerate(zip(search.tasks, state["tasks"], strict=True)):
        task.root = _grown(task.root, kept["tree"])
        leaves = list(task.root.leaves())
        task.boxes = 2 * len(leaves) - 1
        task.waiting = [box for box in leaves if not box.open and not box.bound <= search.closed]
        if kept["x"] is not None:
            x = np.array([[float.fromhex(each) for each in kept["x"]]])
            search.replay([place], inside(x, search.low[place], search.high[place]))


def _digest(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _listed(root: Box) -> list[list[Any]]:
    """Cuts [axis, at] and leaves [bound, real, reason], each cut before its lower and its upper side."""
    found: list[list[Any]] = []
    left = [root]
    while left:
        box = left.pop()
        if box.below is None or box.above is None:
            found.append([box.bound.hex(), box.real.hex(), box.open])
        else:
            found.append([box.axis, box.at.hex()])
            left += [box.above, box.below]
    return found


def _grown(root: Box, listed: list[list[Any]]) -> Box:
    """The tree of such a list, over the box of the root."""
    root = Box(root.low, root.high)
    left = [root]
    for each in listed:
        box = left.pop()
        if len(each) == 3:
            box.bound, box.real, box.open = float.fromhex(each[0]), float.fromhex(each[1]), str(each[2])
        else:
            left += box.halved(int(each[0]), float.fromhex(each[1]))[::-1]
    if left:
        raise BadProblem("--resume: the file holds a tree that is not whole; remove it")
    return root
