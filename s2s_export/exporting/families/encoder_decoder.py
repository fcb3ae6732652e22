"""Pairs of an encoder and a decoder that were trained apart (1907.12461), such as BERT2BERT and RoBERTa with GPT-2.

Encoders: BERT, RoBERTa, XLM-R and CamemBERT. Decoders: the same, and GPT-2, with cross-attention. Where the widths
differ, the encoder's states are projected to the decoder's.
"""

from __future__ import annotations

from typing import Any

from ...errors import UnsupportedModel
from ..graphs.structure import Linear, Transformer
from . import Family
from ._text_decoders import BERT_LIKE, DECODERS, bert_stack, n_positions

MODEL_TYPES = ("encoder-decoder",)


def describe(model: Any) -> Family:
    encoder, decoder = model.encoder, model.decoder
    source, target = encoder.config, decoder.config
    if source.model_type not in BERT_LIKE:
        raise _unsupported("encoder", source.model_type, BERT_LIKE)
    if target.model_type not in DECODERS:
        raise _unsupported("decoder", target.model_type, DECODERS)
    describe_decoder, decoder_norm_first = DECODERS[target.model_type]
    stack, head, transform = describe_decoder(decoder)
    bridge = getattr(model, "enc_to_dec_proj", None)
    structure = Transformer(
        bert_stack(source, encoder),
        stack,
        norm_first=False,
        decoder_norm_first=decoder_norm_first,
        head=head,
        head_transform=transform,
        bridge=None if bridge is None else Linear.of(bridge),
    )
    return Family("encoder-decoder", structure, n_positions(structure.encoder), n_positions(stack))


def _unsupported(side: str, found: str, known: Any) -> UnsupportedModel:
    return UnsupportedModel(f"encoder-decoder: the {side} is of type '{found}'; expected one of {', '.join(known)}")
