"""T5Gemma (2504.06225): Gemma 2 as an encoder and a decoder.

Rotary positions, keys that several heads share, soft caps of scores and logits, sliding windows on some layers, and a
norm before and after every sublayer. RMSNorm multiplies by 1 + weight.
"""

from __future__ import annotations

from typing import Any

import torch

from ...errors import UnsupportedModel
from ..graphs.structure import Attention, Block, FeedForward, Linear, Norm, Rotary, Stack, Transformer
from ..parity import TransformersReference
from . import Family
from ._bart_like import activation

MODEL_TYPES = ("t5gemma",)


class Reference(TransformersReference):
    """Without a mask transformers leaves padding tokens out of a whole target, and step by step it does not."""

    def beside(self, history: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"decoder_attention_mask": torch.ones_like(history)}


def describe(model: Any) -> Family:
    config, inner = model.config, model.model
    structure = Transformer(
        _stack(config.encoder, inner.encoder),
        _stack(config.decoder, inner.decoder),
        norm_first=True,
        head=Linear.of(model.lm_head.out_proj),
        soft_cap=config.decoder.final_logit_softcapping,
    )
    return Family("t5gemma", structure, config.encoder.max_position_embeddings, config.decoder.max_position_embeddings)


def _stack(config: Any, module: Any) -> Stack:
    rotary = _rotary(config, module.rotary_emb)
    return Stack(
        embedding=module.embed_tokens.weight,
        embedding_scale=float(config.hidden_size) ** 0.5,
        positions=None,
        blocks=tuple(_block(config, layer, rotary) for layer in module.layers),
        final_norm=norm(module.norm),
    )


def _rotary(config: Any, module: Any) -> Rotary:
    if module.rope_type != "default":
        raise UnsupportedModel(f"t5gemma: rope_type is '{module.rope_type}'; expected 'default'")
    return rotary(module, config.max_position_embeddings)


def rotary(module: Any, n_positions: int, *layer_type: str) -> Rotary:
    """The angles that a rotary embedding of transformers gives. layer_type: where it has several."""
    tables = module(torch.zeros(1), torch.arange(n_positions)[None], *layer_type)
    cosine, sine = (table[0, :, : table.shape[2] // 2].contiguous() for table in tables)  # the halves are the same
    return Rotary(cosine, sine)


def _block(config: Any, layer: Any, rotary: Rotary) -> Block:
    crossed = hasattr(layer, "cross_attn")
    return Block(
        self_attention=_attention(config, layer.self_attn, rotary),
        self_norm=norm(layer.pre_self_attn_layernorm),
        after_self=norm(layer.post_self_attn_layernorm),
        cross_attention=_attention(config, layer.cross_attn, None) if crossed else None,
        cross_norm=norm(layer.pre_cross_attn_layernorm) if crossed else None,
        after_cross=norm(layer.post_cross_attn_layernorm) if crossed else None,
        feed_forward=feed_forward(config, layer.mlp),
        feed_forward_norm=norm(layer.pre_feedforward_layernorm),
        after_feed_forward=norm(layer.post_feedforward_layernorm),
    )


def feed_forward(config: Any, module: Any) -> FeedForward:
    return FeedForward(
        inner=Linear.of(module.up_proj),
        outer=Linear.of(module.down_proj),
        activation=activation(config, config.hidden_activation),
        gate=Linear.of(module.gate_proj),
    )


def _attention(config: Any, module: Any, rotary: Rotary | None) -> Attention:
    """rotary: None for cross-attention."""
    window = getattr(module, "sliding_window", None)
    return Attention(
        query=Linear.of(module.q_proj),
        key=Linear.of(module.k_proj),
        value=Linear.of(module.v_proj),
        output=Linear.of(module.o_proj),
        n_heads=config.num_attention_heads,
        scale=float(module.scaling),
        n_key_heads=config.num_key_value_heads,
        rotary=rotary,
        window=None if window is None else _window(window, is_decoder=config.is_decoder),
        soft_cap=module.attn_logit_softcapping,
    )


def _window(window: int, *, is_decoder: bool) -> tuple[int, int]:
    """The distances that transformers' masks show: causal in the decoder, both ways and one farther in the encoder."""
    return (window - 1, 0) if is_decoder else (window, window)


def norm(module: Any) -> Norm:
    return Norm(module.weight + 1.0, None, module.eps)
