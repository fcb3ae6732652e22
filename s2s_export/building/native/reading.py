"""Reads the parts of a Transformer's graph, from a value back to what it was computed from.

A part that is not as the exporter writes it for a Transformer of the standard structure raises `NotStandard`, which
says in a few words what was found. Nothing else in the graph is looked at, so that what a part leaves out is found by
the comparison with the portable graphs (numpy_model.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from ..graphs.graph import Graph
from ..graphs.links import Links, attribute
from .structure import Array, Convolution, Distances, FeedForward, Linear, Norm, Positions, Weight

NORMS = ("LayerNormalization", "RMSNormalization")
QUICK_GELU = 1.702
SIMPLE = {"Relu": "relu", "Tanh": "tanh", "Sigmoid": "sigmoid"}
TO_HEADS = [0, 2, 1, 3]


class NotStandard(Exception):
    """What a model has that the kernels don't compute, in the middle of a sentence."""


class Reader:
    """A graph's values and what they are computed from."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.links = Links(graph)

    def maker(self, value: str) -> str:
        """The operator that computes a value; empty for inputs and weights."""
        node = self.links.makers.get(value)
        return "" if node is None else node.op_type

    def node(self, value: str, *op_types: str, what: str) -> onnx.NodeProto:
        """The node that computes a value. Raises NotStandard where it is none of these."""
        found = self.links.makers.get(value)
        if found is None or found.op_type not in op_types:
            shown = found.op_type if found is not None else "an input"
            raise NotStandard(f"{what} comes from {shown}, not from {' or '.join(op_types)}")
        return found

    def constant(self, value: str) -> Array | None:
        return self.graph.weights.get(value)

    def number(self, value: str) -> float | None:
        found = self.constant(value)
        return None if found is None or found.size != 1 else float(found.reshape(()))

    def weight(self, value: str, what: str) -> Weight:
        array = self.constant(value)
        if array is None or array.ndim != 2:
            raise NotStandard(f"{what} is no matrix of weights")
        return Weight(array, self.graph.places.get(value, value))

    # Products, norms, activations

    def linear(self, value: str, what: str) -> tuple[str, Linear]:
        """What is multiplied, and the product."""
        node = self.node(value, "Gemm", what=what)
        if not attribute(node, "transB", 0):
            raise NotStandard(f"{what} is a product whose weight is not [outputs, inputs]")
        bias = self.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        return node.input[0], Linear(self.weight(node.input[1], what), bias)

    def normed(self, value: str) -> tuple[str, Norm] | None:
        """What is normed and how, or None for a value that no norm computes."""
        if self.maker(value) not in NORMS:
            return None
        node = self.links.makers[value]
        weight = self.constant(node.input[1])
        bias = self.constant(node.input[2]) if node.op_type == NORMS[0] and len(node.input) > 2 else None
        if weight is None or (node.op_type == NORMS[0] and bias is None):
            raise NotStandard("a norm has no weight or no bias")
        return node.input[0], Norm(weight, bias, float(attribute(node, "epsilon", 1e-5)))

    def activated(self, value: str) -> tuple[str, str]:
        """(what is activated, the activation's name); "linear" for a value that no activation computes."""
        found = self.links.makers.get(value)
        if found is None:
            return value, "linear"
        if found.op_type in SIMPLE:
            return found.input[0], SIMPLE[found.op_type]
        if found.op_type == "Gelu":
            is_tanh = attribute(found, "approximate", b"none") == b"tanh"
            return found.input[0], "gelu_tanh" if is_tanh else "gelu"
        if found.op_type == "Mul":
            for x, factor in ((found.input[0], found.input[1]), (found.input[1], found.input[0])):
                if self.maker(factor) == "Sigmoid":
                    inside = self.links.makers[factor].input[0]
                    if inside == x:
                        return x, "silu"
                    scaled, by = self.scaled(inside)
                    if scaled == x and round(by, 3) == QUICK_GELU:
                        return x, "quick_gelu"
        return value, "linear"

    def scaled(self, value: str) -> tuple[str, float]:
        """A value before it was multiplied by a constant, and the constant; 1 for a value that was not."""
        if self.maker(value) == "Mul":
            one, other = self.links.makers[value].input
            for x, factor in ((one, other), (other, one)):
                if (number := self.number(factor)) is not None:
                    return x, number
        return value, 1.0

    def feed_forward(self, value: str, outer: Linear) -> tuple[str, FeedForward]:
        """value: what the layer's last product multiplies. Returns the layer's input, and the layer."""
        gated = self.links.maker(value, "Mul")
        if gated is not None and self.activated(value)[1] == "linear":
            for activated, inner in (tuple(gated.input), tuple(reversed(gated.input))):
                split = self.links.maker(inner, "Split")
                x, activation = self.activated(activated)
                if split is not None and list(split.output) == [x, inner]:
                    rows, both = self.linear(split.input[0], "a gated feed-forward layer")
                    return rows, FeedForward(both, outer, activation, True)
            raise NotStandard("a feed-forward layer multiplies two values that are no gate and its product")
        x, activation = self.activated(value)
        rows, inner = self.linear(x, "a feed-forward layer")
        return rows, FeedForward(inner, outer, activation, False)

    # Heads

    def rows_of_heads(self, heads: str, what: str) -> str:
        """The rows [R, H*D] that were split into `heads`."""
        found = self.node(heads, "Transpose", what=what)
        if list(attribute(found, "perm", [])) != TO_HEADS:
            raise NotStandard(f"{what} is no row split into heads")
        return str(self.node(found.input[0], "Reshape", what=what).input[0])

    def parts_of(self, heads: list[str], what: str) -> tuple[str, Linear]:
        """Heads that are equal parts of one product's rows: what is multiplied, and the product."""
        rows = [self.rows_of_heads(name, what) for name in heads]
        split = self.node(rows[0], "Split", what=what)
        sizes = self.constant(split.input[1]) if len(split.input) > 1 else None
        if rows != list(split.output) or sizes is None or len(set(sizes.tolist())) != 1:
            raise NotStandard(f"{what} are not equal parts of one product")
        return self.linear(split.input[0], what)

    def distances(self, bias: str) -> Distances:
        """The table behind a bias by distance."""
        gather = self.node(self.node(bias, "Unsqueeze", what="a bias").input[0], "Gather", what="a bias by distance")
        table, column = self.constant(gather.input[0]), self.node(gather.input[1], "Sub", what="a bias by distance")
        first = self.number(column.input[1])
        if table is None or table.ndim != 2 or first is None:
            raise NotStandard("a bias of the scores is no table by distance")
        return Distances(table, int(first))

    # Embeddings and what reads features

    def stem(self, value: str, features: str) -> tuple[Convolution, ...]:
        """The convolutions that make `value` [B, channels, positions] of the features, in order."""
        found: list[Convolution] = []
        while value != features:
            value, activation = self.activated(value)
            node = self.node(value, "Conv", what="the first layer's input")
            weight = self.constant(node.input[1])
            bias = self.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
            (step,) = attribute(node, "strides", [1]) or [1]
            padding = list(attribute(node, "pads", [0, 0]))
            is_plain = attribute(node, "group", 1) == 1 and list(attribute(node, "dilations", [1])) == [1]
            if weight is None or weight.ndim != 3 or not is_plain or padding != [(weight.shape[2] - 1) // 2] * 2:
                raise NotStandard("a convolution has groups, gaps or another padding than half its size")
            found.append(Convolution(weight.transpose(0, 2, 1), bias, int(step), padding[0], activation))
            value = node.input[0]
        return tuple(reversed(found))

    def embedding(self, value: str, ids: str) -> tuple[Weight, float]:
        x, scale = self.scaled(value)
        node = self.node(x, "Gather", what="the first layer's input")
        if node.input[1] != ids:
            raise NotStandard("embeddings are looked up by something else than the tokens")
        return self.weight(node.input[0], "the embedding"), scale

    def positions(self, value: str, ids: str) -> Positions:
        """Of rows looked up in a table, for the encoder's ids or for the decoder's `position`."""
        node = self.node(value, "Gather", what="positions")
        table, row = self.weight(node.input[0], "the table of positions"), node.input[1]
        if self.maker(row) == "Where":
            return self._padded_positions(table, row, ids)
        offset = 0.0
        if self.maker(row) == "Add":
            row, other = self.links.makers[row].input
            found = self.number(other)
            if found is None:
                raise NotStandard("rows of the table of positions are computed in another way")
            offset = found
        if self.maker(row) == "Mul":  # the encoder's, of which padding is not counted
            return Positions(table, 0, int(offset))
        if row != "position" and self.maker(row) != "Range":
            raise NotStandard("rows of the table of positions are computed in another way")
        return Positions(table, int(offset))

    def _padded_positions(self, table: Weight, row: str, ids: str) -> Positions:
        """The decoder's, where a padding token has a row of its own."""
        where = self.links.makers[row]
        real = self.node(where.input[0], "Not", what="positions")
        equal = self.node(real.input[0], "Equal", what="positions")
        pad = self.number(equal.input[1])
        moving, still = where.input[1], where.input[2]
        offset = 0.0
        if self.maker(moving) == "Add":
            offset = self.number(self.links.makers[moving].input[1]) or 0.0
        moves = self.maker(still) == "Add"
        if pad is None or ids not in self.links.before(equal.input[0]):
            raise NotStandard("rows of the table of positions are computed in another way")
        return Positions(table, int(offset), int(pad), moves)

    def before(self, value: str) -> set[str]:
        """The operators that a value is computed by."""
        return {self.maker(name) for name in self.links.before(value)} - {""}


def sizes(shape: Any) -> list[int | str]:
    """Of an input's or output's shape."""
    return [size.dim_param or size.dim_value for size in shape.dim]


def as_floats(array: Array) -> Array:
    return np.asarray(array, np.float32)
