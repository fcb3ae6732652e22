"""Emits the three graphs of a Transformer (1706.03762 and its descendants) from its structure.

From the embedding to the head, activations are two-dimensional, [B*S, E] or [R, E], so that every projection is one
matrix product. Heads are split only around attention. Projections of the same input are merged into one product.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from ...runtime.sources.token_ids import INPUT_IDS
from ...runtime.sources.typed_token_ids import TOKEN_TYPES
from .biases import (
    DecoderBiases,
    EncoderMasks,
    ancestor_mask,
    decoder_relative_bias,
    encoder_relative_bias,
    source_mask_bias,
)
from .builder import FLOAT, INT64, Dimension, GraphBuilder
from .disentangled import disentangled_scores
from .experts import emit_experts
from .functions import NATIVE, PLUGIN_ATTRIBUTES, PLUGINS
from .general_attention import Angles, attend, attend_to_both, attend_to_cache, soft_capped, split_heads
from .layers import activation, feed_forward, joint, merge_heads, normed
from .relative_vectors import DecoderVectors, EncoderVectors
from .structure import (
    Attention,
    Block,
    Experts,
    Norm,
    PositionTable,
    Stack,
    Stem,
    Transformer,
)
from .summed_blocks import BlockKeys
from .weights import WeightStore


def emit(model: Transformer, store: WeightStore) -> dict[str, onnx.ModelProto]:
    """The graphs by name: encoder, cross_kv_init, decoder_step, perhaps prefill. Weights go to `store`."""
    from . import prefill

    graphs = {
        "encoder": _encoder(model, store),
        "cross_kv_init": _cross_kv_init(model, store),
        "decoder_step": _decoder_step(model, store),
    }
    return graphs if prefill.reason_for_none(model) else {**graphs, "prefill": prefill.emit(model, store)}


def _encoder(model: Transformer, store: WeightStore) -> onnx.ModelProto:
    g = GraphBuilder("encoder", store)
    states, _ = emit_encoder(g, model.encoder, model.norm_first)
    g.output(states, "encoder_states", FLOAT, ["B", "S", model.encoder.width])
    return g.model()


def emit_encoder(g: GraphBuilder, stack: Stack, norm_first: bool) -> tuple[str, str]:
    """A whole encoder, with its inputs. Returns its states [B,S,E] and their rows [B*S,E]."""
    width = stack.width
    if isinstance(stack.embedding, Stem):
        ids, source_mask = g.input(stack.embedding.input, FLOAT, ["B", *stack.embedding.shape]), ""
        if stack.embedding.is_masked:
            source_mask = g.input("source_mask", INT64, ["B", "S"])
    else:
        ids = g.input(INPUT_IDS, INT64, ["B", "S"])
        source_mask = g.input("source_mask", INT64, ["B", "S"])
    with g.scope("encoder"):
        if isinstance(stack.embedding, Stem):
            mask = g.constant(np.zeros((1, 1, 1, 1)), np.float32)  # all of a source is looked at
            if stack.embedding.is_masked:
                mask = source_mask_bias(g, source_mask)
            x = stack.embedding.emit(g, ids)  # [B,S,E]
        else:
            mask = source_mask_bias(g, source_mask)  # [B,1,1,S]
            x = embed(g, stack, ids)  # [B,S,E]
        batch, length = g.size(x, 0), g.size(x, 1)
        if isinstance(stack.positions, PositionTable):
            x = g.op("Add", [x, _encoder_positions(g, stack.positions, ids, length)])
        elif stack.positions is not None:
            mask = g.op("Add", [mask, encoder_relative_bias(g, stack.positions, length)])  # [B,H,S,S]
        angles = Angles(g, g.range(length))
        masks = EncoderMasks(g, mask, length)
        seen = stack.blocks_seen
        blocks = None if seen is None else BlockKeys(g, seen, source_mask, length)
        if stack.types is not None:
            types = g.input(TOKEN_TYPES, INT64, ["B", "S"])
            x = g.op("Add", [x, g.op("Gather", [g.weight("types", stack.types), types], axis=0)])
        x = g.reshape(x, [-1, stack.embedding_width])  # [B*S,W]
        if stack.embedding_norm:
            x = normed(g, x, stack.embedding_norm)
        if stack.projection is not None:
            x = g.linear(x, stack.projection.weight, stack.projection.bias, "projection")  # [B*S,E]
        for i, block in enumerate(stack.blocks):
            with g.scope(f"layer{i}"):

                def self_attention(h: str, a: Attention = block.self_attention) -> str:
                    return _encoder_attention(g, h, a, masks.of(a), angles, batch, length, blocks)

                x = residual(g, x, block.self_norm, norm_first, self_attention, block.after_self)
                x = feed_forward_block(g, x, block, norm_first, sequences=(batch, length))
        if stack.final_norm:
            x = normed(g, x, stack.final_norm)
        return g.reshape(x, [batch, length, width]), x


def _cross_kv_init(model: Transformer, store: WeightStore) -> onnx.ModelProto:
    g = GraphBuilder("cross_kv_init", store)
    width = model.encoder.width
    states = g.input("encoder_states", FLOAT, ["B", "S", width])
    batch, length = g.size(states, 0), g.size(states, 1)
    rows = g.reshape(states, [-1, width])
    if model.bridge is not None:
        with g.scope("bridge"):
            rows = g.linear(rows, model.bridge.weight, model.bridge.bias, "bridge")
    for i, block in enumerate(model.decoder.blocks):
        attention = block.cross_attention
        assert attention is not None
        with g.scope(f"decoder/layer{i}/cross"):
            both = joint(g, rows, [attention.key, attention.value], "key_value")
            shape: list[Dimension] = ["B", attention.key_heads, "S", attention.head_size]
            for value, name in zip(both, ("key", "value"), strict=True):
                heads = split_heads(g, value, attention.key_heads, attention.head_size, batch, length)
                if name == "key" and attention.key_norm is not None:
                    heads = normed(g, heads, attention.key_norm)
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
    norm_first = model.norm_first if model.decoder_norm_first is None else model.decoder_norm_first
    caches = []
    attention_weights = []
    with g.scope("decoder"):
        cross_mask = source_mask_bias(g, source_mask)  # [B,1,1,S]
        self_mask = ancestor_mask(g, ancestors, position, batch, beams)  # [B,1,K,N]
        x = g.reshape(embed(g, stack, token), [-1, width])  # [R,E]
        shared = None
        if isinstance(stack.positions, PositionTable):
            x = g.op("Add", [x, _decoder_positions(g, stack.positions, token, position)])
        elif stack.positions is not None:
            shared = decoder_relative_bias(g, stack.positions, position, g.size(ancestors, 2))  # [1,H,1,C]
        angles = Angles(g, position)
        biases = DecoderBiases(g, shared, position, ancestors)
        if stack.embedding_norm:
            x = normed(g, x, stack.embedding_norm)
        for i, block in enumerate(stack.blocks):
            with g.scope(f"layer{i}"):
                cross = block.cross_attention
                assert cross is not None and (block.is_merged or block.cross_norm is not None)
                kv_shape: list[Dimension] = ["B", cross.key_heads, "S", cross.head_size]
                cross_key = g.input(f"cross_key.{i}", FLOAT, kv_shape)
                cross_value = g.input(f"cross_value.{i}", FLOAT, kv_shape)
                own = block.self_attention
                cache_shape: list[Dimension] = ["B", own.key_heads, "N", own.head_size]
                cache = [g.input(f"self_{name}.{i}", FLOAT, cache_shape) for name in ("key", "value")]

                def merged_attention(
                    h: str,
                    a: Attention = own,
                    cache: list[str] = cache,
                    source: tuple[str, str] = (cross_key, cross_value),
                    shape: list[Dimension] = cache_shape,
                ) -> str:
                    heads = attention_heads(g, h, a, angles, batch, beams)
                    mixed, weights, updated = attend_to_both(
                        g, a, heads, cache, source, self_mask, cross_mask, position, biases.of(a), batch, beams
                    )
                    caches.append((updated, shape))
                    attention_weights.append(weights)
                    return g.linear(merge_heads(g, mixed, a), a.output.weight, a.output.bias, "output")

                def self_attention(
                    h: str, a: Attention = own, cache: list[str] = cache, shape: list[Dimension] = cache_shape
                ) -> str:
                    rows, updated = _self_attention(
                        g, h, a, cache, self_mask, ancestors, position, biases.of(a), angles, batch, beams
                    )
                    caches.append((updated, shape))
                    return rows

                def cross_attention(
                    h: str, cross: Attention = cross, key: str = cross_key, value: str = cross_value
                ) -> str:
                    rows, weights = attend_to_source(g, h, cross, key, value, cross_mask, batch, beams)
                    attention_weights.append(weights)
                    return rows

                first = merged_attention if block.is_merged else self_attention
                x = residual(g, x, block.self_norm, norm_first, first, block.after_self)
                if block.cross_norm is not None:
                    x = residual(g, x, block.cross_norm, norm_first, cross_attention, block.after_cross)
                x = feed_forward_block(g, x, block, norm_first)
        if stack.final_norm:
            x = normed(g, x, stack.final_norm)
    with g.scope("head"):
        if model.head_scale != 1.0:
            x = g.op("Mul", [x, g.constant(model.head_scale, np.float32)])
        if (transform := model.head_transform) is not None:
            x = g.linear(x, transform.dense.weight, transform.dense.bias, "transform")
            x = normed(g, activation(g, x, transform.activation), transform.norm)
        logits = g.linear(x, model.head.weight, model.head.bias, "head")
        if model.soft_cap is not None:
            logits = soft_capped(g, logits, model.soft_cap)
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


def embed(g: GraphBuilder, stack: Stack, ids: str) -> str:
    assert not isinstance(stack.embedding, Stem)
    x = g.op("Gather", [g.weight("embedding", stack.embedding), ids], axis=0)
    if stack.embedding_scale != 1.0:
        x = g.op("Mul", [x, g.constant(stack.embedding_scale, np.float32)])
    if stack.replaced_token is not None:
        token, vector = stack.replaced_token
        is_it = g.op("Unsqueeze", [g.op("Equal", [ids, g.constant(token)]), g.constant([-1])])
        x = g.op("Where", [is_it, g.weight("replaced", vector), x])
    return x if stack.token_norm is None else normed(g, x, stack.token_norm)


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
        if positions.padding_row_moves:
            padding = g.op("Add", [position, padding])
        row = g.op("Where", [_is_not(g, g.reshape(token, [-1]), positions.padding_id), row, padding])  # [R]
    return g.op("Gather", [table, row], axis=0)  # [1,E] or [R,E]


def prompt_positions(g: GraphBuilder, positions: PositionTable, tokens: str, length: str) -> str:
    """As `_decoder_positions` for the tokens [B,P] of a whole prompt: [P,E] or [B,P,E]."""
    table, place = g.weight("positions", positions.table), g.range(length)
    row = g.op("Add", [place, g.constant(positions.offset)]) if positions.offset else place
    if positions.padding_id is not None:
        padding = g.constant([positions.padding_id])
        if positions.padding_row_moves:
            padding = g.op("Add", [place, padding])
        row = g.op("Where", [_is_not(g, tokens, positions.padding_id), row, padding])  # [B,P]
    return g.op("Gather", [table, row], axis=0)


def _is_not(g: GraphBuilder, ids: str, token: int) -> str:
    return g.op("Not", [g.op("Equal", [ids, g.constant(token)])])


# Layers


def residual(
    g: GraphBuilder,
    x: str,
    norm: Norm | None,
    norm_first: bool,
    sublayer: Callable[[str], str],
    after: Norm | None = None,
) -> str:
    """after: norm of what the sublayer computes, before it is added."""
    found = sublayer(normed(g, x, norm) if norm_first else x)
    total = g.op("Add", [x, found if after is None else normed(g, found, after)])
    return total if norm_first else normed(g, total, norm)


def feed_forward_block(
    g: GraphBuilder, x: str, block: Block, norm_first: bool, sequences: tuple[str, str] | None = None
) -> str:
    """sequences: the sizes B and S where rows are tokens of whole sequences, as in the encoder."""

    def sublayer(h: str) -> str:
        layer = block.feed_forward
        if isinstance(layer, Experts):
            return emit_experts(g, h, layer, lambda rows, expert: feed_forward(g, rows, expert), sequences)
        return feed_forward(g, h, layer)

    return residual(g, x, block.feed_forward_norm, norm_first, sublayer, block.after_feed_forward)


def _encoder_attention(
    g: GraphBuilder,
    x: str,
    attention: Attention,
    mask: str,
    angles: Angles,
    batch: str,
    length: str,
    blocks: BlockKeys | None,
) -> str:
    with g.scope("self"):
        if blocks is None or attention.block_norm is None:
            query, key, value = attention_heads(g, x, attention, angles, batch, length)
        else:
            query, key, value = _heads_with_blocks(g, x, attention, blocks, batch, length)
            mask = g.op("Concat", [mask, blocks.mask], axis=3)
        if attention.disentangled is not None:
            added = disentangled_scores(g, attention, attention.disentangled, query, key, length)
            mask = g.op("Add", [added, mask])  # [B,H,S,S]
        return whole_attention(g, attention, [query, key, value], mask, length)


def whole_attention(g: GraphBuilder, attention: Attention, heads: list[str], mask: str, length: str) -> str:
    """Of whole sequences: heads [B,H|G,S,D] of query, key and value, mask additive [B|1,H|1,S|1,S] -> rows [B*S,E]."""
    query, key, value = heads
    if not attention.is_plain:
        terms = attention.relative_vectors
        vectors = None if terms is None else EncoderVectors(g, terms, length)
        mixed, _ = attend(g, attention, query, key, value, mask, vectors)
    else:
        if attention.scale != 1.0:
            query = g.op("Mul", [query, g.constant(attention.scale, np.float32)])
        mixed = g.op("TRT_Attention", [query, key, value, mask], domain=NATIVE)
    return g.linear(merge_heads(g, mixed, attention), attention.output.weight, attention.output.bias, "output")


def _heads_with_blocks(
    g: GraphBuilder, x: str, attention: Attention, blocks: BlockKeys, batch: str, length: str
) -> list[str]:
    """Queries [B,H,S,D]; keys and values [B,H,S+G,D] of the tokens and of the blocks that they are in."""
    assert attention.block_norm is not None
    width = attention.query.weight.shape[1]
    sums = normed(g, blocks.sums(x, batch, length, width), attention.block_norm)
    rows = g.op("Concat", [x, sums], axis=0)  # so that both are multiplied by one stored weight
    parts = joint(g, rows, [attention.query, attention.key, attention.value], "query_key_value")
    sizes = g.op("Concat", [g.size(x, 0), g.size(sums, 0)], axis=0)
    found: list[str] = []
    for part in parts:
        of_tokens, of_blocks = g.ops("Split", [part, sizes], 2, axis=0)
        heads = split_heads(g, of_tokens, attention.n_heads, attention.head_size, batch, length)
        if found:  # queries are of tokens only
            others = split_heads(g, of_blocks, attention.n_heads, attention.head_size, batch, blocks.n_blocks)
            heads = g.op("Concat", [heads, others], axis=2)
        found.append(heads)
    return found


def attention_heads(
    g: GraphBuilder, x: str, attention: Attention, angles: Angles, batch: str, length: str
) -> list[str]:
    """Queries [B,H,S,D], keys and values [B,G,S,D] of the rows x [B*S,E], turned by their positions."""
    parts = joint(g, x, [attention.query, attention.key, attention.value], "query_key_value")
    counts = (attention.n_heads, attention.key_heads, attention.key_heads)
    heads = [split_heads(g, part, n, attention.head_size, batch, length) for part, n in zip(parts, counts, strict=True)]
    for i, norm in enumerate((attention.query_norm, attention.key_norm)):
        if norm is not None:
            heads[i] = normed(g, heads[i], norm)
    if attention.rotary is not None:
        heads[:2] = [angles.turn(part, attention.rotary) for part in heads[:2]]
    return heads


def _self_attention(
    g: GraphBuilder,
    x: str,
    attention: Attention,
    cache: list[str],
    mask: str,
    ancestors: str,
    position: str,
    bias: str | None,
    angles: Angles,
    batch: str,
    beams: str,
) -> tuple[str, list[str]]:
    """x [R,E] -> rows [R,E] and the updated caches. bias [1,H,1,C], or None."""
    with g.scope("self"):
        heads = attention_heads(g, x, attention, angles, batch, beams)
        if attention.is_plain:
            inputs = [*heads, *cache, mask, ancestors, position]
            op_type = "BeamSelfAttention"
            if bias is not None:
                op_type, inputs = "BeamSelfAttentionBias", [*inputs, bias]
            mixed, *updated = g.ops(op_type, inputs, 3, PLUGINS, scale=attention.scale, **PLUGIN_ATTRIBUTES)
        else:
            terms = attention.relative_vectors
            vectors = None
            if terms is not None:
                vectors = DecoderVectors(g, terms, position, g.size(ancestors, 2), beams)
            mixed, updated = attend_to_cache(g, attention, heads, cache, mask, position, bias, batch, beams, vectors)
        rows = g.linear(merge_heads(g, mixed, attention), attention.output.weight, attention.output.bias, "output")
        return rows, updated


def attend_to_source(
    g: GraphBuilder, x: str, attention: Attention, key: str, value: str, mask: str, batch: str, beams: str
) -> tuple[str, str]:
    """x [R,E] -> rows [R,E] and the attention weights [B,H,K,S]."""
    with g.scope("cross"):
        query = g.linear(x, attention.query.weight, attention.query.bias, "query")
        query = split_heads(g, query, attention.n_heads, attention.head_size, batch, beams)
        if attention.is_plain:
            options = {"scale": attention.scale}
            mixed = g.op("CrossAttention", [query, key, value, mask], PLUGINS, **options, **PLUGIN_ATTRIBUTES)
            weights = g.op("AttentionWeights", [query, key, mask], NATIVE, **options)
        else:
            mixed, weights = attend(g, attention, query, key, value, mask)
        rows = g.linear(merge_heads(g, mixed, attention), attention.output.weight, attention.output.bias, "output")
        return rows, weights
