"""Chooses where the search runs: on the device that runs the graphs, or on the host, step by step.

    "auto"    the device if the backend has one and the model suits it; otherwise `Searcher.why` is the reason
    "device"  the device, or an error; "device-while", "device-replay" and "device-queue" say how (docs/gpu.md)
    "host"    the host; in C++ where that serves the options (native_search), else in numpy
    "python"  the host, always in numpy: the definition

What a device search can't do is an error that names it. Nothing falls back to the host while it decodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..errors import BackendError, BuildError, InvalidOption, UnknownOption
from . import decoding
from .backends import Backend, Searcher, SearchesItself
from .decoding import DecodeState, GenerationOptions, Hypothesis, StepQuery
from .native_search import NativeSearches, TooMany
from .sources import Source, SourceKind, is_prompt

MODES = {"auto": "auto", "device": "auto", "device-while": "while", "device-replay": "replay", "device-queue": "queue"}
SEARCHES = (*MODES, "host", "python")
ON_HOST = ("host", "python")

Begin = Callable[[Sequence[Source], GenerationOptions], DecodeState]


ONE_PROMPT = "the search on a device has one prompt for all sources, and a decoder alone has its own for each"
MOST_REMEMBERED = 64  # options with which sums were imprecise


class Told:
    """Hands on what became final of each source, once, although decoding begins again."""

    def __init__(self, on_prefix: Callable[[int, list[int]], None] | None) -> None:
        self._on_prefix = on_prefix
        self._n_told: dict[int, int] = {}
        self._n_found: dict[int, int] = {}

    def again(self) -> None:
        self._n_found.clear()

    def __call__(self, source: int, tokens: list[int]) -> None:
        found, told = self._n_found.get(source, 0), self._n_told.get(source, 0)
        new = tokens[max(0, told - found) :]
        self._n_found[source] = found + len(tokens)
        if new and self._on_prefix is not None:
            self._n_told[source] = found + len(tokens)
            self._on_prefix(source, new)


class HostSearch:
    """The search of `decoding` over a backend's steps. See `backends.Searcher`."""

    where = "host"

    def __init__(self, begin: Begin, kind: SourceKind, why: str = "", *, in_python: bool = False) -> None:
        """in_python: whether numpy's search is used for everything."""
        self._begin = begin
        self._kind = kind
        self.why = why
        self.native = NativeSearches(not in_python)
        self._imprecise: set[GenerationOptions] = set()  # with which sums were imprecise

    def decode(
        self,
        sources: Sequence[Source],
        options: GenerationOptions,
        *,
        alignments: bool | str = False,
        source_numbers: Sequence[int] | None = None,
        wanted: Callable[[int], bool] | None = None,
        on_prefix: Callable[[int, list[int]], None] | None = None,
    ) -> list[list[Hypothesis]]:
        """wanted, on_prefix: of `decoding.decode`."""
        lengths = [self._kind.length(source) for source in sources]
        longest = getattr(self._kind, "longest", None)
        if (
            is_prompt(self._kind)
            and len(set(lengths)) > 1
            and decoding.needs_equal_lengths(options, max(lengths), longest)
        ):
            return self._decode_by_length(sources, lengths, options, source_numbers, wanted, on_prefix)
        ids, options = self._prepared(sources, options)
        told = Told(on_prefix)
        for make, sparse_sums in self._attempts(options):
            try:
                with quiet():
                    state = self._begin(sources, options)
                    return decoding.decode(
                        state,
                        ids,
                        options,
                        alignments=alignments,
                        on_prefix=told if on_prefix is not None else None,
                        source_numbers=source_numbers,
                        source_lengths=lengths,
                        wanted=wanted,
                        sparse_sums=sparse_sums,
                        make=make,
                    )
            except decoding.Imprecise as reason:
                self.remember(options, reason)
                told.again()
        raise AssertionError("the last way is never imprecise")

    def _prepared(
        self, sources: Sequence[Source], options: GenerationOptions
    ) -> tuple[Sequence[Sequence[int]], GenerationOptions]:
        """The ids of sources, and the options of their batch."""
        ids = [self._kind.ids(source) for source in sources]
        if not is_prompt(self._kind):
            return ids, options
        prompts = decoding.Prompts(ids)
        return prompts, decoding.with_prompts(options, prompts, getattr(self._kind, "longest", None))

    def _decode_by_length(
        self,
        sources: Sequence[Source],
        lengths: Sequence[int],
        options: GenerationOptions,
        numbers: Sequence[int] | None,
        wanted: Callable[[int], bool] | None,
        on_prefix: Callable[[int, list[int]], None] | None,
    ) -> list[list[Hypothesis]]:
        """Prompts of each length by themselves, where options count tokens from a text's beginning."""
        found: list[list[Hypothesis]] = [[] for _ in sources]
        for length in sorted(set(lengths)):
            places = [i for i, n in enumerate(lengths) if n == length]
            of_length = self.decode(
                [sources[i] for i in places],
                options,
                source_numbers=[i if numbers is None else numbers[i] for i in places],
                wanted=None if wanted is None else lambda i, places=places: wanted(places[i]),  # type: ignore[misc]
                on_prefix=None if on_prefix is None else lambda i, t, places=places: on_prefix(places[i], t),  # type: ignore[misc]
            )
            for i, hypotheses in zip(places, of_length, strict=True):
                found[i] = hypotheses
        return found

    def stream(self, source: Source, options: GenerationOptions) -> Iterator[list[int]]:
        n_told = 0
        ids, options = self._prepared([source], options)
        for make, sparse_sums in self._attempts(options):
            with quiet():
                state = self._begin([source], options)
                of_one: Any = ids if isinstance(ids, decoding.Prompts) else ids[0]
                parts = decoding.decode_stream(state, of_one, options, sparse_sums=sparse_sums, make=make)
            n_found = 0
            try:
                while True:
                    with quiet():  # ends before the yield: the caller's code keeps numpy's own settings
                        part = next(parts, None)
                    if part is None:
                        return
                    new = part[max(0, n_told - n_found) :]  # without what was told before an earlier way ended
                    n_found += len(part)
                    if new:
                        n_told = n_found
                        yield new
            except decoding.Imprecise as reason:
                self.remember(options, reason)

    def _attempts(self, options: GenerationOptions) -> Iterator[tuple[decoding.Make | None, bool]]:
        """Values of `make` and `sparse_sums` to try."""
        for sparse_sums in self.ways(options):
            yield self.native.make, sparse_sums

    def ways(self, options: GenerationOptions) -> tuple[bool, ...]:
        """Values of `sparse_sums` to try: True is faster, False always precise."""
        return (False,) if options in self._imprecise else (True, False)

    def remember(self, options: GenerationOptions, reason: decoding.Imprecise) -> None:
        """Sums were imprecise with these options: `ways` begins with the precise one from now on."""
        if isinstance(reason, TooMany):
            self.native.remember(options)
            return
        if len(self._imprecise) >= MOST_REMEMBERED:
            self._imprecise.clear()
        self._imprecise.add(options)

    def warm_up(
        self,
        sources: Sequence[Source],
        options: GenerationOptions,
        *,
        streams: bool = False,
        alignments: bool = False,
    ) -> None:
        """Run one step, since libraries set themselves up in their first call."""
        state = self._begin(sources, options)
        first = np.full((len(sources), options.n_rows), options.prompt[0], dtype=np.int64)
        state.step(first, np.zeros_like(first), StepQuery(attention=alignments))

    def release(self) -> None:
        """Nothing to give back: this search keeps nothing between batches."""


def quiet() -> Any:
    """Silence numpy's warnings: extreme option values take scores out of a float's range, as in generate()."""
    return np.errstate(all="ignore")


def choose(backend: Backend, wanted: str, begin: Begin, kind: SourceKind) -> Searcher:
    """The search that `wanted` names. begin: encodes a batch for the host's search. kind: of the sources.

    Raises UnknownOption, InvalidOption if there is no device search, and whatever loading the device's kernels raises.
    """
    if wanted not in SEARCHES:
        raise UnknownOption(wanted, SEARCHES, "search")
    if wanted in ON_HOST:
        return HostSearch(begin, kind, in_python=wanted == "python")
    if is_prompt(kind):
        if wanted != "auto":
            raise InvalidOption(f"search is '{wanted}', but {ONE_PROMPT}; choose 'auto' or 'host'")
        return HostSearch(begin, kind, ONE_PROMPT if isinstance(backend, SearchesItself) else "")
    if not isinstance(backend, SearchesItself):
        if wanted == "auto":
            return HostSearch(begin, kind)
        raise InvalidOption(
            f"search is '{wanted}', but the backend {backend.name} runs its graphs on the host; expected 'auto' or "
            "'host'; choose one of them, or another backend"
        )
    reason = backend.lacks_device_search()
    if reason is not None and wanted != "auto":
        raise InvalidOption(f"search is '{wanted}', but {reason}; choose 'auto' or 'host'")
    if reason is not None:
        return HostSearch(begin, kind, reason)
    try:
        return backend.device_search(MODES[wanted])
    except (BackendError, BuildError) as error:
        raise type(error)(f"the search on the device can't begin: {error}; or choose search='host'") from error
