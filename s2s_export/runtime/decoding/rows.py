"""Decoding with one beam: greedy search, and sampling, in which a source may have several independent rows.

As in `GenerationMixin._sample` of transformers: the rules change logits, each row takes the most likely token or draws
one, and it is finished by an end token or at max_length.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .draws import Draws
from .endings import Endings
from .hypothesis import Hypothesis
from .options import GenerationOptions
from .prompts import without_gaps
from .search import allowed, is_guided
from .state import DecodeState, Floats, Ints, Question
from .steps import Steps


class RowSearch:
    """One batch. `advance` makes a step and says whether there is another; `results` are complete after the last.

    leave_early: sources whose rows are all finished leave the batch, once there are enough of them.
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
        source_numbers: Sequence[int] | None = None,
        sparse_sums: bool = False,
    ) -> None:
        self.steps = Steps(
            state,
            sources,
            options,
            alignments=alignments,
            keep_history=keep_history,
            whole_distribution=bool(options.do_sample),
            source_lengths=source_lengths,
            source_numbers=source_numbers,
            sparse_sums=sparse_sums,
        )
        self._endings = Endings(options, self.steps)
        self.results: list[list[Hypothesis]] = [[] for _ in sources]
        self._options = options
        self._draws = draws
        self._leave_early = leave_early
        self._prompt_length = self.steps.length
        shape = (state.n_sources, options.n_rows)
        self._is_finished = np.zeros(shape, dtype=bool)
        self._n_generated = np.zeros(shape, dtype=np.int64)  # Including the end token.
        # What a finished row is fed until its source leaves the batch. The results are ignored.
        self._fill = options.pad_token_id if options.pad_token_id is not None else (*options.eos_token_id, 0)[0]

    def ask(self) -> Question:
        """What the next `advance` will ask the state."""
        return self.steps.ask(1)

    def advance(self) -> bool:
        """One more token. Returns whether the search goes on."""
        tokens, log_probs = self._choose()
        tokens = np.where(self._is_finished, self._fill, tokens)
        self._n_generated += ~self._is_finished
        self._is_finished |= self._endings.of(tokens, None)
        self.steps.append(tokens, None, log_probs)
        if self._is_finished.all():
            self._report(np.arange(len(self.steps.present)))
            return False
        if self._leave_early:
            self._let_finished_leave()
        return True

    def _choose(self) -> tuple[Ints, Floats]:
        """A token for every row and its log-probability, [B, K]."""
        scored = self.steps.look(1, logits=True)
        if self._options.do_sample:
            at = self._draws.one_each(scored.logits, self.steps.present, self.steps.draw_length)
        elif scored.ids is None:
            at = scored.logits.argmax(axis=-1)
        else:
            # Of equally likely tokens the one with the lowest id, in whichever order they came.
            best = scored.logits.max(axis=-1, keepdims=True)
            at = np.where(scored.logits == best, scored.ids, self.steps.state.vocabulary_size).argmin(axis=-1)
        tokens = at if scored.ids is None else np.take_along_axis(scored.ids, at[..., None], axis=-1)[..., 0]
        log_probs = np.take_along_axis(scored.log_probs, at[..., None], axis=-1)[..., 0]
        possible = np.take_along_axis(scored.logits, at[..., None], axis=-1)[..., 0] > -np.inf
        if self._options.do_sample or possible.all():
            return tokens, log_probs
        # Where no token is possible: the first, with the probability 0.
        return np.where(possible, tokens, 0), np.where(possible, log_probs, np.float32(-np.inf))

    def _let_finished_leave(self) -> None:
        finished = np.asarray(self._is_finished.all(axis=1))
        if finished.sum() < max(1.0, self.steps.leave_at * len(finished)):
            return
        self._report(np.flatnonzero(finished))
        self.leave(np.flatnonzero(~finished))

    def leave(self, staying: Ints) -> None:
        """Keep only these sources (ascending indices) in the batch. The others get no further results."""
        self.steps.leave(staying)
        self._is_finished, self._n_generated = self._is_finished[staying], self._n_generated[staying]

    def _report(self, sources: Ints) -> None:
        for source in sources.tolist():
            found = []
            for row in range(self._options.num_return_sequences):
                n = int(self._n_generated[source, row])
                hypothesis = self.steps.hypothesis(source, 0.0, n, row, None)
                total = sum(hypothesis.token_scores)
                hypothesis.score = total / float(n) ** self._options.length_penalty
                found.append(hypothesis)
            self.results[self.steps.present[source]] = (
                allowed(found, self._options) if is_guided(self._options) else found
            )

    def stable(self, source: int) -> list[int]:
        """The final tokens, including the prompt, of the first output of a source in the batch."""
        n = int(self._n_generated[source, 0])
        return without_gaps(self.steps.history()[source, 0, : self._prompt_length + n].tolist())
