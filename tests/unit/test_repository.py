from __future__ import annotations

import pickle
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from infra import demo_models
from kernels.repository import check, load_model, load_repository
from kernels.settings import ModelSettings
from kernels.spec import ModelSpec, TensorSpec
from schemas.errors import BadSetting
from tests import nets

FLOAT = TensorProto.FLOAT


def relu(path: Path, shape: nets.Shape = ("rows", 3), out: nets.Shape | None = None, **changes: int) -> None:
    """A one-node graph x -> y."""
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    nets.save(path, nodes, {"x": (FLOAT, shape)}, {"y": (FLOAT, out or shape)}, **changes)


def narrow(path: Path) -> None:
    """One number a row: a score, no decision."""
    relu(path, shape=["rows", 1])


def write(text: str, build: Callable[[Path], object] = relu) -> Callable[[Path], None]:
    """A model m/1 with this model.toml."""

    def make(repository: Path) -> None:
        build(repository / "m/1/model.onnx")
        (repository / "m/1/model.toml").write_text(text)

    return make


def graph(*nodes: onnx.NodeProto, **inputs: tuple[int, nets.Shape]) -> Callable[[Path], None]:
    """A model m/1 of these nodes with the float output y."""

    def make(repository: Path) -> None:
        nets.save(repository / "m/1/model.onnx", nodes, inputs, {"y": (FLOAT, ["rows", 3])})

    return make


def content(value: bytes) -> Callable[[Path], None]:
    def make(repository: Path) -> None:
        (repository / "m/1").mkdir(parents=True)
        (repository / "m/1/model.onnx").write_bytes(value)

    return make


def at(name: str, **options: object) -> Callable[[Path], None]:
    return lambda repository: relu(repository / name / "model.onnx", **options)  # type: ignore[arg-type]


def external(location: str) -> Callable[[Path], None]:
    """A model whose weights should be in another file, which is not there."""

    def make(repository: Path) -> None:
        path = nets.mlp(repository / "m/1/model.onnx", (3, 200, 2))
        model = onnx.load(path)
        onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=0)
        (path.parent / "weights").unlink()
        model = onnx.load(path, load_external_data=False)
        for weight in model.graph.initializer:
            next(entry for entry in weight.external_data if entry.key == "location").value = location
        path.write_bytes(model.SerializeToString())

    return make


def two_rows(repository: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "z"], ["y"])]
    inputs = {"x": (FLOAT, [2, 3]), "z": (FLOAT, [4, 3])}
    nets.save(repository / "m/1/model.onnx", nodes, inputs, {"y": (FLOAT, [None, 3])})


def sequence_output(repository: Path) -> None:
    path = repository / "m/1/model.onnx"
    nodes = [helper.make_node("SequenceConstruct", ["x"], ["y"])]
    nets.save(path, nodes, {"x": (FLOAT, ["rows", 3])}, {"y": (FLOAT, ["rows", 3])})
    model = onnx.load(path)
    model.graph.output[0].CopyFrom(
        helper.make_tensor_sequence_value_info("y", FLOAT, ["rows", 3]),
    )
    onnx.save(model, path)


def baked(path: Path) -> None:
    """Says that rows vary, yet reshapes to one row."""
    shape = onnx.numpy_helper.from_array(np.array([1, 3]), "shape")
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    nets.save(path, nodes, {"x": (FLOAT, ["rows", 3])}, {"y": (FLOAT, ["rows", 3])}, [shape])


SEX = "sensitive_features = ['sex']\n"
FAIR = f"{SEX}threshold = 1.0\nfavourable = '1'\n"


def versions(text: str, features: int = 3) -> Callable[[Path], None]:
    """Version 2 of m/1, to which it falls back when frozen."""

    def make(repository: Path) -> None:
        relu(repository / "m/1/model.onnx")
        relu(repository / "m/2/model.onnx", shape=["rows", features])
        (repository / "m/2/model.toml").write_text(f"{FAIR}on_freeze = '1'\n{text}")

    return make


PROBLEMS: list[tuple[str, Callable[[Path], None], str, str]] = [
    ("no folder", lambda repository: repository.rmdir(), "no folder", "existing folder"),
    ("no models", lambda repository: None, "has no models", "model.onnx"),
    ("no versions", lambda repository: (repository / "m").mkdir(), "has no versions", "1/model.onnx"),
    ("model name", at("My_Model/1"), "'My_Model' is not a model name", "a-z, 0-9"),
    ("version", at("m/v1"), "'v1' is not a version", "integer"),
    ("version with a zero before it", at("m/01"), "'01' is not a version", "integer"),
    ("missing", lambda repository: (repository / "m/1").mkdir(parents=True), "is missing", "put the model there"),
    ("empty", content(b""), "is empty", "export"),
    ("corrupt", content(b"not a model at all"), "no ONNX model", "export"),
    ("no nodes", content(onnx.ModelProto(ir_version=8).SerializeToString()), "no ONNX model", "export"),
    ("opset", at("m/1", opset=13), "opset of ai.onnx is 13", "convert_version"),
    ("no inputs", graph(helper.make_node("RandomNormal", [], ["y"], shape=[1, 3])), "no inputs", "rows"),
    ("scalar input", at("m/1", shape=(), out=["rows"]), "input 'x' is a scalar", "rows as its first"),
    ("fixed output", at("m/1", out=[1, 3]), "output 'y' always has 1 rows", "each row"),
    ("rows twice", at("m/1", shape=["rows", "rows"]), "rows in another dimension", "own name"),
    ("rows that differ", two_rows, "first dimensions of the inputs differ (2, 4)", "first of each"),
    ("bfloat", graph(x=(TensorProto.BFLOAT16, ["rows", 3])), "no ONNX model", "export"),
    (
        "datatype",
        graph(helper.make_node("Cast", ["x"], ["y"], to=1), x=(TensorProto.BFLOAT16, ["rows", 3])),
        "input 'x' is of type BFLOAT16",
        "cast it",
    ),
    ("sequence", sequence_output, "output 'y' is a sequence, not a tensor", "tensors only"),
    ("weights missing", external("weights"), "'weights' with its weights is missing", "beside model.onnx"),
    ("weights outside", external("../weights"), "outside of its folder", "beside model.onnx"),
    ("operator", graph(helper.make_node("Nonsense", ["x"], ["y"]), x=(FLOAT, ["rows", 3])), "the runtime", "operators"),
    ("baked rows", write("", baked), "the runtime refuses it", "any number of rows"),
    ("not toml", write("a = "), "not valid TOML", "place named"),
    ("unknown key", write("treshold = 0.5"), "unknown key 'treshold'", "did you mean 'threshold'?"),
    ("unknown table", write("[xyz]\na = 1"), "unknown key 'xyz'", "the keys are padded"),
    ("unknown inner key", write("score = { output = 'y', indx = 1 }"), "unknown key 'score.indx'", "'index'"),
    ("wrong type", write("request_rows_max = 'many'"), "request_rows_max is 'many'", "valid integer"),
    ("out of range", write("request_rows_max = 0"), "request_rows_max is 0", "greater than or equal to 1"),
    ("unsorted", write("buckets = [32, 16]", nets.sequence), "not ascending", "write [16, 32]"),
    ("buckets of nothing", write("buckets = [16]"), "which size the buckets are for", "remove buckets"),
    (
        "buckets of two sizes",
        write("buckets = [16]", lambda path: relu(path, ("rows", "a", "b"))),
        "which size the buckets are for",
        "one of a, b",
    ),
    ("padded", write("padded = 'sq'\nbuckets = [16]", nets.sequence), "padded is 'sq'", "name one of seq"),
    ("padded alone", write("padded = 'seq'", nets.sequence), "without buckets", "add buckets"),
    ("pad value", write("pad_values = { z = 1 }"), "pad_values names 'z'", "name one of x"),
    ("score", write("score = { output = 'z' }"), "score.output is 'z', which is no output", "name one of y"),
    ("score column", write("score = { output = 'y', index = 3 }"), "the output has 3 columns", "use 0 to 2"),
    ("score string", write("score = { output = 'name' }", nets.strings), "'name' is a string", "numbers"),
    ("decision", write("decision = 'z'"), "decision is 'z', which is no output", "name one of y"),
    ("threshold", write("threshold = 0.5", nets.sequence), "no score to compare", "add score"),
    ("labels", write("labels = ['a', 'b']", nets.classifier), "labels names 2 classes, the graph has 3", "name 3"),
    ("no features", write("disparity_limit = 0.1\nfavourable = '1'"), "without sensitive_features", "add sens"),
    ("no favourable", write(f"groups_max = 9\n{SEX}"), "without favourable", "add favourable"),
    ("limit", write("disparity_limit = 0.0"), "disparity_limit is 0.0", "greater than 0"),
    ("limit", write("disparity_limit = 1.5"), "disparity_limit is 1.5", "less than or equal to 1"),
    ("limit", write("disparity_limit = nan"), "disparity_limit is nan", "less than or equal to 1"),
    ("threshold", write("threshold = nan"), "threshold is nan", "finite"),
    ("reference group", write(f"{FAIR}reference_group = {{age = 'old'}}"), "reference_group names 'age'", "one of sex"),
    ("reference group", write(f"{FAIR}reference_group = 'M'"), "reference_group is 'M'", "dictionary"),
    ("intersection", write(f"{FAIR}intersections = [['sex', 'age']]"), "intersections names 'age'", "one of sex"),
    ("intersection", write(f"{FAIR}intersections = [['sex', 'sex']]"), "['sex', 'sex'] where", "once"),
    ("intersection", write(f"{FAIR}intersections = [['sex']]"), "['sex']", "at least 2"),
    ("feature twice", write("sensitive_features = ['sex', 'sex']"), "'sex' more than once", "name it once"),
    ("groups", write("groups_max = 1"), "groups_max is 1", "greater than or equal to 2"),
    ("freeze on", write("freeze_on = 'always'"), "freeze_on is 'always'", "'established'"),
    ("on freeze", write("on_freeze = 'v1'"), "on_freeze is 'v1'", "an earlier version"),
    ("on missing", write("on_missing = 'drop'"), "on_missing is 'drop'", "'count'"),
    ("fallback to itself", write(f"{FAIR}on_freeze = '1'"), "not earlier than 1", "an earlier version"),
    ("fallback not there", write(f"{FAIR}on_freeze = '0'"), "on_freeze names version 0, which is not there", "earlier"),
    ("fallback of other inputs", versions("", 4), "version 1, which has other inputs and outputs", "same requests"),
    ("fallback with other buckets", versions("allow_nan = true"), "which has other allow_nan", "same requests"),
    ("nothing decided", write("favourable = '1'", narrow), "nothing is decided", "add threshold"),
    ("favourable of a threshold", write("threshold = 1.0\nfavourable = 'yes'"), "'yes', no label", "one of 0, 1"),
    ("favourable", write("labels = ['a', 'b', 'c']\nfavourable = 'd'"), "favourable is 'd'", "one of a, b, c"),
    ("threshold of three", write("labels = ['a', 'b', 'c']\nthreshold = 1"), "between two labels", "remove threshold"),
    (
        "batch rows",
        write("batch_rows = 4", lambda path: relu(path, (2, 3))),
        "batch_rows is 4, the graph fixes 2",
        "remove",
    ),
]


@pytest.mark.parametrize(("make", "what", "fix"), [row[1:] for row in PROBLEMS], ids=[row[0] for row in PROBLEMS])
def test_each_problem_is_named_with_its_fix(tmp_path: Path, make: Callable[[Path], None], what: str, fix: str) -> None:
    make(tmp_path)
    problems = check(tmp_path)
    assert [each for each in problems if what in each.what and fix in each.fix], problems
    assert len(problems) == 1


def test_every_problem_is_listed_at_once(tmp_path: Path) -> None:
    at("Bad/1")(tmp_path)
    at("old/1", opset=9)(tmp_path)
    write("padded = 'a'\nbuckets = [2, 1]\nzebra = 1\nthreshold = 'x'\ndecision = 'z'")(tmp_path)
    assert len(check(tmp_path)) == 6
    with pytest.raises(BadSetting, match=r"(?s)6 problem.*Bad.*buckets.*threshold.*zebra.*decision is 'z'.*opset"):
        load_repository(tmp_path)


def spec_of(tmp_path: Path, build: Callable[[Path], object], text: str = "") -> ModelSpec:
    write(text, build)(tmp_path)
    assert check(tmp_path) == []
    return load_repository(tmp_path)["m", "1"]


def test_an_mlp_needs_no_model_toml(tmp_path: Path) -> None:
    nets.mlp(tmp_path / "m/2/model.onnx")
    nets.mlp(tmp_path / "m/10/model.onnx")
    specs = load_repository(tmp_path)
    spec = specs["m", "2"]
    assert spec.inputs == (TensorSpec("features", "FP32", (30,)),)
    assert spec.outputs == (TensorSpec("probabilities", "FP32", (2,)),)
    assert (spec.score, spec.decision, spec.allow_nan) == (("probabilities", None), "probabilities", False)
    assert (spec.rows_fixed, spec.request_rows_max, spec.padded) == (None, 1024, None)
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert load_model(tmp_path, "m", "2") == spec


def test_a_classifier_with_zipmap_gets_score_and_decision(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, nets.classifier)
    assert spec.zipmap
    assert spec.outputs == (TensorSpec("label", "INT64", ()), TensorSpec("probabilities", "FP32", (3,)))
    assert (spec.score, spec.decision) == (("probabilities", None), "label")
    assert (spec.classes, spec.labels) == ((0, 1, 2), None)


def test_two_classes_are_scored_by_the_last(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, lambda path: nets.classifier(path, classes=("no", "yes")))
    assert (spec.score, spec.labels, spec.classes) == (("probabilities", 1), ("no", "yes"), None)


def test_trees_may_take_nan_and_a_number_is_no_decision(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, lambda path: nets.boosted_trees(path, 3, 2, 4))
    assert (spec.allow_nan, spec.score, spec.decision) == (True, ("value", None), None)
    assert not spec_of(tmp_path, lambda path: nets.boosted_trees(path, 3, 2, 4), "allow_nan = false").allow_nan


def test_buckets_find_the_only_varying_size(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, nets.sequence, "buckets = [8, 16]\npad_values = { ids = 1 }")
    assert (spec.padded, spec.buckets, spec.pad_values) == ("seq", (8, 16), {"ids": 1})
    assert spec.outputs == (TensorSpec("pooled", "FP32", (3,)), TensorSpec("tokens", "FP32", ("seq", 3)))
    assert (spec.score, spec.decision) == (None, None)


def test_sizes_without_a_name_get_one(tmp_path: Path) -> None:
    assert spec_of(tmp_path, lambda path: relu(path, (None, None, 3))).inputs[0].shape == ("x_1", 3)


def test_a_first_dimension_of_the_graph_is_kept(tmp_path: Path) -> None:
    assert spec_of(tmp_path, lambda path: relu(path, (4, 3))).rows_fixed == 4


def test_low_opsets_of_skl2onnx_are_taken(tmp_path: Path) -> None:
    """It states the lowest opset that the operators need, even where 17 was asked for."""
    path = tmp_path / "m/1/model.onnx"
    relu(path, opset=14)
    assert "opset" in check(tmp_path)[0].what
    model = onnx.load(path)
    model.producer_name = "skl2onnx"
    onnx.save(model, path)
    assert check(tmp_path) == []


def test_the_hash_covers_weights_in_files_of_their_own(tmp_path: Path) -> None:
    path = nets.mlp(tmp_path / "m/1/model.onnx")
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights", size_threshold=0)
    assert check(tmp_path) == []
    before = load_repository(tmp_path)["m", "1"]
    assert before.external == ("weights",)
    weights = (path.parent / "weights").read_bytes()
    (path.parent / "weights").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert load_repository(tmp_path)["m", "1"].sha256 != before.sha256


def test_reading_needs_no_runtime() -> None:
    code = "import sys, kernels.repository; sys.exit('onnxruntime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_docs_list_every_key_and_their_example_is_valid() -> None:
    text = (Path(__file__).parents[2] / "docs/models.md").read_text()
    assert set(re.findall(r"^\| `(\w+)", text, re.M)) == set(ModelSettings.model_fields)
    example = re.search(r"```toml\n(.*?)```", text, re.S)
    assert example and ModelSettings.model_validate(tomllib.loads(example[1])).buckets == [16, 32, 64, 128]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("demo")
    demo_models.train(directory)
    return directory


def test_the_demo_models_are_in_order(trained: Path) -> None:
    assert check(trained) == []
    specs = load_repository(trained)
    assert sorted(model for model, _ in specs) == sorted(demo_models.MODELS)
    assert specs["diabetes", "1"].sensitive_features == ("sex",)
    for (model, _), spec in specs.items():
        rows = demo_models.rows(trained, model)
        assert rows.features.dtype == np.float32
        assert spec.inputs[0].shape == (rows.features.shape[1],)
        assert len(rows.attributes) == len(rows.subjects) == len(rows.features)
    assert set(demo_models.rows(trained, "diabetes").attributes[0]) == {"sex", "age"}


def test_training_again_does_nothing_and_needs_no_scikit_learn(trained: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()}
    code = (
        "import sys, pathlib\nfrom infra import demo_models as demo\n"
        f"where = pathlib.Path({str(trained)!r})\ndemo.train(where)\ndemo.rows(where, 'digits')\n"
        "sys.exit('sklearn' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()} == before


def test_a_training_that_broke_off_starts_again(trained: Path) -> None:
    (trained / "iris/1/trained.txt").unlink()
    (trained / "iris/1/model.onnx").write_bytes(b"")
    told: list[tuple[str, int, int]] = []
    demo_models.train(trained, lambda *step: told.append(step))
    assert (trained / "iris/1/model.onnx").stat().st_size
    assert [name for name, _, _ in told] == [*demo_models.MODELS, ""]


def test_what_is_said_of_groups(tmp_path: Path) -> None:
    write("")(tmp_path)
    plain = load_model(tmp_path, "m", "1")
    assert (plain.disparity_limit, plain.groups_max, plain.on_missing, plain.fallback) == (0.05, 64, "count", None)
    versions("risk_class = 'high'\nreference_group = { sex = 'M' }")(tmp_path)
    found = load_repository(tmp_path)["m", "2"]
    assert (found.reference_group, found.risk_class, found.on_missing) == ({"sex": "M"}, "high", "flag")
    assert found.fallback is not None
    assert (found.fallback.version, found.fallback.sha256) == ("1", plain.sha256)
    assert pickle.loads(pickle.dumps(found)) == found
    text = "sensitive_features = ['sex', 'age']\nthreshold = 1.0\nfavourable = '1'\nintersections = [['sex', 'age']]\n"
    write(text + "reference_group = {'sex+age' = 'M+old'}")(tmp_path)
    assert load_model(tmp_path, "m", "1").intersections == (("sex", "age"),)
