"""A decode state that notes how likely a token is behind a place in the prompt, whatever the search asks for.

Letters: B sources.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from .state import FEWEST_PREFILLED, DecodeState, Floats, Ints, Prefills, StepQuery, StepResult


class Watch:
    """Notes the log-probability of `token` behind the prompt's token `at`, before any rule: log_probs [B].

    is_last: whether that is the prompt's last token, so that the search's first step tells it.
    """

    def __init__(self, state: DecodeState, at: int, token: int, *, is_last: bool) -> None:
        self.state = state
        self.at = at
        self.token = token
        self.is_last = is_last
        self.vocabulary_size = state.vocabulary_size
        self.log_probs: Floats = np.zeros(state.n_sources, dtype=np.float32)
        self._n_steps = 0

    @property
    def n_sources(self) -> int:
        return self.state.n_sources

    @property
    def n_beams(self) -> int:
        return self.state.n_beams

    def step(self, tokens: Ints, parents: Ints, query: StepQuery) -> StepResult:
        is_it = self._n_steps == self.at
        self._n_steps += 1
        result = self.state.step(tokens, parents, dataclasses.replace(query, dense=True) if is_it else query)
        if is_it:
            assert result.log_probs is not None
            self.log_probs[:] = result.log_probs[:, 0, self.token]
        return result

    def prefill(self, tokens: Ints) -> bool:
        """See `state.Prefills`: what is before the watched token at once, and the rest one by one."""
        first = tokens[:, : self.at]
        if first.shape[1] < FEWEST_PREFILLED or not isinstance(self.state, Prefills) or not self.state.prefill(first):
            return False
        self._n_steps = self.at
        same = np.tile(np.arange(self.n_beams), (self.n_sources, 1))
        for t in range(self.at, tokens.shape[1]):
            self.step(np.repeat(tokens[:, t : t + 1], self.n_beams, axis=1), same, StepQuery())
        return True

    def keep(self, sources: Ints) -> None:
        self.state.keep(sources)
