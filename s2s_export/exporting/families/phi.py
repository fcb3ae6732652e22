"""Phi-1, 1.5 and 2 (2306.11644): attention and feed-forward read the same norm; a part of each head is turned."""

from __future__ import annotations

from typing import Any

from ..graphs.decoder_only import DecoderOnly
from ..graphs.structure import Block, FeedForward, Linear, Norm, Rotary, Stack
from . import Family
from ._bart_like import activation
from ._decoders import (
    AUTO_CLASS,
    SOURCE_KIND,
    Reference,
    attention,
    family,
    n_positions,
    projections,
    rotary,
    stretch,
)

__all__ = ["AUTO_CLASS", "MODEL_TYPES", "SOURCE_KIND", "Reference", "describe", "stretch"]

MODEL_TYPES = ("phi",)


def describe(model: Any) -> Family:
    config, body = model.config, model.model
    positions = n_positions(model)
    angles = rotary(config, body.rotary_emb, positions, body.layers[0].self_attn.head_dim)
    stack = Stack(
        embedding=body.embed_tokens.weight,
        embedding_scale=1.0,
        positions=None,
        blocks=tuple(_block(config, layer, angles) for layer in body.layers),
        final_norm=Norm.of(body.final_layernorm),
    )
    return family("phi", model, DecoderOnly(stack, Linear.of(model.lm_head)), positions)


def _block(config: Any, layer: Any, angles: Rotary) -> Block:
    own, norm = layer.self_attn, Norm.of(layer.input_layernorm)
    norms = [Norm.of(own.q_layernorm), Norm.of(own.k_layernorm)] if own.qk_layernorm else [None, None]
    return Block(
        self_attention=attention(
            config,
            projections(own),
            Linear.of(own.dense),
            angles,
            scale=float(own.scaling),
            n_turned=own.rotary_ndims,
            norms=norms,
        ),
        self_norm=norm,
        feed_forward=FeedForward(
            Linear.of(layer.mlp.fc1), Linear.of(layer.mlp.fc2), activation(config, config.hidden_act)
        ),
        feed_forward_norm=norm,
        is_parallel=True,
    )
