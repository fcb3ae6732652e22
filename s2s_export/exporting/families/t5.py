"""T5 (1910.10683), its versions 1.0 and 1.1, Flan-T5, MADLAD-400 (2309.04662), mT5 (2010.11934) and ByT5 (2105.13626).

One bias for relative positions is shared by all layers of a stack.
"""

from __future__ import annotations

from typing import Any

from . import Family
from ._t5_like import relative_positions, transformer

MODEL_TYPES = ("t5", "mt5")


def describe(model: Any) -> Family:
    config = model.config
    encoder, decoder = model.encoder.block, model.decoder.block
    structure = transformer(
        model,
        encoder_positions=relative_positions(config, encoder[0].layer[0].SelfAttention, bidirectional=True),
        decoder_positions=relative_positions(config, decoder[0].layer[0].SelfAttention, bidirectional=False),
        scales_output=_scales_output(config),
    )
    return Family("t5", structure, None, None)


def _scales_output(config: Any) -> bool:
    """T5 1.0 scales the decoder's output. transformers before 5 deduces that from the tied embeddings."""
    return bool(getattr(config, "scale_decoder_outputs", config.tie_word_embeddings)) and config.model_type == "t5"
