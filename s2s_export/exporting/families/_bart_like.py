"""Shared by Marian, BART, Pegasus and their relatives, whose modules have the same names in transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ...errors import UnsupportedModel
from ..graphs.layers import KNOWN_ACTIVATIONS
from ..graphs.structure import Attention, Block, FeedForward, Linear, Norm, PositionTable, Stack, Transformer


def activation(config: Any, name: str) -> str:
    if name not in KNOWN_ACTIVATIONS:
        raise UnsupportedModel(
            f"{config.model_type}: activation function '{name}' is not supported; known: {', '.join(KNOWN_ACTIVATIONS)}"
        )
    return name


def attention(module: Any) -> Attention:
    return Attention(
        query=Linear.of(module.q_proj),
        key=Linear.of(module.k_proj),
        value=Linear.of(module.v_proj),
        output=Linear.of(module.out_proj),
        n_heads=module.num_heads,
        scale=float(module.head_dim) ** -0.5,
    )


def block(config: Any, layer: Any, describe_attention: Callable[[Any], Attention] = attention) -> Block:
    """describe_attention: describes the self-attention."""
    crossed = hasattr(layer, "encoder_attn")
    return Block(
        self_attention=describe_attention(layer.self_attn),
        self_norm=Norm.of(layer.self_attn_layer_norm),
        cross_attention=attention(layer.encoder_attn) if crossed else None,
        cross_norm=Norm.of(layer.encoder_attn_layer_norm) if crossed else None,
        feed_forward=FeedForward(
            inner=Linear.of(layer.fc1),
            outer=Linear.of(layer.fc2),
            activation=activation(config, config.activation_function),
        ),
        feed_forward_norm=Norm.of(layer.final_layer_norm),
    )


def stack(
    config: Any,
    module: Any,
    positions: PositionTable,
    describe_attention: Callable[[Any], Attention] = attention,
    embedding_norm: str = "layernorm_embedding",
    final_norm: str = "layer_norm",
) -> Stack:
    """module: the encoder or the decoder. describe_attention: describes a self-attention. The norms' names follow."""

    def norm(name: str) -> Norm | None:
        return Norm.of(getattr(module, name)) if hasattr(module, name) else None

    return Stack(
        embedding=module.embed_tokens.weight,
        embedding_scale=embedding_scale(module),
        positions=positions,
        blocks=tuple(block(config, layer, describe_attention) for layer in module.layers),
        embedding_norm=norm(embedding_norm),
        final_norm=norm(final_norm),
    )


def embedding_scale(module: Any) -> float:
    """What the encoder or the decoder multiplies its embeddings by; LED has none, whatever its configuration says."""
    return float(getattr(module.embed_tokens, "embed_scale", getattr(module, "embed_scale", 1.0)))


def head(model: Any) -> Linear:
    """The output projection; `final_logits_bias` is its bias, and is left out if it is all zero."""
    bias = getattr(model, "final_logits_bias", None)
    bias = None if bias is None or not torch.any(bias) else bias.reshape(-1)
    if model.lm_head.bias is not None:
        bias = model.lm_head.bias if bias is None else bias + model.lm_head.bias
    return Linear(model.lm_head.weight, bias)


def transformer(model: Any, *, norm_first: bool, offset: int = 0) -> Transformer:
    """A model with a table of positions, in which position 0 is row `offset`."""
    config = model.config
    sides = [
        stack(config, side, PositionTable(side.embed_positions.weight, offset))
        for side in (model.model.encoder, model.model.decoder)
    ]
    return Transformer(sides[0], sides[1], norm_first=norm_first, head=head(model))
