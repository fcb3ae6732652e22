"""Compares random searches on a GPU with their emulation. Logits are constant, as only the search is compared."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.cuda.emulation import HostDevice
from ...runtime.cuda.interface import Device
from ...runtime.decoding.options import GenerationOptions, resolve
from ...runtime.device_search.loop import DeviceSearch, Mode
from . import times

# Sums are in the same order, but expf and logf on a GPU differ from those on a CPU in the last digit.
TOLERANCE = 2e-5


def options_for(chance: random.Random, vocabulary_size: int) -> GenerationOptions:
    """Random options of a search: most have rules, and some sample."""
    given: dict[str, Any] = {
        "num_beams": chance.choice([1, 1, 2, 4, 5, 8, 16]),
        "max_new_tokens": chance.randint(1, 12),
        "eos_token_id": [2] if chance.random() < 0.7 else [2, 3, 4],
        "decoder_start_token_id": 1,
        "length_penalty": chance.choice([1.0, 0.0, 0.6, 2.0]),
        "early_stopping": chance.choice([False, True, "never"]),
    }
    may: dict[str, Any] = {
        "no_repeat_ngram_size": chance.randint(1, 3),
        "repetition_penalty": 1.3,
        "bad_words_ids": [[5], [6, 7]],
        "min_new_tokens": 3,
        "suppress_tokens": [8, 9],
        "forced_eos_token_id": 2,
        "encoder_no_repeat_ngram_size": 2,
        "sequence_bias": {(10,): 1.5},
        "exponential_decay_length_penalty": (2, 1.2),
    }
    for name in chance.sample(sorted(may), chance.choice([0, 0, 1, 2, 3])):
        given[name] = may[name]
    if chance.random() < 0.3:
        given |= {"do_sample": True, "seed": chance.randrange(2**64), "top_k": chance.choice([0, 5, 50])}
        filters = {
            "top_p": 0.9,
            "top_h": 0.7,
            "min_p": 0.05,
            "typical_p": 0.9,
            "epsilon_cutoff": 0.01,
            "eta_cutoff": 0.01,
        }
        name = chance.choice(sorted(filters))
        given[name] = filters[name]
    return resolve({}, given, vocabulary_size=vocabulary_size)


def agree(
    device: Device,
    n_cases: int,
    vocabulary_sizes: Sequence[int] = (40, 1000, 5000),
    modes: Sequence[Mode] = ("replay", "queue", "while"),
) -> dict[str, Any]:
    """Compare random searches on the GPU and in the emulation: equal tokens, scores within TOLERANCE."""
    different = []
    for seed in range(n_cases):
        chance, rng = random.Random(seed), np.random.default_rng(seed)
        vocabulary_size = chance.choice(vocabulary_sizes)
        options = options_for(chance, vocabulary_size)
        sources = [[chance.randrange(vocabulary_size) for _ in range(6)] for _ in range(chance.randint(1, 3))]
        shape = (len(sources), options.n_rows, vocabulary_size)
        logits = (3 * rng.standard_normal(shape)).astype(np.float32)
        expected = _outputs(HostDevice(), logits, sources, options, "queue")
        for mode in (mode for mode in modes if device.while_graphs or mode != "while"):
            found = _outputs(device, logits, sources, options, mode)
            same = [a[0] for a in found] == [b[0] for b in expected]
            near = np.allclose([a[1] for a in found], [b[1] for b in expected], TOLERANCE, TOLERANCE)
            if not (same and near):
                different.append({"seed": seed, "mode": mode, "found": found[:1], "expected": expected[:1]})
    return {"cases": n_cases, "different": different}


def _outputs(
    device: Device,
    logits: NDArray[np.float32],
    sources: list[list[int]],
    options: GenerationOptions,
    mode: Mode,
) -> list[tuple[list[int], float]]:
    executor = times.StillExecutor(device, logits, options.max_length)
    search = DeviceSearch(device, executor)
    try:
        return [(h.token_ids, h.score) for of in search.run(sources, options, mode=mode) for h in of]
    finally:
        search.close()
        executor.close()
