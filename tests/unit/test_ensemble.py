"""Members of an entry as one graph: the same answers, equal layers batched, and every difference named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from kernels.compile import ensemble
from kernels.compile.ensemble import BadEnsemble
from kernels.repository import check, load_model, load_repository
from kernels.session import Session
from schemas.errors import BadSetting
from tests import nets

Tensors = dict[str, npt.NDArray[Any]]
FLOAT = TensorProto.FLOAT
ROWS = np.random.default_rng(0).standard_normal((5, 30), np.float32)


def answers(model: ModelProto, feed: Tensors) -> Tensors:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def separately(folders: list[Path], feed: Tensors) -> Tensors:
    """What each member answers in a session of its own, as LRAI serves it."""
    found: Tensors = {}
    for folder in folders:
        spec = load_model(folder.parent.parent, folder.parent.name, folder.name)
        own = Session(spec).run(feed)
        found |= {f"{spec.model}/{spec.version}.{name}": each for name, each in own.items()}
    return found


def assert_same(found: Tensors, wanted: Tensors) -> None:
    assert list(found) == list(wanted)
    for name, each in wanted.items():
        assert (found[name].dtype, found[name].shape) == (each.dtype, each.shape), name
        if each.dtype.kind == "f":
            np.testing.assert_allclose(found[name], each, rtol=1e-5, atol=1e-6)
        else:
            assert found[name].tolist() == each.tolist()


def mlps(place: Path, *sizes: tuple[int, ...]) -> list[Path]:
    """A member a net."""
    return [
        nets.mlp(place / f"m{number}" / "1" / "model.onnx", each, number).parent for number, each in enumerate(sizes)
    ]


def ranks(model: ModelProto) -> list[list[int]]:
    """The shapes of weights of more than two dimensions: those that are batched."""
    return sorted(list(each.dims) for each in model.graph.initializer if len(each.dims) > 2)


def operators(model: ModelProto) -> dict[str, int]:
    kinds = [node.op_type for node in model.graph.node]
    return {kind: kinds.count(kind) for kind in kinds}


def write(place: Path, member: str, nodes: list[onnx.NodeProto], weights: dict[str, Any], opset: int = 17) -> Path:
    """A member `x` float32[rows, 4] -> `y`."""
    path = place / member / "model.onnx"
    tensors = [numpy_helper.from_array(np.asarray(each), name) for name, each in weights.items()]
    nets.save(path, nodes, {"x": (FLOAT, ["rows", 4])}, {"y": (FLOAT, ["rows", None])}, tensors, opset)
    return path.parent


def test_equal_mlps_become_one_batched_product_a_layer(tmp_path: Path) -> None:
    members = mlps(tmp_path, *[(30, 128, 64, 2)] * 8)
    merged = ensemble.merge(members)
    assert operators(merged) == {"MatMul": 3, "Add": 3, "Relu": 2, "Softmax": 1, "Gather": 8}
    assert [each for each in ranks(merged) if each[1] > 1] == [[8, 30, 128], [8, 64, 2], [8, 128, 64]]
    assert_same(answers(merged, {"features": ROWS}), separately(members, {"features": ROWS}))


def test_the_batched_layers_compute_what_plain_numpy_computes(tmp_path: Path) -> None:
    members = mlps(tmp_path, *[(30, 8, 3)] * 8)
    found = answers(ensemble.merge(members), {"features": ROWS})
    for member, result in zip(members, found.values(), strict=True):
        first, shift, second, last = [
            numpy_helper.to_array(each) for each in onnx.load(member / "model.onnx").graph.initializer
        ]
        scores = np.maximum(ROWS @ first + shift, 0) @ second + last
        powers = np.exp(scores - scores.max(1, keepdims=True))
        np.testing.assert_allclose(result, powers / powers.sum(1, keepdims=True), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("sizes", "rows", "batched"),
    [
        (((30, 16, 2),) * 8, None, 2),
        (((30, 16, 2),) * 8, 1, 2),
        (((30, 16, 2),) * 8, 64, 0),  # a batched product packs its weights again in each run
        (((30, 16, 2),) * 2, None, 0),
        (((30, 512, 2),) * 8, None, 0),
        (((30, 16, 2), (30, 16, 3)) * 4, None, 1),
        (((30, 16, 2), (30, 17, 2)) * 4, None, 0),
        (((30, 16, 8, 2),) * 8 + ((30, 16, 8, 3), (30, 16, 2)), None, 3),
    ],
)
def test_only_equal_and_small_layers_are_batched(
    tmp_path: Path, sizes: tuple[tuple[int, ...], ...], rows: int | None, batched: int
) -> None:
    members = mlps(tmp_path, *sizes)
    merged = ensemble.merge(members, rows)
    assert len([each for each in ranks(merged) if each[1] > 1]) == batched
    assert_same(answers(merged, {"features": ROWS}), separately(members, {"features": ROWS}))


@pytest.mark.parametrize(("rows", "gathered"), [(1, "Transpose"), (64, "Concat")])
def test_equal_outputs_can_be_one(tmp_path: Path, rows: int, gathered: str) -> None:
    members = mlps(tmp_path, *[(30, 16, 2)] * 8)
    merged = ensemble.merge(members, rows, joined=True)
    assert operators(merged)[gathered] == 1 and "Gather" not in operators(merged)
    [size] = [each.type.tensor_type.shape.dim for each in merged.graph.output]
    assert [each.dim_param or each.dim_value for each in size] == ["rows", 8, 2]
    wanted = np.stack(list(separately(members, {"features": ROWS}).values()), axis=1)
    assert_same(answers(merged, {"features": ROWS}), {"probabilities": wanted})
    with pytest.raises(BadEnsemble, match="differ; only equal ones can be joined"):
        ensemble.merge([*members, nets.mlp(tmp_path / "x" / "1" / "model.onnx", (30, 3)).parent], joined=True)


def test_what_cannot_be_batched_stays_side_by_side(tmp_path: Path) -> None:
    members = [
        nets.boosted_trees(tmp_path / "trees" / "2" / "model.onnx", 20, 4).parent,
        nets.classifier(tmp_path / "words" / "1" / "model.onnx", 30, ("no", "yes"), 1).parent,
        nets.classifier(tmp_path / "words" / "2" / "model.onnx", 30, ("no", "yes"), 2).parent,
        *mlps(tmp_path, (30, 8, 2)),
    ]
    merged = ensemble.merge(members)
    assert operators(merged)["TreeEnsembleRegressor"] == 1 and operators(merged)["LinearClassifier"] == 2
    assert "ZipMap" not in operators(merged) and not ranks(merged)
    found = answers(merged, {"features": ROWS})
    assert set(found["words/1.label"]) <= {"no", "yes"}
    assert_same(found, separately(members, {"features": ROWS}))


def test_several_inputs_are_shared_and_the_names_of_varying_sizes_may_differ(tmp_path: Path) -> None:
    members = [nets.sequence(tmp_path / "text" / str(v) / "model.onnx", seed=v).parent for v in (1, 2)]
    model = onnx.load(members[1] / "model.onnx")
    for each in [*model.graph.input, *model.graph.output]:
        each.type.tensor_type.shape.dim[0].dim_param = "n"
    onnx.save(model, members[1] / "model.onnx")
    merged = ensemble.merge(members)
    assert [each.name for each in merged.graph.input] == ["ids", "mask"]
    feed = {"ids": np.arange(6).reshape(2, 3), "mask": np.ones((2, 3), np.int64)}
    assert_same(answers(merged, feed), separately(members, feed))


def test_sizes_of_one_name_in_two_members_may_differ(tmp_path: Path) -> None:
    members = []
    for number, width in enumerate((2, 50)):
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["wide"]),
            helper.make_node("Relu", ["wide"], ["positive"]),
            helper.make_node("Neg", ["positive"], ["y"]),
        ]
        folder = write(tmp_path, f"a/{number}", nodes, {"w": np.ones((4, width), np.float32)})
        model = onnx.load(folder / "model.onnx")
        for name in ("wide", "positive"):
            model.graph.value_info.append(helper.make_tensor_value_info(name, FLOAT, ["rows", "classes"]))
        model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "classes"
        onnx.save(model, folder / "model.onnx")
        members.append(folder)
    merged = ensemble.merge(members)
    sizes = [[dim.dim_param for dim in each.type.tensor_type.shape.dim] for each in merged.graph.output]
    assert sizes == [["rows", "a/0.classes"], ["rows", "a/1.classes"]]
    feed = {"x": ROWS[:, :4]}
    assert_same(answers(merged, feed), separately(members, feed))


def test_equal_weights_are_stored_once_and_equal_layers_run_once(tmp_path: Path) -> None:
    scale = np.arange(1, 5, dtype=np.float32)
    members = []
    for number in range(8):
        weights = {"scale": scale, "w": np.full((4, 2), number, np.float32)}
        nodes = [helper.make_node("Div", ["x", "scale"], ["s"]), helper.make_node("MatMul", ["s", "w"], ["y"])]
        members.append(write(tmp_path, f"a/{number}", nodes, weights))
    merged = ensemble.merge(members)
    assert operators(merged) == {"Div": 1, "MatMul": 1, "Gather": 8}
    assert sorted(list(each.dims) for each in merged.graph.initializer) == [*[[]] * 8, [4], [8, 4, 2]]
    feed = {"x": np.ones((3, 4), np.float32)}
    assert_same(answers(merged, feed), separately(members, feed))


def test_a_model_and_its_copy_answer_under_both_names(tmp_path: Path) -> None:
    members = [*mlps(tmp_path, (30, 8, 2)), nets.mlp(tmp_path / "copy" / "1" / "model.onnx", (30, 8, 2), 0).parent]
    merged = ensemble.merge(members)
    assert operators(merged)["MatMul"] == 2 and not ranks(merged)
    assert_same(answers(merged, {"features": ROWS}), separately(members, {"features": ROWS}))


def test_a_member_with_control_flow_keeps_its_graph(tmp_path: Path) -> None:
    then = helper.make_graph(
        [helper.make_node("Mul", ["x", "two"], ["t"])], "then", [], [helper.make_tensor_value_info("t", FLOAT, None)]
    )
    other = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["o"])], "else", [], [helper.make_tensor_value_info("o", FLOAT, None)]
    )
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["y"], then_branch=then, else_branch=other),
    ]
    weights = {"two": np.float32(2), "zero": np.float32(0)}
    members = [write(tmp_path, "a/1", nodes, weights), write(tmp_path, "a/2", nodes, weights | {"two": np.float32(3)})]
    for sign in (1, -1):
        feed = {"x": np.full((2, 4), sign, np.float32)}
        assert_same(answers(ensemble.merge(members), feed), separately(members, feed))


@pytest.mark.parametrize("newer", [18, 21, 22])
def test_opsets_are_raised_to_the_highest(tmp_path: Path, newer: int) -> None:
    mean = [helper.make_node("ReduceMean", ["x"], ["y"], axes=[1], keepdims=1)]  # axes became an input in 18
    by_input = [helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=1)]
    members = [write(tmp_path, "old/1", mean, {}), write(tmp_path, "new/1", by_input, {"axes": np.array([1])}, newer)]
    merged = ensemble.merge(members)
    assert {each.domain: each.version for each in merged.opset_import}[""] == newer
    feed = {"x": ROWS[:, :4]}
    assert_same(answers(merged, feed), separately(members, feed))


def test_trees_of_different_opsets_are_merged(tmp_path: Path) -> None:
    members = [nets.boosted_trees(tmp_path / "trees" / str(v) / "model.onnx", 5, 3, 30, v).parent for v in (1, 2)]
    model = onnx.load(members[0] / "model.onnx")
    for each, version in zip(model.opset_import, (20, 4), strict=True):
        each.version = version
    onnx.save(model, members[0] / "model.onnx")
    merged = ensemble.merge(members)
    assert_same(answers(merged, {"features": ROWS}), separately(members, {"features": ROWS}))


def test_an_opset_that_cannot_be_raised_is_named(tmp_path: Path) -> None:
    nodes = [helper.make_node("Scale2", ["x"], ["y"], domain="company")]
    members = [write(tmp_path, f"a/{v}", nodes, {}) for v in (1, 2)]
    for version, member in enumerate(members, 1):
        model = onnx.load(member / "model.onnx")
        model.opset_import.append(helper.make_opsetid("company", version))
        onnx.save(model, member / "model.onnx")
    with pytest.raises(BadEnsemble, match=r"a/1 has opset 1 of company, another member 2, in which Scale2 changed"):
        ensemble.merge(members)


def test_weights_in_files_of_their_own_are_read_in(tmp_path: Path) -> None:
    members = mlps(tmp_path, (30, 64, 2), (30, 64, 2))
    model = onnx.load(members[0] / "model.onnx")
    onnx.save(model, members[0] / "model.onnx", save_as_external_data=True, location="weights", size_threshold=16)
    assert_same(answers(ensemble.merge(members), {"features": ROWS}), separately(members, {"features": ROWS}))


def _input(place: Path, **change: Any) -> Path:
    path = nets.mlp(place / "b" / "1" / "model.onnx", (30, 4, 2))
    model = onnx.load(path)
    tensor = model.graph.input[0].type.tensor_type
    if "rows" in change:
        tensor.shape.dim[0].dim_value = change["rows"]
    if "name" in change:
        model.graph.input[0].name = model.graph.node[0].input[0] = change["name"]
    if "cast" in change:
        tensor.elem_type = TensorProto.DOUBLE
        model.graph.node[0].input[0] = "single"
        model.graph.node.insert(0, helper.make_node("Cast", ["features"], ["single"], to=FLOAT))
    onnx.save(model, path)
    return path.parent


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rows": 8}, r"input 'features' is FP32\[rows, 30\] in m0/1 and FP32\[8, 30\] in b/1"),
        ({"name": "rows_in"}, r"m0/1 has an input 'features', b/1 does not"),
        ({"cast": True}, r"input 'features' is FP32\[rows, 30\] in m0/1 and FP64\[rows, 30\] in b/1"),
    ],
)
def test_different_inputs_are_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(BadEnsemble, match=said):
        ensemble.merge([*mlps(tmp_path, (30, 4, 2)), _input(tmp_path, **change)])


def test_different_widths_missing_files_and_too_few_members_are_named(tmp_path: Path) -> None:
    members = mlps(tmp_path, (30, 4, 2), (31, 4, 2))
    with pytest.raises(BadEnsemble, match=r"FP32\[rows, 30\] in m0/1 and FP32\[rows, 31\] in m1/1"):
        ensemble.merge(members)
    with pytest.raises(BadEnsemble, match="the file is missing"):
        ensemble.merge([members[0], tmp_path / "none" / "1"])
    for few in ([], members[:1], [members[0]] * 2):
        with pytest.raises(BadEnsemble, match="at least two models, each once"):
            ensemble.merge(few)


def entry(place: Path, *members: str, more: str = "") -> Path:
    folder = place / "both" / "1"
    folder.mkdir(parents=True)
    (folder / "model.toml").write_text(f"members = {list(members)}\n{more}")
    return folder


def test_an_entry_is_a_problem_until_it_is_built_and_serves_then(tmp_path: Path) -> None:
    members = mlps(tmp_path, (30, 8, 2), (30, 8, 2))
    folder = entry(tmp_path, "m0/1", "m1/1", more='score = { output = "m1/1.probabilities", index = 1 }')
    with pytest.raises(BadSetting, match=r"m0/1, m1/1 are not merged into a graph yet; run `lrai compile .*both/1`"):
        load_repository(tmp_path)
    assert ensemble.build(folder) == ("m0/1", "m1/1")
    assert not check(tmp_path)
    spec = load_repository(tmp_path)["both", "1"]
    assert spec.score == ("m1/1.probabilities", 1)
    assert_same(Session(spec).run({"features": ROWS}), separately(members, {"features": ROWS}))


def test_an_entry_without_members_is_left_alone(tmp_path: Path) -> None:
    assert ensemble.build(mlps(tmp_path, (30, 8, 2))[0]) == ()


def test_equal_outputs_are_one_where_the_entry_asks_for_it(tmp_path: Path) -> None:
    folders = mlps(tmp_path, (30, 8, 2), (30, 8, 2))
    folder = entry(tmp_path, "m0/1", "m1/1", more="joined = true")
    ensemble.build(folder)
    feed = {"features": np.random.default_rng(1).standard_normal((3, 30)).astype(np.float32)}
    found, wanted = answers(onnx.load(folder / "model.onnx"), feed), separately(folders, feed)
    (both,) = found.values()
    np.testing.assert_allclose(both, np.stack(list(wanted.values()), 1), rtol=1e-5, atol=1e-6)


def test_a_failed_build_leaves_the_graph_that_was_there(tmp_path: Path) -> None:
    mlps(tmp_path, (30, 8, 2), (30, 8, 2))
    folder = entry(tmp_path, "m0/1", "m1/1")
    ensemble.build(folder)
    before = (folder / "model.onnx").read_bytes()
    (tmp_path / "m1" / "1" / "model.onnx").write_bytes(b"")
    with pytest.raises(BadEnsemble, match="the file is empty"):
        ensemble.build(folder)
    assert (folder / "model.onnx").read_bytes() == before
    assert sorted(each.name for each in folder.iterdir()) == ["model.onnx", "model.toml"]


@pytest.mark.parametrize(
    ("members", "said"),
    [(("both/1", "m0/1"), "names the entry itself"), (("m0", "m1/1"), "members"), (("m0/1", "../1"), "members")],
)
def test_wrong_members_are_named(tmp_path: Path, members: tuple[str, ...], said: str) -> None:
    mlps(tmp_path, (30, 8, 2))
    with pytest.raises(BadEnsemble, match=said):
        ensemble.build(entry(tmp_path, *members))
