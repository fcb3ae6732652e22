"""MVP (2206.12131): BART, pretrained for many tasks; without its prompts, which are tuned for one of them."""

from __future__ import annotations

from typing import Any

from ...errors import UnsupportedModel
from . import Family
from ._bart_like import transformer
from .bart import OFFSET

MODEL_TYPES = ("mvp",)


def describe(model: Any) -> Family:
    if model.config.use_prompt:
        raise UnsupportedModel("mvp: use_prompt is true; expected false, as prompts add keys that no graph of ours has")
    positions = model.config.max_position_embeddings
    return Family("mvp", transformer(model, norm_first=False, offset=OFFSET), positions, positions)
