"""Blenderbot (2004.13637): pre-norm blocks, learned positions, a final norm on both sides."""

from __future__ import annotations

from typing import Any

from . import Family
from ._bart_like import transformer

MODEL_TYPES = ("blenderbot",)


def describe(model: Any) -> Family:
    positions = model.config.max_position_embeddings
    return Family("blenderbot", transformer(model, norm_first=True), positions, positions)
