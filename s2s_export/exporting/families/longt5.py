"""LongT5 (2112.07916): T5 whose encoder sees `local_radius` tokens to either side, and with transient global attention
the sums of all blocks of tokens as well.

The window is a mask of the whole attention: exact, and the encoder's memory grows with the square of the source.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ...errors import UnsupportedModel
from ..graphs.structure import Attention, SummedBlocks
from . import Family
from ._t5_like import attention, norm, relative_positions, transformer

MODEL_TYPES = ("longt5",)


def describe(model: Any) -> Family:
    config = model.config
    radius = config.local_radius

    def local(module: Any) -> Attention:
        block_norm = getattr(module, "global_input_layer_norm", None)
        return dataclasses.replace(
            attention(module),
            window=(radius, radius),
            block_norm=None if block_norm is None else norm(block_norm),
        )

    first = next(child for name, child in model.encoder.block[0].layer[0].named_children() if "SelfAttention" in name)
    structure = transformer(
        model,
        encoder_positions=relative_positions(config, first, bidirectional=True),
        decoder_positions=relative_positions(
            config, model.decoder.block[0].layer[0].SelfAttention, bidirectional=False
        ),
        scales_output=bool(config.scale_decoder_outputs),
        encoder_attention=local,
    )
    if config.encoder_attention_type == "transient-global":
        blocks = _blocks(config, first)
        structure = dataclasses.replace(structure, encoder=dataclasses.replace(structure.encoder, blocks_seen=blocks))
    return Family("longt5", structure, None, None)


def _blocks(config: Any, module: Any) -> SummedBlocks:
    size = config.global_block_size
    if size & (size - 1):
        raise UnsupportedModel(
            f"longt5: global_block_size is {size}; expected a power of two, as transformers finds a token's block by "
            "adding fractions, which it rounds for other sizes"
        )
    # The same buckets as between tokens, with another table.
    table = module.global_relative_attention_bias
    return SummedBlocks(size, relative_positions(config, module, bidirectional=True, table=table))
