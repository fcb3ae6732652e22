"""Beam search, as transformers' generate() does it since 4.50 (`GenerationMixin._beam_search`).

Letters: B sources, K beams, C = K * max(2, 1 + end tokens) candidates, W tokens considered, P prompt length.

A source has K running beams, with the sums of their log-probabilities, and a pool of its K best finished outputs. A
step takes the C best continuations of all beams. Those that are finished and among the best K go to the pool, with
their sum divided by length ** length_penalty. The best K that are not finished become the running beams. A source is
closed once its best running beam, divided likewise, is no better than the worst output in its pool; then the pool does
not change any more.

Scores are float32. Impossible candidates are not removed, but their scores are reduced by 1e9: if too few candidates
are possible, transformers' search continues with impossible ones, and so does this one. Ties go to the lower beam, then
to the lower token.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .chain import Scored
from .draws import Draws
from .hypothesis import Hypothesis
from .numerics import Scalar, along
from .options import GenerationOptions
from .state import DecodeState, Floats, Ints
from .steps import LEAVE_AT, Steps

PUSHED_DOWN = np.float32(-1e9)
Bools = NDArray[np.bool_]


class Pool:
    """The best K outputs of each source so far, best first.

    score [B, K] float32. is_finished [B, K]: False for a place that is empty. step, parent, token, log_prob
    [B, K]: the output is the text of beam `parent` at step `step`, followed by `token`.
    """

    def __init__(self, n_sources: int, n_beams: int) -> None:
        shape = (n_sources, n_beams)
        self.score: Floats = np.full(shape, PUSHED_DOWN, dtype=np.float32)
        self.is_finished: Bools = np.zeros(shape, dtype=bool)
        self.step = np.full(shape, -1, dtype=np.int64)
        self.parent = np.zeros(shape, dtype=np.int64)
        self.token = np.zeros(shape, dtype=np.int64)
        self.log_prob: Floats = np.zeros(shape, dtype=np.float32)

    def merge(self, step: int, score: Floats, is_finished: Bools, parent: Ints, token: Ints, log_prob: Floats) -> None:
        """Keep the best K of the pool and the candidates [B, C]; the pool comes first among equals."""
        n_beams = self.score.shape[1]
        if not (score.max(axis=1) > self.score[:, -1]).any():
            return
        merged = np.concatenate([self.score, score], axis=1)
        best = np.argsort(-merged, axis=1, kind="stable")[:, :n_beams]

        def take(mine: NDArray[Scalar], theirs: NDArray[Scalar]) -> NDArray[Scalar]:
            return along(np.concatenate([mine, theirs], axis=1), best)

        self.score = along(merged, best)
        self.is_finished = take(self.is_finished, is_finished)
        self.step = take(self.step, np.full_like(token, step))
        self.parent = take(self.parent, parent)
        self.token = take(self.token, token)
        self.log_prob = take(self.log_prob, log_prob)

    def is_full(self) -> Bools:
        """[B]"""
        full: Bools = np.logical_and.reduce(self.is_finished, axis=1)
        return full

    def keep(self, sources: Ints) -> None:
        for name, values in vars(self).items():
            setattr(self, name, values[sources])


class BeamSearch:
    """One batch. `advance` makes a step and says whether there is another; `results` are complete after the last.

    leave_early: closed sources leave the batch, once there are enough of them. That changes no token: the pool of a
    closed source does not change any more, and the search of the others does not depend on it.
    """

    def __init__(
        self,
        state: DecodeState,
        sources: Sequence[Sequence[int]],
        options: GenerationOptions,
        draws: Draws,
        *,
        alignments: bool | str = False,
        keep_history: bool = False,
        leave_early: bool = True,
        source_lengths: Sequence[int] | None = None,
    ) -> None:
        self.steps = Steps(
            state,
            sources,
            options,
            alignments=alignments,
            keep_history=keep_history,
            whole_distribution=bool(options.do_sample),
            source_lengths=source_lengths,
        )
        self.results: list[list[Hypothesis]] = [[] for _ in sources]
        self._options = options
        self._draws = draws
        self._leave_early = leave_early
        self._prompt_length = self.steps.length
        self._n_candidates = max(2, 1 + len(options.eos_token_id)) * options.num_beams
        shape = (state.n_sources, options.num_beams)
        self.pool = Pool(*shape)
        self.score: Floats = np.full(shape, PUSHED_DOWN, dtype=np.float32)
        self.score[:, 0] = 0.0
        self.is_open: Bools = np.ones(shape[0], dtype=bool)

    def advance(self) -> bool:
        """One more token. Returns whether the search goes on."""
        scored = self.steps.look(self._n_candidates)
        with np.errstate(over="ignore", invalid="ignore"):  # Rules may make scores infinite, which is not an error.
            value, parent, token, log_prob = self._candidates(scored)
            ends = self._ends(token)
            self._finish(value, ends, parent, token, log_prob)
            self._run_on(value, ends, parent, token, log_prob)
            self._close()
        if not self._goes_on(ends):
            self._report(np.arange(len(self.steps.present)))
            return False
        if self._leave_early:
            self._let_closed_leave()
        return True

    def _candidates(self, scored: Scored) -> tuple[Floats, Ints, Ints, Floats]:
        """The C best or drawn continuations of each source, [B, C]: sum, beam, token, the token's log-probability."""
        n_sources, _, width = scored.log_probs.shape
        log_probs = scored.log_probs.reshape(n_sources, -1)
        sums = (scored.log_probs + self.score[:, :, None]).reshape(n_sources, -1)
        if self._options.do_sample:
            at = self._draws.without_replacement(sums, self._n_candidates, self.steps.present, self.steps.length)
        elif scored.ids is None:
            at = best_of_all(sums, self._n_candidates)
        else:
            at = best_of_few(sums, scored.ids, self.steps.state.vocabulary_size, self._n_candidates)
        parent, place = np.divmod(at, width)
        token = place if scored.ids is None else along(scored.ids.reshape(n_sources, -1), at)
        return along(sums, at), parent, token, along(log_probs, at)

    def _ends(self, token: Ints) -> Bools:
        """Which candidates [B, C] are finished, by an end token or by their length."""
        ends = np.full(token.shape, self.steps.length + 1 >= self._options.max_length)
        for eos in self._options.eos_token_id:
            ends |= token == eos
        return ends

    def _finish(self, value: Floats, ends: Bools, parent: Ints, token: Ints, log_prob: Floats) -> None:
        """Add the finished ones among the best K candidates to the pool."""
        n_beams = self._options.num_beams
        finished = ends.copy()
        finished[:, n_beams:] = False
        score = value / self._length_penalty(self.steps.length + 1 - self._prompt_length)
        if self._options.early_stopping is True:
            score = score + pushed_down(self.pool.is_full()[:, None])
        score = score + pushed_down(~self.is_open[:, None])
        score = score + pushed_down(~finished)
        self.pool.merge(self.steps.length - self._prompt_length, score, finished, parent, token, log_prob)

    def _run_on(self, value: Floats, ends: Bools, parent: Ints, token: Ints, log_prob: Floats) -> None:
        """Make the best K unfinished candidates the beams of the next step."""
        running = value + pushed_down(ends)
        best = np.argsort(-running, axis=1, kind="stable")[:, : self._options.num_beams]
        self.score = along(running, best)
        self.steps.append(along(token, best), along(parent, best), along(log_prob, best))

    def _close(self) -> None:
        """Close the sources whose running beams can't improve their pool, as estimated with `early_stopping`."""
        options = self._options
        if options.early_stopping == "never" and options.length_penalty > 0.0:
            length = options.max_length - self._prompt_length
        else:
            length = self.steps.length - self._prompt_length
        best = self.score[:, :1] / self._length_penalty(length)
        worst = np.where(self.pool.is_finished, self.pool.score.min(axis=1, keepdims=True), PUSHED_DOWN)
        self.is_open &= (best > worst).any(axis=1)

    def _goes_on(self, ends: Bools) -> bool:
        all_full = self._options.early_stopping is True and bool(self.pool.is_finished.all())
        return bool(self.is_open.any()) and not all_full and not bool(ends.all())

    def _length_penalty(self, length: int) -> np.float32:
        return np.float32(float(length) ** self._options.length_penalty)

    def is_settled(self) -> Bools:
        """[B]: whether the source's pool can't change any more."""
        is_closed = np.ones_like(self.is_open) if self._options.early_stopping is True else ~self.is_open
        return is_closed & self.pool.is_full()

    def _let_closed_leave(self) -> None:
        settled = self.is_settled()
        if settled.sum() < max(1.0, LEAVE_AT * len(settled)):
            return
        self._report(np.flatnonzero(settled))
        self.leave(np.flatnonzero(~settled))

    def leave(self, staying: Ints) -> None:
        """Keep only these sources (ascending indices) in the batch. The others get no further results."""
        self.steps.leave(staying)
        self.pool.keep(staying)
        self.score, self.is_open = self.score[staying], self.is_open[staying]

    def _report(self, sources: Ints) -> None:
        for source in sources.tolist():
            outputs = range(self._options.num_return_sequences)
            self.results[self.steps.present[source]] = [self._hypothesis(source, place) for place in outputs]

    def _hypothesis(self, source: int, place: int) -> Hypothesis:
        pool, at = self.pool, (source, place)
        step, score = int(pool.step[at]), float(pool.score[at])
        if step < 0:  # An empty place, for which generate() returns the prompt only.
            return Hypothesis(list(self.steps.prompt), score, [])
        last = (int(pool.token[at]), float(pool.log_prob[at]))
        return self.steps.hypothesis(source, score, step, int(pool.parent[at]), last)

    def stable(self, source: int) -> list[int]:
        """The final tokens, including the prompt, of the best output of a source in the batch."""
        pool = self.pool
        best = None
        if pool.step[source, 0] >= 0:
            before = self.steps.generated(source, int(pool.step[source, 0]), int(pool.parent[source, 0]))
            best = [*self.steps.prompt, *before, int(pool.token[source, 0])]
            if self.is_settled()[source]:
                return best
        running = self.steps.history()[source]  # [K, length]
        agree = (running == running[0]).all(axis=0)
        common: list[int] = running[0, : len(agree) if agree.all() else int(agree.argmin())].tolist()
        if best is None:
            return common
        n = next((i for i, (a, b) in enumerate(zip(common, best, strict=False)) if a != b), min(len(common), len(best)))
        return best[:n]


def pushed_down(where: Bools) -> Floats:
    """-1e9 where the condition holds, and 0 elsewhere."""
    return np.where(where, PUSHED_DOWN, np.float32(0.0))


def best_of_few(sums: Floats, ids: Ints, vocabulary_size: int, n: int) -> Ints:
    """Positions [B, n] of the n best of sums [B, K*W], best first. ids [B, K, W]: their tokens."""
    if n < sums.shape[1]:
        # One more than needed shows whether the sums alone determine the order.
        few = np.argpartition(-sums, n, axis=1)[:, : n + 1]
        values = along(sums, few)
        order = np.argsort(-values, axis=1)
        values = along(values, order)
        if not ((values[:, 1:] == values[:, :-1]) & (values[:, 1:] > -np.inf)).any():
            return along(few, order[:, :n])
    beams = np.arange(ids.shape[1])[:, None]
    tokens = (beams * vocabulary_size + ids).reshape(sums.shape)
    found: Ints = np.lexsort((tokens, -sums), axis=-1)[:, :n]
    return found


def best_of_all(sums: Floats, n: int) -> Ints:
    """Positions [B, n] of the n best of sums [B, K*V], best first."""
    sums = np.where(np.isnan(sums), -np.inf, sums)
    out = np.empty((len(sums), n), dtype=np.int64)
    for row, found in zip(sums, out, strict=True):
        threshold = row[np.argpartition(-row, n - 1)[n - 1]]
        # If several are equal to the n-th best, those with the lowest positions are taken.
        above, equal = np.flatnonzero(row > threshold), np.flatnonzero(row == threshold)
        chosen = np.concatenate([above, equal[: n - len(above)]])
        found[:] = chosen[np.argsort(-row[chosen], kind="stable")]
    return out
