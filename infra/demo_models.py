"""The demo's models: small ones, trained on the data that comes with scikit-learn, and rows to send to them."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kernels import manifest

if TYPE_CHECKING:
    from sklearn.base import BaseEstimator

MODELS = ("diabetes", "breast-cancer", "digits", "iris")
VERSION = "1"
INPUT = "features"
OPSET = 17
SERVED = "folded"
CERTIFY_S = 4.0  # a model, at most
TESTS = 20_000

Floats = npt.NDArray[np.float32]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Rows:
    """What the demo sends: `features` float32[n, k], the attributes and the subject of each row."""

    features: Floats
    attributes: list[dict[str, str]]
    subjects: list[str]


@dataclass(frozen=True)
class _Recipe:
    """A model to train and what its model.toml says."""

    estimator: BaseEstimator
    rows: Rows
    target: npt.NDArray[Any]
    settings: str
    options: dict[str, Any]


def train(directory: Path, on_progress: Progress = lambda name, done, total: None) -> list[str]:
    """Trains and compiles <directory>/<model>/1/ for each of MODELS, skips what is up to date, returns their names.

    `on_progress(name, done, total)` is called before each model and once at the end.
    """
    for done, name in enumerate(MODELS):
        on_progress(name, done, len(MODELS))
        folder = directory / name / VERSION
        stamp = folder / "trained.txt"
        if stamp.is_file() and stamp.read_text() == _stamp():
            continue
        stamp.unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder, _RECIPES[name]())
        _compile(folder)
        stamp.write_text(_stamp())  # last: a training that broke off starts again
    on_progress("", len(MODELS), len(MODELS))
    return list(MODELS)


def rows(directory: Path, name: str) -> Rows:
    """The rows of a trained model's data set, read without scikit-learn."""
    folder = directory / name / VERSION
    texts = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    return Rows(np.load(folder / "rows.npy"), texts["attributes"], texts["subjects"])


def write_example(directory: Path, name: str, path: Path) -> None:
    """The rows of a trained model as a CSV file."""
    found = rows(directory, name)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow([*(f"feature_{i}" for i in range(found.features.shape[1])), *found.attributes[0], "patient"])
        for features, attributes, subject in zip(found.features, found.attributes, found.subjects, strict=True):
            table.writerow([*features.tolist(), *attributes.values(), subject])


@cache
def _stamp() -> str:
    """Changes when this file does, or what trains and runs the models."""
    versions = [version(name) for name in ("lrai", "onnxruntime", "scikit-learn")]
    return hashlib.sha256(Path(__file__).read_bytes() + " ".join(versions).encode()).hexdigest()


def _write(folder: Path, recipe: _Recipe) -> None:
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType

    features = recipe.rows.features
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a training that is cut short says so
        recipe.estimator.fit(features, recipe.target)
        model = convert_sklearn(
            recipe.estimator,
            initial_types=[(INPUT, FloatTensorType([None, features.shape[1]]))],
            target_opset={"": OPSET, "ai.onnx.ml": 3},
            options={id(recipe.estimator): recipe.options} if recipe.options else None,
        )
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    (folder / "model.toml").write_text(recipe.settings, encoding="utf-8")
    np.save(folder / "rows.npy", features)
    texts = {"attributes": recipe.rows.attributes, "subjects": recipe.rows.subjects}
    (folder / "rows.json").write_text(json.dumps(texts), encoding="utf-8")


def _compile(folder: Path) -> None:
    """As `lrai compile --calibration rows.npy`; the folded graph is certified, which is proved or tested in seconds."""
    from infra.commands import certifying, compiling
    from kernels.compile import compiler

    shutil.rmtree(folder / manifest.FOLDER, ignore_errors=True)
    spec = compiling.spec_of(folder)
    rows = compiling.rows_of(folder / "rows.npy", spec, ())
    compiled = compiler.compile_model(spec, rows, compiler.Options(), lambda step: None)
    never, prefer = [each.name for each in compiled.kept], list[str]()
    if SERVED in never:
        where, epsilon = folder / manifest.FOLDER / SERVED, spec.epsilon_max
        found, _ = certifying.certify(where, spec, None, rows, epsilon, "softmax", CERTIFY_S, tests=TESTS, balls=0)
        if found["verdict"] in ("PROVED", "STATISTICAL"):
            never.remove(SERVED)
            prefer.append(SERVED)
    with (folder / "model.toml").open("a", encoding="utf-8") as file:
        file.write(f"\n[variants]\nprefer = {json.dumps(prefer)}\nnever = {json.dumps(never)}  # not certified\n")


def _network(*hidden: int) -> BaseEstimator:
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), MLPClassifier(hidden, max_iter=60, random_state=0))


def _plain(features: npt.NDArray[Any], subject: str) -> Rows:
    n = len(features)
    return Rows(features.astype(np.float32), [{} for _ in range(n)], [f"{subject}-{row}" for row in range(n)])


def _diabetes() -> _Recipe:
    """Progression above the median or not; sex and age are attributes and no features."""
    from sklearn.datasets import load_diabetes

    bunch = load_diabetes(scaled=False)
    sex, age = bunch.data[:, bunch.feature_names.index("sex")], bunch.data[:, bunch.feature_names.index("age")]
    kept = [column for column, name in enumerate(bunch.feature_names) if name not in ("sex", "age")]
    plain = _plain(bunch.data[:, kept], "patient")
    attributes = [
        {"sex": f"group {int(which)}", "age": _age_band(years)} for which, years in zip(sex, age, strict=True)
    ]
    settings = """\
# a high expected progression means that closer care is offered
labels = ["low", "high"]
favourable = "high"
threshold = 0.5
score = { output = "probabilities", index = 1 }
sensitive_features = ["sex"]
# in the rows that it learned from, the rates of the sexes are 62 and 37 %: freeze when they are surely further apart
disparity_limit = 0.3
freeze_on = "excludes_limit"
slo_p95_ms = 100
"""
    target = (bunch.target > np.median(bunch.target)).astype(np.int64)
    recipe = Rows(plain.features, attributes, plain.subjects)
    return _Recipe(_network(32), recipe, target, settings, {"zipmap": False})


def _age_band(years: float) -> str:
    return "under 40" if years < 40 else "40 to 59" if years < 60 else "60 and over"


def _breast_cancer() -> _Recipe:
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer()
    settings = 'labels = ["malignant", "benign"]\nfavourable = "benign"\nslo_p95_ms = 100\n'
    return _Recipe(_network(64), _plain(bunch.data, "sample"), bunch.target, settings, {"zipmap": False})


def _digits() -> _Recipe:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return _Recipe(_network(64, 32), _plain(bunch.data, "image"), bunch.target, "slo_p95_ms = 100\n", {})


def _iris() -> _Recipe:
    """Boosted trees with words as labels, exported as skl2onnx does by default."""
    from sklearn.datasets import load_iris
    from sklearn.ensemble import GradientBoostingClassifier

    bunch = load_iris()
    trees = GradientBoostingClassifier(n_estimators=30, random_state=0)
    words = np.array(bunch.target_names)[bunch.target]
    return _Recipe(trees, _plain(bunch.data, "flower"), words, "slo_p95_ms = 100\n", {})


_RECIPES: dict[str, Callable[[], _Recipe]] = {
    "diabetes": _diabetes,
    "breast-cancer": _breast_cancer,
    "digits": _digits,
    "iris": _iris,
}
