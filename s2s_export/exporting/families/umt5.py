"""uMT5 (2304.09151): T5 whose every layer has its own bias for relative positions."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..graphs.structure import Attention
from . import Family
from ._t5_like import attention, relative_positions, transformer

MODEL_TYPES = ("umt5",)


def describe(model: Any) -> Family:
    config = model.config

    def own(bidirectional: bool) -> Any:
        def describe_attention(module: Any) -> Attention:
            return dataclasses.replace(
                attention(module), relative=relative_positions(config, module, bidirectional=bidirectional)
            )

        return describe_attention

    structure = transformer(
        model,
        encoder_positions=None,
        decoder_positions=None,
        scales_output=bool(config.tie_word_embeddings),
        encoder_attention=own(bidirectional=True),
        decoder_attention=own(bidirectional=False),
    )
    return Family("umt5", structure, None, None)
