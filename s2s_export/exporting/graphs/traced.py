"""Emits the three graphs of a module whose functions were traced: what surrounds them is ours.

The decoder step gathers the states of its beams by `parents`, repeats for every beam what no step changes, and ends as
all decoder steps do. Where caches along time are slots (`own_module.slots`), traced_slots.py emits it. Letters as in
docs/architecture.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx
import torch

from ...bundle import output_of
from .builder import FLOAT, INT64, Dimension, GraphBuilder
from .recurrent import parent_rows
from .transformer import emit_candidates
from .weights import WeightStore

MEMORY, STATE = "memory_", "state_"
TYPES = {
    torch.float32: FLOAT,
    torch.int64: INT64,
    torch.int32: onnx.TensorProto.INT32,
    torch.bool: onnx.TensorProto.BOOL,
}


@dataclass(frozen=True)
class TracedModule:
    """The functions as ONNX models (`own_module.trace.Traced`), and what they take and return (`own_module.Interface`).

    sources: what `encode` reads: `inputs`, each a name, a type and a shape; and `n_ids` where it reads ids.
    """

    EMITTER: ClassVar[str] = ".traced"

    functions: Any
    interface: Any
    sources: Any

    def sizes(self) -> dict[str, int]:
        n_ids = getattr(self.sources, "n_ids", None)
        known = {} if n_ids is None else {"source_vocabulary_size": n_ids}
        return {"vocabulary_size": self.interface.vocabulary_size, **known}

    def first_fields(self) -> list[int]:
        """The places of the state's fields that `start` makes: all but those that became slots, which are empty."""
        caches = () if self.functions.slots is None else self.functions.slots.caches
        return [i for i, field in enumerate(self.interface.state) if field.name not in caches]


def emit(model: TracedModule, store: WeightStore) -> dict[str, onnx.ModelProto]:
    """The graphs by name: encoder, cross_kv_init, decoder_step. Weights go to `store`."""
    from . import traced_slots

    has_slots = model.functions.slots is not None
    return {
        "encoder": _encoder(model, store),
        "cross_kv_init": _cross_kv_init(model, store),
        "decoder_step": traced_slots.decoder_step(model, store) if has_slots else _decoder_step(model, store),
    }


def _encoder(model: TracedModule, store: WeightStore) -> onnx.ModelProto:
    g = GraphBuilder("encoder", store)
    inputs = [g.input(name, TYPES[dtype], shape) for name, dtype, shape in model.sources.inputs]
    found = g.embed(model.functions.encode, inputs)
    for field, value in zip(model.interface.memory, found, strict=True):
        g.output(g.op("Identity", [value]), MEMORY + field.name, TYPES[field.dtype], field.shape)
    return g.model()


def _cross_kv_init(model: TracedModule, store: WeightStore) -> onnx.ModelProto:
    g = GraphBuilder("cross_kv_init", store)
    inputs = [g.input(MEMORY + f.name, TYPES[f.dtype], f.shape) for f in model.interface.memory]
    kept = model.first_fields()
    found = g.embed(with_outputs(model.functions.start, kept), inputs)
    for i, value in zip(kept, found, strict=True):
        field = model.interface.state[i]
        # An Identity, since `start` may return what it was given, or one tensor twice.
        g.output(g.op("Identity", [value]), STATE + field.name, TYPES[field.dtype], field.first)
    return g.model()


def _decoder_step(model: TracedModule, store: WeightStore) -> onnx.ModelProto:
    g = GraphBuilder("decoder_step", store)
    interface = model.interface
    token = g.input("token", INT64, ["B", "K"])
    parents = g.input("parents", INT64, ["B", "K"])
    batch, beams = g.size(token, 0), g.size(token, 1)
    rows = parent_rows(g, parents, batch, beams)
    n_rows = g.op("Mul", [batch, beams])
    inputs = [g.reshape(token, [-1])]
    for field in interface.state:
        name, kind = STATE + field.name, TYPES[field.dtype]
        if field.changes:
            value = g.input(name, kind, ["B", "K", *field.shape[1:]])
            inputs.append(g.op("Gather", [_as_rows(g, value, n_rows), rows], axis=0))
        else:
            inputs.append(repeated(g, g.input(name, kind, field.shape), batch, beams, n_rows))
    logits, *found = g.embed(model.functions.step, inputs)
    emit_candidates(g, logits, interface.vocabulary_size, batch, beams)
    if interface.attention is not None:
        sizes: list[Dimension] = ["B", "K", *interface.attention]
        g.output(by_beam(g, found.pop(), batch, beams), "attention", FLOAT, sizes)
    for field, value in zip([f for f in interface.state if f.changes], found, strict=True):
        # N: as C, and one more.
        shape: list[Dimension] = ["B", "K", *("N" if size == "C" else size for size in field.shape[1:])]
        g.output(by_beam(g, value, batch, beams), output_of(STATE + field.name), TYPES[field.dtype], shape)
    return g.model()


def repeated(g: GraphBuilder, value: str, batch: str, beams: str, n_rows: str) -> str:
    """[B,...] -> [R,...], the same for each beam."""
    value = g.op("Unsqueeze", [value, g.constant([1])])
    rest = g.op("Shape", [value], start=2)
    return _as_rows(g, g.op("Expand", [value, g.op("Concat", [batch, beams, rest], axis=0)]), n_rows)


def with_outputs(model: onnx.ModelProto, places: Sequence[int]) -> onnx.ModelProto:
    """A copy that has these outputs alone, and the nodes that they need."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:], copy.graph.node[:]
    copy.graph.output.extend(model.graph.output[i] for i in places)
    needed, nodes = {value.name for value in copy.graph.output}, []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(_read_by(node))
    copy.graph.node.extend(reversed(nodes))
    return copy


def _read_by(node: onnx.NodeProto) -> Iterator[str]:
    """The values that a node reads, those of the graphs inside it too."""
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _read_by(inner)


def _as_rows(g: GraphBuilder, value: str, n_rows: str) -> str:
    """[B,K,...] -> [R,...]; a dimension may be empty."""
    shape = g.op("Concat", [n_rows, g.op("Shape", [value], start=2)], axis=0)
    return g.op("Reshape", [value, shape], allowzero=1)


def by_beam(g: GraphBuilder, value: str, batch: str, beams: str) -> str:
    """[R,...] -> [B,K,...]"""
    shape = g.op("Concat", [batch, beams, g.op("Shape", [value], start=1)], axis=0)
    return g.op("Reshape", [value, shape], allowzero=1)
