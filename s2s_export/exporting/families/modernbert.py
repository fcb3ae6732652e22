"""ModernBERT (2412.13663) as an encoder: rotary positions, windows in two layers of three, gated layers, pre-norm.

The angles of layers that see all of a source and of those with a window are of different bases.
"""

from __future__ import annotations

from typing import Any

import torch

from ...errors import UnsupportedModel
from ..graphs.structure import Attention, Block, FeedForward, Linear, Norm, Rotary, Stack
from . import Family
from ._bart_like import activation
from ._encoders import Layers, family
from ._encoders import load as load_model
from .t5gemma import rotary

__all__ = ["MODEL_TYPES", "READS_CLASSIFIERS", "describe", "load_model"]

MODEL_TYPES = ("modernbert",)
READS_CLASSIFIERS = True


def describe(model: Any) -> Family:
    config, body = model.config, getattr(model, "model", model)
    if wrong := sorted(set(body.rotary_emb.rope_type.values()) - {"default", "linear"}):
        raise UnsupportedModel(f"modernbert: rope_type is '{wrong[0]}'; expected default or linear")
    positions = int(config.max_position_embeddings)
    angles = {name: rotary(body.rotary_emb, positions, name) for name in set(config.layer_types)}
    stack = Stack(
        embedding=body.embeddings.tok_embeddings.weight,
        embedding_scale=1.0,
        positions=None,
        blocks=tuple(_block(config, layer, angles[layer.attention_type]) for layer in body.layers),
        embedding_norm=_norm(body.embeddings.norm),
        final_norm=_norm(body.final_norm),
    )
    heads = {"ForSequenceClassification": _head, "ForTokenClassification": _head}
    mean = config.classifier_pooling == "mean"
    return family("modernbert", model, stack, heads, positions, norm_first=True, pools_mean=mean)


def _norm(module: Any) -> Norm:
    """A LayerNorm, whose bias is zero where it has none."""
    bias = torch.zeros_like(module.weight) if module.bias is None else module.bias
    return Norm(module.weight, bias, module.eps)


def _block(config: Any, layer: Any, angles: Rotary) -> Block:
    own, inner = layer.attn, layer.mlp
    query, key, value = _parts(own.Wqkv, 3)
    gate, up = _parts(inner.Wi, 2)
    window = None if own.sliding_window is None else own.sliding_window - 1  # transformers counts the token itself
    return Block(
        self_attention=Attention(
            query=query,
            key=key,
            value=value,
            output=Linear.of(own.Wo),
            n_heads=config.num_attention_heads,
            scale=float(own.head_dim) ** -0.5,
            rotary=angles,
            window=None if window is None else (window, window),
        ),
        self_norm=_norm(layer.attn_norm) if isinstance(layer.attn_norm, torch.nn.LayerNorm) else None,
        feed_forward=FeedForward(
            inner=up,
            outer=Linear.of(inner.Wo),
            activation=activation(config, config.hidden_activation),
            gate=gate,
        ),
        feed_forward_norm=_norm(layer.mlp_norm),
    )


def _parts(module: Any, n: int) -> list[Linear]:
    biases = [None] * n if module.bias is None else module.bias.chunk(n)
    return [Linear(weight, bias) for weight, bias in zip(module.weight.chunk(n), biases, strict=True)]


def _head(model: Any) -> Layers:
    dense = (Linear.of(model.head.dense), activation(model.config, model.config.classifier_activation))
    return dense, _norm(model.head.norm), (Linear.of(model.classifier), "linear")
