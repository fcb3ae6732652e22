"""Decoding: one definition of beam search, greedy search and sampling, equal to transformers' generate().

    options = resolve(generation_config, {"num_beams": 4}, vocabulary_size=V, max_target_length=N)
    hypotheses = decode(state, sources, options)

`state.py` is the interface to what executes the graphs. Needs numpy only.
"""

from .chain import Imprecise
from .decode import Make, decode, decode_stream
from .hypothesis import Hypothesis
from .options import GenerationOptions, resolve, token_ids_of
from .prompts import Prompts, needs_equal_lengths, with_prompts
from .state import DecodeState, StepQuery, StepResult

__all__ = [
    "DecodeState",
    "GenerationOptions",
    "Hypothesis",
    "Imprecise",
    "Make",
    "Prompts",
    "StepQuery",
    "StepResult",
    "decode",
    "decode_stream",
    "needs_equal_lengths",
    "resolve",
    "token_ids_of",
    "with_prompts",
]
