#!/usr/bin/env python3
"""How decoding scales with cores: threads of one call, workers beside each other; measured here, predicted elsewhere.

    benchmarks/scaling.py BUNDLE [BUNDLE...] --target cpu-fp32 --machine 8:60 --machine 64:300

One call: its time with one thread over that with a thread a core. Workers: sessions of one thread that decode at the
same time, pinned to a core each or placed by the system; their calls a second over those of one alone.

--machine CORES:GB is another machine: its cores, each taken to be as fast as one here, and how many GB a second all of
them read from memory. Of it is predicted

    one call      T1 (s + (1 - s) / n) with n threads, s being the share that did not get faster here, and no less than
                  the time in which the weights of all steps are read once
    workers       n times one worker, and no more than the memory can feed: each reads the weights once a step

Weights that stay in a cache are not read from memory again, so that small models scale better than is predicted.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from s2s_export import load  # noqa: E402 (after its folder is on the path)
from s2s_export.measuring.bench import bandwidth  # noqa: E402
from s2s_export.runtime.cores import available_cores  # noqa: E402
from s2s_export.runtime.session import Session  # noqa: E402

NEW_TOKENS = 32
WORK = {"1 x 1": (1, 1), "1 x 4": (1, 4), "8 x 1": (8, 1), "8 x 4": (8, 4), "32 x 4": (32, 4)}  # sources x beams
SOURCE_LENGTH = 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--target", default="cpu-fp32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement of workers")
    parser.add_argument("--machine", action="append", default=[], metavar="CORES:GB", type=machine)
    arguments = parser.parse_args()
    cores = available_cores()
    for path in arguments.bundles:
        sessions = [load(path, target=arguments.target, threads=1) for _ in range(cores)]
        wide = load(path, target=arguments.target, threads=cores)
        n_bytes = weight_bytes(path, arguments.target)
        print(f"{path.name} {arguments.target}: {n_bytes / 1e6:.0f} MB of weights a step, {cores} cores here")
        for name, (n_sources, n_beams) in WORK.items():
            call = caller(sessions[0], n_sources, n_beams)
            one, many = taking_turns([call, caller(wide, n_sources, n_beams)], arguments.rounds)
            alone = calls_a_second([call], arguments.seconds)
            calls = [caller(session, n_sources, n_beams) for session in sessions]
            placed = calls_a_second(calls, arguments.seconds)
            pinned = calls_a_second(calls, arguments.seconds, is_pinned=True)
            print(f"  {name}: a call {one * 1e3:.0f} ms, with {cores} threads {one / many:.2f} times faster; "
                  f"{cores} workers {placed / alone:.2f} times one, pinned {pinned / alone:.2f}")  # fmt: skip
            serial = min(max((cores * many / one - 1) / (cores - 1), 0.0), 1.0) if cores > 1 else 1.0
            for n, speed in arguments.machine:
                read = n_bytes * NEW_TOKENS / speed  # seconds in which all steps read the weights once
                call_then = max(one * (serial + (1 - serial) / n), read)
                workers = min(n, one / read)
                print(f"    {n} cores, {speed / 1e9:.0f} GB/s: a call {one / call_then:.1f} times faster, "
                      f"workers {workers:.0f} times one")  # fmt: skip


def machine(text: str) -> tuple[int, float]:
    cores, _, speed = text.partition(":")
    return int(cores), float(speed) * 1e9


def weight_bytes(path: Path, target: str) -> float:
    """What a decoder step reads of its engine's weights, tables that are looked up in left out."""
    from s2s_export import bundle, engines

    found = bundle.read(path)
    stored = engines.read(engines.folder_of(found, target)).get("stored", {})
    n = bandwidth.step_parameters(found)
    if isinstance(n, str):
        raise SystemExit(n)
    total = sum(counts["bytes"] for counts in stored.values())
    of_fp32 = sum(counts["bytes"] * {"fp32": 1, "int8": 4}.get(kind, 2) for kind, counts in stored.items())
    return n * 4 * (total / of_fp32 if of_fp32 else 1.0)


def caller(session: Session, n_sources: int, n_beams: int) -> Callable[[], object]:
    chance = random.Random(0)
    size = session.bundle.vocabulary_size
    sources = [[chance.randrange(3, size) for _ in range(SOURCE_LENGTH)] for _ in range(n_sources)]
    options: dict[str, Any] = {"num_beams": n_beams, "max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
    return lambda: session.generate(sources, batch_size=n_sources, **options)


def taking_turns(calls: list[Callable[[], object]], rounds: int) -> list[float]:
    """Median wall seconds of each, after a round that warms up."""
    times: list[list[float]] = [[] for _ in calls]
    for number in range(rounds + 1):
        for made, call in zip(times, calls, strict=True):
            start = time.perf_counter()
            call()
            if number:
                made.append(time.perf_counter() - start)
    return [statistics.median(made) for made in times]


def calls_a_second(calls: list[Callable[[], object]], seconds: float, *, is_pinned: bool = False) -> float:
    """Of all together, each in a thread of its own."""
    counts = [0] * len(calls)
    cores = sorted(os.sched_getaffinity(0))
    begin = threading.Barrier(len(calls) + 1)

    def work(i: int) -> None:
        if is_pinned:
            os.sched_setaffinity(threading.get_native_id(), {cores[i % len(cores)]})
        calls[i]()
        begin.wait()
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            calls[i]()
            counts[i] += 1

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    begin.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
