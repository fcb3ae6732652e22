"""ELECTRA (2003.10555) as an encoder: BERT whose embeddings may be narrower than its layers."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..graphs.structure import Linear
from . import Family
from ._encoders import Layers, family, tokens_head, typed
from ._encoders import load as load_model
from ._text_decoders import bert_stack

__all__ = ["MODEL_TYPES", "READS_CLASSIFIERS", "describe", "load_model"]

MODEL_TYPES = ("electra",)
READS_CLASSIFIERS = True


def describe(model: Any) -> Family:
    body = getattr(model, "electra", model)
    stack = typed(bert_stack(model.config, body), body.embeddings.token_type_embeddings.weight)
    if hasattr(body, "embeddings_project"):
        stack = dataclasses.replace(stack, projection=Linear.of(body.embeddings_project))
    heads = {"ForSequenceClassification": _first_token, "ForTokenClassification": tokens_head}
    return family("electra", model, stack, heads)


def _first_token(model: Any) -> Layers:
    """Its activation is GELU whatever the configuration says."""
    head = model.classifier
    return (Linear.of(head.dense), "gelu"), (Linear.of(head.out_proj), "linear")
