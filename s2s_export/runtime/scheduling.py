"""Which sources are decoded together, and by whom: batches of like lengths, taken by workers side by side.

A decoder step costs by its rows and the encoder by its tokens, padding included. So sources are sorted by length,
longest first, and a batch is as many neighbours as fit `batch_size` sources and MOST_TOKENS tokens after padding. Which
sources share a batch does not change their tokens in fp32, and results are put back in input order.

Workers are threads: they share one session's weights, ONNX Runtime runs without Python's lock, and each call computes
on the thread that makes it when the session has one thread.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..errors import InvalidOption
from .cores import available_cores
from .decoding import Hypothesis

DEFAULT_BATCH_SIZE = 16  # sources decoded side by side
MOST_TOKENS = 4096  # source tokens of a batch, padding included: bounds what a batch of long sources takes in memory


def workers_of(wanted: int | None, threads: int | None) -> int:
    """How many workers: what is wanted, or as many as the cores can give `threads` threads (one if None) each."""
    if wanted is None:
        return max(1, available_cores() // (threads or 1))
    if wanted < 1:
        raise InvalidOption(f"workers is {wanted}; expected at least 1")
    return wanted


def plan_batches(lengths: Sequence[int], batch_size: int, n_workers: int = 1) -> list[list[int]]:
    """Indices of the sources of each batch, in the order in which batches should begin.

    Batches are smaller where `batch_size` would leave workers without work.
    """
    if batch_size < 1:
        raise InvalidOption(f"batch_size is {batch_size}; expected at least 1")
    if n_workers < 1:
        raise InvalidOption(f"workers is {n_workers}; expected at least 1")
    share = -(-len(lengths) // n_workers)  # of one worker, rounded up
    return list(_cut(lengths, max(1, min(batch_size, share))))


def _cut(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        longest = lengths[batch[0]] if batch else lengths[index]
        if batch and (len(batch) == batch_size or longest * (len(batch) + 1) > MOST_TOKENS):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def run(
    batches: Sequence[list[int]], decode: Callable[[list[int]], Any], n_workers: int
) -> Iterator[tuple[list[int], Any]]:
    """Each batch with what `decode` makes of it, as they finish.

    The first error ends it: batches under way finish, none is begun any more, and the error is raised.
    """
    if n_workers == 1 or len(batches) <= 1:
        for batch in batches:
            yield batch, decode(batch)
        return
    yield from _run_side_by_side(batches, decode, min(n_workers, len(batches)))


def _run_side_by_side(
    batches: Sequence[list[int]], decode: Callable[[list[int]], Any], n_workers: int
) -> Iterator[tuple[list[int], Any]]:
    waiting: queue.SimpleQueue[list[int] | None] = queue.SimpleQueue()
    finished: queue.SimpleQueue[tuple[list[int], Any, BaseException | None]] = queue.SimpleQueue()
    stop = threading.Event()
    for batch in batches:
        waiting.put(batch)
    for _ in range(n_workers):
        waiting.put(None)

    def work() -> None:
        while not stop.is_set() and (batch := waiting.get()) is not None:
            try:
                finished.put((batch, decode(batch), None))
            except BaseException as error:
                stop.set()
                finished.put((batch, None, error))

    workers = [threading.Thread(target=work, name=f"s2s-worker-{i}", daemon=True) for i in range(n_workers)]
    for worker in workers:
        worker.start()
    try:
        for _ in batches:
            batch, result, error = finished.get()
            if error is not None:
                raise error
            yield batch, result
    finally:
        stop.set()
        for worker in workers:
            worker.join()


def n_tokens(outputs: Sequence[Sequence[Hypothesis]]) -> int:
    """Tokens of the best output of every source."""
    return sum(len(best[0].token_ids) for best in outputs if best)
