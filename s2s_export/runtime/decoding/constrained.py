"""Beam search under lexical constraints, by dynamic beam allocation (Post and Vilar 2018; Hu et al. 2019).

Letters: B sources, K beams, C candidates, W tokens considered.

Besides the best continuations of its beams, a step considers every token that begins or continues a phrase that a beam
still lacks. The K beams of the next step are shared among *banks*: candidates that have met equally many constraints,
and are or are not inside a phrase. The best of each bank comes first, then the second best of each, so that a text with
a rare term is not crowded out by texts without it. Two rules make sure that the terms come in time:

* an end token is banned until all constraints are met, and only then may a text finish;
* a candidate is dropped if the tokens left until max_length don't suffice for what it lacks. So a beam always has a
  continuation that can be finished, unless another option bans its tokens.

A source without constraints is searched as `search.py` does it, with the same result.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...errors import InputError
from .beams import Beams, Bools
from .chain import Scored
from .constraints import Constraints, State, of_source
from .draws import Draws
from .endings import Endings
from .numerics import along
from .options import GenerationOptions
from .rule import MINUS_INFINITY, NO_TOKEN, Edit, Rule, SparseRule, View
from .search import IMPOSSIBLE, BeamSearch
from .state import Floats, Ints


class ConstrainedSearch(BeamSearch):
    """See `BeamSearch`."""

    _tracker: Tracker

    def _rules(self, sources: Sequence[Sequence[int]], options: GenerationOptions) -> Sequence[Rule]:
        self._tracker = Tracker(
            [Constraints(of_source(source, options.force_words_ids, options.terms)) for source in sources],
            options.num_beams,
        )
        return [Useful(self._tracker), HoldEnd(self._tracker, options.eos_token_id)]

    def _make_beams(self, draws: Draws, endings: Endings) -> Beams:
        for constraints, room in zip(self._tracker.constraints, endings.room(), strict=True):
            needed = constraints.needed(Constraints.START)
            if needed > room:
                raise InputError(
                    f"the output must hold {len(constraints)} terms of {needed} tokens, but has room for {room}; raise "
                    "max_new_tokens or give fewer terms"
                )
        return ConstrainedBeams(
            self.steps, self._options, draws, endings, self._options.num_beams, tracker=self._tracker
        )

    def _report(self, sources: Ints) -> None:
        super()._report(sources)
        for source in sources.tolist():
            if len(self._tracker.constraints[source]) and not self._beams.pool.is_finished[source].any():
                raise InputError(
                    "no output holds all its terms: another option bans their tokens, or they need more than "
                    "max_new_tokens; give fewer terms or change the option"
                )
            found = self.results[self.steps.present[source]]
            n_empty = sum(not hypothesis.token_scores for hypothesis in found)
            if n_empty and len(self._tracker.constraints[source]):  # fewer outputs hold the terms than were wanted
                self.results[self.steps.present[source]] = found[: len(found) - n_empty]


class Tracker:
    """Which constraints each beam has met. states: by source and beam."""

    def __init__(self, constraints: list[Constraints], n_beams: int) -> None:
        self.constraints = constraints
        self.states: list[list[State]] = [[Constraints.START] * n_beams for _ in constraints]

    def keep(self, sources: Ints) -> None:
        self.constraints = [self.constraints[source] for source in sources.tolist()]
        self.states = [self.states[source] for source in sources.tolist()]


class Useful(SparseRule):
    """Has the tokens looked at that a beam's constraints need. It changes no score."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    def edit(self, view: View) -> Edit | None:
        rows = [
            [constraints.useful(state) for state in states]
            for constraints, states in zip(self._tracker.constraints, self._tracker.states, strict=True)
        ]
        ids = _padded(rows)
        return Edit("look", ids) if ids.shape[-1] else None


class HoldEnd(SparseRule):
    """Bans the end tokens for beams that lack a term."""

    def __init__(self, tracker: Tracker, end_tokens: tuple[int, ...]) -> None:
        self._tracker = tracker
        self._end_tokens = list(end_tokens)

    def edit(self, view: View) -> Edit | None:
        rows = [
            [[] if constraints.is_complete(state) else self._end_tokens for state in states]
            for constraints, states in zip(self._tracker.constraints, self._tracker.states, strict=True)
        ]
        ids = _padded(rows)
        return Edit("ban", ids) if ids.shape[-1] else None


class ConstrainedBeams(Beams):
    """See `Beams`."""

    def __init__(self, *given: object, tracker: Tracker) -> None:
        super().__init__(*given)  # type: ignore[arg-type]
        self._tracker = tracker
        # Of the step's candidates [B, C]: the state, the bank, whether all constraints are met.
        self._after: list[list[State]] = []
        self._banks: Ints = np.zeros((0, 0), dtype=np.int64)
        self._is_complete: Bools = np.zeros((0, 0), dtype=bool)

    def keep(self, sources: Ints) -> None:
        super().keep(sources)
        self._tracker.keep(sources)

    def _candidates(self, scored: Scored) -> tuple[Floats, Ints, Ints, Floats]:
        """All tokens considered, best first, those that can't meet their constraints in time at minus infinity."""
        ids, log_probs = self._considered(scored)
        n_sources, n_beams, width = log_probs.shape
        sums = (log_probs + self.score[:, :, None]).reshape(n_sources, -1)
        sums = np.where(np.isnan(sums), MINUS_INFINITY, sums)
        flat_ids, flat = ids.reshape(n_sources, -1), log_probs.reshape(n_sources, -1)
        parents = np.broadcast_to(np.repeat(np.arange(n_beams), width), sums.shape)
        # Ties go to the lower beam, then to the lower token, as in every search.
        order = np.lexsort((flat_ids, parents, -sums), axis=-1)
        sums, parents, tokens = along(sums, order), along(parents, order), along(flat_ids, order)
        self._after, self._banks = [], np.zeros(sums.shape, dtype=np.int64)
        self._is_complete = np.ones(sums.shape, dtype=bool)
        rooms = [room - 1 for room in self._endings.room()]  # tokens that may follow
        for b, constraints in enumerate(self._tracker.constraints):
            if len(constraints):
                self._follow(b, sums[b], parents[b], tokens[b], rooms[b])
            else:
                self._after.append([])
        return sums, parents, tokens, along(flat, order)

    def _follow(self, b: int, sums: Floats, parents: Ints, tokens: Ints, room: int) -> None:
        """The state and the bank of each candidate [C] of a source. Hopeless ones get minus infinity, in place.

        Most tokens are in no phrase: after them, the candidates of a beam are in one state.
        """
        constraints, states = self._tracker.constraints[b], self._tracker.states[b]
        plain = [constraints.step(state, NO_TOKEN) for state in states]
        after = [plain[parent] for parent in parents.tolist()]
        facts = np.asarray([_facts(constraints, state) for state in plain], dtype=np.int64)[parents]  # [C, 3]
        for c in np.flatnonzero(np.isin(tokens, constraints.tokens) & (sums > IMPOSSIBLE)).tolist():
            after[c] = constraints.step(states[int(parents[c])], int(tokens[c]))
            facts[c] = _facts(constraints, after[c])
        is_out = ~(sums > IMPOSSIBLE)
        self._is_complete[b] = (facts[:, 0] == 0) & ~is_out
        self._banks[b] = facts[:, 1] * 2 + facts[:, 2]
        sums[(facts[:, 0] > room) & ~is_out] = MINUS_INFINITY
        self._after.append(after)

    def _considered(self, scored: Scored) -> tuple[Ints, Floats]:
        """ids and log_probs [B, K, W] of a few tokens: of a whole distribution the best and the useful ones."""
        if scored.ids is not None:
            return scored.ids, scored.log_probs
        n = min(self.n_candidates, scored.log_probs.shape[-1])
        values = np.where(np.isnan(scored.log_probs), -np.inf, scored.log_probs)
        best = np.argpartition(-values, n - 1, axis=-1)[..., :n] if n < values.shape[-1] else None
        if best is None:
            ids = np.broadcast_to(np.arange(values.shape[-1]), values.shape)
            return ids, values
        useful = _padded(
            [
                [constraints.useful(state) for state in states]
                for constraints, states in zip(self._tracker.constraints, self._tracker.states, strict=True)
            ]
        )
        is_new = (useful >= 0) & ~(useful[..., None] == best[..., None, :]).any(axis=-1)
        more = np.where(is_new, useful, 0)
        found = np.where(is_new, np.take_along_axis(values, more, axis=-1), np.float32(-np.inf))
        return (
            np.concatenate([best, more], axis=-1),
            np.concatenate([np.take_along_axis(values, best, axis=-1), found], axis=-1),
        )

    def _may_finish(self, ends: Bools) -> Bools:
        """Among the candidates that have met everything, those that end and are among the best K."""
        return ends & self._is_complete & (np.cumsum(self._is_complete, axis=1) <= self.n_beams)

    def _choose(self, running: Floats) -> Ints:
        """The best of each bank, then the second best of each, and so on; in order of their scores."""
        chosen = super()._choose(running)
        for b, constraints in enumerate(self._tracker.constraints):
            if len(constraints):
                chosen[b] = self._shared_out(self._banks[b], running[b])
                self._tracker.states[b] = [self._after[b][c] for c in chosen[b].tolist()]
        return chosen

    def _shared_out(self, banks: Ints, running: Floats) -> Ints:
        """K candidates of banks [C] and sums [C]. Those that are impossible or have ended come last."""
        order = np.argsort(-running, kind="stable")
        banks, is_out = banks[order], ~(running[order] > IMPOSSIBLE)
        rank = np.zeros(len(order), dtype=np.int64)
        for bank in np.unique(banks):
            members = np.flatnonzero(banks == bank)
            rank[members] = np.arange(len(members))
        top = banks[~is_out].max(initial=0)
        best = np.lexsort((np.arange(len(order)), banks != top, rank, is_out))[: self.n_beams]
        return order[np.sort(best)]


def _facts(constraints: Constraints, state: State) -> tuple[int, int, int]:
    """Tokens needed, constraints met, whether inside a phrase."""
    return constraints.needed(state), constraints.n_met(state), int(constraints.is_inside(state))


def _padded(rows: list[list[list[int]]]) -> Ints:
    """[B, K, n]"""
    n = max((len(ids) for row in rows for ids in row), default=0)
    return np.asarray([[[*ids, *[NO_TOKEN] * (n - len(ids))] for ids in row] for row in rows], dtype=np.int64).reshape(
        len(rows), len(rows[0]) if rows else 0, n
    )
