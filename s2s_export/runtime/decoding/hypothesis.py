"""One output of a source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .state import Floats


@dataclass
class Hypothesis:
    """What generate() returns for a source, with its scores.

    token_ids: including the decoder prompt and the end token, and nothing after the end token.
    score: sum(token_scores) / n**length_penalty for n generated tokens; `sequences_scores` of a beam search.
    token_scores: for each generated token, its log-probability after the decoding rules.
    alignment [T, S] float32: the attention to each source position when the generated token was predicted, as the mean
    over the heads of the last decoder layer. alignment_heads [L, H, T, S]: of every head. Both None unless asked for.
    text: None until a tokenizer has decoded it. segments: of speech with times, the parts of the text
    (`speech.segments.Segment`); None for all else.
    """

    token_ids: list[int]
    score: float
    token_scores: list[float]
    alignment: Floats | None = None
    alignment_heads: Floats | None = None
    text: str | None = None
    segments: tuple[Any, ...] | None = None
