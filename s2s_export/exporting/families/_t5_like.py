"""Shared by T5 and its relatives, whose modules have the same names in transformers.

Pre-norm with RMSNorm, no biases, relative positions, attention scores that are not scaled by 1/sqrt(D).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from ..graphs.structure import (
    Attention,
    Block,
    Experts,
    FeedForward,
    Linear,
    Norm,
    RelativePositions,
    Stack,
    Transformer,
)
from ._bart_like import activation

DescribeAttention = Callable[[Any], Attention]


def attention(module: Any) -> Attention:
    query, key, value, output = (Linear.of(getattr(module, name)) for name in "qkvo")
    return Attention(query, key, value, output, n_heads=module.n_heads, scale=1.0)


def transformer(
    model: Any,
    *,
    encoder_positions: RelativePositions | None,
    decoder_positions: RelativePositions | None,
    scales_output: bool,
    encoder_attention: DescribeAttention = attention,
    decoder_attention: DescribeAttention = attention,
) -> Transformer:
    """encoder_positions, decoder_positions: what the layers of a stack share. The functions describe self-attention."""
    config = model.config
    return Transformer(
        _stack(config, model.encoder, encoder_positions, encoder_attention),
        _stack(config, model.decoder, decoder_positions, decoder_attention),
        norm_first=True,
        head=Linear(model.lm_head.weight),
        head_scale=float(config.d_model) ** -0.5 if scales_output else 1.0,
    )


def relative_positions(config: Any, module: Any, bidirectional: bool, table: Any = None) -> RelativePositions:
    """The bias of the attention `module`, by default by its own `relative_attention_bias`."""
    table = module.relative_attention_bias if table is None else table
    bucket_of = module._relative_position_bucket
    farthest = max(config.relative_attention_max_distance, config.relative_attention_num_buckets)
    distance = torch.arange(-farthest, farthest + 1 if bidirectional else 1)
    if "bidirectional" in inspect.signature(bucket_of).parameters:
        options = {
            "bidirectional": bidirectional,
            "num_buckets": config.relative_attention_num_buckets,
            "max_distance": config.relative_attention_max_distance,
        }
        bucket = bucket_of(distance, **options)
    else:  # uMT5's module knows them
        bucket = bucket_of(distance)
    # Where max_distance is less than half of the buckets, distances far beyond have none, and transformers fails there.
    there = (bucket >= 0) & (bucket < len(table.weight))
    return RelativePositions(table.weight[bucket[there]].T, int(distance[there][0]))


def _stack(
    config: Any, module: Any, positions: RelativePositions | None, describe_attention: DescribeAttention
) -> Stack:
    return Stack(
        embedding=module.embed_tokens.weight,
        embedding_scale=1.0,
        positions=positions,
        blocks=tuple(_block(config, layer.layer, describe_attention) for layer in module.block),
        final_norm=norm(module.final_layer_norm),
    )


def _block(config: Any, layers: Any, describe_attention: DescribeAttention) -> Block:
    crossed = len(layers) == 3
    own = next(module for name, module in layers[0].named_children() if name.endswith("SelfAttention"))
    return Block(
        self_attention=describe_attention(own),
        self_norm=norm(layers[0].layer_norm),
        cross_attention=attention(layers[1].EncDecAttention) if crossed else None,
        cross_norm=norm(layers[1].layer_norm) if crossed else None,
        feed_forward=_feed_forward(config, getattr(layers[-1], "mlp", None) or layers[-1].DenseReluDense),
        feed_forward_norm=norm(layers[-1].layer_norm),
    )


def _feed_forward(config: Any, module: Any) -> FeedForward | Experts:
    if hasattr(module, "experts"):
        router = module.router
        experts = tuple(dense(config, expert) for expert in module.experts.values())
        return Experts(Linear.of(router.classifier), experts, router.expert_capacity)
    return dense(config, module)


def dense(config: Any, module: Any) -> FeedForward:
    name = activation(config, config.dense_act_fn)
    if hasattr(module, "wi_1"):
        return FeedForward(Linear.of(module.wi_1), Linear.of(module.wo), name, gate=Linear.of(module.wi_0))
    return FeedForward(Linear.of(module.wi), Linear.of(module.wo), name)


def norm(module: Any) -> Norm:
    return Norm(module.weight, None, module.variance_epsilon)
