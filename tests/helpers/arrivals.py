"""Sources that join an open batch at random steps, some of which leave in the middle, for comparing with each alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from s2s_export.runtime.decoding.joining import Until
from s2s_export.runtime.joining import OpenDecoding


class Found:
    """What became of each job: its hypotheses, [] for one that left, or its error."""

    def __init__(self, n: int) -> None:
        self.results: list[Any] = [None] * n
        self.told: list[list[int]] = [[] for _ in range(n)]
        self.left: set[int] = set()
        self.n_steps = self.n_stepped = 0


def arrive(
    session: Any,
    jobs: Sequence[tuple[Any, Any]],
    *,
    seed: int,
    most: int = 8,
    leaving: float = 0.0,
    streaming: float = 0.0,
    alignments: bool = False,
) -> Found:
    """Decode jobs, pairs of a checked source and options of equally many rows. Up to three come in at a time, then one
    to four steps are made.

    leaving: the share of jobs that nobody wants any more after some steps. streaming: the share that is streamed.
    """
    rng = np.random.default_rng(seed)
    found = Found(len(jobs))
    decoding = OpenDecoding(session, jobs[0][1].n_rows, most)
    waiting = list(range(len(jobs)))
    patience = {i: int(rng.integers(0, 12)) for i in waiting if rng.random() < leaving}
    streamed = {i for i in waiting if rng.random() < streaming}
    while waiting or decoding.n_sources:
        room = min(most - decoding.n_sources, len(waiting), int(rng.integers(0, 4)))
        coming, waiting = waiting[:room], waiting[room:]
        for options in dict.fromkeys(jobs[i][1] for i in coming):
            for is_streamed in (False, True):
                chosen = [i for i in coming if jobs[i][1] == options and (i in streamed) == is_streamed]
                if chosen:
                    _join(decoding, jobs, options, chosen, found, patience, is_streamed, alignments)
        decoding.advance(Until(int(rng.integers(1, 5))))
    found.n_steps, found.n_stepped = decoding.n_steps, decoding.n_stepped
    return found


def _join(
    decoding: OpenDecoding,
    jobs: Sequence[tuple[Any, Any]],
    options: Any,
    chosen: list[int],
    found: Found,
    patience: dict[int, int],
    is_streamed: bool,
    alignments: bool,
) -> None:
    def wanted(i: int) -> bool:
        job = chosen[i]
        if job not in patience:
            return True
        patience[job] -= 1
        if patience[job] < 0:
            found.left.add(job)
        return patience[job] >= 0

    def on_result(i: int, result: Any) -> None:
        assert found.results[chosen[i]] is None
        found.results[chosen[i]] = result

    decoding.join(
        [jobs[i][0] for i in chosen],
        options,
        on_result=on_result,
        alignments=alignments,
        source_numbers=chosen,
        wanted=wanted,
        on_prefix=(lambda i, ids: found.told[chosen[i]].extend(ids)) if is_streamed else None,
    )


def compare(session: Any, jobs: Sequence[tuple[Any, Any]], found: Found, *, atol: float = 1e-5) -> None:
    """Every job has what it gets alone: tokens, scores, pieces that were told. Those that left have nothing."""
    for i, (source, options) in enumerate(jobs):
        result = found.results[i]
        if i in found.left and result == []:
            continue
        [alone] = session.decode_batch([source], options, source_numbers=[i])
        assert found.told[i] in ([], result[0].token_ids)
        assert [h.token_ids for h in result] == [h.token_ids for h in alone], (i, options)
        np.testing.assert_allclose([h.score for h in result], [h.score for h in alone], atol=atol, rtol=1e-5)
        for mine, other in zip(result, alone, strict=True):
            np.testing.assert_allclose(mine.token_scores, other.token_scores, atol=atol, rtol=1e-5)
