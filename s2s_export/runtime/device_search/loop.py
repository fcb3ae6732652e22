"""The loop on a device: tables are filled, steps are queued, the tables come back once (held.py). Modes:

    "while"    a graph with one WHILE node whose body is the step: one launch a batch
    "replay"   a graph of one step, launched once a step, a few steps ahead of what the host has seen
    "queue"    no graph: every launch by itself
    "auto"     "while" where the device allows it, else "replay"

A step after the end changes nothing, so that steps may be queued ahead.
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
from .held import Held
from .rules import serialise
from .step_executor import StepExecutor, is_capturable
from .stream import News
from .tables import Plan, make_plan

Mode = Literal["auto", "while", "replay", "queue"]
MODES = ("auto", "while", "replay", "queue")
MOST_PLANS = 4  # kinds of calls whose memory and graphs are kept
NO_WHILE = (
    "the decoder's step is run by a library whose launches no graph can hold, so there is no WHILE graph; expected the "
    "mode 'replay' or 'queue'; take one of them"
)
OnPrefix = Callable[[int, list[int]], None]
Told = tuple[int, list[int]]  # a source, and tokens of its best output that became sure
Running = Generator[Told, None, list[list[Hypothesis]]]


class DeviceSearch:
    """Searches of one executor after another batch, on one device. Not shared between threads; threads have one each.

    Memory and graphs of the last few plans are kept for calls with equal ones.
    """

    def __init__(self, device: Device, executor: StepExecutor) -> None:
        self.device = device
        self.executor = executor
        self._signature = executor.signature
        self._held: Held | None = None  # what the last call ran on
        self._kept: dict[Plan, Held] = {}  # the one used last is the last
        self._lost: str | None = None

    def run(
        self,
        sources: Sequence[Sequence[int]],
        options: GenerationOptions,
        *,
        mode: Mode = "auto",
        on_prefix: OnPrefix | None = None,
        source_numbers: Sequence[int] | None = None,
        alignments: bool = False,
    ) -> list[list[Hypothesis]]:
        """The outputs of every source, best first. Arguments are those of `decoding.decode`.

        Raises InvalidOption for what a device can't do, DeviceLost when it fails while it decodes.
        """
        running = self.start(
            sources,
            options,
            mode=mode,
            tells=on_prefix is not None,
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
        tells: bool = True,
        source_numbers: Sequence[int] | None = None,
        alignments: bool = False,
    ) -> Running:
        """A search that goes on while its generator is asked: it yields what becomes sure, if `tells`, and returns what
        `run` does. The device does not wait for the asking. Closed early, it waits for what is queued."""
        chosen = self._mode(mode)
        try:
            held = self._begin(sources, options, tells, alignments, source_numbers)
            return (yield from self._go_on(held, sources, options, chosen, tells))
        except DeviceLost as error:
            self._lost = str(error)
            raise
        except GeneratorExit:  # nobody asks any more; what is queued still uses the memory
            self.device.activate()  # whoever closes it may be another thread
            self.device.synchronize(self.executor.stream)
            raise

    def warm_up(
        self,
        sources: Sequence[Sequence[int]],
        options: GenerationOptions,
        *,
        mode: Mode = "auto",
        tells: bool = False,
        alignments: bool = False,
    ) -> None:
        """A step and no more, so that a call like this one finds memory and graphs."""
        chosen = self._mode(mode)
        self._begin(sources, options, tells, alignments, None).warm_up(chosen)

    def _begin(
        self,
        sources: Sequence[Sequence[int]],
        options: GenerationOptions,
        tells: bool,
        alignments: bool,
        source_numbers: Sequence[int] | None,
    ) -> Held:
        """Memory with the tables filled, and the prompt fed."""
        if self._lost is not None:
            raise DeviceLost(self._lost)
        if len(sources) != self.executor.n_sources:
            raise InvalidOption(
                f"{len(sources)} sources for an executor of {self.executor.n_sources}; expected as many; "
                "make it for the batch that is decoded"
            )
        numbers = range(len(sources)) if source_numbers is None else source_numbers
        self.device.activate()
        rules, padded = serialise(options, self.executor.vocabulary_size), _padded(sources)
        plan = make_plan(self.executor, options, rules, padded.shape[1], streams=tells, alignments=alignments)
        held = self._hold(plan)
        held.begin(options, rules, padded, numbers)
        return held

    def _go_on(
        self, held: Held, sources: Sequence[Sequence[int]], options: GenerationOptions, mode: Mode, tells: bool
    ) -> Running:
        news = News(held.plan, options.prompt, held.news) if tells else None
        n_told = 0
        for n_steps in held.run(mode):
            while news is not None and n_told < n_steps:
                for told in news.read(n_told):
                    yield told
                    self.device.activate()  # whoever asks for the next may be another thread
                n_told += 1
        results = held.results(options, [len(source) for source in sources])
        for source, outputs in enumerate(results):
            if news is not None and (rest := news.finish(source, outputs[0].token_ids)):
                yield source, rest
                self.device.activate()
        return results

    def _mode(self, mode: Mode) -> Mode:
        if mode not in MODES:
            raise UnknownOption(mode, MODES, "loop mode")
        can_repeat = self.device.while_graphs and is_capturable(self.executor)
        if mode == "auto":
            return "while" if can_repeat else "replay"
        if mode == "while" and not is_capturable(self.executor):
            raise BackendError(NO_WHILE)
        if mode == "while" and not self.device.while_graphs:
            raise BackendError(
                f"{self.device.name} has no WHILE graphs; expected a driver of CUDA 12.4 or later; update it, or take "
                "the mode 'replay'"
            )
        return mode

    def _hold(self, plan: Plan) -> Held:
        held = self._kept.pop(plan, None)
        while held is None and len(self._kept) >= MOST_PLANS:
            self._kept.pop(next(iter(self._kept))).close()
        if held is None:
            held = Held(self.device, self.executor, plan)
        self._held = self._kept[plan] = held
        return held

    def use(self, executor: StepExecutor) -> None:
        """Another batch. Memory and graphs stay where its step is the same launch as the last one's."""
        if self._signature != executor.signature:
            self.close()
        self.executor = executor
        self._signature = executor.signature
        for held in self._kept.values():
            held.use(executor)

    def close(self) -> None:
        """Gives memory and graphs back."""
        for held in self._kept.values():
            held.close()
        self._kept.clear()
        self._held = None


def _padded(sources: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    out = np.full((len(sources), max(map(len, sources), default=0)), -1, np.int64)
    for row, source in zip(out, sources, strict=True):
        row[: len(source)] = source
    return out
