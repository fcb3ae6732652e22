"""Random searches over made-up distributions: option sets, and a decode state that needs no model and little time."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
from scripted import seen_through

from s2s_export.errors import InvalidOption
from s2s_export.runtime.decoding import GenerationOptions, StepQuery, StepResult, resolve

N_TEXTS = 251  # distributions among which a text's hash chooses


class HashedState:
    """The logits that follow a text are those of its hash. kind: "smooth"; "ties", where many are equal; "sharp", where
    one token has nearly everything; "broken", with infinities and NaN."""

    def __init__(self, kind: str, seed: int, n_sources: int, n_beams: int, vocabulary_size: int) -> None:
        rng = np.random.default_rng(seed)
        scale = {"smooth": 2.0, "ties": 2.0, "sharp": 12.0, "broken": 2.0}[kind]
        logits = rng.normal(0, scale, (N_TEXTS, vocabulary_size)).astype(np.float32)
        if kind == "ties":
            logits = np.round(logits)
        if kind == "broken":
            strange = rng.random(logits.shape)
            logits[strange < 0.3] = -np.inf
            logits[strange > 0.99] = np.nan
        self._logits = logits
        self._hash = np.arange(n_sources)[:, None].repeat(n_beams, axis=1) * 7
        self.n_sources, self.n_beams, self.vocabulary_size = n_sources, n_beams, vocabulary_size
        self.n_steps = 0

    def step(self, tokens: np.ndarray, parents: np.ndarray, query: StepQuery) -> StepResult:
        before = self._hash if not self.n_steps else np.take_along_axis(self._hash, parents, axis=1)
        self._hash = (before * 31 + tokens + 1) % N_TEXTS
        self.n_steps += 1
        result = seen_through(query, self._logits[self._hash])
        if query.attention:
            weights = np.cos(np.arange(5) * (self._hash[..., None] + 1)).astype(np.float32)  # [B, K, S]
            result.attention = np.stack([weights, weights * 0.5], axis=2)[:, :, None]  # [B, K, L = 1, H = 2, S]
        return result

    def keep(self, sources: np.ndarray) -> None:
        self._hash = self._hash[sources]
        self.n_sources = len(sources)


def random_options(chance: random.Random, vocabulary_size: int) -> GenerationOptions:
    """Options of every kind that the search in C++ serves, and now and then one that it doesn't."""
    while True:
        try:
            return _options(chance, vocabulary_size)
        except InvalidOption:  # they contradict each other
            continue


def _options(chance: random.Random, vocabulary_size: int) -> GenerationOptions:
    size = vocabulary_size

    def token() -> int:
        return chance.randrange(size)

    def some(least: int, most: int) -> list[int]:
        return [token() for _ in range(chance.randint(least, most))]

    n_beams = chance.choice([1, 1, 2, 3, 4, 6])
    given: dict[str, Any] = {"num_beams": n_beams, "max_new_tokens": chance.randint(1, 14)}
    may: dict[str, Callable[[], Any]] = {
        "num_return_sequences": lambda: chance.randint(1, n_beams),
        "length_penalty": lambda: chance.choice([0.0, 0.6, 1.0, 2.0, -1.0, 40.0]),
        "early_stopping": lambda: chance.choice([True, False, "never"]),
        "decoder_input_ids": lambda: some(1, 3),
        "eos_token_id": lambda: chance.choice([0, [0, 3], []]),
        "pad_token_id": token,
        "min_length": lambda: chance.randint(1, 6),
        "min_new_tokens": lambda: chance.randint(1, 4),
        "no_repeat_ngram_size": lambda: chance.choice([1, 2, 3, 3, 10**21]),
        "encoder_no_repeat_ngram_size": lambda: chance.choice([1, 2, 3, 3, 2**31]),
        "repetition_penalty": lambda: chance.choice([0.7, 1.3, 2.0]),
        "encoder_repetition_penalty": lambda: chance.choice([0.7, 1.3]),
        "frequency_penalty": lambda: chance.uniform(-1.0, 2.0),
        "bad_words_ids": lambda: [some(1, 3) for _ in range(chance.randint(1, 3))],
        "sequence_bias": lambda: {tuple(some(1, 3)): chance.uniform(-6, 6) for _ in range(chance.randint(1, 4))},
        "forced_bos_token_id": token,
        "forced_eos_token_id": lambda: some(1, 2),
        "exponential_decay_length_penalty": lambda: (chance.randint(0, 4), chance.choice([0.9, 1.2, 3.0])),
        "suppress_tokens": lambda: some(1, chance.choice([3, size])),
        "begin_suppress_tokens": lambda: some(1, 3),
        "renormalize_logits": lambda: True,
        "timestamp_begin": lambda: chance.randrange(1, size),
        "max_initial_timestamp_index": lambda: chance.randint(0, 4),
    }
    rarely: dict[str, Callable[[], Any]] = {
        "patience": lambda: 2.0, "top_k": lambda: 3, "max_length_ratio": lambda: 1.5, "presence_penalty": lambda: 0.5,
        "do_sample": lambda: True, "num_beam_groups": lambda: n_beams,
    }  # fmt: skip
    for name in chance.sample(list(may), chance.choice([0, 1, 2, 3, 5])):
        given[name] = may[name]()
    if chance.random() < 0.25:  # as speech is decoded
        given |= {name: may[name]() for name in ("timestamp_begin", "suppress_tokens", "begin_suppress_tokens")}
    if chance.random() < 0.05:
        name = chance.choice(list(rarely))
        given[name] = rarely[name]()
    defaults = {"decoder_start_token_id": size - 1, "eos_token_id": 0, "pad_token_id": size - 1, "max_length": 12}
    return resolve(defaults, {**given, "seed": 7}, vocabulary_size=size)


def random_sources(chance: random.Random, vocabulary_size: int) -> list[list[int]]:
    n = chance.choice([1, 1, 2, 3, 5, 8])
    return [[chance.randrange(vocabulary_size) for _ in range(chance.randint(1, 6))] for _ in range(n)]
