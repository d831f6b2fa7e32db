"""A net as unary functions of linear expressions: all that the bounds know of a graph. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from schemas.errors import LraiError

F64 = npt.NDArray[np.float64]

FLOAT_BITS = 24
TINY = 2.0**-100  # added to magnitudes: times g(k) it covers underflow, also where denormals are flushed to zero
MAGNITUDE_MAX = 2.0**127  # beyond it float32 may overflow


class Unsupported(LraiError):
    """The graph holds something that the proof does not model."""

    exit_code = 3


class BadProblem(LraiError):
    """The question cannot be asked; correct the models, the box or the options."""

    exit_code = 3


@dataclass(frozen=True)
class Function:
    """A function of one number: piecewise linear with `breaks`, or sigmoid or tanh.

    kind: "relu" | "leaky" | "clip" | "identity" | "sigmoid" | "tanh". A quantizer is a clip with a step.
    """

    kind: str
    low: float = -np.inf  # clip
    high: float = np.inf
    alpha: float = 0.0  # leaky
    step: float = 0.0  # of a quantizer, else 0
    levels: int = 0  # of a quantizer: from zero to the farther end, plus one

    @property
    def breaks(self) -> tuple[float, ...]:
        if self.kind in ("relu", "leaky"):
            return (0.0,)
        return tuple(each for each in (self.low, self.high) if np.isfinite(each)) if self.kind == "clip" else ()

    @property
    def smooth(self) -> bool:
        return self.kind in ("sigmoid", "tanh")

    @property
    def noise(self) -> tuple[float, float]:
        """Absolute error beyond `at`: by definition (a quantizer's rounding), and by float arithmetic."""
        if self.step:
            return self.step / 2, self.step * self.levels * 2.0**-21
        return 0.0, 2.0**-20 if self.smooth else 0.0

    def at(self, z: F64) -> F64:
        """The function without rounding, elementwise."""
        if self.kind == "relu":
            return np.maximum(z, 0.0)
        if self.kind == "leaky":
            return np.where(z > 0, z, self.alpha * z)
        if self.kind == "clip":
            return np.clip(z, self.low, self.high)
        if self.kind == "sigmoid":
            return 0.5 * (1.0 + np.tanh(0.5 * z))
        return np.tanh(z) if self.kind == "tanh" else z

    def run(self, z: F64) -> F64:
        """With the quantizer's rounding."""
        return np.clip(np.rint(z / self.step) * self.step, self.low, self.high) if self.step else self.at(z)

    def slope(self, z: F64) -> F64:
        """A derivative, for gradients; a quantizer counts as its clip."""
        if self.kind == "relu":
            return (z > 0).astype(float)
        if self.kind == "leaky":
            return np.where(z > 0, 1.0, self.alpha)
        if self.kind == "clip":
            return ((z > self.low) & (z < self.high)).astype(float)
        if self.smooth:
            y = self.at(z)
            return y * (1 - y) if self.kind == "sigmoid" else 1 - y * y
        return np.ones_like(z)


IDENTITY = Function("identity")


@dataclass
class Term:
    """A matrix float64[n, m] on a base, and the composed magnitudes; None is the identity."""

    matrix: F64 | None
    magnitude: F64 | None

    def __matmul__(self, other: Term) -> Term:
        return Term(_product(self.matrix, other.matrix), _product(self.magnitude, other.magnitude))

    def dense(self, n: int) -> F64:
        return np.eye(n) if self.matrix is None else self.matrix

    def size(self, n: int) -> F64:
        return np.eye(n) if self.magnitude is None else self.magnitude


def _product(a: F64 | None, b: F64 | None) -> F64 | None:
    return b if a is None else a if b is None else a @ b


@dataclass
class Expression:
    """sum of terms on bases plus constant: float64[n]. `count` operations round, on numbers as large as `magnitude`."""

    terms: dict[int, Term]
    constant: F64
    magnitude: F64
    count: int = 0

    @property
    def size(self) -> int:
        return len(self.constant)

    @property
    def base(self) -> int | None:
        """The base that this is, unchanged."""
        if len(self.terms) == 1 and not self.count and not self.constant.any():
            ((base, term),) = self.terms.items()
            return base if term.matrix is None else None
        return None

    def then(self, matrix: F64 | None, constant: F64 | None, count: int) -> Expression:
        """matrix @ self + constant, where `count` more operations round; None is the identity, and zero."""
        step = Term(matrix, None if matrix is None else np.abs(matrix))
        value = self.constant if matrix is None else matrix @ self.constant
        size = self.magnitude if step.magnitude is None else step.magnitude @ self.magnitude
        if constant is not None:
            value, size = value + constant, size + np.abs(constant)
        terms = {base: step @ term for base, term in self.terms.items()}
        return Expression(terms, value, size + (TINY if count else 0.0), self.count + count)

    def plus(self, other: Expression, sign: float = 1.0, count: int = 2) -> Expression:
        """self + sign * other."""
        terms = dict(self.terms)
        n = self.size
        for base, term in other.terms.items():
            matrix, magnitude = sign * term.dense(n), term.size(n)
            if (mine := terms.get(base)) is not None:
                matrix, magnitude = matrix + mine.dense(n), magnitude + mine.size(n)
            terms[base] = Term(matrix, magnitude)
        total = max(self.count, other.count) + count
        size = self.magnitude + other.magnitude + (TINY if count else 0.0)
        return Expression(terms, self.constant + sign * other.constant, size, total)


def base_expression(base: int, size: int) -> Expression:
    """The base itself."""
    return Expression({base: Term(None, None)}, np.zeros(size), np.zeros(size))


@dataclass
class Unary:
    """Base `number`: a function of an expression. `tensor` names it in the graph."""

    function: Function
    argument: Expression
    tensor: str
    signature: str  # of what it is applied to


@dataclass
class Net:
    """Base 0 is the input of `features` numbers; base i is unaries[i - 1]."""

    features: int
    unaries: list[Unary] = field(default_factory=list)
    tensors: dict[str, Expression] = field(default_factory=dict)
    signatures: dict[str, str] = field(default_factory=dict)  # how a tensor is made, whatever the weights
    output: str = ""  # the tensor of logits or values
    ending: str = ""  # "softmax" | "probabilities" | ""
    odd: list[str] = field(default_factory=list)  # where the runtime's default session computes something else

    def run(self, x: F64) -> F64:
        """Values of the output: float64[rows, outputs] for float64[rows, features], in double precision."""
        values: list[F64] = [x]
        for unary in self.unaries:
            values.append(unary.function.run(evaluate(unary.argument, values)))
        return evaluate(self.tensors[self.output], values)

    def gradient(self, x: F64, weights: F64) -> F64:
        """The gradient of sum(weights * output) at each row: float64[rows, features]."""
        values, arguments = [x], []
        for unary in self.unaries:
            arguments.append(evaluate(unary.argument, values))
            values.append(unary.function.run(arguments[-1]))
        grads: list[F64] = [np.zeros_like(each) for each in values]
        _pull(self.tensors[self.output], weights, grads)
        for at in range(len(self.unaries), 0, -1):
            unary = self.unaries[at - 1]
            _pull(unary.argument, grads[at] * unary.function.slope(arguments[at - 1]), grads)
        return grads[0]


def evaluate(expression: Expression, values: list[F64]) -> F64:
    """The expression at values of the bases: float64[rows, n]."""
    total = np.broadcast_to(expression.constant, (len(values[0]), expression.size))
    for base, term in expression.terms.items():
        total = total + (values[base] if term.matrix is None else values[base] @ term.matrix.T)
    return total


def _pull(expression: Expression, weights: F64, grads: list[F64]) -> None:
    for base, term in expression.terms.items():
        grads[base] = grads[base] + (weights if term.matrix is None else weights @ term.matrix)


def rounding(count: int) -> float:
    """g(k) = k u / (1 - k u), u = 2^-24: Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., lemma 3.1."""
    product = count * 2.0**-FLOAT_BITS
    if product >= 0.5:
        raise Unsupported(f"{count} float32 operations in one sum are too many for an error bound")
    return product / (1 - product) * (1 + 2.0**-40)
