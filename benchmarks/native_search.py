#!/usr/bin/env python3
"""What the search in C++ saves: CPU time of the same decodes with it and with numpy's search, taking turns.

    benchmarks/native_search.py BUNDLE... [--targets cpu-fp32,cpu-int8] [--rounds 15] [--tokens 64]

The least time of each, one thread, for 1 and 8 sources of 30 tokens, greedy and with 4 beams, every output as long as
`--tokens`. CPU time is told well on a busy machine too. A bundle needs no trained weights.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import s2s_export  # noqa: E402 (after its folder is on the path)
from s2s_export.runtime.searching import HostSearch  # noqa: E402

SOURCE_LENGTH = 30
SHAPES = ((1, 1), (1, 4), (8, 1), (8, 4))
SEARCHES = ("python", "host")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--targets", default="cpu-fp32,cpu-int8")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=64)
    arguments = parser.parse_args()
    print(f"{'':<28}{'sources x beams':>16}{'numpy':>10}{'C++':>10}{'ratio':>8}   ran")
    for bundle in arguments.bundles:
        for target in arguments.targets.split(","):
            sessions = {name: s2s_export.load(bundle, target=target, threads=1, search=name) for name in SEARCHES}
            for n_sources, n_beams in SHAPES:
                measure(f"{bundle.name} {target}", sessions, n_sources, n_beams, arguments.rounds, arguments.tokens)


def measure(
    title: str, sessions: dict[str, s2s_export.Session], n_sources: int, n_beams: int, rounds: int, n: int
) -> None:
    size = sessions["host"].bundle.vocabulary_size
    chance = random.Random(0)
    sources = [[chance.randrange(1, size - 1) for _ in range(SOURCE_LENGTH - 1)] + [0] for _ in range(n_sources)]
    options: dict[str, Any] = {"num_beams": n_beams, "max_new_tokens": n, "min_new_tokens": n - 1}
    least = dict.fromkeys(SEARCHES, float("inf"))
    found = {}
    searcher = sessions["host"].searcher
    assert isinstance(searcher, HostSearch)
    searcher.native.counts.clear()
    for number in range(rounds + 1):
        for name in random.Random(number).sample(SEARCHES, len(SEARCHES)):
            begin = time.thread_time()
            found[name] = sessions[name].generate(sources, **options)
            if number:  # the first round warms up
                least[name] = min(least[name], time.thread_time() - begin)
    if found["python"] != found["host"]:
        raise SystemExit(f"{title}: the searches differ")
    ran = ", ".join(searcher.native.counts)
    numpy, native = (least[name] * 1e3 for name in SEARCHES)
    shape = f"{n_sources} x {n_beams}"
    print(f"{title:<28}{shape:>16}{numpy:>7.2f} ms{native:>7.2f} ms{numpy / native:>8.2f}   {ran}", flush=True)


if __name__ == "__main__":
    main()
