"""Decoders alone: three graphs like an encoder-decoder's, whose source is a prompt that the output goes on with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...bundle import DECODER
from .. import chat_templates
from . import encoder_decoder
from .encoder_decoder import compare, expect

if TYPE_CHECKING:
    from ..families import Family

__all__ = ["compare", "expect", "manifest"]


def manifest(
    source: Any, model: Any, family: Family, limits: dict[str, int | None], graphs: dict[str, Any]
) -> dict[str, Any]:
    given = [limit for limit in limits.values() if limit is not None]
    limits = {**limits, "max_source_length": min(given, default=None)}  # a prompt is a part of the text
    found = encoder_decoder.manifest(source, model, family, limits, graphs)
    templates = {} if source.path is None else chat_templates.of_checkpoint(source.path)
    return {"kind": DECODER, **found, "source": {**found["source"], **templates}}
