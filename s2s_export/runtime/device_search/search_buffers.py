"""The memory and the graphs of one kind of call (a plan), and how a step is queued, captured and repeated.

A step is the decoder's own launches and those of `steps.py`. The first step of a plan is queued launch by launch, as
libraries set themselves up in their first call; then it is captured. loop.py has the modes.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BackendError
from ..cuda.faults import DeviceLost
from ..cuda.interface import Device, Graph
from ..decoding.hypothesis import Hypothesis
from ..decoding.options import GenerationOptions
from . import backtrack
from .rules import DeviceRules
from .step_executor import FindsCandidates, PromptLogits, StepExecutor, read_logits
from .steps import StepLaunches
from .tables import Arena, Plan, first_values

ASK_SECONDS = 0.001  # how often the driver is asked whether the stream still works
STEPS_AHEAD = (
    6  # steps queued beyond the last one known to have run: hides the launch time, and wastes at most so many steps
)
SPIN_SECONDS = 0.0003  # a wait polls this long before it yields the processor, as yielding alone takes some 50 us
STOPPED = 1 << 32  # S2S_STOPPED of loop_parameters.h


class SearchBuffers:
    """Memory and graphs of one plan, for one batch after another.

    reports [T, B, 2K + 4] int32: what each step says of the outputs, in host memory that the device writes; stream.py
    reads it.
    """

    def __init__(self, device: Device, executor: StepExecutor, plan: Plan) -> None:
        self.plan = plan
        self._device = device
        self._executor = executor
        self._stream = executor.stream
        self._arena = Arena(plan)
        what = f"the tables of {plan.n_sources} sources with {plan.beams} beams and {plan.vocabulary} tokens"
        self._address = device.allocate(self._arena.n_bytes, what)
        self._image = np.zeros(self._arena.image_bytes, np.uint8)
        self.reports, reports_address = device.mapped((plan.limit, plan.n_sources, 2 * plan.beams + 4), np.int32)
        self._progress, progress_address = device.mapped((1,), np.uint64)
        addresses = {name: self._address + offset for name, offset in self._arena.offsets.items()}
        addresses |= {"news": reports_address if plan.streams else 0, "progress": progress_address}
        self._launches = StepLaunches(plan, executor, addresses)
        self._candidates = self._launches.candidate_tables
        self._graphs: dict[str, Graph] = {}

    def begin(
        self,
        options: GenerationOptions,
        rules: DeviceRules,
        padded: NDArray[np.int64],
        numbers: Sequence[int],
        watch: PromptLogits | None = None,
    ) -> None:
        """Fills the tables for a batch, and runs the decoder over the prompt except for its last token.

        padded [B, S]: the sources' token ids, -1 behind them. numbers: of the sources, as draws count them. watch: what
        is wanted of a step in the prompt; behind the last token that step runs once more, with the same result.
        """
        device, plan, mask = self._device, self.plan, (1 << 64) - 1
        first_values(self._arena, self._image, options, rules, padded)
        seed = secrets.randbits(64) if options.seed is None else options.seed & mask
        self._arena.view("seed", self._image)[0] = seed
        self._arena.view("numbers", self._image)[:] = np.array([number & mask for number in numbers], np.uint64)
        self._progress[:] = 0
        device.to_device(self._address, self._image, self._stream)
        if plan.has_filters:
            device.zero(*self._arena.place("filter_rows", self._address), self._stream)
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
            is_watched = watch is not None and watch.at == position
            if position < plan.prompt - 1 or is_watched:
                self._executor.enqueue(self._stream)
            device.synchronize(self._stream)  # the copies have read the arrays above
            if watch is not None and is_watched:
                watch.found += read_logits(self._executor, device)

    def use(self, executor: StepExecutor) -> None:
        """Runs the steps of another batch from now on, whose signature is the same."""
        self._executor = executor

    # Steps

    def _queue_step(self, condition: int = 0) -> None:
        if self._candidates is not None and isinstance(self._executor, FindsCandidates):
            self._executor.enqueue_candidates(self._stream, self._candidates)
        else:
            self._executor.enqueue(self._stream)
        self._queue_search(condition)

    def _queue_search(self, condition: int = 0) -> None:
        for launch, given in self._launches.queue(condition):
            self._device.run(launch, given, self._stream)

    def _capture(self, mode: str) -> Graph | None:
        """The graph of a mode, made where it has yet to be; for use after a step that was queued."""
        if mode == "queue":
            return None
        if mode not in self._graphs:
            self._device.synchronize(self._stream)
            body = self._queue_step if self._executor.capturable else self._queue_search
            capture: Callable[..., Graph] = self._device.capture_while if mode == "while" else self._device.capture
            try:
                self._graphs[mode] = capture(self._stream, body)
            except DeviceLost:
                raise
            except BackendError as error:
                raise not_captured(error, "device-replay" if mode == "while" else "device-queue") from error
        return self._graphs[mode]

    def warm_up(self, mode: str) -> None:
        """Queues one step, captures the graph of `mode`, and waits."""
        self._queue_step()
        self._capture(mode)
        self._device.synchronize(self._stream)

    def run(self, mode: str) -> Iterator[int]:
        """Runs the search to its end. Yields how many steps have run, whenever that number changes."""
        return self._run_while() if mode == "while" else self._run_steps(mode)

    def _run_while(self) -> Iterator[int]:
        if "while" not in self._graphs:  # the first step of a plan is queued and not captured
            self._queue_step()
            yield from self._wait(1)
            if self._is_over:
                return
        graph = self._capture("while")
        assert graph is not None
        graph.launch(self._stream)
        yield from self._wait(self.plan.limit)

    def _run_steps(self, mode: str) -> Iterator[int]:
        """Step by step, each a launch of the graph of one step. Where no graph can hold the decoder's own launches, the
        host queues those, and the graph holds the search's that follow."""
        can_capture = self._executor.capturable
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
            if self._is_over:
                break
            self._capture(mode)
        yield from self._wait(self.plan.limit)

    def _wait(self, n_steps: int) -> Iterator[int]:
        """Waits until so many steps have run or the search has ended, and yields the number of steps when it changes.

        It reads a counter that the device writes into host memory, and asks the driver now and then whether the stream
        still works, since a lost device writes nothing. Raises DeviceLost, or BackendError for a search that stopped
        short of its end.
        """
        seen = -1
        since = asked = time.monotonic()
        while True:
            word = int(self._progress[0])
            done = word % STOPPED
            if done != seen:
                yield done
                seen, since = done, time.monotonic()
            if word >= STOPPED or done >= n_steps:
                return
            now = time.monotonic()
            if now - asked > ASK_SECONDS:
                asked = now
                if self._device.is_idle(self._stream) and int(self._progress[0]) == word:
                    raise BackendError(
                        f"{self._device.name} has nothing left to do after {seen} steps and the search has not ended; "
                        "expected a step to say so; this is a defect, report it"
                    )
            if now - since > SPIN_SECONDS:
                time.sleep(0)  # lets other threads' searches run Python

    @property
    def _is_over(self) -> bool:
        return int(self._progress[0]) >= STOPPED

    # The end

    def results(self, options: GenerationOptions, source_lengths: Sequence[int]) -> list[list[Hypothesis]]:
        """The outputs of every source, best first, once the search has ended. Copies the tables to the host.

        Raises BackendError where a text reached a position that the engine doesn't have.
        """
        names = [*(backtrack.BEAM_TABLES if self.plan.is_beam_search else backtrack.ROW_TABLES)]
        names += ["alignment"] if self.plan.attention is not None else []
        n_steps = int(self._progress[0]) % STOPPED
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
                shape = (n_steps, *shape[1:])  # later steps did not run, and nothing wrote their rows
            tables[name] = np.empty(shape, dtype)
            self._device.to_host(tables[name], self._address + self._arena.offsets[name], self._stream)
        self._device.synchronize(self._stream)
        read = backtrack.beams if self.plan.is_beam_search else backtrack.rows
        return read(tables, options, source_lengths)

    def close(self) -> None:
        """Gives memory and graphs back. Nothing of them may be in use."""
        for graph in self._graphs.values():
            graph.close()
        self._graphs.clear()
        self._device.free(self._address)
        self._device.release_mapped(self.reports)
        self._device.release_mapped(self._progress)


def not_captured(error: BackendError, other: str) -> BackendError:
    """The error to raise where the driver or a library refuses a capture. other: a search that needs no such graph."""
    return BackendError(f"no graph of the decoder could be made: {error}; or load with search='{other}'")
