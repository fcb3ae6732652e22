"""Emits the graph that runs a whole decoder prompt at once: the keys and values of its tokens, for every layer.

The decoder step feeds a token at a time. A prompt is known beforehand: its tokens are rows of one product, each sees
those before it, and nothing asks for their logits. So of the last layer only keys and values are computed, and the
beams of a source, which all have the same prompt, share one row.

Letters: P tokens of the prompt.
"""

from __future__ import annotations

import numpy as np
import onnx

from .biases import MASKED, EncoderMasks, distances, encoder_relative_bias, source_mask_bias
from .builder import FLOAT, INT64, Dimension, GraphBuilder
from .general_attention import Angles
from .layers import normed
from .structure import Attention, Experts, PositionTable, Transformer
from .transformer import (
    attend_to_source,
    attention_heads,
    embed,
    feed_forward_block,
    prompt_positions,
    residual,
    whole_attention,
)
from .weights import WeightStore


def reason_for_none(model: Transformer) -> str:
    """Why a model has no such graph, so that its prompts are fed token by token; or an empty text."""
    if any(block.is_merged for block in model.decoder.blocks):
        return "its self-attention sees the source too"
    if any(isinstance(block.feed_forward, Experts) for block in model.decoder.blocks):
        return "how many tokens an expert takes depends on how many are fed together"
    return ""


def emit(model: Transformer, store: WeightStore) -> onnx.ModelProto:
    """prefill: tokens [B,P] -> prompt_key.l and prompt_value.l [B,G,P,D]. Weights go to `store`."""
    g = GraphBuilder("prefill", store)
    stack = model.decoder
    tokens = g.input("tokens", INT64, ["B", "P"])
    source_mask = g.input("source_mask", INT64, ["B", "S"])
    batch, length = g.size(tokens, 0), g.size(tokens, 1)
    norm_first = model.norm_first if model.decoder_norm_first is None else model.decoder_norm_first
    cross_mask = source_mask_bias(g, source_mask)
    found: list[tuple[str, str]] = []
    with g.scope("decoder"):
        mask = causal_mask(g, length)
        x = embed(g, stack, tokens)  # [B,P,E]
        if isinstance(stack.positions, PositionTable):
            x = g.op("Add", [x, prompt_positions(g, stack.positions, tokens, length)])
        elif stack.positions is not None:
            mask = g.op("Add", [mask, encoder_relative_bias(g, stack.positions, length)])
        x = g.reshape(x, [-1, stack.width])  # [B*P,E]
        angles, masks = Angles(g, g.range(length)), EncoderMasks(g, mask, length)
        if stack.embedding_norm:
            x = normed(g, x, stack.embedding_norm)
        for i, block in enumerate(stack.blocks):
            with g.scope(f"layer{i}"):
                is_last = i == len(stack.blocks) - 1
                cross = block.cross_attention
                assert cross is not None and block.cross_norm is not None
                if is_last:
                    h = normed(g, x, block.self_norm) if norm_first else x
                    _, key, value = attention_heads(g, h, block.self_attention, angles, batch, length)
                    found.append((key, value))
                    break
                shape: list[Dimension] = ["B", cross.key_heads, "S", cross.head_size]
                source = [g.input(f"cross_{name}.{i}", FLOAT, shape) for name in ("key", "value")]

                def own(h: str, a: Attention = block.self_attention) -> str:
                    heads = attention_heads(g, h, a, angles, batch, length)
                    found.append((heads[1], heads[2]))
                    return whole_attention(g, a, heads, masks.of(a), length)

                def of_source(h: str, a: Attention = cross, source: list[str] = source) -> str:
                    return attend_to_source(g, h, a, source[0], source[1], cross_mask, batch, length)[0]

                x = residual(g, x, block.self_norm, norm_first, own, block.after_self)
                x = residual(g, x, block.cross_norm, norm_first, of_source, block.after_cross)
                x = feed_forward_block(g, x, block, norm_first)
    for i, (block, pair) in enumerate(zip(stack.blocks, found, strict=True)):
        a = block.self_attention
        for name, value in zip(("key", "value"), pair, strict=True):
            g.output(value, f"prompt_{name}.{i}", FLOAT, ["B", a.key_heads, "P", a.head_size])
    return g.model()


def causal_mask(g: GraphBuilder, length: str) -> str:
    """Additive [1,1,P,P]: 0 for a key at the query's position or before it."""
    late = g.op("Greater", [distances(g, length), g.constant(0)])
    mask = g.op("Where", [late, g.constant(MASKED, np.float32), g.constant(0.0, np.float32)])
    return g.op("Unsqueeze", [mask, g.constant([0, 1])])
