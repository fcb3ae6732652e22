"""Whole decodes on a device for a session: any number of sources, from several threads.

A batch runs in a place: memory, a stream and the graphs of a backend, which nothing else uses meanwhile. Places are
kept for batches of the same shape, whose graphs they hold. A backend says how to make them (`Places`).
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from ...errors import BackendError, InvalidOption
from ..cuda.faults import DeviceLost, OutOfMemory
from ..cuda.interface import Device
from ..decoding.hypothesis import Hypothesis
from ..decoding.options import GenerationOptions
from .loop import DeviceSearch, Mode, Running
from .step_executor import StepExecutor

MOST_IDLE = 4  # places that are kept while nobody decodes in them, each of a shape of its own

DEFAULT_STREAM = 0


class Place(Protocol):
    """What batches use one after another. Not shared between threads."""

    def begin(
        self, sources: Sequence[Sequence[int]], options: GenerationOptions, *, graphs: bool, alignments: bool
    ) -> StepExecutor:
        """Encodes a batch. The executor before is over. graphs: whether what runs once a batch may be captured.
        alignments: whether a step has to give its attention."""
        ...

    def close(self) -> None: ...


class Places(Protocol):
    """A backend for the search on the device. most_sources: of one batch, None for any number."""

    device: Device
    most_sources: int | None

    def shape_of(self, sources: Sequence[Sequence[int]], options: GenerationOptions) -> Hashable:
        """Equal for batches whose launches are. Raises what `begin` would for a batch that is too large."""
        ...

    def make(self) -> Place: ...


@dataclass
class _Seat:
    """A place, the shape of its last batch, and the search that has its graphs."""

    place: Place
    shape: Hashable = None
    search: DeviceSearch | None = None

    def close(self) -> None:
        if self.search is not None:
            self.search.close()
        self.place.close()


class DeviceSearcher:
    """See `backends.Searcher`. Safe to use from several threads: each batch in flight has a place of its own."""

    where = "device"
    why = ""

    def __init__(self, places: Places, mode: Mode = "auto") -> None:
        self._places = places
        self._mode: Mode = mode
        self._idle: list[_Seat] = []  # the one used last is the last
        self._lock = threading.Lock()
        self._lost: str | None = None

    def decode(
        self,
        sources: Sequence[Sequence[int]],
        options: GenerationOptions,
        *,
        alignments: bool | str = False,
        source_numbers: Sequence[int] | None = None,
    ) -> list[list[Hypothesis]]:
        """As `decoding.decode`. More sources than the backend takes at once are decoded in parts, one after another."""
        if alignments == "heads":
            raise InvalidOption(
                "alignments is 'heads', every head of every layer, of which the search on the device keeps only the "
                "last layer's mean; expected True or False; take alignments=True, or load with search='host'"
            )
        numbers = range(len(sources)) if source_numbers is None else source_numbers
        found: list[list[Hypothesis]] = []
        for part in self._parts(len(sources)):
            running = self._run(sources[part], options, numbers[part], tells=False, alignments=bool(alignments))
            found += _result(running)
        return found

    def stream(self, source: Sequence[int], options: GenerationOptions) -> Iterator[list[int]]:
        """As `decoding.decode_stream`. The device does not wait while nobody asks for the next tokens."""
        for _, tokens in self._run([source], options, [0], tells=True, alignments=False):
            yield tokens

    def _run(
        self,
        sources: Sequence[Sequence[int]],
        options: GenerationOptions,
        numbers: Sequence[int],
        *,
        tells: bool,
        alignments: bool,
    ) -> Running:
        """One batch in a place; once more without the memory that is kept for others, where there was no room."""
        for attempt in range(2):
            try:
                with self._seated(sources, options, alignments) as search:
                    return (
                        yield from search.start(
                            sources,
                            options,
                            mode=self._mode,
                            tells=tells,
                            source_numbers=numbers,
                            alignments=alignments,
                        )
                    )
            except OutOfMemory:
                if attempt:
                    raise
                self.release()
        raise AssertionError("not reached: the second attempt returns or raises")

    @contextmanager
    def _seated(
        self, sources: Sequence[Sequence[int]], options: GenerationOptions, alignments: bool
    ) -> Iterator[DeviceSearch]:
        """The batch encoded in a place of its own, with the search that has its graphs."""
        if self._lost is not None:
            raise DeviceLost(self._lost)
        seat = self._take(self._places.shape_of(sources, options))
        try:
            executor = seat.place.begin(sources, options, graphs=self._mode != "queue", alignments=alignments)
            if seat.search is None:
                seat.search = DeviceSearch(self._places.device, executor)
            else:
                seat.search.use(executor)
            yield seat.search
        except DeviceLost as error:
            self._lost = str(error)
            raise
        except BackendError as error:
            if (lost := self._find_lost()) is None:
                raise
            self._lost = str(lost)
            raise lost from error
        finally:
            self._give_back(seat)

    def _find_lost(self) -> DeviceLost | None:
        """A library says only that it failed; the driver knows whether that was the device."""
        try:
            self._places.device.synchronize(DEFAULT_STREAM)
        except DeviceLost as lost:
            return lost
        return None

    def _parts(self, n_sources: int) -> list[slice]:
        size = self._places.most_sources or max(n_sources, 1)
        return [slice(first, first + size) for first in range(0, n_sources, size)]

    def _take(self, shape: Hashable) -> _Seat:
        """A place that had this shape last; else a new one, or the one that was idle longest."""
        self._places.device.activate()
        with self._lock:
            found = next((seat for seat in reversed(self._idle) if seat.shape == shape), None)
            if found is None and len(self._idle) >= MOST_IDLE:
                found = self._idle[0]
            if found is not None:
                self._idle.remove(found)
        found = found or _Seat(self._places.make())
        found.shape = shape
        return found

    def _give_back(self, seat: _Seat) -> None:
        if self._lost is not None:
            return  # its memory went with the device
        with self._lock:
            self._idle.append(seat)
            surplus = self._idle[:-MOST_IDLE]
            del self._idle[:-MOST_IDLE]
        for old in surplus:
            old.close()

    def warm_up(
        self,
        sources: Sequence[Sequence[int]],
        options: GenerationOptions,
        *,
        streams: bool = False,
        alignments: bool = False,
    ) -> None:
        """What the first batch like this one sets up, memory and graphs."""
        for part in self._parts(len(sources)):
            with self._seated(sources[part], options, alignments) as search:
                search.warm_up(sources[part], options, mode=self._mode, tells=streams, alignments=alignments)

    def release(self) -> None:
        """Gives the memory and graphs of idle places back."""
        self._places.device.activate()
        with self._lock:
            idle, self._idle = self._idle, []
        for seat in idle:
            seat.close()


def _result(running: Running) -> list[list[Hypothesis]]:
    while True:
        try:
            next(running)
        except StopIteration as end:
            found: list[list[Hypothesis]] = end.value
            return found
