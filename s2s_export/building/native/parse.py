"""Reads a Transformer's structure back from the three graphs of a bundle.

The graphs are read from their ends: each value has one node that computes it. A stack is a chain

    norm first    x' = x + part(norm(x))
    norm behind   x' = norm(x + part(x))

of attentions and feed-forward layers, down to the embedding. What is not of this form is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...bundle import Bundle
from ...errors import BuildError
from ..graphs import graph as graphs
from ..graphs.links import attribute
from .reading import NotStandard, Reader, sizes
from .structure import Attention, Linear, Norm, Part, Stack, Structure

INPUT_IDS, INPUT_FEATURES = "input_ids", "input_features"
INPUTS = {"token_ids": INPUT_IDS, "audio_features": INPUT_FEATURES}  # the encoder's, by the kind of source
SELF_ATTENTION = ("BeamSelfAttention", "BeamSelfAttentionBias")
MASK_BY_DISTANCE = {"Add", "Unsqueeze", "Gather", "Sub", "Min", "Max", "Range", "Squeeze", "Shape"}
MASK_OF_SOURCES = {"Unsqueeze", "Cast", "Where"}
ReadAttention = Callable[[Reader, str, Linear], "tuple[str, Attention]"]


def parse(bundle: Bundle) -> Structure:
    """Raises BuildError, with the reason, for a model that is not of the standard structure."""
    kind = bundle.manifest["source"].get("kind", "token_ids")
    if kind not in INPUTS:
        raise refused(bundle, f"it reads {kind.replace('_', ' ')}, not text or windows of sound")
    read = {name: Reader(graphs.load(bundle.graph_path(name), name)) for name in bundle.manifest["graphs"]}
    try:
        decoder, head, head_scale = _decoder(read["decoder_step"])
        encoder = _encoder(read["encoder"], INPUTS[kind])
        cross = _cross(read["cross_kv_init"], len(decoder.parts) // 3)
        return Structure(encoder, decoder, cross, head, head_scale)
    except NotStandard as reason:
        raise refused(bundle, str(reason)) from None


def refused(bundle: Bundle, reason: str) -> BuildError:
    return BuildError(
        f"{bundle.path}: the backend cuda has no kernels for this {bundle.manifest['model_type']} model: {reason}; "
        "expected a Transformer for text or sound of the standard structure, or a recurrent reference model "
        "(docs/cuda-native.md); build a target of onnxruntime-cuda or TensorRT"
    )


def _decoder(reader: Reader) -> tuple[Stack, Linear, float]:
    softmax = next((node for node in reader.graph.nodes if node.op_type == "LogSoftmax"), None)
    if softmax is None:
        raise NotStandard("its decoder step has no log-softmax")
    x, head = reader.linear(softmax.input[0], "the output projection")
    x, head_scale = reader.scaled(x)
    shapes = {value.name: sizes(value.type.tensor_type.shape) for value in reader.graph.model.graph.input}

    def attention(reader: Reader, merged: str, output: Linear) -> tuple[str, Attention]:
        return _decoder_attention(reader, merged, output, shapes)

    stack = _stack(reader, x, attention, "token")
    kinds = [_kind(part) for part in stack.parts]
    if kinds != ["self", "cross", "feed-forward"] * (len(kinds) // 3):
        raise NotStandard("a decoder layer is not self-attention, cross-attention and feed-forward in this order")
    return stack, head, head_scale


def _encoder(reader: Reader, source: str) -> Stack:
    states = reader.node("encoder_states", "Reshape", what="the encoder's result")
    stack = _stack(reader, states.input[0], _encoder_attention, source)
    kinds = [_kind(part) for part in stack.parts]
    if kinds != ["self", "feed-forward"] * (len(kinds) // 2):
        raise NotStandard("an encoder layer is not self-attention and feed-forward in this order")
    return stack


def _kind(part: Part) -> str:
    if not isinstance(part.layer, Attention):
        return "feed-forward"
    return "self" if part.layer.rows.weight.array.shape[0] == 3 * part.layer.heads * part.layer.head_size else "cross"


def _cross(reader: Reader, n_layers: int) -> tuple[Linear, ...]:
    found = []
    for i in range(n_layers):
        rows, linear = reader.parts_of([f"cross_key.{i}", f"cross_value.{i}"], "cross-attention's keys and values")
        states = reader.node(rows, "Reshape", what="what cross-attention reads")
        if states.input[0] != "encoder_states":
            raise NotStandard("the encoder's states are projected before cross-attention reads them")
        found.append(linear)
    return tuple(found)


# Stacks


def _stack(reader: Reader, x: str, attention: ReadAttention, ids: str) -> Stack:
    """x: the value [R, E] at the stack's end."""
    norm_first = _is_norm_first(reader, x)
    parts: list[Part] = []
    final_norm: Norm | None = None
    if norm_first and (found := reader.normed(x)) is not None:
        x, final_norm = found
    while (step := _step(reader, x, attention, norm_first)) is not None:
        x, part = step
        parts.append(part)
    if not parts:
        raise NotStandard("no layers were found before its result")
    embedding_norm: Norm | None = None
    if (found := reader.normed(x)) is not None:
        x, embedding_norm = found
    return _embedded(reader, x, ids, norm_first, embedding_norm, final_norm, tuple(reversed(parts)))


def _is_norm_first(reader: Reader, end: str) -> bool:
    """Whether the last part reads a norm of the stream, and not the stream."""
    found = reader.normed(end)
    total = reader.node(end if found is None else found[0], "Add", what="the last layer's result")
    before, part = _addends(reader, total)
    rows, outer = reader.linear(part, "the last layer")
    read, _ = reader.feed_forward(rows, outer)
    if read == before:
        return False
    inside = reader.normed(read)
    if inside is None or inside[0] != before:
        raise NotStandard("the last layer reads neither the residual stream nor its norm")
    return True


def _addends(reader: Reader, total: Any) -> tuple[str, str]:
    """The residual stream and what is added to it."""
    one, other = total.input
    if reader.maker(other) == "Gemm":
        return one, other
    if reader.normed(other) is not None and reader.maker(reader.links.makers[other].input[0]) == "Gemm":
        raise NotStandard("a layer's result is normed before it is added")
    raise NotStandard(f"what is added to the residual stream comes from {reader.maker(other) or 'an input'}")


def _step(reader: Reader, x: str, attention: ReadAttention, norm_first: bool) -> tuple[str, Part] | None:
    """The part whose result x is, and the stream before it; None at the embedding."""
    behind = None if norm_first else reader.normed(x)
    total = reader.links.maker(x if behind is None else behind[0], "Add")
    if total is None or (not norm_first and behind is None) or reader.maker(total.input[1]) == "Gather":
        return None
    before, part = _addends(reader, total)
    rows, outer = reader.linear(part, "a layer's last product")
    if reader.maker(rows) == "Reshape":
        read, layer = attention(reader, rows, outer)
    else:
        read, layer = reader.feed_forward(rows, outer)  # type: ignore[assignment]
    if not norm_first:
        assert behind is not None
        if read != before:
            raise NotStandard("a layer does not read the residual stream")
        return before, Part(layer, behind[1])
    found = reader.normed(read)
    if found is None or found[0] != before:
        raise NotStandard("a layer does not read a norm of the residual stream")
    return before, Part(layer, found[1])


def _embedded(
    reader: Reader, x: str, ids: str, norm_first: bool, embedding_norm: Norm | None, final_norm: Norm | None,
    parts: tuple[Part, ...],
) -> Stack:  # fmt: skip
    positions = None
    is_encoder = ids in INPUTS.values()
    if is_encoder:
        x = reader.node(x, "Reshape", what="the first layer's input").input[0]
    if (total := reader.links.maker(x, "Add")) is not None:
        positions = reader.positions(total.input[1], ids)
        x = total.input[0]
    if ids == INPUT_FEATURES:
        if positions is None or positions.offset or not norm_first:
            raise NotStandard("its encoder of sound has no table of positions, or norms behind its layers")
        rows = reader.node(x, "Transpose", what="the first layer's input").input[0]
        stem = reader.stem(rows, ids)
        return Stack(norm_first, None, 1.0, positions, embedding_norm, final_norm, parts, stem)
    if not is_encoder:
        x = reader.node(x, "Reshape", what="the first layer's input").input[0]
    embedding, scale = reader.embedding(x, ids)
    return Stack(norm_first, embedding, scale, positions, embedding_norm, final_norm, parts)


# Attention


def _merged(reader: Reader, rows: str) -> str:
    """The heads that were merged into rows."""
    shaped = reader.node(rows, "Reshape", what="attention's result")
    return str(reader.node(shaped.input[0], "Transpose", what="attention's result").input[0])


def _decoder_attention(
    reader: Reader, merged: str, output: Linear, shapes: dict[str, list[Any]]
) -> tuple[str, Attention]:
    node = reader.node(_merged(reader, merged), *SELF_ATTENTION, "CrossAttention", what="attention of the decoder")
    scale = float(attribute(node, "scale", 1.0))
    if node.op_type == "CrossAttention":
        query, key = node.input[:2]
        heads, head_size = shapes[key][1], shapes[key][3]
        read, rows = reader.linear(reader.rows_of_heads(query, "the query"), "cross-attention's query")
        return read, Attention(rows, output, scale, None, int(heads), int(head_size))
    heads, head_size = shapes[node.input[3]][1], shapes[node.input[3]][3]
    read, rows = reader.parts_of(list(node.input[:3]), "queries, keys and values of the decoder")
    distances = reader.distances(node.input[8]) if node.op_type == SELF_ATTENTION[1] else None
    return read, Attention(rows, output, scale, distances, int(heads), int(head_size))


def _encoder_attention(reader: Reader, merged: str, output: Linear) -> tuple[str, Attention]:
    node = reader.node(_merged(reader, merged), "TRT_Attention", what="attention of the encoder")
    query, key, value, mask = node.input[:4]
    query, scale = reader.scaled(query)
    read, rows = reader.parts_of([query, key, value], "queries, keys and values of the encoder")
    heads, head_size = _head_sizes(reader, query)
    distances = None
    if reader.maker(mask) == "Add":
        if others := reader.before(mask) - MASK_OF_SOURCES - MASK_BY_DISTANCE:
            raise NotStandard(f"the encoder's scores have a term computed by {', '.join(sorted(others))}")
        distances = reader.distances(reader.links.makers[mask].input[1])
    elif others := reader.before(mask) - MASK_OF_SOURCES:
        raise NotStandard(f"the encoder's mask is computed by {', '.join(sorted(others))}")
    return read, Attention(rows, output, scale, distances, heads, head_size)


def _head_sizes(reader: Reader, heads: str) -> tuple[int, int]:
    """H and D, by the shape to which rows are brought: [B, S, H, D]."""
    shaped = reader.links.makers[reader.links.makers[heads].input[0]]
    parts = reader.node(shaped.input[1], "Concat", what="the shape of heads").input
    found = [reader.number(part) for part in parts[-2:]]
    if len(parts) != 4 or None in found:
        raise NotStandard("the number of heads is not constant")
    return int(found[0] or 0), int(found[1] or 0)
