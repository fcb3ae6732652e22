"""LED (2004.05150): BART whose encoder sees a window of tokens around each.

A query of layer l sees attention_window[l] / 2 tokens to either side, as a mask of the whole attention: exact, and the
encoder's memory grows with the square of the source, which the step's does not. As in `generate()` without
`global_attention_mask`, no token has global attention.
"""

from __future__ import annotations

from typing import Any

from ..graphs.structure import Attention, Linear, PositionTable, Transformer
from . import Family
from ._bart_like import head, stack

MODEL_TYPES = ("led",)


def describe(model: Any) -> Family:
    config, inner = model.config, model.led
    encoder_positions = PositionTable(inner.encoder.embed_positions.weight)
    decoder_positions = PositionTable(inner.decoder.embed_positions.weight)
    structure = Transformer(
        stack(config, inner.encoder, encoder_positions, _windowed),
        stack(config, inner.decoder, decoder_positions),
        norm_first=False,
        head=head(model),
    )
    return Family("led", structure, config.max_encoder_position_embeddings, config.max_decoder_position_embeddings)


def _windowed(module: Any) -> Attention:
    local = module.longformer_self_attn
    side = local.one_sided_attn_window_size
    return Attention(
        query=Linear.of(local.query),
        key=Linear.of(local.key),
        value=Linear.of(local.value),
        output=Linear.of(module.output),
        n_heads=local.num_heads,
        scale=float(local.head_dim) ** -0.5,
        window=(side, side),
    )
