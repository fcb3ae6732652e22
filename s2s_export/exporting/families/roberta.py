"""RoBERTa (1907.11692), XLM-R (1911.02116) and CamemBERT as encoders: multilingual E5, BGE-M3, and classifiers."""

from __future__ import annotations

from typing import Any

from ..graphs.structure import Linear
from . import Family
from ._encoders import Layers, family, tokens_head
from ._encoders import load as load_model
from ._text_decoders import bert_stack

__all__ = ["MODEL_TYPES", "READS_CLASSIFIERS", "describe", "load_model"]

MODEL_TYPES = ("roberta", "xlm-roberta", "camembert")
READS_CLASSIFIERS = True


def describe(model: Any) -> Family:
    body = getattr(model, "roberta", model)
    heads = {"ForSequenceClassification": first_token_head, "ForTokenClassification": tokens_head}
    return family("roberta", model, bert_stack(model.config, body), heads)


def first_token_head(model: Any) -> Layers:
    head = model.classifier
    return (Linear.of(head.dense), "tanh"), (Linear.of(head.out_proj), "linear")
