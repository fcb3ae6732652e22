#!/usr/bin/env python3
"""What a second thread in a call gains and costs: wall and CPU time, with and without spinning, idle and busy machine.

    benchmarks/threads.py BUNDLE [BUNDLE...]              what decides the default of --threads, on a quiet machine
    benchmarks/threads.py BUNDLE --cpu-only --rounds 10   CPU time as a ratio, which a busy machine tells as well

Each variant has sessions of its own, and all take turns in one process, in another order every round. Wall time is
that of a call. CPU time is that of the whole process from the call to PAUSE later, because threads go on spinning when
a call has ended. `busy` is measured with one other process computing on every core. The table gives medians, and each
variant's ratio to one thread.

A default never loses if its wall time is no longer than LOSS times that of one thread in every row, idle and busy.
The last lines say which variants that holds for. With --cpu-only nothing is said of wall time.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from s2s_export import bundle as bundles  # noqa: E402 (after its folder is on the path)
from s2s_export.runtime.backends import onnxruntime as backend  # noqa: E402
from s2s_export.runtime.cores import available_cores  # noqa: E402
from s2s_export.runtime.session import Session  # noqa: E402

PAUSE = 0.02  # seconds: longer than ONNX Runtime's threads spin
LOSS = 1.03  # what repeats of the same variant differ by
NEW_TOKENS = 24
WORK = {"1 source, greedy": (1, 1), "1 source, 4 beams": (1, 4), "16 sources, 4 beams": (16, 4)}
SOURCE_LENGTH = 20


@dataclass(frozen=True)
class Variant:
    threads: int
    spin: bool

    def __str__(self) -> str:
        if self.threads == 1:
            return "1 thread"
        return f"{self.threads} threads, {'spinning' if self.spin else 'sleeping'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--target", help="an engine; default: cpu-fp32 where it is built, else the portable graphs")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--cpu-only", action="store_true", help="no wall times, and no busy processes beside it")
    arguments = parser.parse_args()
    counts = sorted({2, min(4, available_cores()), available_cores()} - {1})
    variants = [Variant(1, False), *(Variant(n, spin) for n in counts for spin in (True, False))]
    worst: dict[Variant, float] = {}
    for path in arguments.bundles:
        for name, work in WORK.items():
            for n_busy in (0,) if arguments.cpu_only else (0, available_cores()):
                found = measure(path, arguments.target, variants, work, arguments.rounds, n_busy)
                tell(path.name, name, n_busy, found, arguments.cpu_only)
                alone = found[variants[0]]
                for variant, (wall, _) in found.items():
                    worst[variant] = max(worst.get(variant, 0.0), wall / alone[0])
    if not arguments.cpu_only:
        for variant, ratio in worst.items():
            print(f"{variant}: at worst {ratio:.2f} times the wall time of one thread: "
                  f"{'never loses' if ratio <= LOSS else 'loses'}")  # fmt: skip


def measure(
    path: Path, target: str | None, variants: list[Variant], work: tuple[int, int], rounds: int, n_busy: int
) -> dict[Variant, tuple[float, float]]:
    """Median wall and CPU seconds of a call of each variant."""
    opened = bundles.read(path)
    sessions = {variant: open_variant(opened, target, variant) for variant in variants}
    chance = random.Random(0)
    n_sources, n_beams = work
    limit = min(SOURCE_LENGTH, opened.max_source_length or SOURCE_LENGTH)
    sources = [[chance.randrange(3, opened.vocabulary_size) for _ in range(limit)] for _ in range(n_sources)]
    options: dict[str, Any] = {"num_beams": n_beams, "max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS - 1}
    others = [multiprocessing.get_context("spawn").Process(target=burn, daemon=True) for _ in range(n_busy)]
    for other in others:
        other.start()
    try:
        times: dict[Variant, list[tuple[float, float]]] = {variant: [] for variant in variants}
        for number in range(rounds + 1):
            for variant in random.Random(number).sample(variants, len(variants)):
                time.sleep(PAUSE)
                wall, cpu = time.perf_counter(), time.process_time()
                sessions[variant].generate(sources, **options)
                wall = time.perf_counter() - wall
                time.sleep(PAUSE)
                if number:  # the first round warms up
                    times[variant].append((wall, time.process_time() - cpu))
    finally:
        for other in others:
            other.terminate()
    return {v: (statistics.median(w for w, _ in t), statistics.median(c for _, c in t)) for v, t in times.items()}


def open_variant(opened: Any, target: str | None, variant: Variant) -> Session:
    engine, folder = backend._choose(opened, target)
    return Session(opened, backend.OnnxRuntimeBackend(opened, variant.threads, engine, folder, spin=variant.spin))


def burn() -> None:
    while True:
        pass


def tell(model: str, work: str, n_busy: int, found: dict[Variant, tuple[float, float]], cpu_only: bool) -> None:
    wall1, cpu1 = next(iter(found.values()))
    state = "" if cpu_only else (", busy" if n_busy else ", idle")
    print(f"{model}: {work}{state}")
    for variant, (wall, cpu) in found.items():
        walls = "" if cpu_only else f"wall {wall * 1e3:8.1f} ms ({wall / wall1:.2f})  "
        print(f"  {variant!s:<22} {walls}CPU {cpu * 1e3:8.1f} ms ({cpu / cpu1:.2f})", flush=True)


if __name__ == "__main__":
    main()
