"""LongT5 (2112.07916) with local attention: T5 whose encoder sees `local_radius` tokens to either side.

The window is a mask of the whole attention: exact, and the encoder's memory grows with the square of the source.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ...errors import UnsupportedModel
from ..graphs.structure import Attention
from . import Family
from ._t5_like import attention, relative_positions, transformer

MODEL_TYPES = ("longt5",)


def describe(model: Any) -> Family:
    config = model.config
    if config.encoder_attention_type != "local":
        raise UnsupportedModel(
            f"longt5: encoder_attention_type is '{config.encoder_attention_type}'; expected 'local'. Transient global "
            "attention adds a key for each block of tokens, which our graphs don't have"
        )
    radius = config.local_radius

    def local(module: Any) -> Attention:
        return dataclasses.replace(attention(module), window=(radius, radius))

    encoder, decoder = model.encoder.block, model.decoder.block
    structure = transformer(
        model,
        encoder_positions=relative_positions(config, encoder[0].layer[0].LocalSelfAttention, bidirectional=True),
        decoder_positions=relative_positions(config, decoder[0].layer[0].SelfAttention, bidirectional=False),
        scales_output=bool(config.scale_decoder_outputs),
        encoder_attention=local,
    )
    return Family("longt5", structure, None, None)
