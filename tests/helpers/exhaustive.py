"""All outputs of a scripted model of five words: the truth that searches are compared with."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from s2s_export.runtime.decoding import GenerationOptions, resolve

START, END = 0, 1
WORDS = 5
Script = Callable[[int, tuple[int, ...]], np.ndarray]


def options_of(**given: Any) -> GenerationOptions:
    defaults = {"decoder_start_token_id": START, "eos_token_id": END, "pad_token_id": START}
    return resolve(defaults, given, vocabulary_size=WORDS)


def random_script(seed: int, scale: float = 2.0) -> Script:
    """Logits that depend on the source and on the whole text."""

    def script(source: int, text: tuple[int, ...]) -> np.ndarray:
        return np.random.default_rng([seed, source, *text]).normal(0, scale, WORDS)

    return script


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()


def every_output(script: Script, source: int, n_tokens: int, length_penalty: float) -> list[tuple[float, list[int]]]:
    """All outputs of at most n_tokens tokens with their scores, best first."""
    found = []
    for n in range(1, n_tokens + 1):
        for tokens in itertools.product(range(WORDS), repeat=n):
            ends = tokens[-1] == END
            if END in tokens[:-1] or (not ends and n < n_tokens):
                continue
            total = sum(
                float(log_softmax(script(source, (START, *tokens[:i])))[token]) for i, token in enumerate(tokens)
            )
            found.append((total / n**length_penalty, [START, *tokens]))
    return sorted(found, key=lambda pair: -pair[0])


def holds(text: Sequence[int], words: Any) -> bool:
    """Whether a text has a phrase of each constraint; a constraint is a phrase or a list of alternative ones."""

    def has(phrase: Sequence[int]) -> bool:
        n = len(phrase)
        return any(list(text[i : i + n]) == list(phrase) for i in range(len(text) - n + 1))

    return all(any(has(way) for way in (word if not isinstance(word[0], int) else [word])) for word in words)
