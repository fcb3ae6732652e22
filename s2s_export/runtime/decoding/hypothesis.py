"""One output of a source."""

from __future__ import annotations

from dataclasses import dataclass

from .state import Floats


@dataclass
class Hypothesis:
    """What generate() returns for a source, and how it was found.

    token_ids: decoder prompt and end token included, nothing after the end token.
    score: sum(token_scores) / n**length_penalty for n generated tokens; `sequences_scores` of a beam search.
    token_scores: of each generated token, its log-probability as the decoding rules left it.
    alignment [T, S] float32: how much the T-th generated token, when it was predicted, looked at source position S; the
    mean over the heads of the last decoder layer. alignment_heads [L, H, T, S]: every head. None unless asked for.
    text: None until a tokenizer has made it.
    """

    token_ids: list[int]
    score: float
    token_scores: list[float]
    alignment: Floats | None = None
    alignment_heads: Floats | None = None
    text: str | None = None
