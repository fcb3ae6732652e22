"""What the search asks of whatever executes the graphs: one batch of sources being decoded.

Letters: B sources, K beams, M candidates, Q probed tokens, V vocabulary, L layers, H heads, S source length.

The search never sees a cache. It says which token each beam appends and whose history each beam continues, and gets
back the best tokens of the next position. A backend keeps the K/V caches (or recurrent states) and the ancestor table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
NO_ATTENTION = (
    "this engine gives no cross-attention weights, which alignments need; set attention = true under [options] of its "
    "recipe and build it again"
)


@dataclass(frozen=True)
class StepQuery:
    """What the search wants to know about the next position.

    n_candidates: M, the number of best tokens a beam.
    probe_ids: [B, K, Q] tokens whose log-probability is wanted whether or not they are among the best, or None.
    dense: the whole distribution [B, K, V] as well; costs a copy of it.
    attention: cross-attention weights of the step as well.
    """

    n_candidates: int = 1
    probe_ids: Ints | None = None
    dense: bool = False
    attention: bool = False


@dataclass
class StepResult:
    """The next position's distribution, seen through a `StepQuery`. Buffers are valid until the next step.

    candidate_ids [B, K, M] int64 and candidate_log_probs [B, K, M] float32: best first; log-softmax over all V tokens.
    log_normalizer [B, K] float32: log sum exp of the logits, so that logit = log_prob + log_normalizer.
    probe_log_probs [B, K, Q] float32, or None. log_probs [B, K, V] float32, or None.
    attention [B, K, L, H, S] float32, or None: cross-attention weights of the token that was just fed.
    """

    candidate_ids: Ints
    candidate_log_probs: Floats
    log_normalizer: Floats
    probe_log_probs: Floats | None = None
    log_probs: Floats | None = None
    attention: Floats | None = None


class DecodeState(Protocol):
    """One batch in flight. Not shared between threads."""

    vocabulary_size: int

    @property
    def n_sources(self) -> int: ...

    @property
    def n_beams(self) -> int: ...

    def step(self, tokens: Ints, parents: Ints, query: StepQuery) -> StepResult:
        """Append a token to every beam and look at the next position.

        tokens [B, K]: the token each beam appends. parents [B, K]: the beam of the same source, as numbered in the step
        before, whose history beam k continues (0..K-1; at the first step all zeros, and ignored).
        """
        ...

    def keep(self, sources: Ints) -> None:
        """Go on with these sources only (indices into the present ones, ascending); the rest leave the batch."""
        ...
