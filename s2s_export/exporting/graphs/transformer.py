"""Emits the three graphs of a Transformer (1706.03762 and its descendants) from its structure.

From the embedding to the head, activations are two-dimensional, [B*S, E] or [R, E], so that every projection is one
matrix product. Heads are split only around attention. Projections of the same input are merged into one product.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch

from ...runtime.sources.audio_features import INPUT_FEATURES
from ...runtime.sources.token_ids import INPUT_IDS
from .builder import FLOAT, INT64, Dimension, GraphBuilder
from .functions import NATIVE, PLUGIN_ATTRIBUTES, PLUGINS
from .structure import (
    Attention,
    Block,
    FeedForward,
    Linear,
    Norm,
    PositionTable,
    RelativePositions,
    Stack,
    Stem,
    Transformer,
)
from .weights import WeightStore

MASKED = -1e9  # added to the scores of hidden positions; its exp is 0 in fp32
ACTIVATIONS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "relu": [("Relu", {})],
    "gelu": [("Gelu", {})],
    "gelu_new": [("Gelu", {"approximate": "tanh"})],
    "gelu_pytorch_tanh": [("Gelu", {"approximate": "tanh"})],
    "tanh": [("Tanh", {})],
    "sigmoid": [("Sigmoid", {})],
    "linear": [],
}
GATED_BY_SIGMOID = {"silu": 1.0, "swish": 1.0, "quick_gelu": 1.702}  # x * sigmoid(a * x)
KNOWN_ACTIVATIONS = sorted([*ACTIVATIONS, *GATED_BY_SIGMOID])


def emit(model: Transformer, store: WeightStore) -> dict[str, onnx.ModelProto]:
    """The graphs by name: encoder, cross_kv_init, decoder_step. Weights go to `store`."""
    return {
        "encoder": _encoder(model, store),
        "cross_kv_init": _cross_kv_init(model, store),
        "decoder_step": _decoder_step(model, store),
    }


def _encoder(model: Transformer, store: WeightStore) -> onnx.ModelProto:
    g = GraphBuilder("encoder", store)
    stack = model.encoder
    width = stack.width
    if isinstance(stack.embedding, Stem):
        ids = g.input(
            INPUT_FEATURES, FLOAT, ["B", stack.embedding.convolutions[0].weight.shape[1], stack.embedding.n_frames]
        )
    else:
        ids = g.input(INPUT_IDS, INT64, ["B", "S"])
        source_mask = g.input("source_mask", INT64, ["B", "S"])
    with g.scope("encoder"):
        if isinstance(stack.embedding, Stem):
            mask = g.constant(np.zeros((1, 1, 1, 1)), np.float32)  # all of a window is looked at
            x = _convolve(g, stack.embedding, ids)  # [B,S,E]
        else:
            mask = source_mask_bias(g, source_mask)  # [B,1,1,S]
            x = _embed(g, stack, ids)  # [B,S,E]
        batch, length = g.size(x, 0), g.size(x, 1)
        if isinstance(stack.positions, PositionTable):
            x = g.op("Add", [x, _encoder_positions(g, stack.positions, ids, length)])
        else:
            mask = g.op("Add", [mask, _encoder_relative_bias(g, stack.positions, length)])  # [B,H,S,S]
        x = g.reshape(x, [-1, width])  # [B*S,E]
        if stack.embedding_norm:
            x = _norm(g, x, stack.embedding_norm)
        for i, block in enumerate(stack.blocks):
            with g.scope(f"layer{i}"):
                x = _residual(
                    g,
                    x,
                    block.self_norm,
                    model.norm_first,
                    lambda h, a=block.self_attention: _encoder_attention(g, h, a, mask, batch, length),
                )
                x = _feed_forward_block(g, x, block, model.norm_first)
        if stack.final_norm:
            x = _norm(g, x, stack.final_norm)
        states = g.reshape(x, [batch, length, width])
    g.output(states, "encoder_states", FLOAT, ["B", "S", width])
    return g.model()


def _cross_kv_init(model: Transformer, store: WeightStore) -> onnx.ModelProto:
    g = GraphBuilder("cross_kv_init", store)
    width = model.encoder.width
    states = g.input("encoder_states", FLOAT, ["B", "S", width])
    batch, length = g.size(states, 0), g.size(states, 1)
    rows = g.reshape(states, [-1, width])
    for i, block in enumerate(model.decoder.blocks):
        attention = block.cross_attention
        assert attention is not None
        with g.scope(f"decoder/layer{i}/cross"):
            both = _joint(g, rows, [attention.key, attention.value], "key_value")
            shape: list[Dimension] = ["B", attention.n_heads, "S", attention.head_size]
            for value, name in zip(both, ("key", "value"), strict=True):
                heads = _split_heads(g, value, attention, batch, length)
                g.output(heads, f"cross_{name}.{i}", FLOAT, shape)
    return g.model()


def _decoder_step(model: Transformer, store: WeightStore) -> onnx.ModelProto:
    g = GraphBuilder("decoder_step", store)
    stack = model.decoder
    width = stack.width
    token = g.input("token", INT64, ["B", "K"])
    position = g.input("position", INT64, [1])
    ancestors = g.input("ancestors", INT64, ["B", "K", "C"])
    source_mask = g.input("source_mask", INT64, ["B", "S"])
    batch, beams = g.size(token, 0), g.size(token, 1)
    caches = []
    attention_weights = []
    with g.scope("decoder"):
        cross_mask = source_mask_bias(g, source_mask)  # [B,1,1,S]
        self_mask = _ancestor_mask(g, ancestors, position, batch, beams)  # [B,1,K,N]
        x = g.reshape(_embed(g, stack, token), [-1, width])  # [R,E]
        bias = None
        if isinstance(stack.positions, PositionTable):
            x = g.op("Add", [x, _decoder_positions(g, stack.positions, token, position)])
        else:
            bias = _decoder_relative_bias(g, stack.positions, position, g.size(ancestors, 2))  # [1,H,1,C]
        if stack.embedding_norm:
            x = _norm(g, x, stack.embedding_norm)
        for i, block in enumerate(stack.blocks):
            with g.scope(f"layer{i}"):
                cross = block.cross_attention
                assert cross is not None and block.cross_norm is not None
                kv_shape: list[Dimension] = ["B", cross.n_heads, "S", cross.head_size]
                cross_key = g.input(f"cross_key.{i}", FLOAT, kv_shape)
                cross_value = g.input(f"cross_value.{i}", FLOAT, kv_shape)
                cache_shape: list[Dimension] = ["B", block.self_attention.n_heads, "N", block.self_attention.head_size]
                cache = [g.input(f"self_{name}.{i}", FLOAT, cache_shape) for name in ("key", "value")]

                def self_attention(
                    h: str, block: Block = block, cache: list[str] = cache, shape: list[Dimension] = cache_shape
                ) -> str:
                    rows, updated = _self_attention(
                        g, h, block.self_attention, cache, self_mask, ancestors, position, bias, batch, beams
                    )
                    caches.append((updated, shape))
                    return rows

                def cross_attention(
                    h: str, cross: Attention = cross, key: str = cross_key, value: str = cross_value
                ) -> str:
                    rows, weights = _cross_attention(g, h, cross, key, value, cross_mask, batch, beams)
                    attention_weights.append(weights)
                    return rows

                x = _residual(g, x, block.self_norm, model.norm_first, self_attention)
                x = _residual(g, x, block.cross_norm, model.norm_first, cross_attention)
                x = _feed_forward_block(g, x, block, model.norm_first)
        if stack.final_norm:
            x = _norm(g, x, stack.final_norm)
    with g.scope("head"):
        if model.head_scale != 1.0:
            x = g.op("Mul", [x, g.constant(model.head_scale, np.float32)])
        logits = g.linear(x, model.head.weight, model.head.bias, "head")
    emit_candidates(g, logits, model.head.weight.shape[0], batch, beams)
    _emit_attention(g, model, attention_weights)
    for i, (updated, shape) in enumerate(caches):
        for name, value in zip(("key", "value"), updated, strict=True):
            g.output(value, f"self_{name}_out.{i}", FLOAT, shape)
    return g.model()


def _emit_attention(g: GraphBuilder, model: Transformer, weights: list[str]) -> None:
    """The output of cross-attention weights [B,K,L,H,S], of the weights [B,H,K,S] of each layer.

    With alignment heads L is 1 and H their number: the heads of one layer, as far as anybody who reads them knows.
    """
    if model.alignment_heads is None:
        by_layer = g.op("Concat", [g.op("Unsqueeze", [w, g.constant([2])]) for w in weights], axis=2)  # [B,H,L,K,S]
        n_heads = model.decoder.blocks[0].cross_attention.n_heads  # type: ignore[union-attr]
        g.output(g.transpose(by_layer, [0, 3, 2, 1, 4]), "attention", FLOAT, ["B", "K", len(weights), n_heads, "S"])
        return
    chosen = [g.op("Gather", [weights[layer], g.constant([head])], axis=1) for layer, head in model.alignment_heads]
    heads = g.transpose(g.op("Concat", chosen, axis=1), [0, 2, 1, 3])  # [B,K,A,S]
    g.output(g.op("Unsqueeze", [heads, g.constant([2])]), "attention", FLOAT, ["B", "K", 1, len(chosen), "S"])


def emit_candidates(g: GraphBuilder, logits: str, n_vocabulary: int, batch: str, beams: str) -> None:
    """The end of every decoder step: log-softmax, candidates and probes of logits [R,V]. Adds inputs and outputs.

    The graph finds the best candidates itself: with V = 58,000, copying all scores to the host would take longer than
    the whole bookkeeping of the search.
    """
    n_candidates = g.input("n_candidates", INT64, [1])
    probe_ids = g.input("probe_ids", INT64, ["B", "K", "Q"])
    with g.scope("candidates"):
        log_probs = g.op("LogSoftmax", [logits], axis=-1)
        best, best_ids = g.ops("TopK", [log_probs, n_candidates], 2, axis=-1)
        probe_rows = g.reshape(probe_ids, [g.op("Mul", [batch, beams]), g.size(probe_ids, 2)])
        probes = g.op("GatherElements", [log_probs, probe_rows], axis=1)
        # Computed from the best token, for which neither term can be infinite.
        first = [g.constant([0]), g.constant([1]), g.constant([1])]
        top_id, top = g.op("Slice", [best_ids, *first]), g.op("Slice", [best, *first])
        normalizer = g.op("Sub", [g.op("GatherElements", [logits, top_id], axis=1), top])

        def rows(value: str, last: int | str) -> str:
            return g.reshape(value, [batch, beams, last])

        shaped: dict[str, tuple[str, int, list[Dimension]]] = {
            "logits": (rows(logits, n_vocabulary), FLOAT, ["B", "K", n_vocabulary]),
            "log_probs": (rows(log_probs, n_vocabulary), FLOAT, ["B", "K", n_vocabulary]),
            "candidate_log_probs": (rows(best, n_candidates), FLOAT, ["B", "K", "M"]),
            "candidate_ids": (rows(best_ids, n_candidates), INT64, ["B", "K", "M"]),
            "log_normalizer": (g.reshape(normalizer, [batch, beams]), FLOAT, ["B", "K"]),
            "probe_log_probs": (rows(probes, g.size(probe_ids, 2)), FLOAT, ["B", "K", "Q"]),
        }
    for name, (value, dtype, shape) in shaped.items():
        g.output(value, name, dtype, shape)


# Embeddings and positions


def _convolve(g: GraphBuilder, stem: Stem, features: str) -> str:
    """[B,F,T] -> [B,S,E]"""
    x = features
    for i, layer in enumerate(stem.convolutions):
        with g.scope(f"convolution{i}"):
            padding = layer.weight.shape[2] // 2
            inputs = [x, g.weight("weight", layer.weight), g.weight("weight_bias", layer.bias)]
            x = g.op("Gelu", [g.op("Conv", inputs, strides=[layer.stride], pads=[padding, padding])])
    return g.transpose(x, [0, 2, 1])


def _embed(g: GraphBuilder, stack: Stack, ids: str) -> str:
    assert not isinstance(stack.embedding, Stem)
    x = g.op("Gather", [g.weight("embedding", stack.embedding), ids], axis=0)
    if stack.embedding_scale != 1.0:
        x = g.op("Mul", [x, g.constant(stack.embedding_scale, np.float32)])
    return x


def _encoder_positions(g: GraphBuilder, positions: PositionTable, ids: str, length: str) -> str:
    table = g.weight("positions", positions.table)
    if positions.padding_id is not None:
        # fairseq's make_positions: cumsum(id != pad) * (id != pad) + pad
        real = g.op("Cast", [_is_not(g, ids, positions.padding_id)], to=INT64)
        counted = g.op("Mul", [g.op("CumSum", [real, g.constant(1)]), real])
        return g.op("Gather", [table, g.op("Add", [counted, g.constant(positions.padding_id)])], axis=0)
    rows = g.range(length)
    if positions.offset:
        rows = g.op("Add", [rows, g.constant(positions.offset)])
    return g.op("Gather", [table, rows], axis=0)  # [S,E]


def _decoder_positions(g: GraphBuilder, positions: PositionTable, token: str, position: str) -> str:
    table = g.weight("positions", positions.table)
    row = g.op("Add", [position, g.constant(positions.offset)]) if positions.offset else position
    if positions.padding_id is not None:
        padding = g.constant([positions.padding_id])
        row = g.op("Where", [_is_not(g, g.reshape(token, [-1]), positions.padding_id), row, padding])  # [R]
    return g.op("Gather", [table, row], axis=0)  # [1,E] or [R,E]


def _is_not(g: GraphBuilder, ids: str, token: int) -> str:
    return g.op("Not", [g.op("Equal", [ids, g.constant(token)])])


def _encoder_relative_bias(g: GraphBuilder, positions: RelativePositions, length: str) -> str:
    steps = g.range(length)
    key, query = g.op("Unsqueeze", [steps, g.constant([0])]), g.op("Unsqueeze", [steps, g.constant([1])])
    bias = _bias_of(g, positions, g.op("Sub", [key, query]))  # [H,S,S]
    return g.op("Unsqueeze", [bias, g.constant([0])])


def _decoder_relative_bias(g: GraphBuilder, positions: RelativePositions, position: str, capacity: str) -> str:
    bias = _bias_of(g, positions, g.op("Sub", [g.range(capacity), position]))  # [H,C]
    return g.op("Unsqueeze", [bias, g.constant([0, 2])])


def _bias_of(g: GraphBuilder, positions: RelativePositions, distance: str) -> str:
    last = positions.first + positions.by_distance.shape[1] - 1
    near = g.op("Min", [g.op("Max", [distance, g.constant(positions.first)]), g.constant(last)])
    column = g.op("Sub", [near, g.constant(positions.first)])
    return g.op("Gather", [g.weight("relative_bias", positions.by_distance.float()), column], axis=1)


# Masks


def source_mask_bias(g: GraphBuilder, source_mask: str) -> str:
    """[B,S] of 0 and 1 -> additive [B,1,1,S]."""
    seen = g.op("Unsqueeze", [g.op("Cast", [source_mask], to=onnx.TensorProto.BOOL), g.constant([1, 2])])
    return g.op("Where", [seen, g.constant(0.0, np.float32), g.constant(MASKED, np.float32)])


def _ancestor_mask(g: GraphBuilder, ancestors: str, position: str, batch: str, beams: str) -> str:
    """ancestors [B,K,C] -> additive [B,1,K,N]: beam k sees slot t*K + j if ancestors[b,k,t] == j and t <= position."""
    last = g.constant([3])
    same = g.op("Equal", [g.op("Unsqueeze", [ancestors, last]), g.range(beams)])  # [B,K,C,K]
    past = g.op("LessOrEqual", [g.range(g.size(ancestors, 2)), position])  # [C]
    seen = g.op("And", [same, g.op("Unsqueeze", [past, g.constant([1])])])
    mask = g.op("Where", [seen, g.constant(0.0, np.float32), g.constant(MASKED, np.float32)])
    # N is read from the caches and not computed as C*K: TensorRT knows the caches' size when it builds.
    return g.reshape(mask, [batch, 1, beams, g.size("self_key.0", 2)])


# Layers


def _norm(g: GraphBuilder, x: str, norm: Norm) -> str:
    weight = g.weight("norm", norm.weight)
    if norm.bias is None:
        return g.op("RMSNormalization", [x, weight], axis=-1, epsilon=norm.epsilon)
    return g.op("LayerNormalization", [x, weight, g.weight("norm_bias", norm.bias)], axis=-1, epsilon=norm.epsilon)


def _residual(g: GraphBuilder, x: str, norm: Norm, norm_first: bool, sublayer) -> str:  # type: ignore[no-untyped-def]
    if norm_first:
        return g.op("Add", [x, sublayer(_norm(g, x, norm))])
    return _norm(g, g.op("Add", [x, sublayer(x)]), norm)


def _feed_forward_block(g: GraphBuilder, x: str, block: Block, norm_first: bool) -> str:
    return _residual(g, x, block.feed_forward_norm, norm_first, lambda h: _feed_forward(g, h, block.feed_forward))


def _feed_forward(g: GraphBuilder, x: str, layer: FeedForward) -> str:
    with g.scope("feed_forward"):
        if layer.gate is None:
            hidden = _activation(g, g.linear(x, layer.inner.weight, layer.inner.bias, "inner"), layer.activation)
        else:
            gate, inner = _joint(g, x, [layer.gate, layer.inner], "gate_inner")
            hidden = g.op("Mul", [_activation(g, gate, layer.activation), inner])
        return g.linear(hidden, layer.outer.weight, layer.outer.bias, "outer")


def _activation(g: GraphBuilder, x: str, name: str) -> str:
    if name in GATED_BY_SIGMOID:
        factor = GATED_BY_SIGMOID[name]
        inside = x if factor == 1.0 else g.op("Mul", [x, g.constant(factor, np.float32)])
        return g.op("Mul", [x, g.op("Sigmoid", [inside])])
    for op_type, attributes in ACTIVATIONS[name]:
        x = g.op(op_type, [x], **attributes)
    return x


def _joint(g: GraphBuilder, rows: str, parts: list[Linear], stem: str) -> list[str]:
    """Several projections of the same rows, computed by one product and split afterwards."""
    weight = torch.cat([part.weight for part in parts])
    bias = None
    if any(part.bias is not None for part in parts):
        bias = torch.cat([torch.zeros(p.weight.shape[0]) if p.bias is None else p.bias.float() for p in parts])
    sizes = g.constant([part.weight.shape[0] for part in parts])
    return g.ops("Split", [g.linear(rows, weight, bias, stem), sizes], len(parts), axis=-1)


def _split_heads(g: GraphBuilder, rows: str, attention: Attention, batch: str, length: str) -> str:
    """[B*S, H*D] -> [B,H,S,D]"""
    return g.transpose(g.reshape(rows, [batch, length, attention.n_heads, attention.head_size]), [0, 2, 1, 3])


def _merge_heads(g: GraphBuilder, x: str, attention: Attention) -> str:
    """[B,H,S,D] -> [B*S, H*D]"""
    return g.reshape(g.transpose(x, [0, 2, 1, 3]), [-1, attention.n_heads * attention.head_size])


def _encoder_attention(g: GraphBuilder, x: str, attention: Attention, mask: str, batch: str, length: str) -> str:
    with g.scope("self"):
        parts = _joint(g, x, [attention.query, attention.key, attention.value], "query_key_value")
        query, key, value = (_split_heads(g, part, attention, batch, length) for part in parts)
        if attention.scale != 1.0:
            query = g.op("Mul", [query, g.constant(attention.scale, np.float32)])
        mixed = g.op("TRT_Attention", [query, key, value, mask], domain=NATIVE)
        return g.linear(_merge_heads(g, mixed, attention), attention.output.weight, attention.output.bias, "output")


def _self_attention(
    g: GraphBuilder,
    x: str,
    attention: Attention,
    cache: list[str],
    mask: str,
    ancestors: str,
    position: str,
    bias: str | None,
    batch: str,
    beams: str,
) -> tuple[str, list[str]]:
    """x [R,E] -> rows [R,E] and the updated caches."""
    with g.scope("self"):
        parts = _joint(g, x, [attention.query, attention.key, attention.value], "query_key_value")
        heads = [_split_heads(g, part, attention, batch, beams) for part in parts]
        inputs = [*heads, *cache, mask, ancestors, position]
        op_type = "BeamSelfAttention"
        if bias is not None:
            op_type, inputs = "BeamSelfAttentionBias", [*inputs, bias]
        mixed, *updated = g.ops(op_type, inputs, 3, PLUGINS, scale=attention.scale, **PLUGIN_ATTRIBUTES)
        rows = g.linear(_merge_heads(g, mixed, attention), attention.output.weight, attention.output.bias, "output")
        return rows, updated


def _cross_attention(
    g: GraphBuilder, x: str, attention: Attention, key: str, value: str, mask: str, batch: str, beams: str
) -> tuple[str, str]:
    """x [R,E] -> rows [R,E] and the attention weights [B,H,K,S]."""
    with g.scope("cross"):
        query = g.linear(x, attention.query.weight, attention.query.bias, "query")
        query = _split_heads(g, query, attention, batch, beams)
        mixed = g.op("CrossAttention", [query, key, value, mask], PLUGINS, scale=attention.scale, **PLUGIN_ATTRIBUTES)
        weights = g.op("AttentionWeights", [query, key, mask], NATIVE, scale=attention.scale)
        rows = g.linear(_merge_heads(g, mixed, attention), attention.output.weight, attention.output.bias, "output")
        return rows, weights
