"""The search on a device: fills its tables, queues steps until the search ends, and reads the tables once.

search_buffers.py has the tables' memory and the graphs. How the steps are queued is the mode:

    "while"    a graph with one WHILE node whose body is the step: one launch a batch
    "replay"   a graph of one step, launched once a step, a few steps ahead of what the host has seen
    "queue"    no graph: every launch by itself, for devices and libraries that refuse graphs
    "auto"     "while" where the device allows it, else "replay"

Users choose them by search="device-while", "device-replay", "device-queue" and "device". A step after the end of a
search changes nothing, so steps may be queued ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...errors import BackendError, InvalidOption, UnknownOption
from ..cuda.faults import DeviceLost
from ..cuda.interface import Device
from ..decoding.hypothesis import Hypothesis
from ..decoding.options import GenerationOptions
from .rules import serialise
from .search_buffers import SearchBuffers
from .step_executor import PromptLogits, StepExecutor
from .stream import StepReports
from .tables import Plan, make_plan

Mode = Literal["auto", "while", "replay", "queue"]
MODES = ("auto", "while", "replay", "queue")
MOST_KEPT = 8  # kinds of calls whose memory and graphs are kept for later ones
NO_WHILE = (
    "the decoder's step is run by a library whose launches no graph can hold, so there is no WHILE graph; expected the "
    "mode 'replay' or 'queue'; take one of them"
)
OnPrefix = Callable[[int, list[int]], None]
Prefix = tuple[int, list[int]]  # a source, and the next tokens of its best output, which nothing can change any more
Running = Generator[Prefix, None, list[list[Hypothesis]]]


class DeviceSearch:
    """Searches for one batch after another, on one device. Not shared between threads: each thread has its own.

    The memory and graphs of the last MOST_KEPT plans (see tables.py) are kept for calls with an equal plan.
    """

    def __init__(self, device: Device, executor: StepExecutor) -> None:
        self.device = device
        self.executor = executor
        self._signature = executor.signature
        self._kept: dict[Plan, SearchBuffers] = {}  # the least recently used first
        self._lost: str | None = None

    def run(
        self,
        sources: Sequence[Sequence[int]],
        options: GenerationOptions,
        *,
        mode: Mode = "auto",
        on_prefix: OnPrefix | None = None,
        source_numbers: Sequence[int] | None = None,
        alignments: bool | str = False,
    ) -> list[list[Hypothesis]]:
        """The outputs of every source, best first. Arguments are those of `decoding.decode`.

        Raises InvalidOption for what a device can't do, DeviceLost when it fails while it decodes.
        """
        running = self.start(
            sources,
            options,
            mode=mode,
            streams=on_prefix is not None,
            source_numbers=source_numbers,
            alignments=alignments,
        )
        while True:
            try:
                source, tokens = next(running)
            except StopIteration as end:
                found: list[list[Hypothesis]] = end.value
                return found
            if on_prefix is not None:
                on_prefix(source, tokens)

    def start(
        self,
        sources: Sequence[Sequence[int]],
        options: GenerationOptions,
        *,
        mode: Mode = "auto",
        streams: bool = True,
        source_numbers: Sequence[int] | None = None,
        alignments: bool | str = False,
        source_lengths: Sequence[int] | None = None,
        watch: PromptLogits | None = None,
    ) -> Running:
        """Begins a search. The generator yields final tokens as they are known, if `streams`, and returns what `run`
        does.

        The device goes on whether or not the caller asks for the next tokens. Closing the generator early waits for
        the steps that are queued.
        """
        chosen = self._mode(mode)
        lengths = [len(source) for source in sources] if source_lengths is None else source_lengths
        try:
            buffers = self._begin(sources, options, streams, alignments, source_numbers, watch)
            return (yield from self._go_on(buffers, lengths, options, chosen, streams))
        except DeviceLost as error:
            self._lost = str(error)
            raise
        except GeneratorExit:  # closed early: steps that are queued still use the memory
            self.device.activate()  # another thread may have closed it
            self.device.synchronize(self.executor.stream)
            raise

    def warm_up(
        self,
        sources: Sequence[Sequence[int]],
        options: GenerationOptions,
        *,
        mode: Mode = "auto",
        streams: bool = False,
        alignments: bool | str = False,
    ) -> None:
        """Takes the memory and makes the graphs that a call like this one needs, by running one step."""
        chosen = self._mode(mode)
        self._begin(sources, options, streams, alignments, None).warm_up(chosen)

    def _begin(
        self,
        sources: Sequence[Sequence[int]],
        options: GenerationOptions,
        streams: bool,
        alignments: bool | str,
        source_numbers: Sequence[int] | None,
        watch: PromptLogits | None = None,
    ) -> SearchBuffers:
        """The call's buffers, with their tables filled and the decoder run over the prompt."""
        if self._lost is not None:
            raise DeviceLost(self._lost)
        if len(sources) != self.executor.n_sources:
            raise InvalidOption(
                f"{len(sources)} sources, but the executor was made for {self.executor.n_sources}; expected as many; "
                "make an executor for this batch"
            )
        numbers = range(len(sources)) if source_numbers is None else source_numbers
        self.device.activate()
        rules, padded = serialise(options, self.executor.vocabulary_size), _padded(sources)
        plan = make_plan(self.executor, options, rules, padded.shape[1], streams=streams, alignments=alignments)
        buffers = self._buffers_of(plan)
        buffers.begin(options, rules, padded, numbers, watch)
        return buffers

    def _go_on(
        self,
        buffers: SearchBuffers,
        source_lengths: Sequence[int],
        options: GenerationOptions,
        mode: Mode,
        streams: bool,
    ) -> Running:
        reports = StepReports(buffers.plan, options.prompt, buffers.reports) if streams else None
        n_read = 0
        for n_steps in buffers.run(mode):
            while reports is not None and n_read < n_steps:
                for prefix in reports.read(n_read):
                    yield prefix
                    self.device.activate()  # another thread may ask for the next one
                n_read += 1
        results = buffers.results(options, source_lengths)
        for source, outputs in enumerate(results):
            if reports is not None and (rest := reports.finish(source, outputs[0].token_ids)):
                yield source, rest
                self.device.activate()
        return results

    def _mode(self, mode: Mode) -> Mode:
        if mode not in MODES:
            raise UnknownOption(mode, MODES, "loop mode")
        can_repeat = self.device.while_graphs and self.executor.capturable
        if mode == "auto":
            return "while" if can_repeat else "replay"
        if mode == "while" and not self.executor.capturable:
            raise BackendError(NO_WHILE)
        if mode == "while" and not self.device.while_graphs:
            raise BackendError(
                f"{self.device.name} has no WHILE graphs; expected a driver of CUDA 12.4 or later; update it, or take "
                "the mode 'replay'"
            )
        return mode

    def _buffers_of(self, plan: Plan) -> SearchBuffers:
        buffers = self._kept.pop(plan, None)
        while buffers is None and len(self._kept) >= MOST_KEPT:
            self.drop_oldest()
        if buffers is None:
            buffers = SearchBuffers(self.device, self.executor, plan)
        self._kept[plan] = buffers
        return buffers

    @property
    def n_kept(self) -> int:
        """The number of plans whose memory and graphs are kept."""
        return len(self._kept)

    def drop_oldest(self) -> None:
        """Gives back the memory and graphs of the plan that was used longest ago."""
        self._kept.pop(next(iter(self._kept))).close()

    def use(self, executor: StepExecutor) -> None:
        """Goes on with another batch. Memory and graphs are kept if its step is the same launch as the last one's."""
        if self._signature != executor.signature:
            self.close()
        self.executor = executor
        self._signature = executor.signature
        for buffers in self._kept.values():
            buffers.use(executor)

    def close(self) -> None:
        """Gives memory and graphs back."""
        for buffers in self._kept.values():
            buffers.close()
        self._kept.clear()


def _padded(sources: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    out = np.full((len(sources), max(map(len, sources), default=0)), -1, np.int64)
    for row, source in zip(out, sources, strict=True):
        row[: len(source)] = source
    return out
