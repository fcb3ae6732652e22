"""Decoding in an open batch, which sources join at any step and leave as soon as they are finished.

Letters: B sources, K beams, M candidates, Q probed tokens.

Sources that join together, with the same options, are a cohort. Each cohort has a search of its own, which knows
nothing of the others: its lengths, tables and rules count from its own first step. What cohorts share is the decoder
step. At each step every search is asked what it would ask its decode state (`Question`); one step of the open batch
answers all of them; and each search goes on with its part of the answer. So a source's tokens are those that it would
get alone, whoever else is in the batch, and cohorts may have different options.

    joining = Joining(batch)                      # an open batch of a backend
    cohort = joining.join(places, sources, options)
    while joining.cohorts:
        for ended in joining.advance():
            ended.search.results

Only the number of beams has to be equal, as it is a size of the batch's tensors.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ...errors import is_failure
from .decode import Make, Search, let_unwanted_leave, make_search, tell_prefixes
from .hypothesis import Hypothesis
from .options import GenerationOptions
from .state import Ints, Question, StepQuery, StepResult

OLD_SHARE = 0.9  # of the last estimate of a cost in the next one
SEARCH_SHARE = 0.25  # of what a source costs in a decoder step: what its share of its cohort's search may add


@dataclass(frozen=True)
class Until:
    """When several steps in one call come to an end, so that others may join or leave: after most_steps or so many
    seconds, or as soon as version [1] is not what was expected."""

    most_steps: int = 1
    seconds: float = math.inf
    version: Ints | None = None
    expected: int = 0


ONE_STEP = Until()


class OpenBatch(Protocol):
    """A batch whose sources have places, which they take when they join and give back when they leave.

    vocabulary_size: V. n_beams: K, of all sources.

    One whose steps and searches the library of plugins/search can make together also has `makes_many(searches)` and
    `run(searches, places, until)` (backends/_open_attention.py).
    """

    vocabulary_size: int
    n_beams: int

    def step(self, places: Ints, tokens: Ints, parents: Ints, query: StepQuery) -> StepResult:
        """As `DecodeState.step`, for the sources at these places [B], each at its own position."""
        ...

    def leave(self, places: Ints) -> None:
        """Free places, for sources that join later."""
        ...


class Member:
    """The decode state of a cohort: its sources' places in an open batch. See `DecodeState`.

    answer: its part of a step that was made for all cohorts, which its next `step` returns. Without one, that makes a
    step of these sources alone; so a decoder prompt is fed. length: of the longest source, to which attention is cut:
    in the batch the padding may grow.
    """

    def __init__(self, batch: OpenBatch, places: Ints, length: int) -> None:
        self.vocabulary_size = batch.vocabulary_size
        self.n_beams = batch.n_beams
        self.places = places
        self.answer: StepResult | None = None
        self._batch = batch
        self._length = length

    @property
    def n_sources(self) -> int:
        return len(self.places)

    def step(self, tokens: Ints, parents: Ints, query: StepQuery) -> StepResult:
        answer, self.answer = self.answer, None
        if answer is None:
            answer = self._batch.step(self.places, tokens, parents, query)
        if answer.attention is not None:
            answer.attention = answer.attention[..., : self._length]
        return answer

    def keep(self, sources: Ints) -> None:
        self._batch.leave(np.delete(self.places, sources))
        self.places = self.places[sources]


@dataclass(eq=False)
class Cohort:
    """Sources that joined together. label: the caller's own.

    search: `search.results` has the outputs of each source as soon as it is finished. error: why the search failed.
    """

    search: Search
    member: Member
    wanted: Callable[[int], bool] | None
    on_prefix: Callable[[int, list[int]], None] | None
    label: Any
    n_told: list[int]
    error: BaseException | None = None

    def is_wanted(self) -> bool:
        """Whether anybody wants any of its sources; those that nobody wants leave."""
        return bool(self._tried(lambda: let_unwanted_leave(self.search, self.wanted)))

    def ask(self) -> Question | None:
        """What its next step asks; None where asking fails."""
        found: Question | None = self._tried(self.search.ask)
        return found

    def advance(self, answer: StepResult) -> bool:
        """One more token. Returns whether the search goes on."""
        self.member.answer = answer
        return self._went_on(self.search.advance)

    def made(self, status: int) -> bool:
        """After steps that an open batch made with its search. Returns whether the search goes on."""
        return self._went_on(lambda: self.search.made(status))  # type: ignore[union-attr]

    def _went_on(self, search: Callable[[], bool]) -> bool:
        goes_on, tell = self._tried(search), self.on_prefix
        if tell is not None and self.error is None:
            self._tried(lambda: tell_prefixes(self.search, tell, self.n_told))
        return bool(goes_on) and self.error is None

    def _tried(self, do: Callable[[], Any]) -> Any:
        """What a call returns, or None where it fails."""
        try:
            return do()
        except BaseException as error:
            self._failed(error)
            return None

    def _failed(self, error: BaseException) -> None:
        if not is_failure(error):
            raise error
        self.error = error


class Joining:
    """The cohorts of one open batch. Not for use by several threads.

    cohorts: those that are being decoded. n_steps: decoder steps so far. n_stepped: sources in them, added up.
    """

    def __init__(self, batch: OpenBatch, clock: Callable[[], float] = time.thread_time) -> None:
        """clock: the CPU time of this thread, in seconds; how long others kept it waiting says nothing of costs."""
        self.cohorts: list[Cohort] = []
        self.n_steps = 0
        self.n_stepped = 0
        self._batch = batch
        self._clock = clock
        self._of_step = 0.0  # seconds of a decoder step for each of its sources, lately
        self._of_search = 0.0  # seconds of a cohort's search in a step

    @property
    def n_sources(self) -> int:
        return sum(cohort.member.n_sources for cohort in self.cohorts)

    @property
    def fewest_newcomers(self) -> int:
        """How many sources should come in together; 1 where the batch is empty.

        A cohort costs its search at every step, whether it is of one source or of many: where the decoder's steps are
        short, sources that waited for each other take less of everybody's time.
        """
        if not self.cohorts or not self._of_step:
            return 1
        return max(1, math.ceil(self._of_search / (SEARCH_SHARE * self._of_step)))

    def join(
        self,
        places: Ints,
        sources: Sequence[Sequence[int]],
        options: GenerationOptions,
        *,
        alignments: bool | str = False,
        source_numbers: Sequence[int] | None = None,
        source_lengths: Sequence[int] | None = None,
        wanted: Callable[[int], bool] | None = None,
        on_prefix: Callable[[int, list[int]], None] | None = None,
        sparse_sums: bool = False,
        make: Make | None = None,
        label: Any = None,
    ) -> Cohort:
        """Add sources, which have these places [B] in the batch. The other arguments are those of `decode`.

        Raises what the search raises of its options and sources; then the places are free again.
        """
        lengths = [len(source) for source in sources] if source_lengths is None else source_lengths
        member = Member(self._batch, places, max(lengths))
        try:
            search = make_search(
                member,
                sources,
                options,
                alignments,
                on_prefix is not None,
                source_numbers,
                True,
                lengths,
                sparse_sums=sparse_sums,
                make=make,
            )
        except BaseException:
            self._batch.leave(places)
            raise
        search.steps.leave_at = 0.0  # a place that is free serves another, and leaving moves no cache
        cohort = Cohort(search, member, wanted, on_prefix, label, [0] * len(sources))
        self.cohorts.append(cohort)
        return cohort

    def advance(self, until: Until = ONE_STEP) -> list[Cohort]:
        """One more token for every source; several where the batch makes many steps at a time, `until` somebody is
        wanted. Returns the cohorts that have ended; they have left the batch.

        Raises what the decoder step raises; the batch is then of no more use.
        """
        going = [cohort for cohort in self.cohorts if cohort.is_wanted()]
        makes_many = getattr(self._batch, "makes_many", None)
        if going and makes_many is not None and makes_many([cohort.search for cohort in going]):
            staying = self._make_many(going, until)
        else:
            staying = self._make_one(going)
        ended = [cohort for cohort in self.cohorts if cohort not in staying]
        for cohort in ended:
            self.cohorts.remove(cohort)
            self._batch.leave(cohort.member.places)
        return ended

    def _make_many(self, going: Sequence[Cohort], until: Until) -> list[Cohort]:
        """Steps of these cohorts. Returns those that go on."""
        if any(cohort.on_prefix is not None for cohort in going):
            until = ONE_STEP  # each token is told as it comes
        begin = self._clock()
        places = np.concatenate([cohort.member.places for cohort in going])
        n_steps, statuses = self._batch.run([cohort.search for cohort in going], places, until)  # type: ignore[attr-defined]
        self._count(n_steps, len(places))
        if n_steps:
            self._measure((self._clock() - begin) / n_steps / len(places), 0.0)
        return [cohort for cohort, status in zip(going, statuses, strict=True) if cohort.made(status)]

    def _make_one(self, wanted: Sequence[Cohort]) -> list[Cohort]:
        begin = self._clock()
        asked = [(cohort, cohort.ask()) for cohort in wanted]
        going = [(cohort, question) for cohort, question in asked if question is not None]
        if not going:
            return []
        before = self._clock()
        answers = self._step(going)
        after = self._clock()
        staying = [cohort for (cohort, _), answer in zip(going, answers, strict=True) if cohort.advance(answer)]
        n_sources = sum(len(question.tokens) for _, question in going)
        self._measure((after - before) / n_sources, (before - begin + self._clock() - after) / len(going))
        return staying

    def _count(self, n_steps: int, n_sources: int) -> None:
        self.n_steps += n_steps
        self.n_stepped += n_steps * n_sources

    def _measure(self, of_step: float, of_search: float) -> None:
        share = OLD_SHARE if self._of_step else 0.0
        self._of_step = share * self._of_step + (1 - share) * of_step
        self._of_search = share * self._of_search + (1 - share) * of_search

    def _step(self, going: Sequence[tuple[Cohort, Question]]) -> list[StepResult]:
        """One step of the batch, and each cohort's part of what it found."""
        places = [cohort.member.places for cohort, _ in going]
        questions = [question for _, question in going]
        result = self._batch.step(
            np.concatenate(places),
            np.concatenate([question.tokens for question in questions]),
            np.concatenate([question.parents for question in questions]),
            together([question.query for question in questions], [len(at) for at in places], self._batch.n_beams),
        )
        self._count(1, sum(map(len, places)))
        parts, first = [], 0
        for question, at in zip(questions, places, strict=True):
            parts.append(part_of(result, slice(first, first + len(at)), question.query))
            first += len(at)
        return parts

    def results(self) -> list[tuple[Cohort, int, list[Hypothesis]]]:
        """The sources of running cohorts that have left the batch: cohort, index in it, outputs. Those of one that
        nobody wanted any more are []."""
        found = []
        for cohort in self.cohorts:
            present = set(cohort.search.steps.present.tolist())
            found += [
                (cohort, i, outputs) for i, outputs in enumerate(cohort.search.results) if outputs or i not in present
            ]
        return found


def together(queries: Sequence[StepQuery], sizes: Sequence[int], n_beams: int) -> StepQuery:
    """One query that asks all that these ask. sizes: how many sources each is of."""
    if len(queries) == 1:
        return queries[0]
    probed = [query.probe_ids for query in queries if query.probe_ids is not None]
    probe_ids = None
    if probed:
        width = max(ids.shape[2] for ids in probed)
        probe_ids = np.zeros((sum(sizes), n_beams, width), dtype=np.int64)
        first = 0
        for query, size in zip(queries, sizes, strict=True):
            if query.probe_ids is not None:
                probe_ids[first : first + size, :, : query.probe_ids.shape[2]] = query.probe_ids
            first += size
    return StepQuery(
        n_candidates=max(query.n_candidates for query in queries),
        probe_ids=probe_ids,
        dense=any(query.dense for query in queries),
        attention=any(query.attention for query in queries),
    )


def part_of(result: StepResult, sources: slice, query: StepQuery) -> StepResult:
    """What a query would have found for these sources."""
    n_probes = None if query.probe_ids is None else query.probe_ids.shape[2]
    probed, dense, attention = result.probe_log_probs, result.log_probs, result.attention
    return StepResult(
        candidate_ids=result.candidate_ids[sources, :, : query.n_candidates],
        candidate_log_probs=result.candidate_log_probs[sources, :, : query.n_candidates],
        log_normalizer=result.log_normalizer[sources],
        probe_log_probs=None if probed is None or n_probes is None else probed[sources, :, :n_probes],
        log_probs=dense[sources] if query.dense and dense is not None else None,
        attention=attention[sources] if query.attention and attention is not None else None,
    )
