"""Pairs the unary functions of a variant with those of its original. Pure.

Any pairing is sound: a difference is bounded, whatever of. A good one makes differences small.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from kernels.proof.ir import F64, IDENTITY, Expression, Function, Net, base_expression


@dataclass(frozen=True)
class Mate:
    """What a unary of the variant is compared with: `function` of `argument` in the original, whose value is `value`.

    exact: `argument` means the expression itself, without the rounding of the original's run.
    """

    function: Function
    argument: Expression
    value: Expression
    exact: bool
    name: tuple[str, str]


@dataclass
class Form:
    """A linear form over nodes of the product: matrices (None: identity) and a constant."""

    terms: dict[int, F64 | None]
    constant: F64


@dataclass
class Product:
    """Both nets. Nodes: 0 the input, then the original's unaries, then value and difference of the variant's."""

    original: Net
    variant: Net
    mates: list[Mate | None] = field(default_factory=list)

    def value(self, at: int) -> int:
        """The node of the variant's base `at`."""
        return 0 if at == 0 else len(self.original.unaries) + 2 * at - 1

    def difference(self, at: int) -> int:
        """The node of the difference of the variant's base `at`."""
        return self.value(at) + 1

    def variant_form(self, expression: Expression) -> Form:
        """The expression of the variant over nodes of the variant."""
        return Form({self.value(b): term.matrix for b, term in expression.terms.items()}, expression.constant)

    def difference_form(self, ours: Expression, theirs: Expression) -> Form:
        """ours (of the variant) minus theirs (of the original), over differences and the original's nodes."""
        form = Form({}, ours.constant - theirs.constant)
        for base, term in ours.terms.items():
            mate = self.mates[base - 1] if base else None
            if base and mate is None:
                _add(form, self.value(base), term.matrix, 1.0, ours.size)
                continue
            value = base_expression(0, 0) if mate is None else mate.value
            if base:
                _add(form, self.difference(base), term.matrix, 1.0, ours.size)
            for node, inner in value.terms.items():
                joined = inner.matrix if term.matrix is None else term.matrix
                if term.matrix is not None and inner.matrix is not None:
                    joined = term.matrix @ inner.matrix
                _add(form, node, joined, 1.0, ours.size)
            if base and value.constant.any():
                form.constant = form.constant + (
                    value.constant if term.matrix is None else term.matrix @ value.constant
                )
        for base, term in theirs.terms.items():
            _add(form, base, term.matrix, -1.0, ours.size)
        form.terms = {node: each for node, each in form.terms.items() if each is None or each.any()}
        return form


def original_form(expression: Expression) -> Form:
    """An expression of the original over its nodes, which are its bases."""
    return Form({base: term.matrix for base, term in expression.terms.items()}, expression.constant)


def _add(form: Form, node: int, matrix: F64 | None, sign: float, n: int) -> None:
    if node not in form.terms and sign > 0:
        form.terms[node] = matrix
        return
    mine = form.terms.get(node, np.zeros((n, n)) if matrix is None else np.zeros_like(matrix))
    form.terms[node] = (np.eye(n) if mine is None else mine) + sign * (np.eye(n) if matrix is None else matrix)


def pair(original: Net, variant: Net) -> Product:
    """Pairs in the order of the graphs: functions of like-made tensors, extra quantizers with the tensor itself."""
    places: dict[tuple[str, bool], list[int]] = {}
    for at, unary in enumerate(original.unaries):
        places.setdefault((original.signatures[unary.tensor], bool(unary.function.step)), []).append(at)
    last = {signature: name for name, signature in original.signatures.items()}
    product = Product(original, variant)
    for unary in variant.unaries:
        signature = variant.signatures[unary.tensor]
        quantizes = bool(unary.function.step)
        rectifies = quantizes and unary.signature != signature
        found = places.get((signature, quantizes and not rectifies), [])
        size = unary.argument.size
        if found and original.unaries[found[0]].argument.size == size:
            product.mates.append(_unary_mate(original, found.pop(0)))
        elif quantizes and not rectifies and signature in last and original.tensors[last[signature]].size == size:
            tensor = original.tensors[last[signature]]
            product.mates.append(Mate(IDENTITY, tensor, tensor, True, ("tensor", last[signature])))
        else:
            product.mates.append(None)
    return product


def _unary_mate(original: Net, at: int) -> Mate:
    unary = original.unaries[at]
    value = base_expression(at + 1, unary.argument.size)
    return Mate(unary.function, unary.argument, value, False, ("unary", unary.tensor))
