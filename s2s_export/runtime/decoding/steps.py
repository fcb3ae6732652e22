"""The steps of one batch: feeds the decoder, and keeps the tables from which outputs are read.

Letters: B sources still in the batch, K rows of each (beams or samples), T tokens generated so far, W tokens
considered.

A search calls `look` for the scored tokens of the next position, and `append` with the token that each row takes and
the row that it continues. Nothing is copied when rows change places: the tables hold tokens and parents [T, B, K], and
outputs are found by backtracking from their ends. The text so far is kept as [B, K, length] only if a rule or a stream
reads it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .chain import Chain, Plan, Scored
from .coverage import Coverage
from .hypothesis import Hypothesis
from .numerics import along
from .options import GenerationOptions
from .prompts import Prompts, beginnings, without_gaps
from .rule import NO_TOKEN, Rule, View
from .state import DecodeState, Floats, Ints, Question, StepResult, feed

# Closed sources leave the batch once they are this share of it, because leaving copies tables and caches.
LEAVE_AT = 0.25


class Table:
    """An array [T, B, K] that grows along T."""

    def __init__(self, n_sources: int, n_rows: int, dtype: type) -> None:
        self._values: NDArray[np.generic] = np.zeros((16, n_sources, n_rows), dtype=dtype)
        self._n = 0

    def append(self, values: NDArray[np.generic]) -> None:
        if self._n == len(self._values):
            self._values = np.concatenate([self._values, np.zeros_like(self._values)])
        self._values[self._n] = values
        self._n += 1

    def keep(self, sources: Ints) -> None:
        self._values = self._values[:, sources]

    def of(self, source: int) -> NDArray[np.generic]:
        """[T, K]"""
        return self._values[: self._n, source]


class Steps:
    """Feeds `state` and records the steps.

    present [B]: indices of the original sources that are still in the batch. length: tokens so far, with the prompt.
    source_lengths: S of every source, also of those that have left. coverage: only with `coverage_penalty`.
    leave_at: the share of the batch that has to be closed before closed sources leave.
    """

    def __init__(
        self,
        state: DecodeState,
        sources: Sequence[Sequence[int]],
        options: GenerationOptions,
        *,
        alignments: bool | str = False,
        keep_history: bool = False,
        whole_distribution: bool = False,
        sparse_sums: bool = False,
        source_lengths: Sequence[int] | None = None,
        source_numbers: Sequence[int] | None = None,
        rules: Sequence[Rule] = (),
    ) -> None:
        """rules: those of the search itself, after the options' own. The other arguments are those of `decode`."""
        n_sources, n_rows = state.n_sources, options.n_rows
        if len(sources) != n_sources or state.n_beams != n_rows:
            raise ValueError(
                f"the decode state holds {state.n_sources} sources of {state.n_beams} beams, expected {len(sources)} "
                f"of {n_rows}; make it for the sources and options that are decoded"
            )
        self.state = state
        self.leave_at = LEAVE_AT
        self._plan: Plan | None = None  # of the next `look`, where somebody has asked already what it will ask
        self.options = options
        self.n_rows = n_rows
        self.present = np.arange(n_sources)
        self._beginnings = beginnings(sources, options)  # [B, P]
        self._n_undrawn = int(self._beginnings.shape[1]) - 1 if isinstance(sources, Prompts) else 0
        self.length = int(self._beginnings.shape[1])
        self._chain = Chain(
            options, state.vocabulary_size, dense=whole_distribution, sparse_sums=sparse_sums, more=rules
        )
        self._sources = _padded(sources)
        self.source_lengths = [len(source) for source in sources] if source_lengths is None else source_lengths
        self._numbers = np.arange(n_sources) if source_numbers is None else np.asarray(source_numbers)
        self.coverage = Coverage(n_rows, self.source_lengths) if options.coverage_penalty else None
        self._alignments = alignments
        self._attention: list[Floats] = []
        self._tokens = Table(n_sources, n_rows, np.int64)
        self._parents = Table(n_sources, n_rows, np.int64)
        self._scores = Table(n_sources, n_rows, np.float32)
        self._history: Ints | None = None
        if keep_history or self._chain.reads_history or options.stop_strings:
            self._history = np.tile(self._beginnings[:, None], (1, n_rows, 1))
        self._next_tokens, self._next_parents = self._begin(is_fed=isinstance(sources, Prompts))

    def look(self, n_best: int, *, logits: bool = False) -> Scored:
        """The scored tokens [B, K, W] of the next position after the rules: at least the n_best of every row.

        logits: whether the choice is made on logits and not on log-probabilities, as with one beam.
        """
        plan = self._plan or self._next_plan(n_best)
        self._plan = None
        result = self.state.step(self._next_tokens, self._next_parents, plan.query)
        self._keep_attention(result)
        return plan.read(result, logits=logits and not self._chain.shift_invariant)

    def ask(self, n_best: int) -> Question:
        """What the next `look` will hand to the state, for whoever makes one step for several searches."""
        self._plan = self._next_plan(n_best)
        return Question(self._next_tokens, self._next_parents, self._plan.query)

    def _next_plan(self, n_best: int) -> Plan:
        view = View(self.length, self._sources, self.history, self._numbers)
        wants_attention = bool(self._alignments) or self.coverage is not None
        return self._chain.plan(view, (len(self.present), self.n_rows), n_best, attention=wants_attention)

    def append(self, tokens: Ints, parents: Ints | None, scores: Floats) -> None:
        """Append a token [B, K] to the row `parents` [B, K], or to the row itself if that is None.
        scores [B, K]: the log-probabilities of the tokens.
        """
        if parents is None:
            parents = self._same_rows()
        self._tokens.append(tokens)
        self._parents.append(parents)
        self._scores.append(scores)
        if self._history is not None:
            self._history = np.concatenate([along(self._history, parents), tokens[:, :, None]], axis=2)
        if self.coverage is not None:
            self.coverage.follow(parents)
        self._next_tokens, self._next_parents = tokens, parents
        self.length += 1

    def prompt(self, source: int) -> list[int]:
        """What the outputs of a source in the batch begin with."""
        return without_gaps(self._beginnings[source].tolist())

    @property
    def draw_length(self) -> int:
        """The length by which draws are told apart: it does not depend on what other prompts are in the batch."""
        return self.length - self._n_undrawn

    def history(self) -> Ints:
        """[B, K, length], with NO_TOKEN before a prompt that is shorter than others in the batch."""
        if self._history is None:
            raise RuntimeError("the text so far is not kept, expected a rule that reads it to say `reads_history`")
        return self._history

    def leave(self, staying: Ints) -> None:
        """Keep only these sources (ascending indices) in the batch."""
        self.state.keep(staying)
        self.present = self.present[staying]
        self._sources = self._sources[staying]
        self._beginnings = self._beginnings[staying]
        self._numbers = self._numbers[staying]
        if self.coverage is not None:
            self.coverage.keep(staying)
        for table in (self._tokens, self._parents, self._scores):
            table.keep(staying)
        self._attention = [attention[staying] for attention in self._attention]
        self._next_tokens, self._next_parents = self._next_tokens[staying], self._next_parents[staying]
        if self._history is not None:
            self._history = self._history[staying]

    def backtrack(self, source: int, n: int, row: int) -> list[int]:
        """The n + 1 rows that led to `row`: the one before each of n generated tokens, and `row`."""
        parents = self._parents.of(source)[:n].tolist()
        rows = [row]
        for step in range(n - 1, -1, -1):
            row = parents[step][row]
            rows.append(row)
        return rows[::-1]

    def generated(self, source: int, n: int, row: int) -> list[int]:
        """The first n generated tokens of a row's text."""
        rows = self.backtrack(source, n, row)
        tokens = self._tokens.of(source)[np.arange(n), rows[1:]]
        return [int(token) for token in tokens]

    def hypothesis(self, source: int, score: float, n: int, row: int, last: tuple[int, float] | None) -> Hypothesis:
        """The text of `row` after n generated tokens, followed by `last`, a token with its log-probability."""
        rows = self.backtrack(source, n, row)
        steps = np.arange(n)
        tokens = self._tokens.of(source)[steps, rows[1:]].tolist()
        scores = self._scores.of(source)[steps, rows[1:]].tolist()
        if last is not None:
            tokens.append(last[0])
            scores.append(last[1])
        found = Hypothesis([*self.prompt(source), *tokens], score, scores)
        if self._alignments:
            # Token t was predicted from row `rows[t]`.
            self._align(found, source, rows[: len(tokens)])
        return found

    def _align(self, found: Hypothesis, source: int, rows: list[int]) -> None:
        length = self.source_lengths[self.present[source]] or None
        looked = [self._attention[step][source, row] for step, row in enumerate(rows)]
        if not looked:
            return
        if self._alignments == "heads":
            heads = np.stack(looked, axis=2)[..., :length]  # [L, H, T, S]
            found.alignment_heads = heads
            found.alignment = heads[-1].mean(axis=0)
        else:
            found.alignment = np.stack(looked)[:, :length]

    def _keep_attention(self, result: StepResult) -> None:
        if not self._alignments and self.coverage is None:
            return
        if result.attention is None:
            raise ValueError("the decode state returned no attention, expected it for a query with attention=True")
        if self.coverage is not None:
            self.coverage.add(result.attention[:, :, -1].mean(axis=2))
        if self._alignments == "heads":
            self._attention.append(result.attention.copy())
        elif self._alignments:
            self._attention.append(result.attention[:, :, -1].mean(axis=2))  # [B, K, S]

    def _begin(self, is_fed: bool) -> tuple[Ints, Ints]:
        """Feed the prompt without its last token, which is returned with its parents for the first `look`.

        is_fed: whether the state holds it already."""
        fed = self._beginnings[:, :0] if is_fed else self._beginnings[:, :-1]
        return np.repeat(self._beginnings[:, -1:], self.n_rows, axis=1), feed(self.state, fed)

    def _same_rows(self) -> Ints:
        return np.tile(np.arange(self.n_rows), (len(self.present), 1))


def _padded(sources: Sequence[Sequence[int]]) -> Ints:
    out = np.full((len(sources), max(map(len, sources), default=0)), NO_TOKEN, dtype=np.int64)
    for row, source in zip(out, sources, strict=True):
        row[: len(source)] = source
    return out
