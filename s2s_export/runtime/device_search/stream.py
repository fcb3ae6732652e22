"""What is sure of each source's best output, from the news that a step leaves in mapped memory.

The news of a step are [B, 2K + 4] numbers: the tokens and parents of all rows, then the best finished output's step,
parent and token (of rows: how many tokens the first one has), then whether the source's pool can still change. The same
tokens are told at the same step as by `decoding.decode` with `on_prefix`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .tables import Plan


class News:
    """Reads step after step. news [T, B, 2K + 4] int32."""

    def __init__(self, plan: Plan, prompt: tuple[int, ...], news: NDArray[np.int32]) -> None:
        self._plan = plan
        self._prompt = list(prompt)
        self._news = news
        self._n_told = [0] * plan.n_sources
        self._texts = [[list(prompt) for _ in range(plan.beams)] for _ in range(plan.n_sources)]
        self._ends: list[list[list[list[int]]]] = [[] for _ in range(plan.n_sources)]

    def read(self, step: int) -> list[tuple[int, list[int]]]:
        """(source, tokens) that became sure with this step, prompt included before the first."""
        found = []
        for source in range(self._plan.n_sources):
            sure = self._sure(source, self._news[step, source])
            if len(sure) > self._n_told[source]:
                found.append((source, sure[self._n_told[source] :]))
                self._n_told[source] = len(sure)
        return found

    def finish(self, source: int, token_ids: list[int]) -> list[int]:
        """What of a final output was not told."""
        rest = token_ids[self._n_told[source] :]
        self._n_told[source] = max(len(token_ids), self._n_told[source])
        return rest

    def _sure(self, source: int, news: NDArray[np.int32]) -> list[int]:
        K = self._plan.beams
        before = self._texts[source]
        after = [[*before[int(news[K + k])], int(news[k])] for k in range(K)]
        if self._plan.is_beam_search:
            self._ends[source].append(before)  # what a token that finishes at this step is appended to
        self._texts[source] = after
        step, parent, token, settled = (int(number) for number in news[2 * K :])
        if not self._plan.is_beam_search:
            return after[0][: len(self._prompt) + step]
        best = [*self._ends[source][step][parent], token] if step >= 0 else None
        if best is not None and settled:
            return best
        common = _common(after)
        return common if best is None else _common([common, best])


def _common(texts: list[list[int]]) -> list[int]:
    """The beginning that all have."""
    n = 0
    for tokens in zip(*texts, strict=False):
        if len(set(tokens)) > 1:
            break
        n += 1
    return texts[0][:n]
