"""Streaming: which tokens of each source's best output are final, from what the device reports of each step.

Letters: B sources, K beams, T steps. A step's report is [B, 2K + 4] numbers in host memory that the device writes (the
kernels call it `news`): the tokens and parents of all rows, then the best finished output's step,
parent and token (without beam search: how many tokens the first row has), then 1 once the source's pool of finished
outputs can't change any more. The same tokens are given at the same step as by `decoding.decode` with `on_prefix`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .tables import Plan


class StepReports:
    """Reads the reports of one step after another. reports [T, B, 2K + 4] int32."""

    def __init__(self, plan: Plan, prompt: tuple[int, ...], reports: NDArray[np.int32]) -> None:
        self._plan = plan
        self._prompt = list(prompt)
        self._reports = reports
        self._n_given = [0] * plan.n_sources
        self._texts = [[list(prompt) for _ in range(plan.beams)] for _ in range(plan.n_sources)]
        self._ends: list[list[list[list[int]]]] = [[] for _ in range(plan.n_sources)]

    def read(self, step: int) -> list[tuple[int, list[int]]]:
        """(source, tokens) that became final with this step. A source's first tokens include the prompt."""
        found = []
        for source in range(self._plan.n_sources):
            final = self._final(source, self._reports[step, source])
            if len(final) > self._n_given[source]:
                found.append((source, final[self._n_given[source] :]))
                self._n_given[source] = len(final)
        return found

    def finish(self, source: int, token_ids: list[int]) -> list[int]:
        """The tokens of a final output that were not given yet."""
        rest = token_ids[self._n_given[source] :]
        self._n_given[source] = max(len(token_ids), self._n_given[source])
        return rest

    def _final(self, source: int, reports: NDArray[np.int32]) -> list[int]:
        K = self._plan.beams
        before = self._texts[source]
        after = [[*before[int(reports[K + k])], int(reports[k])] for k in range(K)]
        if self._plan.is_beam_search:
            self._ends[source].append(before)  # what a token that finishes at this step is appended to
        self._texts[source] = after
        step, parent, token, settled = (int(number) for number in reports[2 * K :])
        if not self._plan.is_beam_search:
            return after[0][: len(self._prompt) + step]
        best = [*self._ends[source][step][parent], token] if step >= 0 else None
        if best is not None and settled:
            return best
        common = _common(after)
        return common if best is None else _common([common, best])


def _common(texts: list[list[int]]) -> list[int]:
    """The longest prefix that all texts share."""
    n = 0
    for tokens in zip(*texts, strict=False):
        if len(set(tokens)) > 1:
            break
        n += 1
    return texts[0][:n]
