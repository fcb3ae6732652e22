"""BERT (1810.04805) as an encoder: embeddings such as E5, BGE and MiniLM, and classifiers."""

from __future__ import annotations

from typing import Any

from ..graphs.structure import Linear
from . import Family
from ._encoders import Layers, family, tokens_head, typed
from ._encoders import load as load_model
from ._text_decoders import bert_stack

__all__ = ["MODEL_TYPES", "READS_CLASSIFIERS", "describe", "load_model"]

MODEL_TYPES = ("bert",)
READS_CLASSIFIERS = True


def describe(model: Any) -> Family:
    body = getattr(model, "bert", model)
    heads = {"ForSequenceClassification": _pooled, "ForTokenClassification": tokens_head}
    stack = typed(bert_stack(model.config, body), body.embeddings.token_type_embeddings.weight)
    return family("bert", model, stack, heads)


def _pooled(model: Any) -> Layers:
    return (Linear.of(model.bert.pooler.dense), "tanh"), (Linear.of(model.classifier), "linear")
