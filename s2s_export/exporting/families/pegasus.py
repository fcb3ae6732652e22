"""Pegasus (1912.08777): pre-norm blocks, sinusoidal positions, a final norm on both sides."""

from __future__ import annotations

from typing import Any

from . import Family
from ._bart_like import transformer

MODEL_TYPES = ("pegasus",)


def describe(model: Any) -> Family:
    positions = model.config.max_position_embeddings
    return Family("pegasus", transformer(model, norm_first=True), positions, positions)
