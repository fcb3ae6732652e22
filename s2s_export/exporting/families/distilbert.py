"""DistilBERT (1910.01108): BERT without token types and pooler."""

from __future__ import annotations

from typing import Any

from ..graphs.structure import Attention, Block, FeedForward, Linear, Norm, PositionTable, Stack
from . import Family
from ._bart_like import activation
from ._encoders import Layers, family, tokens_head
from ._encoders import load as load_model

__all__ = ["MODEL_TYPES", "READS_CLASSIFIERS", "describe", "load_model"]

MODEL_TYPES = ("distilbert",)
READS_CLASSIFIERS = True


def describe(model: Any) -> Family:
    config, body = model.config, getattr(model, "distilbert", model)
    embeddings = body.embeddings
    stack = Stack(
        embedding=embeddings.word_embeddings.weight,
        embedding_scale=1.0,
        positions=PositionTable(embeddings.position_embeddings.weight),
        blocks=tuple(_block(config, layer) for layer in body.transformer.layer),
        embedding_norm=Norm.of(embeddings.LayerNorm),
    )
    heads = {"ForSequenceClassification": _first_token, "ForTokenClassification": tokens_head}
    return family("distilbert", model, stack, heads)


def _block(config: Any, layer: Any) -> Block:
    attention = layer.attention
    return Block(
        self_attention=Attention(
            query=Linear.of(attention.q_lin),
            key=Linear.of(attention.k_lin),
            value=Linear.of(attention.v_lin),
            output=Linear.of(attention.out_lin),
            n_heads=config.n_heads,
            scale=float(config.dim // config.n_heads) ** -0.5,
        ),
        self_norm=Norm.of(layer.sa_layer_norm),
        feed_forward=FeedForward(
            inner=Linear.of(layer.ffn.lin1),
            outer=Linear.of(layer.ffn.lin2),
            activation=activation(config, config.activation),
        ),
        feed_forward_norm=Norm.of(layer.output_layer_norm),
    )


def _first_token(model: Any) -> Layers:
    return (Linear.of(model.pre_classifier), "relu"), (Linear.of(model.classifier), "linear")
