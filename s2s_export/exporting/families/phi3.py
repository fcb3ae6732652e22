"""Phi-3 and Phi-4 (2404.14219): Llama with the projections of a layer in one matrix."""

from __future__ import annotations

from typing import Any

from ..graphs.decoder_only import DecoderOnly
from ..graphs.structure import Block, FeedForward, Linear, Rotary, Stack
from . import Family
from ._bart_like import activation
from ._decoders import (
    AUTO_CLASS,
    SOURCE_KIND,
    Reference,
    attention,
    family,
    n_positions,
    rms_norm,
    rotary,
    stretch,
)

__all__ = ["AUTO_CLASS", "MODEL_TYPES", "SOURCE_KIND", "Reference", "describe", "stretch"]

MODEL_TYPES = ("phi3",)


def describe(model: Any) -> Family:
    config, body = model.config, model.model
    positions = n_positions(model)
    angles = rotary(config, body.rotary_emb, positions, body.layers[0].self_attn.head_dim)
    stack = Stack(
        embedding=body.embed_tokens.weight,
        embedding_scale=1.0,
        positions=None,
        blocks=tuple(_block(config, layer, angles, 2 * len(body.rotary_emb.inv_freq)) for layer in body.layers),
        final_norm=rms_norm(body.norm),
    )
    return family("phi3", model, DecoderOnly(stack, Linear.of(model.lm_head)), positions)


def _block(config: Any, layer: Any, angles: Rotary, n_turned: int) -> Block:
    own = layer.self_attn
    size, keys = own.head_dim, config.num_key_value_heads
    sizes = [config.num_attention_heads * size, keys * size, keys * size]
    gate, inner = (Linear(part) for part in layer.mlp.gate_up_proj.weight.chunk(2))
    return Block(
        self_attention=attention(
            config,
            [Linear(part) for part in own.qkv_proj.weight.split(sizes)],
            Linear.of(own.o_proj),
            angles,
            scale=float(own.scaling),
            n_turned=n_turned,
            window=config.sliding_window,
        ),
        self_norm=rms_norm(layer.input_layernorm),
        feed_forward=FeedForward(
            inner, Linear.of(layer.mlp.down_proj), activation(config, config.hidden_act), gate=gate
        ),
        feed_forward_norm=rms_norm(layer.post_attention_layernorm),
    )
