"""T5 (1910.10683), its versions 1.0 and 1.1, Flan-T5, mT5 (2010.11934) and ByT5 (2105.13626).

Pre-norm with RMSNorm, no biases, relative positions shared by all layers of a stack, attention scores that are not
scaled by 1/sqrt(D).
"""

from __future__ import annotations

from typing import Any

import torch

from ..graphs.structure import (
    Attention,
    Block,
    FeedForward,
    Linear,
    Norm,
    RelativePositions,
    Stack,
    Transformer,
)
from . import Family
from ._bart_like import activation

MODEL_TYPES = ("t5", "mt5")


def describe(model: Any) -> Family:
    config = model.config
    structure = Transformer(
        _stack(config, model.encoder, bidirectional=True),
        _stack(config, model.decoder, bidirectional=False),
        norm_first=True,
        head=Linear(model.lm_head.weight),
        head_scale=float(config.d_model) ** -0.5 if _scales_output(config) else 1.0,
    )
    return Family("t5", structure, None, None)


def _scales_output(config: Any) -> bool:
    """T5 1.0 scales the decoder's output. transformers before 5 deduces that from the tied embeddings."""
    return bool(getattr(config, "scale_decoder_outputs", config.tie_word_embeddings)) and config.model_type == "t5"


def _stack(config: Any, module: Any, bidirectional: bool) -> Stack:
    return Stack(
        embedding=module.embed_tokens.weight,
        embedding_scale=1.0,
        positions=_relative_positions(config, module.block[0].layer[0].SelfAttention, bidirectional),
        blocks=tuple(_block(config, layer.layer) for layer in module.block),
        final_norm=_norm(module.final_layer_norm),
    )


def _relative_positions(config: Any, module: Any, bidirectional: bool) -> RelativePositions:
    farthest = config.relative_attention_max_distance
    distance = torch.arange(-farthest, farthest + 1 if bidirectional else 1)
    bucket = module._relative_position_bucket(
        distance,
        bidirectional=bidirectional,
        num_buckets=config.relative_attention_num_buckets,
        max_distance=farthest,
    )
    return RelativePositions(module.relative_attention_bias.weight[bucket].T, -farthest)


def _block(config: Any, layers: Any) -> Block:
    crossed = len(layers) == 3
    return Block(
        self_attention=_attention(layers[0].SelfAttention),
        self_norm=_norm(layers[0].layer_norm),
        cross_attention=_attention(layers[1].EncDecAttention) if crossed else None,
        cross_norm=_norm(layers[1].layer_norm) if crossed else None,
        feed_forward=_feed_forward(config, layers[-1].DenseReluDense),
        feed_forward_norm=_norm(layers[-1].layer_norm),
    )


def _attention(module: Any) -> Attention:
    query, key, value, output = (Linear.of(getattr(module, name)) for name in "qkvo")
    return Attention(query, key, value, output, n_heads=module.n_heads, scale=1.0)


def _feed_forward(config: Any, module: Any) -> FeedForward:
    name = activation(config, config.dense_act_fn)
    if config.is_gated_act:
        return FeedForward(Linear.of(module.wi_1), Linear.of(module.wo), name, gate=Linear.of(module.wi_0))
    return FeedForward(Linear.of(module.wi), Linear.of(module.wo), name)


def _norm(module: Any) -> Norm:
    return Norm(module.weight, None, module.variance_epsilon)
