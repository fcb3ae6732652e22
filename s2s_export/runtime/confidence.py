"""How sure the model is of an output: the probability of each word, and a score of the whole between 0 and 1.

A word's probability is the product of its tokens', which tells where a translation deserves a second look. The whole
output's is the geometric mean over its tokens, end token included: exp of the mean log-probability, which does not
fall with the length. Both are the search's probabilities, after the decoding rules: a forced token counts as certain.
They are the model's own opinion; calibration.py turns it into a share of right outputs.
"""

from __future__ import annotations

import math
from typing import Any

from .decoding import Hypothesis
from .session import Session

MARKS = "▁Ġ "  # at the beginning of a vocabulary's entry: a new word begins


def sentence(hypothesis: Hypothesis) -> float | None:
    """exp(mean log-probability of a token); None for an output without tokens."""
    scores = hypothesis.token_scores
    return math.exp(min(0.0, sum(scores) / len(scores))) if scores else None


def of_words(session: Session, hypothesis: Hypothesis) -> list[dict[str, Any]]:
    """[{"word", "probability"}] in order; without a tokenizer, of tokens."""
    return [
        {"word": word, "probability": math.exp(min(0.0, sum(hypothesis.token_scores[i] for i in places)))}
        for word, places in words(session, hypothesis)
    ]


def words(session: Session, hypothesis: Hypothesis) -> list[tuple[str, list[int]]]:
    """The words of an output, each with the places of its tokens among the generated ones."""
    generated = hypothesis.token_ids[len(hypothesis.token_ids) - len(hypothesis.token_scores) :]
    if not session.has_tokenizer:
        return [(str(token), [place]) for place, token in enumerate(generated)]
    tokenizer = session.tokenizer
    groups: list[list[int]] = []
    for place, (token, piece) in enumerate(zip(generated, tokenizer.tokens(generated), strict=True)):
        if token in tokenizer.entry.skip_ids:
            continue
        if not groups or piece[:1] in MARKS:
            groups.append([])
        groups[-1].append(place)
    found = [(tokenizer.raw_text([generated[i] for i in places]).strip(), places) for places in groups]
    return [(word, places) for word, places in found if word]
