"""What the search itself costs a step, without a decoder: python tests/runtime/decoding/host_time.py

The decode state returns prepared numbers at once; the time spent inside it is not counted. Each line is the median over
runs of the milliseconds a step, for a batch and options. The vocabulary's size does not enter unless a rule is dense.
"""

from __future__ import annotations

import statistics
import time

import numpy as np

from s2s_export.runtime.decoding import StepQuery, StepResult, decode, resolve

LENGTH = 64
VOCABULARY = 60_000


class Prepared:
    def __init__(self, n_sources: int, n_beams: int) -> None:
        self.n_sources, self.n_beams, self.vocabulary_size = n_sources, n_beams, VOCABULARY
        self._random = np.random.default_rng(0)
        self.seconds = 0.0
        self.n_steps = 0

    def step(self, tokens: np.ndarray, parents: np.ndarray, query: StepQuery) -> StepResult:
        start = time.perf_counter()
        shape = (self.n_sources, self.n_beams)
        values = -np.sort(self._random.random((*shape, query.n_candidates), dtype=np.float32) * 20, axis=-1)
        n_probed = 0 if query.probe_ids is None else query.probe_ids.shape[-1]
        result = StepResult(
            candidate_ids=self._random.integers(10, VOCABULARY, (*shape, query.n_candidates)),
            candidate_log_probs=values,
            log_normalizer=np.ones(shape, dtype=np.float32),
            probe_log_probs=np.full((*shape, n_probed), -9.0, dtype=np.float32) if n_probed else None,
            log_probs=-self._random.random((*shape, VOCABULARY), dtype=np.float32) * 20 if query.dense else None,
        )
        self.n_steps += 1
        self.seconds += time.perf_counter() - start
        return result

    def keep(self, sources: np.ndarray) -> None:
        self.n_sources = len(sources)


def milliseconds_a_step(n_sources: int, **given: object) -> float:
    usual = {"max_length": LENGTH, "decoder_start_token_id": 5, "eos_token_id": 0, "pad_token_id": 5}
    options = resolve(usual, {"early_stopping": "never", **given}, vocabulary_size=VOCABULARY)
    times = []
    for _ in range(7):
        state = Prepared(n_sources, options.n_rows)
        start = time.perf_counter()
        decode(state, [[7, 8, 9, 0]] * n_sources, options)
        times.append((time.perf_counter() - start - state.seconds) / state.n_steps)
    return statistics.median(times) * 1e3


CASES: dict[str, dict[str, object]] = {
    "greedy": {},
    "greedy, one banned word": {"bad_words_ids": ((5,),)},
    "4 beams": {"num_beams": 4},
    "4 beams, one banned word": {"num_beams": 4, "bad_words_ids": ((5,),)},
    "4 beams, no_repeat_ngram_size 3": {"num_beams": 4, "no_repeat_ngram_size": 3},
    "4 beams, repetition_penalty": {"num_beams": 4, "repetition_penalty": 1.2},
    "4 beams, all of these": {
        "num_beams": 4, "repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "bad_words_ids": ((5,),), "min_length": 9,
    },
    "4 beams, renormalize_logits (dense)": {"num_beams": 4, "renormalize_logits": True},
    "sampling (dense)": {"do_sample": True, "seed": 0},
}  # fmt: skip

if __name__ == "__main__":
    for name, given in CASES.items():
        sizes = [1] if "dense" in name else [1, 16, 64]
        print(f"{name:40}", *(f"B={n}: {milliseconds_a_step(n, **given):.3f} ms" for n in sizes), sep="  ")
