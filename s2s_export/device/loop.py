"""The loop on a device: tables are filled, steps are queued, the tables come back once.

A step is the decoder's own launches and those of `steps.py`. The first step after a change of plan is queued launch by
launch, as libraries set themselves up in their first call; then it is captured. Modes:

    "while"    a graph with one WHILE node whose body is the step: one launch a batch
    "replay"   a graph of one step, launched once a step, a few steps ahead of what the host has seen
    "queue"    no graph: every launch by itself
    "auto"     "while" where the device allows it, else "replay"

A step after the end changes nothing, so that steps may be queued ahead.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..decoding.hypothesis import Hypothesis
from ..decoding.options import GenerationOptions
from ..errors import BackendError, InvalidOption, UnknownOption
from . import walk
from .faults import DeviceLost
from .interface import Device, Graph, StepExecutor, is_capturable
from .rules import DeviceRules, serialise
from .steps import StepLaunches
from .stream import News
from .tables import Arena, Plan, first_values, make_plan

Mode = Literal["auto", "while", "replay", "queue"]
MODES = ("auto", "while", "replay", "queue")
ASK_SECONDS = 0.001  # between two questions to the driver whether all is well
STEPS_AHEAD = 2  # steps queued beyond the last one known to have run: hides the launch, wastes at most so many
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
        self._held: _Held | None = None  # what the last call ran on
        self._kept: dict[Plan, _Held] = {}  # the one used last is the last
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
    ) -> _Held:
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
        self, held: _Held, sources: Sequence[Sequence[int]], options: GenerationOptions, mode: Mode, tells: bool
    ) -> Running:
        news = News(held.plan, options.prompt, held.news) if tells else None
        n_told = 0
        for n_steps in held.run(mode):
            while news is not None and n_told < n_steps:
                yield from news.read(n_told)
                n_told += 1
        results = held.results(options, [len(source) for source in sources])
        for source, outputs in enumerate(results):
            if news is not None and (rest := news.finish(source, outputs[0].token_ids)):
                yield source, rest
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

    def _hold(self, plan: Plan) -> _Held:
        held = self._kept.pop(plan, None)
        while held is None and len(self._kept) >= MOST_PLANS:
            self._kept.pop(next(iter(self._kept))).close()
        if held is None:
            held = _Held(self.device, self.executor, plan)
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


class _Held:
    """Memory and graphs of one plan."""

    def __init__(self, device: Device, executor: StepExecutor, plan: Plan) -> None:
        self.plan = plan
        self._device = device
        self._executor = executor
        self._stream = executor.stream
        self._arena = Arena(plan)
        what = f"the tables of {plan.n_sources} sources with {plan.beams} beams and {plan.vocabulary} tokens"
        self._address = device.allocate(self._arena.n_bytes, what)
        self._image = np.zeros(self._arena.image_bytes, np.uint8)
        self.news, news_address = device.mapped((plan.limit, plan.n_sources, 2 * plan.beams + 4), np.int32)
        self._progress, progress_address = device.mapped((2,), np.int32)
        addresses = {name: self._address + offset for name, offset in self._arena.offsets.items()}
        addresses |= {"news": news_address if plan.streams else 0, "progress": progress_address}
        self._launches = StepLaunches(plan, executor, addresses)
        self._graphs: dict[str, Graph] = {}

    def begin(
        self, options: GenerationOptions, rules: DeviceRules, padded: NDArray[np.int64], numbers: Sequence[int]
    ) -> None:
        """Fills the tables, and feeds the prompt but for its last token."""
        device, plan, mask = self._device, self.plan, (1 << 64) - 1
        first_values(self._arena, self._image, options, rules, padded)
        seed = secrets.randbits(64) if options.seed is None else options.seed & mask
        self._arena.view("seed", self._image)[0] = seed
        self._arena.view("numbers", self._image)[:] = np.array([number & mask for number in numbers], np.uint64)
        self._progress[:] = 0
        device.to_device(self._address, self._image, self._stream)
        if self._executor.ancestors:
            # Every beam has written its own prompt; later entries are set when their position is reached.
            ancestors = np.empty((plan.n_sources, plan.beams, plan.capacity), np.int64)
            ancestors[...] = np.arange(plan.beams)[:, None]
            device.to_device(self._executor.ancestors, ancestors, self._stream)
            device.synchronize(self._stream)
        for position, token in enumerate(options.prompt):
            fed = np.full((plan.n_sources, plan.beams), token, np.int64)
            at = np.array([position], np.int64)
            device.to_device(self._executor.token, fed, self._stream)
            device.to_device(self._executor.position, at, self._stream)
            if position < plan.prompt - 1:
                self._executor.enqueue(self._stream)
            device.synchronize(self._stream)  # the arrays above may go

    def use(self, executor: StepExecutor) -> None:
        self._executor = executor

    # Steps

    def _queue_step(self, condition: int = 0) -> None:
        self._executor.enqueue(self._stream)
        self._queue_search(condition)

    def _queue_search(self, condition: int = 0) -> None:
        for launch, given in self._launches.queue(condition):
            self._device.run(launch, given, self._stream)

    def _capture(self, mode: Mode) -> Graph | None:
        """The graph of a mode, made where it has yet to be; for use after a step that was queued."""
        if mode == "queue":
            return None
        if mode not in self._graphs:
            self._device.synchronize(self._stream)
            body = self._queue_step if is_capturable(self._executor) else self._queue_search
            capture: Callable[..., Graph] = self._device.capture_while if mode == "while" else self._device.capture
            try:
                self._graphs[mode] = capture(self._stream, body)
            except DeviceLost:
                raise
            except BackendError as error:
                raise not_captured(error, "device-replay" if mode == "while" else "device-queue") from error
        return self._graphs[mode]

    def warm_up(self, mode: Mode) -> None:
        self._queue_step()
        self._capture(mode)
        self._device.synchronize(self._stream)

    def run(self, mode: Mode) -> Iterator[int]:
        """How many steps have run, whenever that changes."""
        return self._run_while() if mode == "while" else self._run_steps(mode)

    def _run_while(self) -> Iterator[int]:
        if "while" not in self._graphs:  # the first step of a plan is queued and not captured
            self._queue_step()
            yield from self._wait(1)
            if self._progress[1]:
                return
        graph = self._capture("while")
        assert graph is not None
        graph.launch(self._stream)
        yield from self._wait(self.plan.limit)

    def _run_steps(self, mode: Mode) -> Iterator[int]:
        """Step by step. Of a step that no graph can hold, the graph has what follows it."""
        can_capture = is_capturable(self._executor)
        ahead = STEPS_AHEAD if can_capture else 0
        for step in range(self.plan.limit):
            graph = self._graphs.get(mode)
            if graph is None:
                self._queue_step()
            else:
                if not can_capture:
                    self._executor.enqueue(self._stream)
                graph.launch(self._stream)
            yield from self._wait(step + 1 - ahead)
            if self._progress[1]:
                break
            self._capture(mode)
        yield from self._wait(self.plan.limit)

    def _wait(self, n_steps: int) -> Iterator[int]:
        """Until so many steps have run, or the search is at its end. Looks at mapped memory and asks the driver at
        times, which is how a lost device shows."""
        seen, asked = -1, time.monotonic()
        while True:
            done, stop = int(self._progress[0]), int(self._progress[1])
            if done != seen:
                yield done
                seen = done
            if stop or done >= n_steps:
                return
            if time.monotonic() - asked > ASK_SECONDS:
                asked = time.monotonic()
                if self._device.is_idle(self._stream) and int(self._progress[0]) == seen and not self._progress[1]:
                    raise BackendError(
                        f"{self._device.name} has nothing left to do after {seen} steps and the search has not ended; "
                        "expected a step to say so; this is a defect, report it"
                    )
            time.sleep(0)  # other threads' searches need Python too

    # The end

    def results(self, options: GenerationOptions, source_lengths: Sequence[int]) -> list[list[Hypothesis]]:
        names = [*(walk.BEAM_TABLES if self.plan.is_beam_search else walk.ROW_TABLES)]
        names += ["alignment"] if self.plan.attention is not None else []
        n_steps = int(self._progress[0])
        if self.plan.is_cut and n_steps == self.plan.limit:
            positions = self.plan.prompt + self.plan.limit - 1
            raise BackendError(
                f"the engine has no position {positions}: it was built for {positions} tokens; raise ranges.T in its "
                "recipe and build it again, or lower max_new_tokens"
            )
        tables: dict[str, NDArray[Any]] = {}
        for name in names:
            shape, dtype = self._arena.tables[name]
            if shape[0] == self.plan.limit and len(shape) >= 3:
                shape = (n_steps, *shape[1:])  # the rest was never written
            tables[name] = np.empty(shape, dtype)
            self._device.to_host(tables[name], self._address + self._arena.offsets[name], self._stream)
        self._device.synchronize(self._stream)
        read = walk.beams if self.plan.is_beam_search else walk.rows
        return read(tables, options, source_lengths)

    def close(self) -> None:
        for graph in self._graphs.values():
            graph.close()
        self._graphs.clear()
        self._device.free(self._address)
        self._device.release_mapped(self.news)
        self._device.release_mapped(self._progress)


def not_captured(error: BackendError, other: str) -> BackendError:
    """What to do where the driver or a library does not allow a graph. other: a search that does without it."""
    return BackendError(f"no graph of the decoder could be made: {error}; or load with search='{other}'")


def _padded(sources: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    out = np.full((len(sources), max(map(len, sources), default=0)), -1, np.int64)
    for row, source in zip(out, sources, strict=True):
        row[: len(source)] = source
    return out
