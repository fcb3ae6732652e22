"""Llama (2302.13971) and those that differ from it in a switch: Mistral, Qwen2 and Qwen3, by transformers' names."""

from __future__ import annotations

from typing import Any

from ..graphs.decoder_only import DecoderOnly
from ..graphs.structure import Block, Linear, Rotary, Stack
from . import Family
from ._decoders import (
    AUTO_CLASS,
    SOURCE_KIND,
    Reference,
    attention,
    family,
    gated,
    n_positions,
    projections,
    rms_norm,
    rotary,
    stretch,
)

__all__ = ["AUTO_CLASS", "MODEL_TYPES", "SOURCE_KIND", "Reference", "describe", "stretch"]

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")


def describe(model: Any) -> Family:
    config, body = model.config, model.model
    positions = n_positions(model)
    size = body.layers[0].self_attn.head_dim
    angles = rotary(config, body.rotary_emb, positions, size)
    stack = Stack(
        embedding=body.embed_tokens.weight,
        embedding_scale=1.0,
        positions=None,
        blocks=tuple(_block(config, layer, angles) for layer in body.layers),
        final_norm=rms_norm(body.norm),
    )
    return family(config.model_type, model, DecoderOnly(stack, Linear.of(model.lm_head)), positions)


def _block(config: Any, layer: Any, angles: Rotary) -> Block:
    own = layer.self_attn
    # Of Mistral's all layers, of a Qwen's those of a type; Llama has none.
    window = own.sliding_window if hasattr(own, "sliding_window") else getattr(config, "sliding_window", None)
    norms = [rms_norm(getattr(own, name)) if hasattr(own, name) else None for name in ("q_norm", "k_norm")]
    return Block(
        self_attention=attention(
            config,
            projections(own),
            Linear.of(own.o_proj),
            angles,
            scale=float(own.scaling),
            window=None if config.model_type == "llama" else window,
            norms=norms,
        ),
        self_norm=rms_norm(layer.input_layernorm),
        feed_forward=gated(config, layer.mlp, config.hidden_act),
        feed_forward_norm=rms_norm(layer.post_attention_layernorm),
    )
