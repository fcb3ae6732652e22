"""Many threads on one session for a while: every result is what it is alone, and memory does not grow."""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import s2s_export
from s2s_export.runtime import cases

N_THREADS = 8
N_CASES = 40
SECONDS = 90.0
MOST_GROWTH = 24 << 20  # bytes; an allocator's own, over tens of thousands of calls


def random_case(chance: random.Random, size: int) -> tuple[list[list[int]], dict[str, Any]]:
    sources = [[chance.randrange(3, size) for _ in range(chance.randint(1, 20))] for _ in range(chance.randint(1, 5))]
    options: dict[str, Any] = {"num_beams": chance.choice([1, 2, 4]), "max_new_tokens": chance.randint(1, 20)}
    extra = chance.choice(
        [
            {},
            {"no_repeat_ngram_size": 2},
            {"repetition_penalty": 1.3},
            {"alignments": True},
            {"do_sample": True, "num_beams": 1, "seed": 3},
        ]
    )
    return sources, options | extra


def told(session: Any, sources: list[list[int]], options: dict[str, Any]) -> Any:
    return [
        [(h.token_ids, round(h.score, 4), None if h.alignment is None else h.alignment.shape) for h in found]
        for found in session.generate(sources, **options)
    ]


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def soak(session: Any, seconds: float) -> int:
    """How many calls agreed; fails at the first that did not, or where memory grew."""
    chance = random.Random(0)
    work = [random_case(chance, session.bundle.vocabulary_size - 1) for _ in range(N_CASES)]
    expected = [told(session, *case) for case in work]
    bad_line = b'{"input_ids": [5], "num_beams": "many"}'
    wrong: list[str] = []
    counts = [0] * N_THREADS
    start = time.monotonic()

    def run(number: int) -> None:
        mine = random.Random(number)
        while time.monotonic() - start < seconds and not wrong:
            i = mine.randrange(N_CASES)
            if told(session, *work[i]) != expected[i]:
                wrong.append(f"case {i}: {work[i]}")
            (line,) = cases.decode_cases(session, [cases.read_case(session, bad_line, 1)])
            if "num_beams is 'many'" not in line["error"]:
                wrong.append(line["error"])
            counts[number] += 1

    threads = [threading.Thread(target=run, args=(number,)) for number in range(N_THREADS)]
    for thread in threads:
        thread.start()
    time.sleep(seconds / 3)
    before = resident()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[0]
    assert resident() - before < MOST_GROWTH
    return sum(counts)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory from /proc, which Linux has")
@pytest.mark.parametrize("name", ["marian", "attention"])
def test_threads_share_a_session_for_long(bundled: Any, name: str) -> None:
    session = s2s_export.load(bundled(name), threads=1)
    n_calls = soak(session, SECONDS)
    print(f"{n_calls} calls of {N_THREADS} threads in {SECONDS:.0f} s")
    assert n_calls > 100
