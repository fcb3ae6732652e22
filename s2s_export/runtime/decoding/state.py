"""The interface between the search and what executes the graphs: one batch of sources being decoded.

Letters: B sources, K beams, M candidates, Q probed tokens, V vocabulary, L layers, H heads, S source length.

The search does not handle caches. It says which token each beam appends and which beam's history it continues, and gets
the best tokens of the next position. The backend has the K/V caches (or recurrent states) and the ancestor table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
FEWEST_PREFILLED = 2  # tokens: a single one is a step, for which no other graph needs to be opened
NO_ATTENTION = (
    "this engine returns no cross-attention weights, which alignments need; set attention = true under [options] of "
    "its recipe and build it again"
)


@dataclass(frozen=True)
class StepQuery:
    """What the search wants to know about the next position.

    n_candidates: M, how many of the best tokens of each beam.
    probe_ids: [B, K, Q] tokens whose log-probabilities are wanted in any case, or None.
    dense: whether the whole distribution [B, K, V] is wanted as well, which costs a copy.
    attention: whether the step's cross-attention weights are wanted as well.
    """

    n_candidates: int = 1
    probe_ids: Ints | None = None
    dense: bool = False
    attention: bool = False


@dataclass
class StepResult:
    """What a `StepQuery` asked about the next position. Buffers are valid until the next step.

    candidate_ids [B, K, M] int64 and candidate_log_probs [B, K, M] float32: best first; log-softmax over all V tokens.
    log_normalizer [B, K] float32: log sum exp of the logits, so that logit = log_prob + log_normalizer.
    probe_log_probs [B, K, Q] float32, or None. log_probs [B, K, V] float32, or None; whoever asked may change them.
    attention [B, K, L, H, S] float32, or None: cross-attention weights of the token that was just fed.
    """

    candidate_ids: Ints
    candidate_log_probs: Floats
    log_normalizer: Floats
    probe_log_probs: Floats | None = None
    log_probs: Floats | None = None
    attention: Floats | None = None


@dataclass(frozen=True)
class Question:
    """What a search hands to `DecodeState.step` next: tokens [B, K], parents [B, K], and the query."""

    tokens: Ints
    parents: Ints
    query: StepQuery


class DecodeState(Protocol):
    """One batch that is being decoded. Not for use by several threads."""

    vocabulary_size: int

    @property
    def n_sources(self) -> int: ...

    @property
    def n_beams(self) -> int: ...

    def step(self, tokens: Ints, parents: Ints, query: StepQuery) -> StepResult:
        """Append a token to every beam, and return what `query` asks about the next position.

        tokens [B, K]: the token that each beam appends. parents [B, K]: the beam (0..K-1) of the same source whose
        history beam k continues, as numbered in the step before; at the first step they are ignored.
        """
        ...

    def keep(self, sources: Ints) -> None:
        """Keep only these sources (ascending indices among those in the batch); the others leave the batch."""
        ...


@runtime_checkable
class Prefills(Protocol):
    """A `DecodeState` that can be fed several tokens at once before its first step."""

    def prefill(self, tokens: Ints) -> bool:
        """Append tokens [B, P] to every beam: those of a source are the same for all its beams, and nothing is asked.

        False where the state can't after all, and nothing was fed: then the caller feeds them one by one.
        """
        ...


def feed(state: DecodeState, tokens: Ints) -> Ints:
    """Append tokens [B, P] to every beam of a state before its first step, at once where it can.

    Returns the parents [B, K] for the next step.
    """
    n_sources, n_beams = state.n_sources, state.n_beams
    parents = np.zeros((n_sources, n_beams), dtype=np.int64)
    n = tokens.shape[1]
    same = np.tile(np.arange(n_beams), (n_sources, 1))
    if n >= FEWEST_PREFILLED and isinstance(state, Prefills) and state.prefill(tokens):
        return same
    for t in range(n):
        state.step(np.repeat(tokens[:, t : t + 1], n_beams, axis=1), parents, StepQuery())
        parents = same
    return parents
