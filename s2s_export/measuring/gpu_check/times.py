"""Times the search on a GPU, with constant logits: each kernel, a step in each mode, the capture of graphs."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.cuda.faults import OutOfMemory
from ...runtime.cuda.interface import Device, Graph
from ...runtime.decoding.options import GenerationOptions, resolve
from ...runtime.device_search.loop import DeviceSearch, Mode
from ...runtime.device_search.rules import serialise
from ...runtime.device_search.step_executor import Attention

VOCABULARIES = {"OPUS-MT": 58101, "T5-small": 32128}
BATCHES, BEAMS = (1, 8, 64), (1, 4, 8)
N_TOKENS = 64
MEASURED = ("queue", "replay", "while")
LAUNCHES = 50  # launches of a kernel in one graph, to time it
BANDWIDTH_BYTES, LEAST_BANDWIDTH_BYTES = 1 << 30, 1 << 24


class StillExecutor:
    """An executor with constant logits, which queues nothing."""

    def __init__(self, device: Device, logits: NDArray[np.float32], capacity: int) -> None:
        self.n_sources, self.n_beams, self.vocabulary_size = logits.shape
        self.capacity, self.positions, self.element = capacity, capacity, "fp32"
        self.attention: Attention | None = None
        self.capturable = True
        self._device = device
        self.signature: object = id(self)
        self.stream = device.create_stream()
        self.token = device.allocate(self.n_sources * self.n_beams * 8, "tokens")
        self.position = device.allocate(8, "the position")
        self.ancestors = device.allocate(self.n_sources * self.n_beams * capacity * 8, "ancestors")
        self.logits = device.allocate(logits.nbytes, "logits")
        device.to_device(self.logits, np.ascontiguousarray(logits), self.stream)
        device.synchronize(self.stream)

    def enqueue(self, stream: int) -> None:
        pass

    def close(self) -> None:
        for address in (self.token, self.position, self.ancestors, self.logits):
            self._device.free(address)
        self._device.destroy_stream(self.stream)


def bandwidth(device: Device, n_bytes: int = BANDWIDTH_BYTES) -> float:
    """Bytes per second that a copy reads and writes, the best of five, from which floors are computed.

    n_bytes: size of the copy; less if the memory does not have room for it twice.
    """
    blocks: list[int] = []
    stream = device.create_stream()
    try:
        for _ in range(2):
            blocks.append(device.allocate(n_bytes, "measuring bandwidth"))
        best = min(device.seconds(stream, lambda: device.move(blocks[0], blocks[1], n_bytes, stream)) for _ in range(5))
    except OutOfMemory:
        if n_bytes <= LEAST_BANDWIDTH_BYTES:
            raise
        best = 0.0
    finally:
        for address in blocks:
            device.free(address)
        device.destroy_stream(stream)
    return 2 * n_bytes / best if best else bandwidth(device, n_bytes // 4)


def times(device: Device, vocabulary_size: int, batch: int, beams: int, rules: bool, n: int) -> dict[str, Any]:
    """Microseconds of each kernel, and of a step in each mode, without a decoder."""
    given: dict[str, Any] = {"num_beams": beams, "max_new_tokens": N_TOKENS, "min_new_tokens": N_TOKENS}
    given |= {"eos_token_id": 2, "decoder_start_token_id": 1}
    if rules:
        given["bad_words_ids"] = [[vocabulary_size - 1]]
    else:
        del given["min_new_tokens"]
    options = resolve({}, given, vocabulary_size=vocabulary_size)
    logits = np.random.default_rng(0).standard_normal((batch, beams, vocabulary_size)).astype(np.float32)
    logits[..., 2] = -30.0  # no output ends early
    executor = StillExecutor(device, logits, options.max_length)
    search = DeviceSearch(device, executor)
    sources = [[3]] * batch
    found: dict[str, Any] = {"batch": batch, "beams": beams, "vocabulary": vocabulary_size, "rules": rules}
    modes: list[Mode] = ["queue", "replay", *(["while"] if device.while_graphs else [])]  # type: ignore[list-item]
    try:
        for mode in modes:
            begin = time.perf_counter()
            search.run(sources, options, mode=mode)
            found[f"{mode}_first_call_ms"] = 1e3 * (time.perf_counter() - begin)  # includes loading, instantiation
            taken = []
            for _ in range(n):
                begin = time.perf_counter()
                search.run(sources, options, mode=mode)
                taken.append(time.perf_counter() - begin)
            found[f"{mode}_step_us"] = 1e6 * float(np.median(taken)) / N_TOKENS
        (buffers,) = search._kept.values()  # of the one plan that all of these calls have
        found["capture_ms"] = _captures(device, buffers, n)
        found["memory_mib"] = buffers._arena.n_bytes / 2**20
        buffers.begin(options, *_first(options, executor))
        kernels: dict[str, float] = {}
        for launch, structure in buffers._launches.queue():
            queue = functools.partial(device.run, launch, structure, executor.stream)
            kernels[launch.kernel] = launch_us(device, executor.stream, queue, LAUNCHES)
        found["kernels_us"] = kernels
    finally:
        search.close()
        executor.close()
    return found


def launch_us(device: Device, stream: int, queue: Callable[[], None], n: int) -> float:
    """Microseconds of a launch that `queue` queues, measured in a graph of `n`: queued one by one from Python, launches
    would take longer than many kernels."""

    def many() -> None:
        for _ in range(n):
            queue()

    queue()
    graph = device.capture(stream, many)
    try:
        graph.launch(stream)  # the first launch of a graph uploads it
        return 1e6 * min(device.seconds(stream, functools.partial(graph.launch, stream)) for _ in range(3)) / n
    finally:
        graph.close()


def _captures(device: Device, buffers: Any, n: int) -> dict[str, float]:
    """Milliseconds of capturing and instantiating a graph. Graphs are never updated: what changes is in memory."""

    def median(make: Callable[[], Graph]) -> float:
        taken = []
        for _ in range(min(n, 5)):
            begin = time.perf_counter()
            graph = make()
            taken.append(time.perf_counter() - begin)
            graph.close()
        return 1e3 * float(np.median(taken))

    stream = buffers._stream
    found = {"step": median(lambda: device.capture(stream, buffers._queue_step))}
    if device.while_graphs:
        found["while"] = median(lambda: device.capture_while(stream, buffers._queue_step))
    return found


def _first(options: GenerationOptions, executor: StillExecutor) -> tuple[Any, NDArray[np.int64], range]:
    rules = serialise(options, executor.vocabulary_size)
    return rules, np.full((executor.n_sources, 1), 3, np.int64), range(executor.n_sources)


def measure(device: Device, save: Callable[[dict[str, Any]], None], *, quick: bool = False) -> None:
    """`times` for every vocabulary, batch and number of beams, with and without rules. save: gets all times so far."""
    speed = bandwidth(device)
    found: list[dict[str, Any]] = []
    for vocabulary_size in VOCABULARIES.values():
        for batch in BATCHES[:1] if quick else BATCHES:
            for beams in BEAMS:
                for rules in (False, True):
                    entry = times(device, vocabulary_size, batch, beams, rules, 5 if quick else 20)
                    # The least that must be read: the logits, here in fp32.
                    entry["floor_us"] = 1e6 * batch * beams * vocabulary_size * 4 / speed
                    found.append(entry)
                    save({"bytes_per_second": speed, "times": found})


def table(times: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown, line by line."""
    lines = [
        "| vocabulary | batch | beams | rules | us a step: queued | replay | WHILE | logits' floor "
        "| capture ms: step | WHILE | kernels us |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in times:
        steps = [f"{entry[f'{mode}_step_us']:.1f}" if f"{mode}_step_us" in entry else "-" for mode in MEASURED]
        captures = [f"{entry['capture_ms'][of]:.2f}" if of in entry["capture_ms"] else "-" for of in ("step", "while")]
        kernels = ", ".join(f"{name} {us:.1f}" for name, us in entry["kernels_us"].items())
        lines.append(
            f"| {entry['vocabulary']} | {entry['batch']} | {entry['beams']} | {'yes' if entry['rules'] else 'no'} | "
            f"{' | '.join(steps)} | {entry['floor_us']:.1f} | {' | '.join(captures)} | {kernels} |"
        )
    return lines
