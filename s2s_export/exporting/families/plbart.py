"""PLBart (2103.06333): BART for program code, with a final norm on neither side and scaled embeddings."""

from __future__ import annotations

from typing import Any

from . import Family
from ._bart_like import transformer
from .bart import OFFSET

MODEL_TYPES = ("plbart",)


def describe(model: Any) -> Family:
    positions = model.config.max_position_embeddings
    return Family("plbart", transformer(model, norm_first=False, offset=OFFSET), positions, positions)
