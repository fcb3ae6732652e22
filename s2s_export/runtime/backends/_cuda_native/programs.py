"""The launches of a model, whichever kind it is of."""

from __future__ import annotations

from .alignment import AlignedHeads
from .decoder import DecoderProgram
from .encoder import EncoderProgram
from .loaded import Buffer, Loaded
from .model import RecurrentModel
from .recurrent_decoder import RecurrentDecoder
from .recurrent_encoder import RecurrentEncoder
from .step_program import StepProgram

Encoder = EncoderProgram | RecurrentEncoder


def encoder_of(loaded: Loaded, n_sources: int, length: int, buffer: Buffer, *, uses_library: bool = True) -> Encoder:
    """uses_library: cuBLASLt for a Transformer's products, where it is found."""
    if isinstance(loaded.model, RecurrentModel):
        return RecurrentEncoder(loaded, n_sources, length, buffer)
    return EncoderProgram(loaded, n_sources, length, buffer, uses_library=uses_library)


def step_of(
    loaded: Loaded, encoder: Encoder, n_beams: int, capacity: int, buffer: Buffer, aligned: AlignedHeads | None = None
) -> StepProgram:
    """A step for the sources of `encoder`. aligned: the heads whose weights it gives as well."""
    if isinstance(encoder, RecurrentEncoder):
        return RecurrentDecoder(loaded, encoder, n_beams, capacity, buffer)
    return DecoderProgram(loaded, encoder, n_beams, capacity, buffer, aligned)
