"""Emits the decoder step of a traced module whose caches along time are slots (`own_module.slots`).

Keys and values of past tokens lie where they were written, as in the graphs of families; a table of ancestors says
which of them a beam sees. Of the traced step's caches nothing is left but their length, which is the position. Letters
as in docs/architecture.md; G heads of keys and values.
"""

from __future__ import annotations

from typing import Any

import onnx
from onnx import helper

from .biases import ancestor_mask
from .builder import FLOAT, INT64, Dimension, GraphBuilder
from .functions import PLUGIN_ATTRIBUTES, PLUGINS
from .general_attention import attend_to_cache, split_heads
from .layers import merge_heads
from .traced import STATE, TYPES, TracedModule, by_beam, repeated, with_outputs
from .transformer import emit_candidates
from .weights import WeightStore


def decoder_step(model: TracedModule, store: WeightStore) -> onnx.ModelProto:
    g = GraphBuilder("decoder_step", store)
    interface, slots = model.interface, model.functions.slots
    token = g.input("token", INT64, ["B", "K"])
    step = _Step(g, token, slots.attentions)
    inputs = [g.reshape(token, [-1])]
    for field in interface.state:
        name = STATE + field.name
        if field.name in slots.caches:
            inputs.append(name)  # of which only the shape is asked
            step.shapes[name] = ["R" if size == "B" else size for size in field.shape]
            continue
        value = repeated(g, g.input(name, TYPES[field.dtype], field.shape), step.batch, step.beams, step.n_rows)
        inputs.append(step.counted(value, field) if field.name in slots.counters else value)
    n_changed = sum(field.changes for field in interface.state)
    has_weights = interface.attention is not None
    traced = with_outputs(model.functions.step, [0, *([1 + n_changed] if has_weights else [])])
    logits, *weights = g.embed(traced, inputs, step.emit)
    emit_candidates(g, logits, interface.vocabulary_size, step.batch, step.beams)
    if has_weights:
        sizes: list[Dimension] = ["B", "K", *interface.attention]
        g.output(by_beam(g, weights[0], step.batch, step.beams), "attention", FLOAT, sizes)
    for name, value, shape in step.updated:
        g.output(value, name, FLOAT, shape)
    return g.model()


class _Step:
    """What stands in place of a traced step's attentions and caches.

    shapes: of the caches by name, in sizes and the letters R and C. updated: the outputs of caches, each a name, a
    value and a shape.
    """

    def __init__(self, g: GraphBuilder, token: str, attentions: Any) -> None:
        self._g, self._attentions = g, attentions
        self._position = g.input("position", INT64, [1])
        self._ancestors = g.input("ancestors", INT64, ["B", "K", "C"])
        self.batch, self.beams = g.size(token, 0), g.size(token, 1)
        self.n_rows = g.op("Mul", [self.batch, self.beams])
        self._mask = ancestor_mask(g, self._ancestors, self._position, self.batch, self.beams)
        self.shapes: dict[str, list[Dimension]] = {}
        self.updated: list[tuple[str, str, list[Dimension]]] = []

    def counted(self, first: str, field: Any) -> str:
        """A field [R, 1, ...] that counts the steps from `first` on."""
        position = self._position
        if TYPES[field.dtype] != INT64:
            position = self._g.op("Cast", [position], to=TYPES[field.dtype])
        rows = self._g.op("Add", [self._g.reshape(first, [-1]), position])
        return rows if len(field.shape) == 1 else self._g.reshape(rows, [-1, *field.shape[1:]])

    def emit(self, node: onnx.NodeProto, inputs: list[str]) -> list[str] | None:
        """See `GraphBuilder.embed`."""
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "SlotAttention":
            return [self._attention(attributes["number"], inputs)]
        if node.op_type == "Shape" and inputs[0] in self.shapes:
            sizes = self.shapes[inputs[0]][attributes.get("start", 0) : attributes.get("end")]
            return [self._g.op("Concat", [self._size(size) for size in sizes], axis=0)]
        return None

    def _size(self, size: Dimension) -> str:
        if isinstance(size, int):
            return self._g.constant([size])
        return {"R": self.n_rows, "C": self._position}[size]

    def _attention(self, number: int, inputs: list[str]) -> str:
        """Rows [R,H*D] of queries, [R,G*D] of keys and values, and perhaps a bias [H|1,T+1] -> rows [R,H*D]."""
        g, heads = self._g, self._attentions[number]
        counts = (heads.n_heads, heads.key_heads, heads.key_heads)
        parts = [
            split_heads(g, rows, n, heads.head_size, self.batch, self.beams)
            for rows, n in zip(inputs, counts, strict=False)
        ]
        shape: list[Dimension] = ["B", heads.key_heads, "N", heads.head_size]
        cache = [g.input(f"self_{part}.{number}", FLOAT, shape) for part in ("key", "value")]
        bias = self._bias(inputs[3], heads.n_heads) if len(inputs) > 3 else None
        if heads.n_heads == heads.key_heads:
            given = [*parts, *cache, self._mask, self._ancestors, self._position]
            kind, given = ("BeamSelfAttention", given) if bias is None else ("BeamSelfAttentionBias", [*given, bias])
            mixed, *updated = g.ops(kind, given, 3, PLUGINS, scale=heads.scale, **PLUGIN_ATTRIBUTES)
        else:
            mixed, updated = attend_to_cache(
                g, heads, parts, cache, self._mask, self._position, bias, self.batch, self.beams
            )
        for part, value in zip(("key", "value"), updated, strict=True):
            self.updated.append((f"self_{part}_out.{number}", value, shape))
        return merge_heads(g, mixed, heads)

    def _bias(self, bias: str, n_heads: int) -> str:
        """[H|1,T+1] -> [1,H,1,C]; positions that are not written yet are masked."""
        g = self._g
        later = g.op("Sub", [g.op("Sub", [g.size(self._ancestors, 2), self._position]), g.constant([1])])
        padded = g.op("Pad", [bias, g.op("Concat", [g.constant([0, 0, 0]), later], axis=0)])
        by_head = g.op("Expand", [padded, g.constant([n_heads, 1])])
        return g.op("Unsqueeze", [by_head, g.constant([0, 2])])
