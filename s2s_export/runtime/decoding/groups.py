"""Several beam searches of each source side by side: diverse beam search, and alternatives at a position.

Letters: B sources, G groups, k beams of a group, K = G*k rows, W tokens considered, V vocabulary.

*Diverse beam search* (arXiv 1610.02424), as `num_beam_groups` of transformers 4 had it: num_beams are split into G
groups that take turns at every step. Before a group chooses, the score of each token is lowered by
`diversity_penalty` for every beam of an earlier group that has just taken it (the Hamming diversity). The lowered
scores count. Each group has a pool of its own k best outputs; the best of all pools are returned. Within a group the
search is that of `search.py`, where transformers 4 had the older rules of when a source is closed.

*Alternatives* (`return_alternatives`, as in CTranslate2): the best `num_return_sequences` tokens of the first position,
as far as their probability is at least `min_alternative_expansion_prob`, each continued by a search of its own with
num_beams. They are returned in the order of that first token, most likely first.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .beams import Beams, Bools
from .chain import Scored
from .draws import Draws
from .endings import Endings
from .rule import MINUS_INFINITY, NO_TOKEN
from .search import BeamSearch, output
from .state import Floats, Ints


class GroupBeams(Beams):
    """At the last step other groups are kept from the tokens that beams would go on with, as in transformers 4."""

    def _running(self, value: Floats, ends: Bools, token: Ints) -> Floats:
        if self._n_generated + self._prompt_length >= self._options.max_length:
            ends = np.isin(token, self._options.eos_token_id)
        return super()._running(value, ends, token)


class GroupSearch(BeamSearch):
    """See `BeamSearch`."""

    _groups: list[Beams]

    def _make_beams(self, draws: Draws, endings: Endings) -> Beams:
        options = self._options
        if options.return_alternatives:
            size, n_groups = options.num_beams, options.num_return_sequences
            if size == 1:  # greedy: the first end token ends an output
                options = replace(options, early_stopping=True)
        else:
            n_groups = int(options.num_beam_groups)
            size = options.num_beams // n_groups
        self._groups = [GroupBeams(self.steps, options, draws, endings, size, g * size) for g in range(n_groups)]
        self._going = [True] * n_groups
        self._is_first = True
        self._penalty = np.float32(options.diversity_penalty or 0.0)
        self._unexpanded = np.zeros((n_groups, len(self.steps.present)), dtype=bool)
        return self._groups[0]

    @property
    def _n_wanted(self) -> int:
        first = self._groups[0]
        n_rows = len(self._groups) * first.n_beams
        # A token that an earlier group took may fall behind as many others as there are rows.
        return max(first.n_candidates + n_rows, len(self._groups))

    def advance(self) -> bool:
        """One more token in every group. Returns whether the search goes on."""
        scored = self.steps.look(self._n_wanted)
        starts = self._alternatives(scored) if self._is_first and self._options.return_alternatives else None
        chosen: list[tuple[Ints, Ints, Floats]] = []
        taken: list[Ints] = []  # the tokens of the groups before, but not those of finished searches
        with np.errstate(over="ignore", invalid="ignore"):
            for g, beams in enumerate(self._groups):
                seen = self._seen(scored, g, taken, starts)
                is_done = beams.is_settled() | self._unexpanded[g]
                token, parent, log_prob, goes_on = beams.advance(seen)
                chosen.append((token, parent, log_prob))
                taken.append(np.where(is_done[:, None], NO_TOKEN, token))
                is_done = beams.is_settled() | self._unexpanded[g]
                self._going[g] = self._going[g] and goes_on and not is_done.all()
            self.steps.append(*(np.concatenate(parts, axis=1) for parts in zip(*chosen, strict=True)))
        self._is_first = False
        if not any(self._going):
            self._report(np.arange(len(self.steps.present)))
            return False
        if self._leave_early:
            self._let_closed_leave()
        return True

    def _seen(self, scored: Scored, g: int, taken: list[Ints], starts: Ints | None) -> Scored:
        """The scored tokens of a group's beams, as the group sees them."""
        size = self._groups[g].n_beams
        rows = slice(g * size, (g + 1) * size)
        ids = None if scored.ids is None else scored.ids[:, rows]
        log_probs = scored.log_probs[:, rows]
        if starts is not None:
            log_probs = _only(ids, log_probs, starts[:, g])
        elif taken and self._penalty:
            log_probs = _lowered(ids, log_probs, np.concatenate(taken, axis=1), self._penalty)
        return Scored(ids, log_probs, log_probs)

    def _alternatives(self, scored: Scored) -> Ints:
        """The first token of each group, [B, G]. A group beyond the expansion's probability is closed at once."""
        n_groups = len(self._groups)
        log_probs = scored.log_probs[:, 0]
        at = np.argsort(-log_probs, axis=-1, kind="stable")[:, :n_groups]
        best = np.take_along_axis(log_probs, at, axis=-1)
        if at.shape[1] < n_groups:  # fewer tokens than alternatives
            more = ((0, 0), (0, n_groups - at.shape[1]))
            at, best = np.pad(at, more), np.pad(best, more, constant_values=MINUS_INFINITY)
        least = float(self._options.min_alternative_expansion_prob or 0.0)
        with np.errstate(over="ignore"):
            is_expanded = (best > MINUS_INFINITY) & (np.exp(best) >= np.float32(least))
        is_expanded[:, 0] = True  # there is always the best one
        self._unexpanded = ~is_expanded.T
        for g, beams in enumerate(self._groups):
            beams.is_open &= is_expanded[:, g]
        return at if scored.ids is None else np.take_along_axis(scored.ids[:, 0], at, axis=-1)

    def _let_closed_leave(self) -> None:
        settled = np.logical_and.reduce(
            [beams.is_settled() | out for beams, out in zip(self._groups, self._unexpanded, strict=True)]
        )
        if settled.sum() < max(1.0, self.steps.leave_at * len(settled)) or settled.all():
            return
        self._report(np.flatnonzero(settled))
        self.leave(np.flatnonzero(~settled))

    def leave(self, staying: Ints) -> None:
        self.steps.leave(staying)
        self._unexpanded = self._unexpanded[:, staying]
        for beams in self._groups:
            beams.keep(staying)

    def _report(self, sources: Ints) -> None:
        for source in sources.tolist():
            if self._options.return_alternatives:
                found = [
                    output(self.steps, beams, source, 0)
                    for beams, out in zip(self._groups, self._unexpanded[:, source], strict=True)
                    if not out
                ]
            else:
                places = range(len(self._groups[0].pool.score[source]))
                found = [output(self.steps, beams, source, place) for beams in self._groups for place in places]
                found.sort(key=lambda hypothesis: -hypothesis.score)
                found = found[: self._options.num_return_sequences]
            self.results[self.steps.present[source]] = found

    def stable(self, source: int) -> list[int]:
        """Nothing is final before the end: which group wins is known only then."""
        return self.steps.prompt(source)


def _lowered(ids: Ints | None, log_probs: Floats, taken: Ints, penalty: np.float32) -> Floats:
    """log_probs [B, k, W] less the penalty for each time a token is among `taken` [B, n]."""
    if ids is None:
        out = log_probs.copy()
        for b, tokens in enumerate(taken):
            counts = np.bincount(tokens[tokens >= 0], minlength=out.shape[-1])
            out[b] -= penalty * counts.astype(np.float32)
        return out
    counts = (ids[..., None] == taken[:, None, None, :]).sum(axis=-1)
    found: Floats = log_probs - penalty * counts.astype(np.float32)
    return found


def _only(ids: Ints | None, log_probs: Floats, token: Ints) -> Floats:
    """log_probs [B, k, W], minus infinity where it is not the score of `token` [B]."""
    if ids is None:
        ids = np.broadcast_to(np.arange(log_probs.shape[-1]), log_probs.shape)
    return np.where(ids == token[:, None, None], log_probs, MINUS_INFINITY)
