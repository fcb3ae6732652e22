"""MPNet (2004.09297) as an encoder: all-mpnet-base-v2 and its relatives. BERT with a bias of relative positions."""

from __future__ import annotations

from typing import Any

import torch

from ..graphs.structure import Attention, Block, FeedForward, Linear, Norm, PositionTable, RelativePositions, Stack
from . import Family
from ._bart_like import activation
from ._encoders import family, tokens_head
from ._encoders import load as load_model
from .roberta import first_token_head

__all__ = ["MODEL_TYPES", "READS_CLASSIFIERS", "describe", "load_model"]

MODEL_TYPES = ("mpnet",)
READS_CLASSIFIERS = True
FARTHEST = 128  # tokens: a distance beyond it has the last bucket, whatever the configuration says


def describe(model: Any) -> Family:
    config, body = model.config, getattr(model, "mpnet", model)
    embeddings = body.embeddings
    padding = int(embeddings.padding_idx)
    relative = _relative(body.encoder)
    stack = Stack(
        embedding=embeddings.word_embeddings.weight,
        embedding_scale=1.0,
        positions=PositionTable(embeddings.position_embeddings.weight, padding + 1, padding),
        blocks=tuple(_block(config, layer, relative) for layer in body.encoder.layer),
        embedding_norm=Norm.of(embeddings.LayerNorm),
    )
    heads = {"ForSequenceClassification": first_token_head, "ForTokenClassification": tokens_head}
    return family("mpnet", model, stack, heads)


def _relative(encoder: Any) -> RelativePositions:
    """The bias that all layers share."""
    distance = torch.arange(-FARTHEST, FARTHEST + 1)
    bucket = encoder.relative_position_bucket(distance, num_buckets=32)  # the number that its forward takes
    return RelativePositions(encoder.relative_attention_bias.weight[bucket].T, -FARTHEST)


def _block(config: Any, layer: Any, relative: RelativePositions) -> Block:
    own = layer.attention.attn
    return Block(
        self_attention=Attention(
            query=Linear.of(own.q),
            key=Linear.of(own.k),
            value=Linear.of(own.v),
            output=Linear.of(own.o),
            n_heads=own.num_attention_heads,
            scale=float(own.attention_head_size) ** -0.5,
            relative=relative,
        ),
        self_norm=Norm.of(layer.attention.LayerNorm),
        feed_forward=FeedForward(
            inner=Linear.of(layer.intermediate.dense),
            outer=Linear.of(layer.output.dense),
            activation=activation(config, config.hidden_act),
        ),
        feed_forward_norm=Norm.of(layer.output.LayerNorm),
    )
