"""The work of every contestant: sources of equal length, and outputs with a fixed number of tokens.

Letters: B sources, K beams, S source length, T target length.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ...bundle import Bundle
from ...errors import InvalidOption
from ...runtime.sources import Source, kind_of

SEED = 20
Ids = list[int]

# Rules that a checkpoint may activate but that not every contestant has. They are switched off, so that all systems run
# the same plain search. `bad_words_ids` are kept: they exclude Marian's padding token, which every system does in its
# own way. So is `renormalize_logits`, with which that token has no share in the scores, as in CTranslate2.
# `early_stopping` is the one way of ending a search that all of them have: with it, CTranslate2's tokens were those of
# transformers for all of 300 sentences of a trained model, without it for 278.
NEUTRAL: Mapping[str, Any] = {
    "do_sample": False,
    "num_return_sequences": 1,
    "length_penalty": 1.0,
    "early_stopping": True,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "sequence_bias": None,
    "exponential_decay_length_penalty": None,
}


@dataclass(frozen=True)
class Work:
    """One point of the grid. Every output has exactly `new_tokens` tokens after the decoder prompt."""

    batch_size: int
    num_beams: int
    source_length: int
    new_tokens: int

    @property
    def label(self) -> str:
        return (
            f"batch {self.batch_size}, {self.num_beams} beam{'s' * (self.num_beams > 1)}, source {self.source_length}"
        )

    def record(self) -> dict[str, int]:
        return asdict(self)


def grid(
    bundle: Bundle,
    batch_sizes: Sequence[int],
    num_beams: Sequence[int],
    source_lengths: Sequence[int],
    new_tokens: int,
) -> list[Work]:
    """All combinations, the smallest first, so that each one's peak of memory can be measured."""
    longest_source, longest_target = bundle.max_source_length, bundle.max_target_length
    wrong = []
    if not (kind := kind_of(bundle)).has_ids:
        wrong.append(f"the model reads '{kind.name}', and systems are compared on token ids; expected a model of text")
    if new_tokens < 2:
        wrong.append(f"--new-tokens is {new_tokens}, expected at least 2 (the first token is timed by itself)")
    if longest_source is not None and max(source_lengths) > longest_source:
        wrong.append(f"a source length is {max(source_lengths)}, but the bundle's limit is {longest_source}")
    if longest_target is not None and new_tokens > longest_target:
        wrong.append(f"--new-tokens is {new_tokens}, but the bundle's limit is {longest_target}")
    if wrong:
        raise InvalidOption("; ".join(wrong))
    points = {Work(*point, new_tokens) for point in itertools.product(batch_sizes, num_beams, source_lengths)}
    return sorted(points, key=lambda w: (w.source_length, w.batch_size * w.num_beams, w.batch_size))


def random_sources(bundle: Bundle, n: int, length: int, seed: int = SEED) -> list[Source]:
    """n sources of one length, in the form that a user's have."""
    kind, rng = kind_of(bundle), np.random.default_rng([seed, n, length])
    return [kind.typical(rng, length) for _ in range(n)]


def end_id(bundle: Bundle) -> int | None:
    end = bundle.manifest["generation"].get("eos_token_id")
    return end[0] if isinstance(end, list) and end else end if isinstance(end, int) else None
