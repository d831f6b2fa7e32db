"""Models trained on the data that comes with scikit-learn, with rows held out: an MLP, a small CNN, boosted trees."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from tests.nets import OPSET, Builder

Floats = npt.NDArray[np.float32]
HELD_OUT = 0.4
CHANNELS = (1, 16, 32)


@dataclass(frozen=True)
class Trained:
    """<folder>/model.onnx takes `features`; the rows that it was trained on, and others with their classes."""

    name: str
    folder: Path
    seen: Floats
    held_out: Floats
    classes: npt.NDArray[Any]


def models(place: Path) -> Iterator[Trained]:
    """Trains each when asked for it, into <place>/<name>/1."""
    from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    for name, load in (("digits", load_digits), ("breast-cancer", load_breast_cancer), ("diabetes", load_diabetes)):
        bunch = load()
        classes = bunch.target if name != "diabetes" else (bunch.target > np.median(bunch.target)).astype(np.int64)
        split = _split(bunch.data.astype(np.float32), classes)
        mlp = make_pipeline(StandardScaler(), MLPClassifier((64, 32), max_iter=200, random_state=0))
        yield _scikit(place / f"{name}-mlp" / "1", mlp, *split)
        yield _scikit(
            place / f"{name}-trees" / "1", GradientBoostingClassifier(n_estimators=40, random_state=0), *split
        )
        if name == "digits":
            yield _cnn(place / "digits-cnn" / "1", *split)


def _split(rows: Floats, classes: npt.NDArray[Any]) -> tuple[Floats, npt.NDArray[Any], Floats, npt.NDArray[Any]]:
    order = np.random.default_rng(0).permutation(len(rows))
    seen, held = np.split(order, [int(len(rows) * (1 - HELD_OUT))])
    return rows[seen], classes[seen], rows[held], classes[held]


def _scikit(folder: Path, estimator: Any, seen: Floats, known: Any, held: Floats, classes: Any) -> Trained:
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a training that is cut short says so
        estimator.fit(seen, known)
        model = convert_sklearn(
            estimator,
            initial_types=[("features", FloatTensorType([None, seen.shape[1]]))],
            target_opset={"": OPSET, "ai.onnx.ml": 3},
            options={id(estimator): {"zipmap": False}},
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return Trained(folder.parent.name, folder, seen, held, classes)


def _cnn(folder: Path, seen: Floats, known: Any, held: Floats, classes: Any) -> Trained:
    """Two random convolutions, whose features a trained layer reads: float32[rows, 64] of 8 x 8 pixels."""
    import onnxruntime
    from sklearn.linear_model import LogisticRegression

    net = Builder(0)
    x = net.node("Mul", "features", net.weight(np.array(1 / 16, np.float32)))
    x = net.node("Reshape", x, net.weight(np.array([-1, 1, 8, 8])))
    for source, target in itertools.pairwise(CHANNELS):
        x = net.node("Relu", net.conv(x, (source, target), 3))
    flat = net.node("Flatten", net.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]))
    inputs: dict[str, Any] = {"features": (TensorProto.FLOAT, ["rows", 64])}
    path = net.save(folder / "model.onnx", inputs, {flat: (TensorProto.FLOAT, ["rows", 16 * CHANNELS[-1]])})
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    reader = LogisticRegression(max_iter=300).fit(session.run(None, {"features": seen})[0], known)
    weight, bias = (net.weight(each.astype(np.float32)) for each in (reader.coef_.T, reader.intercept_))
    net.node("Softmax", net.node("Gemm", flat, weight, bias), out="probabilities", axis=-1)
    net.save(path, inputs, {"probabilities": (TensorProto.FLOAT, ["rows", 10])})
    return Trained(folder.parent.name, folder, seen, held, classes)
