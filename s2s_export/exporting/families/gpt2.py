"""GPT-2 (Radford and others, 2019): a table of positions, LayerNorm, a layer's projections in one matrix."""

from __future__ import annotations

from typing import Any

from ..graphs.decoder_only import DecoderOnly
from ..graphs.structure import Linear, Norm, PositionTable, Stack
from . import Family
from ._decoders import AUTO_CLASS, SOURCE_KIND, Reference, family
from ._text_decoders import gpt2_block

__all__ = ["AUTO_CLASS", "MODEL_TYPES", "SOURCE_KIND", "Reference", "describe"]

MODEL_TYPES = ("gpt2",)


def describe(model: Any) -> Family:
    body = model.transformer
    stack = Stack(
        embedding=body.wte.weight,
        embedding_scale=1.0,
        positions=PositionTable(body.wpe.weight),
        blocks=tuple(gpt2_block(model.config, layer) for layer in body.h),
        final_norm=Norm.of(body.ln_f),
    )
    return family("gpt2", model, DecoderOnly(stack, Linear.of(model.lm_head)), len(body.wpe.weight))
