"""The running beams and the pool of finished outputs of one beam search: what a step makes of its scored tokens.

Letters: B sources, K beams, C = K * max(2, 1 + end tokens) candidates, W tokens considered, N outputs kept.

`search.py` says what the rules are. A search has one `Beams`, or one for each group of a diverse beam search.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .chain import Scored
from .draws import Draws
from .endings import Endings
from .numerics import Scalar, along
from .options import GenerationOptions
from .search_options import pool_size
from .state import Floats, Ints
from .steps import Steps

PUSHED_DOWN = np.float32(-1e9)
LEAST_COLUMNS = 1024  # of `_bound`: with so many, few numbers reach it
Bools = NDArray[np.bool_]


class Pool:
    """The best N outputs of each source so far, best first; N is K unless `patience` is not 1.

    score [B, N] float32. is_finished [B, N]: False for a place that is empty. step, parent, token, log_prob
    [B, N]: the output is the text of beam `parent` at step `step`, followed by `token`.
    """

    def __init__(self, n_sources: int, n_places: int) -> None:
        shape = (n_sources, n_places)
        self.score: Floats = np.full(shape, PUSHED_DOWN, dtype=np.float32)
        self.is_finished: Bools = np.zeros(shape, dtype=bool)
        self.step = np.full(shape, -1, dtype=np.int64)
        self.parent = np.zeros(shape, dtype=np.int64)
        self.token = np.zeros(shape, dtype=np.int64)
        self.log_prob: Floats = np.zeros(shape, dtype=np.float32)

    def merge(self, step: int, score: Floats, is_finished: Bools, parent: Ints, token: Ints, log_prob: Floats) -> None:
        """Keep the best N of the pool and the candidates [B, C]; the pool comes first among equals."""
        n_places = self.score.shape[1]
        if not (score.max(axis=1) > self.score[:, -1]).any():
            return
        merged = np.concatenate([self.score, score], axis=1)
        best = np.argsort(-merged, axis=1, kind="stable")[:, :n_places]

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


class Beams:
    """score [B, K] float32: the sums of the running beams, best first. is_open [B]: whether the pool may change.

    first: the row of the first beam among the rows of `steps`.
    """

    def __init__(
        self, steps: Steps, options: GenerationOptions, draws: Draws, endings: Endings, n_beams: int, first: int = 0
    ) -> None:
        n_sources = len(steps.present)
        self.pool = Pool(n_sources, pool_size(n_beams, options.patience))
        self.score: Floats = np.full((n_sources, n_beams), PUSHED_DOWN, dtype=np.float32)
        self.score[:, 0] = 0.0
        self.is_open: Bools = np.ones(n_sources, dtype=bool)
        self.n_beams = n_beams
        self.n_candidates = max(2, 1 + len(options.eos_token_id)) * n_beams
        self._first = first
        self._steps = steps
        self._options = options
        self._draws = draws
        self._endings = endings
        self._prompt_length = steps.length

    def advance(self, scored: Scored) -> tuple[Ints, Ints, Floats, bool]:
        """One more token, of the scored tokens [B, K, W] of these beams.

        Returns what to append to the text of each beam, [B, K]: token, row that it continues, the token's
        log-probability; and whether the search goes on.
        """
        value, parent, token, log_prob = self._candidates(scored)
        if self._first:
            parent = parent + self._first
        ends = self._endings.of(token, parent)
        self._finish(value, ends, parent, token, log_prob)
        running = self._running(value, ends, token)
        best = self._choose(running)
        self.score = along(running, best)
        self._close()
        return along(token, best), along(parent, best), along(log_prob, best), self._goes_on(ends)

    def _candidates(self, scored: Scored) -> tuple[Floats, Ints, Ints, Floats]:
        """The C best or drawn continuations of each source, [B, C]: sum, beam, token, the token's log-probability."""
        n_sources, _, width = scored.log_probs.shape
        log_probs = scored.log_probs.reshape(n_sources, -1)
        sums = (scored.log_probs + self.score[:, :, None]).reshape(n_sources, -1)
        if self._options.do_sample:
            race = self._draws.race(sums, self._steps.present, self._steps.draw_length)
            at = best_of_all(race, self.n_candidates)
        elif scored.ids is None:
            at = best_of_all(sums, self.n_candidates)
        else:
            at = best_of_few(sums, scored.ids, self._steps.state.vocabulary_size, self.n_candidates)
        parent, place = np.divmod(at, width)
        token = place if scored.ids is None else along(scored.ids.reshape(n_sources, -1), at)
        value, log_prob = along(sums, at), along(log_probs, at)
        if self._options.do_sample or (value[:, -1] > -np.inf).all():
            return value, parent, token, log_prob
        # Too few tokens are possible. What fills up the rest depends on nothing but its place.
        possible = value > -np.inf
        filler = np.broadcast_to(np.arange(value.shape[1]) % self._steps.state.vocabulary_size, value.shape)
        impossible = np.float32(-np.inf)
        return (
            np.where(possible, value, impossible),
            np.where(possible, parent, 0),
            np.where(possible, token, filler),
            np.where(possible, log_prob, impossible),
        )

    def _running(self, value: Floats, ends: Bools, token: Ints) -> Floats:
        """The sums [B, C], lowered for candidates that don't go on."""
        return value + pushed_down(ends)

    def _choose(self, running: Floats) -> Ints:
        """Which candidates [B, K] of those that have not ended are the beams of the next step, best first."""
        return np.argsort(-running, axis=1, kind="stable")[:, : self.n_beams]

    def _may_finish(self, ends: Bools) -> Bools:
        """Which of the candidates that end [B, C] may go to the pool: those among the best K."""
        finished = ends.copy()
        finished[:, self.n_beams :] = False
        return finished

    def _finish(self, value: Floats, ends: Bools, parent: Ints, token: Ints, log_prob: Floats) -> None:
        """Add candidates that end to the pool."""
        finished = self._may_finish(ends)
        score = value / self._length_penalty(self._n_generated)
        if self._steps.coverage is not None:
            score = score + np.float32(self._options.coverage_penalty) * self._steps.coverage.penalty(parent)
        if self._options.early_stopping is True:
            score = score + pushed_down(self.pool.is_full()[:, None])
        score = score + pushed_down(~self.is_open[:, None])
        score = score + pushed_down(~finished)
        self.pool.merge(self._n_generated - 1, score, finished, parent, token, log_prob)

    @property
    def _n_generated(self) -> int:
        """Tokens without the prompt, with the one that is being chosen."""
        return self._steps.length + 1 - self._prompt_length

    def _close(self) -> None:
        """Close the sources whose running beams can't improve their pool, as estimated with `early_stopping`."""
        options = self._options
        if options.early_stopping == "never" and options.length_penalty > 0.0:
            length = options.max_length - self._prompt_length
        else:
            length = self._n_generated
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

    def keep(self, sources: Ints) -> None:
        """Go on with these sources only."""
        self.pool.keep(sources)
        self.score, self.is_open = self.score[sources], self.is_open[sources]


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
    """Positions [B, n] of the n best of sums [B, K*V], best first; of equal ones those with the lowest positions."""
    sums = np.fmax(sums, np.float32(-np.inf))  # a sum that is no number is no candidate
    out = np.empty((len(sums), n), dtype=np.int64)
    for row, found in zip(sums, out, strict=True):
        few = _not_below(row, _bound(row, n), n)
        found[:] = few[np.argsort(-row[few], kind="stable")[:n]]
    return out


def _bound(row: Floats, n: int) -> np.float32:
    """A number that at least n numbers of row [W] reach, mostly few more: found in one pass, without any order."""
    n_columns = max(LEAST_COLUMNS, 4 * n)
    if len(row) < 4 * n_columns:
        return np.float32(np.partition(row, len(row) - n)[len(row) - n])
    best = row[: len(row) // n_columns * n_columns].reshape(-1, n_columns).max(axis=0)  # each of another column
    return np.float32(np.partition(best, n_columns - n)[n_columns - n])


def _not_below(row: Floats, bound: np.float32, n: int) -> Ints:
    """Positions, ascending, of at least n numbers of row [W], the n best among them."""
    if bound > -np.inf:
        return np.flatnonzero(row >= bound)
    possible = np.flatnonzero(row > -np.inf)
    if len(possible) >= n:
        return possible
    impossible = np.flatnonzero(row == -np.inf)[: n - len(possible)]
    return np.sort(np.concatenate([possible, impossible]))
