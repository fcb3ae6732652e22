"""T5Gemma 2 (2512.14856), its text part: Gemma 3 as an encoder and a decoder.

The decoder has one attention for its own tokens and the source's. Queries and keys are normed, layers with a sliding
window have angles of their own, and one token, which ends a picture, has a vector in place of its embedding.
"""

from __future__ import annotations

from typing import Any

from ...errors import UnsupportedModel
from ..graphs.structure import Attention, Block, Linear, Rotary, Stack, Transformer
from . import Family
from .t5gemma import feed_forward, norm, rotary

MODEL_TYPES = ("t5gemma2",)
POSITIONS = 8192  # of the tables of angles; 131,072, which the configuration allows, would be half a gigabyte
ROPE_TYPES = ("default", "linear")


def stretch(model: Any, positions: int) -> None:
    """Tables of at least `positions` positions."""
    model.s2s_positions = max(positions, POSITIONS)


def describe(model: Any) -> Family:
    config, inner = model.config, model.model
    encoder, decoder = inner.encoder.text_model, inner.decoder
    positions = getattr(model, "s2s_positions", POSITIONS)
    lengths = [min(positions, side.config.max_position_embeddings) for side in (encoder, decoder)]
    structure = Transformer(
        _stack(encoder, lengths[0], is_decoder=False),
        _stack(decoder, lengths[1], is_decoder=True),
        norm_first=True,
        head=Linear.of(model.lm_head.out_proj),
        soft_cap=config.decoder.final_logit_softcapping,
    )
    return Family("t5gemma2", structure, lengths[0], lengths[1])


def _stack(module: Any, n_positions: int, *, is_decoder: bool) -> Stack:
    config, tokens = module.config, module.embed_tokens
    for layer_type, found in module.rotary_emb.rope_type.items():
        if found not in ROPE_TYPES:
            raise UnsupportedModel(
                f"t5gemma2: rope_type of {layer_type} is '{found}'; expected one of {', '.join(ROPE_TYPES)}"
            )
    angles = {name: rotary(module.rotary_emb, n_positions, name) for name in module.rotary_emb.rope_type}
    has_picture_end = tokens.eoi_token_index < tokens.num_embeddings
    return Stack(
        embedding=tokens.weight,
        embedding_scale=float(tokens.scalar_embed_scale),
        positions=None,
        blocks=tuple(_block(config, layer, angles[layer.attention_type], is_decoder) for layer in module.layers),
        final_norm=norm(module.norm),
        replaced_token=(tokens.eoi_token_index, tokens.eoi_embedding) if has_picture_end else None,
    )


def _block(config: Any, layer: Any, angles: Rotary, is_decoder: bool) -> Block:
    window = layer.self_attn.sliding_window
    return Block(
        self_attention=_attention(config, layer.self_attn, angles, _window(window, is_decoder)),
        self_norm=norm(layer.pre_self_attn_layernorm),
        after_self=norm(layer.post_self_attn_layernorm),
        cross_attention=_attention(config, layer.self_attn, None, None) if is_decoder else None,
        is_merged=is_decoder,
        feed_forward=feed_forward(config, layer.mlp),
        feed_forward_norm=norm(layer.pre_feedforward_layernorm),
        after_feed_forward=norm(layer.post_feedforward_layernorm),
    )


def _attention(config: Any, module: Any, angles: Rotary | None, window: tuple[int, int] | None) -> Attention:
    """angles: None for the keys of the source, which are not turned."""
    return Attention(
        query=Linear.of(module.q_proj),
        key=Linear.of(module.k_proj),
        value=Linear.of(module.v_proj),
        output=Linear.of(module.o_proj),
        n_heads=config.num_attention_heads,
        scale=float(module.scaling),
        n_key_heads=config.num_key_value_heads,
        rotary=angles,
        window=window,
        query_norm=norm(module.q_norm),
        key_norm=norm(module.k_norm),
    )


def _window(size: int | None, is_decoder: bool) -> tuple[int, int] | None:
    """The distances that transformers' masks show."""
    if size is None:
        return None
    return (size - 1, 0) if is_decoder else ((size + 1) // 2 - 1, size // 2)
