"""The launches of a model, whichever kind it is of."""

from __future__ import annotations

from .decoder import DecoderProgram
from .encoder import EncoderProgram
from .loaded import Buffer, Loaded
from .model import RecurrentModel
from .recurrent_decoder import RecurrentDecoder
from .recurrent_encoder import RecurrentEncoder
from .step_program import StepProgram

Encoder = EncoderProgram | RecurrentEncoder


def encoder_of(loaded: Loaded, n_sources: int, length: int, buffer: Buffer) -> Encoder:
    kind = RecurrentEncoder if isinstance(loaded.model, RecurrentModel) else EncoderProgram
    return kind(loaded, n_sources, length, buffer)


def step_of(loaded: Loaded, encoder: Encoder, n_beams: int, capacity: int, buffer: Buffer) -> StepProgram:
    """A step for the sources of `encoder`."""
    if isinstance(encoder, RecurrentEncoder):
        return RecurrentDecoder(loaded, encoder, n_beams, capacity, buffer)
    return DecoderProgram(loaded, encoder, n_beams, capacity, buffer)
