"""The checker by itself is sound on random nets, and shows what the prover proved."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from kernels.proof import checker
from kernels.proof.bounds import Analysis
from kernels.proof.certificate import certificate
from kernels.proof.checker_bounds import Box, Pairing
from kernels.proof.checker_graph import Lacks, Wrong
from kernels.proof.checker_outputs import Outputs
from kernels.proof.outputs import bounded
from kernels.proof.trees import Forest
from kernels.proof.verify import verify
from tests import random_nets
from tests.certificates import grid, hashes, nets, paired, random_slopes, saved
from tests.unit.test_soundness import batches, flat, quantity_of, question_of

POINTS = 20_000
TIMEOUT_S = 60.0  # never reached: the bounds asked for hold at once


@pytest.mark.parametrize("seed", range(4))
def test_its_bounds_hold_whatever_the_slopes(tmp_path: Path, seed: int) -> None:
    rng, tried = np.random.default_rng(seed), 0
    for pair in random_nets.pairs(seed):
        question = question_of(tmp_path, pair, quantity_of(pair))
        try:
            original, variant = nets(saved(tmp_path, pair), pair)
            pairing = Pairing(original, variant, paired(original, variant))
            box = Box(pairing, grid(pair.low), grid(pair.high), random_slopes(rng, pairing), floats=True)
        except (Lacks, Wrong):
            continue
        found = Outputs(pairing).bound(box, quantity_of(pair))
        assert found is not None and found[1] <= found[0]
        for _, seen, _ in batches(rng, question, *flat(pair), POINTS):
            assert seen.max() <= float(found[0]), pair.name
        tried += 1
    assert tried >= 9


@pytest.mark.parametrize("seed", range(3))
def test_it_shows_what_the_prover_proved(tmp_path: Path, seed: int) -> None:
    """Certificates of bounds that hold at the root, and of a label."""
    verdicts: Counter[tuple[str, str]] = Counter()
    for pair in random_nets.pairs(seed):
        question = question_of(tmp_path, pair, quantity_of(pair))
        if question.product is None or isinstance(question.product.original, Forest):
            continue
        low, high = (each[None].astype(float) for each in flat(pair))
        epsilon = float(bounded(Analysis(question.product, low, high), question.quantity).bound[0]) * 1.01
        paths = saved(tmp_path, pair)
        found = verify(*paths, low, high, epsilon, question.quantity, TIMEOUT_S, statistics=False)
        outcome = found.outcomes[0]
        made = certificate(found.question, outcome, epsilon, hashes(paths), datetime.now(UTC), outcome.verdict)
        (tmp_path / "certificate.json").write_text(json.dumps(made))
        report = checker.check(tmp_path / "certificate.json")
        assert report.verdict in ("PROVED", "UNKNOWN"), (pair.name, report)
        assert report.verdict == "PROVED" or "lacks" in report.reason, (pair.name, report)
        verdicts[outcome.verdict, report.verdict] += 1
    assert verdicts["PROVED", "PROVED"] >= 9
