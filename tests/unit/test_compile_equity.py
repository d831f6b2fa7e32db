"""Variants that treat groups apart are refused, bits are raised until they do not, and what was measured is told."""

from __future__ import annotations

import io
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy.stats import fisher_exact

from infra.commands import compiling
from infra.commands.compiling import Recorded
from infra.commands.request_files import BadFile
from kernels import manifest
from kernels.compile import equity, mixed, rows
from kernels.compile.compiler import Compiled, Options
from kernels.compile.judge import Refused
from kernels.compile.net import Net
from kernels.manifest import Disparity, GroupFlips, RunOptions
from kernels.repository import load_model
from kernels.session import Session
from kernels.spec import ModelSpec
from schemas.errors import BadSetting, LraiError
from tests import nets, samples
from tests.unit.test_compile_rows import value
from tests.unit.test_compile_widths import measured

COUNT = st.tuples(st.integers(0, 60), st.integers(0, 60)).map(sorted)
SPEC = samples.spec(features=3)
TOML = """score = {output = "probabilities", index = 1}
threshold = 0.5
favourable = "1"
sensitive_features = ["sex"]
require_certificate = "none"
"""


@given(COUNT, COUNT)
def test_fishers_exact_test_is_scipys(one: list[int], other: list[int]) -> None:
    (a, n), (b, m) = one, other
    expected = fisher_exact([[a, n - a], [b, m - b]]).pvalue
    assert equity.fisher(a, n, b, m) == pytest.approx(expected, rel=1e-6)


DECISION = st.sampled_from(["0", "1", None])
JUDGED = st.lists(st.tuples(st.sampled_from(["", "F", "M", "X"]), DECISION, DECISION), min_size=1, max_size=40)


@given(JUDGED)
def test_a_disparity_by_counting_one_by_one(judged: list[tuple[str, str | None, str | None]]) -> None:
    members, before, after = (list(each) for each in zip(*judged, strict=True))
    spec = samples.spec(features=1, favourable="1")
    found = equity.disparity(spec, "sex", np.array(members, object), before, after, 0.01)
    by_group = {name: [each[1:] for each in judged if each[0] == name] for name in sorted({*members} - {""})}
    assert found.missing == members.count("")
    assert [each.group for each in found.groups] == list(by_group)
    rates = []
    for each in found.groups:
        pairs = by_group[each.group]
        assert each.rows == len(pairs)
        assert each.flips == sum(a != b for a, b in pairs)
        assert each.lost == sum(a == "1" != b for a, b in pairs)
        rates.append([sum(pair[side] == "1" for pair in pairs) / len(pairs) for side in (0, 1)])
    gaps = [abs(a[1] - b[1]) - abs(a[0] - b[0]) for a in rates for b in rates]
    assert found.widened == pytest.approx(max([*gaps, 0.0]))
    sides = list(zip(*rates, strict=True)) or [(0.0,), (0.0,)]
    assert [found.before, found.after] == pytest.approx([max(each) - min(each) for each in sides])
    assert 0 <= found.p_value <= 1


def test_without_a_favourable_decision_the_one_that_moves_most_is_told() -> None:
    spec = samples.spec(features=1)
    members = np.array(["F"] * 4 + ["M"] * 4, object)
    before, after = ["a", "a", "b", "c", "a", "b", "b", "c"], ["a", "b", "b", "c", "a", "c", "c", "c"]
    found = equity.disparity(spec, "sex", members, before, after, 0.01)
    assert (found.decision, found.before, found.after, found.widened) == ("c", 0.0, 0.5, 0.5)


def judged(*groups: GroupFlips, limit: float = 0.01, widened: float = 0.0) -> Disparity:
    return Disparity("sex", "1", 0.1, 0.1, widened, equity.p_value(groups, True), limit, 0, groups)


def test_flips_that_fall_on_one_group_are_refused() -> None:
    even = judged(GroupFlips("F", 500, 200, 200, 8, 4), GroupFlips("M", 500, 250, 250, 6, 3))
    uneven = judged(GroupFlips("F", 500, 200, 200, 8, 4), GroupFlips("M", 500, 250, 250, 0, 0))
    equity.check([even])
    with pytest.raises(
        Refused, match=r"flip unevenly by sex: F 8/500, M 0/500 \(Fisher's exact test, Holm: p = 1.5e-02"
    ):
        equity.check([even, uneven])
    losing = judged(GroupFlips("F", 500, 200, 193, 8, 7), GroupFlips("M", 500, 250, 258, 8, 0))
    with pytest.raises(Refused, match="unevenly"):
        equity.check([losing])  # as many flips, but F loses by them


def test_a_gap_may_widen_by_the_limit() -> None:
    groups = GroupFlips("F", 1_000, 300, 295, 5, 5), GroupFlips("M", 1_000, 300, 305, 5, 0)
    equity.check([judged(*groups[:1], widened=0.01)])
    with pytest.raises(Refused, match=r"widens by 1\.10 points, at most 1 are allowed; flips: F 5/1000"):
        equity.check([judged(*groups, widened=0.011)])
    equity.check([judged(*groups, widened=0.5, limit=1.0)])


def net_at(folder: Path, group: slice, toml: str = TOML) -> ModelSpec:
    """A net with rows.csv, in which F are those that the net is as unsure of as `group` says."""
    nets.mlp(folder / "model.onnx", sizes=(4, 32, 16, 2))
    (folder / "model.toml").write_text(toml)
    spec = load_model(folder.parent.parent, "net", "1")
    drawn = np.random.default_rng(0).standard_normal((20_000, 4), np.float32)
    margins = np.abs(Session(spec).run({"features": drawn})["probabilities"][:, 1] - 0.5)
    order = np.argsort(margins)
    people = [("F", drawn[order[group]]), ("M", drawn[order[9_000:10_500]])]
    lines = [",".join([*map(str, row), sex]) for sex, found in people for row in found.tolist()]
    (folder / "rows.csv").write_text("\n".join(["a,b,c,d,sex", *lines]))
    return spec


def compiled(folder: Path, options: Options, attributes: tuple[str, ...] = ()) -> tuple[Compiled, str]:
    """What came out, and what a user sees."""
    console = Console(file=io.StringIO(), width=240)
    calibration = folder / "rows.csv"
    found, spec, _ = compiling.compile_folder(folder, calibration, [], options, console, None, attributes)
    compiling.show(console, found, spec)
    assert isinstance(console.file, io.StringIO)
    return found, console.file.getvalue()


def test_bits_are_raised_until_groups_fare_alike(tmp_path: Path) -> None:
    folder = tmp_path / "net/1"
    net_at(folder, slice(300, 500))
    free, _ = compiled(folder, Options(agreement_min=0.9, budget=0.1, disparity_max=1.0))
    assert not [each.refused for each in free.tried if "sex" in each.refused]
    assert {"weights8", "weights4"} <= {each.name for each in free.kept}
    found, shown = compiled(folder, Options(agreement_min=0.9, budget=0.1))
    refused = {each.name: each.refused for each in found.tried if each.refused}
    for name in ("weights4", "weights8", "int8"):
        assert "by sex" in refused[name] or "groups of sex" in refused[name]
    raised = manifest.read_variants(folder)["weights-mixed"]
    assert {each.weight_bits for each in raised.layers} == {8, 16}
    for each in (*manifest.read_variants(folder).values(), found.original):
        (apart,) = each.disparity
        assert (apart.attribute, apart.decision, apart.limit, apart.missing) == ("sex", "1", 0.01, 0)
        assert apart.widened <= 0.01 and apart.p_value > equity.ALPHA
        assert [(group.group, group.rows) for group in apart.groups] == [("F", 200), ("M", 1_500)]
        assert shown_row(shown, each.name)[1:3] == ["sex", f"{100 * apart.before:.2f}"]


def shown_row(shown: str, name: str) -> list[str]:
    """The last row of this variant: that of the table of disparities."""
    return [line.split() for line in shown.splitlines() if line.startswith(f"{name} ")][-1]


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    cells = [line.split(",") for line in path.read_text().splitlines()[1:]]
    return np.array([each[:4] for each in cells], np.float32), np.array([each[4] for each in cells])


def test_flips_are_those_of_all_rows(tmp_path: Path) -> None:
    """Counted anew from the files that were written."""
    folder = tmp_path / "net/1"
    spec = net_at(folder, slice(100, 160))
    compiled(folder, Options(agreement_min=0.9, disparity_max=1.0))
    values, sexes = read(folder / "rows.csv")
    before = Session(spec).run({"features": values})["probabilities"][:, 1] >= 0.5
    variants = manifest.read_variants(folder)
    assert any(group.flips for each in variants.values() for group in each.disparity[0].groups)
    for variant in load_model(tmp_path, "net", "1").variants:
        session = Session(spec.of(variant), 1, variants[variant.name].session)
        after = session.run({"features": values})["probabilities"][:, 1] >= 0.5
        for group in variants[variant.name].disparity[0].groups:
            own = sexes == group.group
            assert group.favourable_before == before[own].sum() and group.favourable_after == after[own].sum()
            assert group.flips == (before != after)[own].sum() and group.lost == (before & ~after)[own].sum()


def test_a_search_of_widths_takes_fairness_as_one_more_condition(tmp_path: Path) -> None:
    found = measured(tmp_path / "mlp/1/model.onnx", "mlp")
    options = RunOptions()
    free, *_ = mixed.allocated(found, mixed.STORED, 0.05, options)
    sizes: list[int] = []

    def fair(net: Net, given: RunOptions) -> bool:
        assert given is options
        sizes.append(net.model.ByteSize())
        return len(sizes) == 4

    plan, _, error = mixed.allocated(found, mixed.STORED, 0.05, options, fair)
    assert len(sizes) == 4 and all(a <= b for a, b in pairwise(sizes)) and sizes[0] < sizes[-1]
    assert error <= 0.05 and found.made.written(free).model.ByteSize() == sizes[0]
    assert found.made.written(plan).model.ByteSize() == sizes[-1]
    nothing, *_ = mixed.allocated(found, mixed.STORED, 0.05, options, lambda net, given: False)
    assert len(set(nothing.values())) == 1


def test_without_attributes_it_says_that_it_did_not_measure(tmp_path: Path) -> None:
    folder = tmp_path / "net/1"
    net_at(folder, slice(0, 60))
    text = (folder / "rows.csv").read_text()
    (folder / "rows.csv").write_text("\n".join(line.rpartition(",")[0] for line in text.splitlines()))
    found, shown = compiled(folder, Options(agreement_min=0))
    assert "was not measured for sex: give rows with such columns or attributes" in shown
    assert not found.original.disparity


def test_a_model_without_decisions_is_not_judged(tmp_path: Path) -> None:
    folder = tmp_path / "net/1"
    nets.mlp(folder / "model.onnx", sizes=(1, 4, 1))
    (folder / "rows.csv").write_text("\n".join(["a,sex", *(f"{number},F" for number in range(20))]))
    _, shown = compiled(folder, Options(agreement_min=0), ("sex",))
    assert "was not measured for sex: there are no decisions to compare" in shown


@pytest.mark.parametrize(
    ("attributes", "error", "message"),
    [(("age",), LraiError, "no column 'age'"), (("sex", "age"), LraiError, "no column 'age'")],
)
def test_an_attribute_that_is_not_there(
    tmp_path: Path, attributes: tuple[str, ...], error: type[LraiError], message: str
) -> None:
    net_at(tmp_path / "net/1", slice(0, 60))
    with pytest.raises(error, match=message):
        compiled(tmp_path / "net/1", Options(), attributes)


def told(found: rows.Rows, name: str = "sex") -> list[str]:
    return sorted(word for each in found.attributed for word in each[rows.ATTRIBUTE + name].tolist())


def test_attributes_come_from_every_kind_of_file(tmp_path: Path) -> None:
    spec = samples.spec(features=3, sensitive_features=("sex",))
    values = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)
    sexes = ["F"] * 8 + ["M"] * 10 + [""] * 2
    lines = [",".join([*map(str, row), sex]) for row, sex in zip(values.tolist(), sexes, strict=True)]
    (tmp_path / "a.csv").write_text("\n".join(["a,b,c,sex", *lines]))
    records = [
        {"inputs": {"features": row}, "attributes": {"sex": sex} if sex else {}}
        for row, sex in zip(values.tolist(), sexes, strict=True)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    np.savez(tmp_path / "a.npz", features=values, sex=np.array(sexes))
    for name in ("a.csv", "a.jsonl", "a.npz"):
        found = compiling.rows_of(tmp_path / name, spec, [])
        assert told(found) == sorted(sexes), name
        assert all(set(each) == {"features"} for each in (*found.calibrate, *found.judge))
        plain = compiling.rows_of(tmp_path / name, samples.spec(features=3), [], ["sex"])
        assert told(plain) == sorted(sexes) and plain.sha256 == found.sha256
    assert not compiling.rows_of(tmp_path / "a.csv", spec, ["sex"]).attributed
    for name in ("a.csv", "a.jsonl", "a.npz"):
        with pytest.raises(BadFile, match="age"):
            compiling.rows_of(tmp_path / name, spec, [], ["age"])
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(BadFile, match="names no attribute 'sex'"):
        compiling.rows_of(tmp_path / "a.npy", spec, [], ["sex"])
    with pytest.raises(BadSetting, match="give --calibration"):
        compiling.compile_folder(tmp_path, None, [], Options(), Console(file=io.StringIO()), None, ["sex"])


def test_an_attribute_may_be_an_input_too(tmp_path: Path) -> None:
    spec = samples.spec(features=3, sensitive_features=("sex",))
    lines = [f"{number},{number / 3},{number % 2}" for number in range(20)]
    (tmp_path / "a.csv").write_text("\n".join(["a,b,sex", *lines]))
    found = compiling.rows_of(tmp_path / "a.csv", spec, [])
    assert told(found) == ["0"] * 10 + ["1"] * 10
    assert {row[2] for each in found.judge for row in each["features"].tolist()} <= {0.0, 1.0}


def test_recorded_requests_keep_their_sensitive_features(tmp_path: Path) -> None:
    spec = samples.spec(features=3, sensitive_features=("sex", "age"))
    found = compiling.inputs_of(value(np.ones((2, 3), np.float32), attributes={"sex": "F", "x": "y"}), spec)
    assert found is not None
    assert [found[rows.ATTRIBUTE + each].tolist() for each in spec.sensitive_features] == [["F", "F"], ["", ""]]
    inputs = {"features": np.random.default_rng(0).standard_normal((9, 3)).astype(np.float32)}
    inputs |= {rows.ATTRIBUTE + "sex": np.array(["F"] * 9, object), rows.ATTRIBUTE + "age": np.array([""] * 9, object)}
    compiling.save(tmp_path / "rows.npz", Recorded(inputs, 9, 0))
    read_again = compiling.rows_of(tmp_path / "rows.npz", spec, [])
    assert told(read_again) == ["F"] * 9 and read_again.source == "topic"
    assert all(rows.ATTRIBUTE + "age" not in each for each in read_again.attributed)


@settings(max_examples=30)
@given(st.lists(st.text("abc", max_size=2), min_size=1, max_size=60), st.integers(1, 5))
def test_groups_are_bounded_and_none_is_lost(words: list[str], most: int) -> None:
    spec = samples.spec(features=1, groups_max=most, intersections=(("sex", "age"),))
    run = {rows.ATTRIBUTE + name: np.array(words, object) for name in ("sex", "age")}
    for name, members in equity._members(spec, [run]).items():
        groups = {each for each in members.tolist() if each}
        assert len(groups - {equity.OTHERS}) <= most
        assert [bool(each) for each in members] == [bool(each) for each in words], name
