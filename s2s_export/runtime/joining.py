"""Decodes sources that come and go, on a backend whose batches can be joined: what a server does with its requests.

    decoding = session.open_decoding(n_rows, most_sources)      # InvalidOption where it can't be had
    decoding.join(sources, options, on_result=print)
    while decoding.n_sources:
        decoding.advance()

`why_whole_batches` says why a session can't: then batches are decoded whole, by `Session.decode_batch`. In fp32 a
source's outputs are those that it would get alone (decoding/joining.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from . import decoding, memory
from .decoding import GenerationOptions, Hypothesis
from .decoding.joining import ONE_STEP, Cohort, Joining, OpenBatch, Until
from .decoding.state import Ints
from .searching import HostSearch, Told, quiet
from .sources import Source, is_prompt

if TYPE_CHECKING:
    from .session import Session

OnResult = Callable[[int, "list[Hypothesis] | BaseException"], None]


class FillableBatch(OpenBatch, Protocol):
    """An open batch, as a backend gives it."""

    def join(self, values: dict[str, Any]) -> Ints:
        """Take in sources, of which these are the values of `encode`. Returns their places [B]."""
        ...


@runtime_checkable
class OpensBatches(Protocol):
    """A backend whose batches sources may join."""

    def why_no_open_batch(self) -> str | None:
        """Why they may not with this bundle or engine, in one sentence, or None."""
        ...

    def open_batch(self, n_beams: int, n_places: int, steps: Any = None) -> FillableBatch:
        """steps: makes steps without the backend's library (native_search/open_step.py), or None."""
        ...

    def encode(self, sources: Sequence[Source]) -> dict[str, Any]: ...


def why_whole_batches(session: Session) -> str | None:
    """Why sources can't join a batch of this session that is being decoded, in one sentence; None where they can."""
    if session.decodes_speech_in_passes:
        return "speech is decoded in several passes"
    if is_prompt(session.kind):
        return "a decoder alone goes on with prompts, which are its sources"
    if session.shortlist is not None:
        return "a shortlist is made for the sources of a whole batch"
    if not isinstance(session.searcher, HostSearch):
        return f"the search runs on the device of the backend {session.backend.name}"
    if not isinstance(session.backend, OpensBatches):
        return f"the backend {session.backend.name} decodes whole batches"
    return session.backend.why_no_open_batch()


class OpenDecoding:
    """One open batch with what encodes its sources. Not for use by several threads; a session may have several.

    n_rows: rows of each source, which all options in it must have (`GenerationOptions.n_rows`). most_sources: at once.
    """

    def __init__(self, session: Session, n_rows: int, most_sources: int) -> None:
        assert isinstance(session.backend, OpensBatches) and isinstance(session.searcher, HostSearch)
        self.most_sources = most_sources
        self._session = session
        self._backend = session.backend
        self._search = session.searcher
        self._batch = self._backend.open_batch(n_rows, most_sources, self._search.native.open_steps(self._backend))
        self._joining = Joining(self._batch)

    @property
    def n_sources(self) -> int:
        """Sources in the batch."""
        return self._joining.n_sources

    @property
    def fewest_newcomers(self) -> int:
        """How many sources of equal options should join by one call, so as not to slow the batch unduly."""
        return self._joining.fewest_newcomers

    @property
    def n_steps(self) -> int:
        """Decoder steps so far."""
        return self._joining.n_steps

    @property
    def n_stepped(self) -> int:
        """Sources of all steps so far, added up."""
        return self._joining.n_stepped

    def join(
        self,
        sources: Sequence[Source],
        options: GenerationOptions,
        *,
        on_result: OnResult,
        alignments: bool | str = False,
        source_numbers: Sequence[int] | None = None,
        wanted: Callable[[int], bool] | None = None,
        on_prefix: Callable[[int, list[int]], None] | None = None,
    ) -> None:
        """Encode checked sources and let them join before the next step.

        on_result: called in `advance` with the index of a source and its hypotheses as soon as it is finished; [] for
        one that was not wanted any more, an exception for one that failed. The other arguments are those of
        `Session.decode_batch`. Raises what encoding raises; then nothing has joined.
        """
        if self._session.computes_on_cores:
            memory.check(self._session.bundle, self.n_sources + len(sources), options)
        told = None if on_prefix is None else Told(on_prefix)
        numbers = range(len(sources)) if source_numbers is None else source_numbers
        work = _Work(list(sources), options, alignments, list(numbers), wanted, told, on_result)
        self._begin(work, list(range(len(sources))), sparse_sums=self._search.ways(options)[0])

    def advance(self, until: Until = ONE_STEP) -> None:
        """One more token for every source; several, `until` somebody is wanted, where no Python is needed between them.
        Raises what the decoder step raises; the batch is then of no more use.
        """
        with quiet():
            ended = self._joining.advance(until)
        for cohort, i, found in self._joining.results():
            self._tell(cohort, i, found)
        for cohort in ended:
            self._end(cohort)

    def _begin(self, work: _Work, chosen: list[int], *, sparse_sums: bool) -> None:
        sources, wanted, told = [work.sources[i] for i in chosen], work.wanted, work.told
        kind = self._session.kind
        with quiet():
            places = self._batch.join(self._backend.encode(sources))
            self._joining.join(
                places,
                [kind.ids(source) for source in sources],
                work.options,
                alignments=work.alignments,
                source_numbers=[work.numbers[i] for i in chosen],
                source_lengths=[kind.length(source) for source in sources],
                wanted=None if wanted is None else lambda i: wanted(chosen[i]),
                on_prefix=None if told is None else lambda i, ids: told(chosen[i], ids),
                sparse_sums=sparse_sums,
                make=self._search.native.make,
                label=(work, chosen),
            )

    def _tell(self, cohort: Cohort, i: int, found: list[Hypothesis]) -> None:
        work, chosen = cohort.label
        if chosen[i] not in work.done:
            work.done.add(chosen[i])
            work.on_result(chosen[i], [self._session.with_text(hypothesis) for hypothesis in found])

    def _end(self, cohort: Cohort) -> None:
        work, chosen = cohort.label
        for i, found in enumerate(cohort.search.results):
            if found:
                self._tell(cohort, i, found)
        missing = [i for i in chosen if i not in work.done]
        if missing and isinstance(cohort.error, decoding.Imprecise):
            self._search.remember(work.options, cohort.error)
            if work.told is not None:
                work.told.again()
            try:
                self._begin(work, missing, sparse_sums=False)
                return
            except Exception as error:
                cohort.error = error
        for i in missing:
            work.done.add(i)
            work.on_result(i, [] if cohort.error is None else cohort.error)


class _Work:
    """Sources that joined by one call, and who is to be told. done: indices of those with a result."""

    def __init__(
        self,
        sources: list[Source],
        options: GenerationOptions,
        alignments: bool | str,
        numbers: list[int],
        wanted: Callable[[int], bool] | None,
        told: Told | None,
        on_result: OnResult,
    ) -> None:
        self.sources = sources
        self.options = options
        self.alignments = alignments
        self.numbers = numbers
        self.wanted = wanted
        self.told = told
        self.on_result = on_result
        self.done: set[int] = set()
