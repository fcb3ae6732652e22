"""Chooses where the search runs: on the device that runs the graphs, or on the host, step by step.

    "auto"    the device if the backend has one and the model suits it; otherwise `Searcher.why` is the reason
    "device"  the device, or an error; "device-while", "device-replay" and "device-queue" say how (docs/gpu.md)
    "host"    the host

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
from .sources import Source, SourceKind

MODES = {"auto": "auto", "device": "auto", "device-while": "while", "device-replay": "replay", "device-queue": "queue"}
SEARCHES = (*MODES, "host")

Begin = Callable[[Sequence[Source], GenerationOptions], DecodeState]


class HostSearch:
    """The search of `decoding` over a backend's steps. See `backends.Searcher`."""

    where = "host"

    def __init__(self, begin: Begin, kind: SourceKind, why: str = "") -> None:
        self._begin = begin
        self._kind = kind
        self.why = why

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
        with quiet():
            state = self._begin(sources, options)
            return decoding.decode(
                state,
                [self._kind.ids(source) for source in sources],
                options,
                alignments=alignments,
                source_numbers=source_numbers,
                source_lengths=[self._kind.length(source) for source in sources],
                wanted=wanted,
                on_prefix=on_prefix,
            )

    def stream(self, source: Source, options: GenerationOptions) -> Iterator[list[int]]:
        with quiet():
            parts = decoding.decode_stream(self._begin([source], options), self._kind.ids(source), options)
        while True:
            with quiet():  # ends before the yield: the caller's code keeps numpy's own settings
                part = next(parts, None)
            if part is None:
                return
            yield part

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
    if wanted == "host":
        return HostSearch(begin, kind)
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
