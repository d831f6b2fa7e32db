"""Batches in memory that a device reads itself, with the CPU's own memory in the place of pinned memory."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kernels.binding import PINNED, Batches
from kernels.devices import CPU
from kernels.repository import load_model
from kernels.session import KernelError, Session
from tests import nets

Memory = tuple[int, int, int, int]
THE_CPUS = (0, 0, 0, 0)


def sessions(tmp_path: Path, build: Callable[[Path], object], memory: Memory = THE_CPUS) -> list[Session]:
    """One as on the CPU, and one that binds its batches."""
    build(tmp_path / "m/1/model.onnx")
    spec = load_model(tmp_path, "m", "1")
    plain, bound = Session(spec), Session(spec, device=replace(CPU, pinned=True))
    if bound.batches:
        bound.batches = Batches(bound._session, [each.name for each in spec.outputs], memory)
    return [plain, bound]


@pytest.mark.parametrize(("memory", "pinned"), [(THE_CPUS, True), (PINNED, False)])
def test_answers_are_the_same_whatever_the_rows(tmp_path: Path, memory: Memory, pinned: bool) -> None:
    """Pinned memory is not there without a GPU: numpy's takes its place, and the session says so."""
    plain, bound = sessions(tmp_path, nets.mlp, memory)
    assert plain.batches is None
    assert bound.batches is not None
    assert bound.batches.pinned is pinned
    kept = []
    for rows in (1, 7, 3, 700, 2):  # 700 rows of 30 need a larger buffer
        x = np.random.default_rng(rows).standard_normal((rows, 30), np.float32)
        wanted, found = (each.run({"features": x})["probabilities"] for each in (plain, bound))
        np.testing.assert_array_equal(found, wanted)
        kept.append((found, wanted))
    for found, wanted in kept:  # no answer lies in memory that the next batch takes
        np.testing.assert_array_equal(found, wanted)


def test_several_inputs_of_several_types_and_layouts(tmp_path: Path) -> None:
    plain, bound = sessions(tmp_path, nets.sequence)
    ids = np.asfortranarray(np.random.default_rng(0).integers(0, 100, (5, 3)))
    feed = {"mask": np.ones((5, 6), np.int64)[:, ::2], "ids": ids}
    wanted, found = plain.run(feed), bound.run(feed)
    assert list(found) == ["pooled", "tokens"]
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)


def test_threads_do_not_share_a_batch(tmp_path: Path) -> None:
    plain, bound = sessions(tmp_path, nets.mlp)
    batches = [np.full((rows, 30), rows, np.float32) for rows in range(1, 41)]
    wanted = [plain.run({"features": each})["probabilities"] for each in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda each: bound.run({"features": each})["probabilities"], batches))
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_errors_are_the_runtimes_and_the_next_run_is_well(tmp_path: Path) -> None:
    _, bound = sessions(tmp_path, nets.sequence)
    with pytest.raises(KernelError, match="idx=5000"):
        bound.run({"ids": np.full((1, 2), 5000), "mask": np.ones((1, 2), np.int64)})
    with pytest.raises(KernelError):
        bound.run({"ids": np.ones((1, 2), np.float32), "mask": np.ones((1, 2), np.int64)})
    assert bound.run({"ids": np.ones((1, 2), np.int64), "mask": np.ones((1, 2), np.int64)})["pooled"].shape == (1, 3)


def test_strings_go_the_plain_way(tmp_path: Path) -> None:
    _, bound = sessions(tmp_path, nets.strings)
    assert bound.batches is None
    assert bound.run({"colour": np.array([["red"]], object)})["value"].tolist() == [[1.0]]


def test_a_session_profiles_and_warms_itself_there(tmp_path: Path) -> None:
    _, bound = sessions(tmp_path, nets.mlp)
    bound.warm()
    assert bound.profile(0.05).best_rows >= 1
