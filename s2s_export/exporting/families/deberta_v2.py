"""DeBERTa v2 and v3 (2006.03654, 2111.09543) as an encoder: disentangled attention, which knows distances only."""

from __future__ import annotations

from typing import Any

import torch

from ...errors import UnsupportedModel
from ..graphs.structure import Attention, Block, Disentangled, FeedForward, Linear, Norm, PositionTable, Stack
from . import Family
from ._bart_like import activation
from ._encoders import Layers, family, tokens_head, typed
from ._encoders import load as load_model

__all__ = ["MODEL_TYPES", "READS_CLASSIFIERS", "describe", "load_model"]

MODEL_TYPES = ("deberta-v2",)
READS_CLASSIFIERS = True


def describe(model: Any) -> Family:
    config, body = model.config, getattr(model, "deberta", model)
    embeddings, encoder = body.embeddings, body.encoder
    if encoder.conv is not None or embeddings.embed_proj is not None:
        name = "conv_kernel_size" if encoder.conv is not None else "embedding_size"
        raise UnsupportedModel(
            f"deberta-v2: {name} is {getattr(config, name)}; expected "
            f"{'0, no convolution beside the first layer' if encoder.conv is not None else config.hidden_size}"
        )
    table = embeddings.word_embeddings.weight
    positions = None if embeddings.position_embeddings is None else embeddings.position_embeddings.weight
    if embeddings.token_type_embeddings is not None:  # a token has type 0, if not another one
        first = embeddings.token_type_embeddings.weight[0]
        table, positions = (table + first, None) if positions is None else (table, positions + first)
    distances = encoder.get_rel_embedding() if encoder.relative_attention else None
    stack = Stack(
        embedding=table,
        embedding_scale=1.0,
        positions=None if positions is None else PositionTable(positions),
        blocks=tuple(_block(config, layer, distances) for layer in encoder.layer),
        embedding_norm=Norm.of(embeddings.LayerNorm),
    )
    if embeddings.token_type_embeddings is not None:
        stack = typed(stack, embeddings.token_type_embeddings.weight)
    heads = {"ForSequenceClassification": _pooled, "ForTokenClassification": tokens_head}
    return family("deberta-v2", model, stack, heads, config.max_position_embeddings)


def _block(config: Any, layer: Any, distances: Any) -> Block:
    own = layer.attention.self
    terms = 1 + sum(name in own.pos_att_type for name in ("c2p", "p2c"))  # counted where there are no distances too
    return Block(
        self_attention=Attention(
            query=Linear.of(own.query_proj),
            key=Linear.of(own.key_proj),
            value=Linear.of(own.value_proj),
            output=Linear.of(layer.attention.output.dense),
            n_heads=own.num_attention_heads,
            scale=float(own.attention_head_size * terms) ** -0.5,
            disentangled=None if distances is None else _disentangled(config, own, distances),
        ),
        self_norm=Norm.of(layer.attention.output.LayerNorm),
        feed_forward=FeedForward(
            inner=Linear.of(layer.intermediate.dense),
            outer=Linear.of(layer.output.dense),
            activation=activation(config, config.hidden_act),
        ),
        feed_forward_norm=Norm.of(layer.output.LayerNorm),
    )


def _disentangled(config: Any, own: Any, distances: Any) -> Disentangled | None:
    """Keys and queries of the distances are the same for every source: they are computed here."""
    from transformers.models.deberta_v2.modeling_deberta_v2 import build_relative_position

    span, n = int(own.pos_ebd_size), int(config.max_position_embeddings)
    rows = distances[: 2 * span]

    def heads(projection: Any) -> torch.Tensor:
        return projection(rows).reshape(len(rows), own.num_attention_heads, -1).permute(1, 0, 2).contiguous()

    key = query = None
    if "c2p" in own.pos_att_type:
        key = heads(own.key_proj if own.share_att_key else own.pos_key_proj)
    if "p2c" in own.pos_att_type:
        query = heads(own.query_proj if own.share_att_key else own.pos_query_proj)
    if key is None and query is None:
        return None
    # Distances query - key from -(n-1) to n-1: those of the last query, and of the first to the others.
    ids = torch.zeros(1, n, 1)
    by_pair = build_relative_position(ids, ids, own.position_buckets, own.max_relative_positions)[0]
    buckets = torch.cat([by_pair[0].flip(0), by_pair[1:, 0]])
    return Disentangled((buckets + span).clamp(0, 2 * span - 1), key, query)


def _pooled(model: Any) -> Layers:
    act = activation(model.config, model.config.pooler_hidden_act)
    return (Linear.of(model.pooler.dense), act), (Linear.of(model.classifier), "linear")
