"""The log-probability of given targets, by teacher forcing: each step feeds the target's token and asks for the next.

Letters: B sources, K targets of each source, R = B*K rows, P prompt length, T tokens of a target.

A step of the decoder costs about what its rows cost, so targets of like length belong in one batch, and several targets
of one source (an n-best list) share its encoder states as beams do. Decoding rules play no part: the probabilities are
the model's own, as torch's log_softmax of its logits has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .state import DecodeState, Ints, StepQuery, feed
from .steps import LEAVE_AT


@dataclass(frozen=True)
class Score:
    """The model's opinion of a target.

    token_ids: the tokens that were scored, without the decoder prompt. token_log_probs: the natural logarithm of each
    token's probability after the source and the tokens before it.
    """

    token_ids: tuple[int, ...]
    token_log_probs: tuple[float, ...]

    @property
    def log_prob(self) -> float:
        """The sum over the tokens."""
        return float(sum(self.token_log_probs))

    @property
    def mean(self) -> float:
        """The log-probability of a token on average; 0 for a target without tokens."""
        return self.log_prob / len(self.token_ids) if self.token_ids else 0.0

    @property
    def perplexity(self) -> float:
        """exp(-mean), and infinity where a token is impossible."""
        return float(np.exp(-self.mean))

    def normalized(self, length_penalty: float) -> float:
        """log_prob / tokens ** length_penalty: what a beam search's `sequences_scores` would be."""
        n = len(self.token_ids)
        return self.log_prob / float(n) ** length_penalty if n else 0.0


def score_targets(
    state: DecodeState, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[Sequence[int]]]
) -> list[list[Score]]:
    """The scores of targets [B][at most K], each a list of token ids without the prompt.

    state: holds B sources with K beams, and can't be used again. prompts: what the decoder is fed for each source
    before the first token, at least one id, and as many for all.
    """
    n_sources, n_rows = state.n_sources, state.n_beams
    lengths = np.zeros((n_sources, n_rows), dtype=np.int64)
    for b, of_source in enumerate(targets):
        lengths[b, : len(of_source)] = [len(target) for target in of_source]
    longest = int(lengths.max(initial=0))
    tokens = np.zeros((n_sources, n_rows, longest), dtype=np.int64)
    for b, of_source in enumerate(targets):
        for k, target in enumerate(of_source):
            tokens[b, k, : len(target)] = target
    log_probs = _forced(state, np.asarray(prompts, dtype=np.int64), tokens, lengths)
    return [
        [
            Score(tuple(map(int, target)), tuple(map(float, log_probs[b, k, : len(target)])))
            for k, target in enumerate(of_source)
        ]
        for b, of_source in enumerate(targets)
    ]


def _forced(state: DecodeState, prompts: Ints, tokens: Ints, lengths: Ints) -> np.ndarray:
    """The log-probability [B, K, T] of tokens [B, K, T], of which each row has `lengths` [B, K]. prompts [B, P]."""
    found = np.zeros(tokens.shape, dtype=np.float32)
    present = np.arange(len(tokens))
    n_rows = tokens.shape[1]
    fed = np.repeat(prompts[:, -1:], n_rows, axis=1)
    parents = feed(state, prompts[:, :-1])
    for t in range(tokens.shape[2]):
        staying = np.flatnonzero((lengths[present] > t).any(axis=1))
        if len(present) - len(staying) >= max(1.0, LEAVE_AT * len(present)):
            state.keep(staying)
            present, fed = present[staying], fed[staying]
            parents = parents[staying]
        wanted = np.ascontiguousarray(tokens[present, :, t])
        result = state.step(fed, parents, StepQuery(probe_ids=wanted[:, :, None]))
        if result.probe_log_probs is None:
            raise ValueError("the decode state returned no probe_log_probs, expected them for a query with probe_ids")
        found[present, :, t] = result.probe_log_probs[:, :, 0]
        fed, parents = wanted, _same_rows(wanted)
    return found


def _same_rows(rows: Ints) -> Ints:
    return np.tile(np.arange(rows.shape[1]), (len(rows), 1))
