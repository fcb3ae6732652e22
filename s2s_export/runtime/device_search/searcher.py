"""Whole decodes on a device for a session: any number of sources, from several threads.

A batch runs in a slot: memory, a stream, a library's execution contexts, and the graphs that were captured with them.
No other batch uses the slot meanwhile. (The slots of K/V caches are something else.) Idle slots are kept for batches of
the same shape, which find memory and graphs in them. A backend makes slots (`SlotFactory`).
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from ...errors import BackendError
from ..cuda.faults import DeviceLost, OutOfMemory
from ..cuda.interface import Device
from ..decoding.hypothesis import Hypothesis
from ..decoding.options import GenerationOptions
from ..sources import Source, SourceKind
from .loop import MOST_KEPT, DeviceSearch, Mode, Running
from .step_executor import PromptLogits, StepExecutor

DEFAULT_STREAM = 0


class Slot(Protocol):
    """What batches run in, one after another. Not shared between threads."""

    def begin(
        self, sources: Sequence[Source], options: GenerationOptions, *, graphs: bool, alignments: bool
    ) -> StepExecutor:
        """Encodes a batch. The executor of the slot's last batch must not be used after this.

        graphs: whether encoder and cross-KV-init may be captured into a graph. alignments: whether a step has to give
        its attention.
        """
        ...

    def close(self) -> None:
        """Gives all memory back."""
        ...


class SlotFactory(Protocol):
    """A backend, as the search on the device sees it. kind: of the sources. most_sources: of one batch, None for
    any number."""

    device: Device
    kind: SourceKind
    most_sources: int | None

    def shape_of(self, sources: Sequence[Source], options: GenerationOptions) -> Hashable:
        """The batch's shape: batches of equal shape make the same launches. Raises what `begin` would for a batch that
        is too large."""
        ...

    def make(self) -> Slot: ...


@dataclass
class _SearchSlot:
    """A slot, the shape of its last batch, and the search with the graphs that were captured there."""

    slot: Slot
    shape: Hashable = None
    search: DeviceSearch | None = None

    @property
    def n_kept(self) -> int:
        """Kinds of calls whose memory it keeps; at least itself."""
        return max(1, self.search.n_kept if self.search is not None else 0)

    def close(self) -> None:
        if self.search is not None:
            self.search.close()
        self.slot.close()


class DeviceSearcher:
    """See `backends.Searcher`. Safe to use from several threads: each batch in flight has a slot of its own."""

    where = "device"
    why = ""

    def __init__(self, factory: SlotFactory, mode: Mode = "auto") -> None:
        self._factory = factory
        self._mode: Mode = mode
        self._idle: list[_SearchSlot] = []  # the least recently used first
        self._lock = threading.Lock()
        self._lost: str | None = None

    def decode(
        self,
        sources: Sequence[Source],
        options: GenerationOptions,
        *,
        alignments: bool | str = False,
        source_numbers: Sequence[int] | None = None,
        watch: PromptLogits | None = None,
    ) -> list[list[Hypothesis]]:
        """As `decoding.decode`. More sources than the backend takes at once are decoded in parts, one after another."""
        numbers = range(len(sources)) if source_numbers is None else source_numbers
        found: list[list[Hypothesis]] = []
        for part in self._parts(len(sources)):
            running = self._run(
                sources[part], options, numbers[part], streams=False, alignments=alignments, watch=watch
            )
            found += _result(running)
        return found

    def stream(self, source: Source, options: GenerationOptions) -> Iterator[list[int]]:
        """As `decoding.decode_stream`. The device goes on whether or not the caller asks for the next tokens."""
        for _, tokens in self._run([source], options, [0], streams=True, alignments=False):
            yield tokens

    def _run(
        self,
        sources: Sequence[Source],
        options: GenerationOptions,
        numbers: Sequence[int],
        *,
        streams: bool,
        alignments: bool | str,
        watch: PromptLogits | None = None,
    ) -> Running:
        """One batch in a slot. Where memory is too small, that of idle slots is given back, and the batch runs
        again."""
        n_watched = 0 if watch is None else len(watch.found)
        for attempt in range(2):
            try:
                with self._slot_with(sources, options, bool(alignments)) as search:
                    return (
                        yield from search.start(
                            self._ids_of(sources),
                            options,
                            mode=self._mode,
                            streams=streams,
                            source_numbers=numbers,
                            alignments=alignments,
                            source_lengths=[self._factory.kind.length(source) for source in sources],
                            watch=watch,
                        )
                    )
            except OutOfMemory:
                if attempt:
                    raise
                if watch is not None:
                    del watch.found[n_watched:]
                self.release()
        raise AssertionError("not reached: the second attempt returns or raises")

    @contextmanager
    def _slot_with(
        self, sources: Sequence[Source], options: GenerationOptions, alignments: bool
    ) -> Iterator[DeviceSearch]:
        """The search for a batch, which is encoded in a slot of its own. The slot is idle again afterwards."""
        if self._lost is not None:
            raise DeviceLost(self._lost)
        slot = self._take(self._factory.shape_of(sources, options))
        try:
            executor = slot.slot.begin(sources, options, graphs=self._mode != "queue", alignments=alignments)
            if slot.search is None:
                slot.search = DeviceSearch(self._factory.device, executor)
            else:
                slot.search.use(executor)
            yield slot.search
        except DeviceLost as error:
            self._lost = str(error)
            raise
        except BackendError as error:
            if (lost := self._find_lost()) is None:
                raise
            self._lost = str(lost)
            raise lost from error
        finally:
            self._give_back(slot)

    def _ids_of(self, sources: Sequence[Source]) -> list[Sequence[int]]:
        """What decoding rules may read of each source."""
        return [self._factory.kind.ids(source) for source in sources]

    def _find_lost(self) -> DeviceLost | None:
        """Whether a library's failure was the loss of the device: the library doesn't say, the driver does."""
        try:
            self._factory.device.synchronize(DEFAULT_STREAM)
        except DeviceLost as lost:
            return lost
        return None

    def _parts(self, n_sources: int) -> list[slice]:
        size = self._factory.most_sources or max(n_sources, 1)
        return [slice(first, first + size) for first in range(0, n_sources, size)]

    def _take(self, shape: Hashable) -> _SearchSlot:
        """An idle slot whose last batch had this shape; otherwise a new slot or, if enough is kept already,
        the slot that was used longest ago."""
        self._factory.device.activate()
        with self._lock:
            found = next((slot for slot in reversed(self._idle) if slot.shape == shape), None)
            if found is None and self._idle and self._n_kept() >= MOST_KEPT:
                found = self._idle[0]
            if found is not None:
                self._idle.remove(found)
        found = found or _SearchSlot(self._factory.make())
        found.shape = shape
        return found

    def _n_kept(self) -> int:
        return sum(slot.n_kept for slot in self._idle)

    def _give_back(self, slot: _SearchSlot) -> None:
        """The slot is idle. What was used longest ago is dropped until MOST_KEPT kinds of calls are kept in all."""
        if self._lost is not None:
            return  # its memory went with the device
        with self._lock:
            self._idle.append(slot)
            while self._n_kept() > MOST_KEPT:
                oldest = self._idle[0]
                if oldest.n_kept > 1 and oldest.search is not None:
                    oldest.search.drop_oldest()
                else:
                    self._idle.pop(0).close()

    def warm_up(
        self,
        sources: Sequence[Source],
        options: GenerationOptions,
        *,
        streams: bool = False,
        alignments: bool = False,
    ) -> None:
        """Takes the memory and makes the graphs that batches like this one need."""
        for part in self._parts(len(sources)):
            with self._slot_with(sources[part], options, alignments) as search:
                search.warm_up(
                    self._ids_of(sources[part]), options, mode=self._mode, streams=streams, alignments=alignments
                )

    def release(self) -> None:
        """Gives the memory and graphs of idle slots back."""
        self._factory.device.activate()
        with self._lock:
            idle, self._idle = self._idle, []
        for slot in idle:
            slot.close()


def _result(running: Running) -> list[list[Hypothesis]]:
    while True:
        try:
            next(running)
        except StopIteration as end:
            found: list[list[Hypothesis]] = end.value
            return found
