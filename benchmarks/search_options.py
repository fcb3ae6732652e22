#!/usr/bin/env python3
"""What options of a search cost: CPU time of the same source with none, and with each, taking turns in one process.

    benchmarks/search_options.py BUNDLE [--rounds 7] [--beams 10]

The least time of each, and its ratio to the search with no option. CPU time is told well on a busy machine too. Give a
bundle of the size that matters to you; constraints are random tokens, which the model finds unlikely.
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

SOURCE_LENGTH, NEW_TOKENS = 30, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--beams", type=int, default=10)
    arguments = parser.parse_args()
    session = s2s_export.load(arguments.bundle, threads=1, workers=1)
    chance = random.Random(0)
    words = chance.sample(range(100, session.bundle.vocabulary_size - 100), 40)
    source = [chance.randrange(100, session.bundle.vocabulary_size - 100) for _ in range(SOURCE_LENGTH - 1)] + [0]
    variants: dict[str, dict[str, Any]] = {
        "no option": {},
        "1 constraint": {"force_words_ids": [[words[0]]]},
        "5 constraints": {"force_words_ids": [[word] for word in words[:5]]},
        "20 constraints": {"force_words_ids": [[word] for word in words[:20]]},
        "20 of two tokens": {"force_words_ids": [list(pair) for pair in zip(words[:20], words[20:], strict=True)]},
        "no_repeat_ngram_size 3": {"no_repeat_ngram_size": 3},
        "repetition_penalty 1.2": {"repetition_penalty": 1.2},
    }
    least = dict.fromkeys(variants, float("inf"))
    for number in range(arguments.rounds + 1):
        for name in random.Random(number).sample(list(variants), len(variants)):
            begin = time.process_time()
            session.generate(
                [source], num_beams=arguments.beams, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS - 1,
                **variants[name],
            )  # fmt: skip
            if number:  # the first round warms up
                least[name] = min(least[name], time.process_time() - begin)
    print(f"{arguments.bundle.name} on {session.engine}: {arguments.beams} beams, {NEW_TOKENS} tokens, one thread")
    for name, seconds in least.items():
        print(f"  {name:<24}{seconds * 1e3:8.1f} ms  {seconds / least['no option']:.2f}")


if __name__ == "__main__":
    main()
