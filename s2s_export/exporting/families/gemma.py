"""Gemma (2403.08295) and Gemma 2 (2408.00118): RMSNorm by 1 + weight, scaled embeddings, soft caps, sliding windows."""

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
    rotary,
    stretch,
)
from .t5gemma import norm

__all__ = ["AUTO_CLASS", "MODEL_TYPES", "SOURCE_KIND", "Reference", "describe", "stretch"]

MODEL_TYPES = ("gemma", "gemma2")


def describe(model: Any) -> Family:
    config, body = model.config, model.model
    positions = n_positions(model)
    angles = rotary(config, body.rotary_emb, positions, config.head_dim)
    stack = Stack(
        embedding=body.embed_tokens.weight,
        embedding_scale=float(config.hidden_size) ** 0.5,
        positions=None,
        blocks=tuple(_block(config, layer, angles) for layer in body.layers),
        final_norm=norm(body.norm),
    )
    cap = getattr(config, "final_logit_softcapping", None)
    return family(config.model_type, model, DecoderOnly(stack, Linear.of(model.lm_head), cap), positions)


def _block(config: Any, layer: Any, angles: Rotary) -> Block:
    own, is_second = layer.self_attn, config.model_type == "gemma2"
    return Block(
        self_attention=attention(
            config,
            projections(own),
            Linear.of(own.o_proj),
            angles,
            scale=float(own.scaling),
            window=own.sliding_window if is_second else None,
            soft_cap=own.attn_logit_softcapping if is_second else None,
        ),
        self_norm=norm(layer.input_layernorm),
        after_self=norm(layer.post_attention_layernorm) if is_second else None,
        feed_forward=gated(config, layer.mlp, getattr(config, "hidden_activation", None) or config.hidden_act),
        feed_forward_norm=norm(layer.pre_feedforward_layernorm if is_second else layer.post_attention_layernorm),
        after_feed_forward=norm(layer.post_feedforward_layernorm) if is_second else None,
    )
