"""`guides`: only tokens that a list of outputs, a regular expression or a typed beginning allows."""

from __future__ import annotations

import numpy as np

from .. import option_values as values
from ..generation_options import GenerationOptions
from ..guide import Guide
from ..option import Option
from ..rule import NO_TOKEN, Edit, SparseRule, View

ORDER = 81  # before prefix_allowed_tokens_fn
OPTIONS = {"guides": Option(values.guides, token_ids=lambda guides: {i for guide in guides for i in guide.token_ids()})}


class Guides(SparseRule):
    """Several guides allow what each of them allows. A token after which an output could not be completed within
    `max_length` is not allowed either.

    Device: none.
    """

    reads_history = True

    def __init__(
        self, guides: tuple[Guide, ...], prompt_length: int, eos: tuple[int, ...], size: int, max_length: int
    ) -> None:
        self._guides = guides
        self._prompt_length = prompt_length
        self._eos = frozenset(eos)
        self._all = np.arange(size)
        self._max_length = max_length
        self._farthest = max(guide.farthest for guide in guides)
        self._allowed: dict[tuple[object, ...], np.ndarray | None] = {}  # by the guides' states

    def edit(self, view: View) -> Edit | None:
        history = view.history()[:, :, self._prompt_length :]
        n_sources, n_rows, _ = history.shape
        room = self._max_length - view.length - 1  # tokens that may follow the next one
        rows = [self._of(tokens, room) for tokens in history.reshape(n_sources * n_rows, -1).tolist()]
        if all(row is None for row in rows):
            return None
        listed = [self._all if row is None else row for row in rows]
        ids = np.full((len(rows), max(1, *map(len, listed))), NO_TOKEN, dtype=np.int64)
        for out, row in zip(ids, listed, strict=True):
            out[: len(row)] = row
        return Edit("keep", ids.reshape(n_sources, n_rows, -1))

    def _of(self, tokens: list[int], room: int) -> np.ndarray | None:
        """The tokens that may follow; None for all."""
        if not self._eos.isdisjoint(tokens):  # a finished text, which goes on where transformers' search does
            return np.zeros(0, dtype=np.int64)
        states = tuple(guide.after(tokens) for guide in self._guides)
        if states not in self._allowed:
            self._allowed[states] = self._listed(states)
        found = self._allowed[states]
        if room > self._farthest:
            return found
        return np.asarray([i for i in (self._all if found is None else found).tolist() if self._fits(states, i, room)])

    def _fits(self, states: tuple[object, ...], token: int, room: int) -> bool:
        """Whether what is missing after a token can still follow."""
        if token in self._eos:
            return True
        return all(
            guide.missing(guide.next(state, token)) + guide.is_whole <= room
            for guide, state in zip(self._guides, states, strict=True)
        )

    def _listed(self, states: tuple[object, ...]) -> np.ndarray | None:
        found: set[int] | None = None
        may_end = True
        for guide, state in zip(self._guides, states, strict=True):
            may_end = may_end and guide.may_end(state)
            allowed = guide.allowed(state)
            if allowed is not None:
                found = set(allowed) if found is None else found & set(allowed)
        if found is None:
            return None if may_end else np.asarray([i for i in self._all.tolist() if i not in self._eos])
        return np.asarray(sorted(found - self._eos | (self._eos if may_end else frozenset())), dtype=np.int64)


def from_options(options: GenerationOptions, vocabulary_size: int) -> Guides | None:
    if not options.guides:
        return None
    return Guides(options.guides, len(options.prompt), options.eos_token_id, vocabulary_size, options.max_length)
