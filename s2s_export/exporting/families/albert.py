"""ALBERT (1909.11942) as an encoder: layers that share their weights, embeddings narrower than the layers."""

from __future__ import annotations

from typing import Any

from ..graphs.structure import Attention, Block, FeedForward, Linear, Norm, PositionTable, Stack
from . import Family
from ._bart_like import activation
from ._encoders import Layers, family, tokens_head, typed
from ._encoders import load as load_model

__all__ = ["MODEL_TYPES", "READS_CLASSIFIERS", "describe", "load_model"]

MODEL_TYPES = ("albert",)
READS_CLASSIFIERS = True


def describe(model: Any) -> Family:
    config, body = model.config, getattr(model, "albert", model)
    embeddings, encoder = body.embeddings, body.encoder
    types = embeddings.token_type_embeddings.weight
    per_group = config.num_hidden_layers / config.num_hidden_groups
    groups = [encoder.albert_layer_groups[int(i / per_group)] for i in range(config.num_hidden_layers)]
    stack = Stack(
        embedding=embeddings.word_embeddings.weight,
        embedding_scale=1.0,
        positions=PositionTable(embeddings.position_embeddings.weight + types[0]),
        blocks=tuple(_block(config, layer) for group in groups for layer in group.albert_layers),
        embedding_norm=Norm.of(embeddings.LayerNorm),
        projection=Linear.of(encoder.embedding_hidden_mapping_in),
    )
    heads = {"ForSequenceClassification": _pooled, "ForTokenClassification": tokens_head}
    return family("albert", model, typed(stack, types), heads)


def _block(config: Any, layer: Any) -> Block:
    own = layer.attention
    return Block(
        self_attention=Attention(
            query=Linear.of(own.query),
            key=Linear.of(own.key),
            value=Linear.of(own.value),
            output=Linear.of(own.dense),
            n_heads=own.num_attention_heads,
            scale=float(own.attention_head_size) ** -0.5,
        ),
        self_norm=Norm.of(own.LayerNorm),
        feed_forward=FeedForward(
            inner=Linear.of(layer.ffn),
            outer=Linear.of(layer.ffn_output),
            activation=activation(config, config.hidden_act),
        ),
        feed_forward_norm=Norm.of(layer.full_layer_layer_norm),
    )


def _pooled(model: Any) -> Layers:
    return (Linear.of(model.albert.pooler), "tanh"), (Linear.of(model.classifier), "linear")
