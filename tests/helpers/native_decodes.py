"""Decodes of the backend `cuda` on emulated kernels, beside those of ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import s2s_export
from s2s_export import bundle
from s2s_export.runtime.backends._cuda_native.backend import NativeBackend
from s2s_export.runtime.cuda.emulation import HostDevice
from s2s_export.runtime.session import Session

FP16, BF16, INT8 = "cuda-native-fp16", "cuda-native-bf16", "cuda-native-int8"
SOURCES = [[5, 9, 3], [7, 8, 9, 10, 11, 12, 4, 6, 3], [30], [9] * 12, [3, 5, 7, 9]]
SEARCHES: tuple[dict[str, Any], ...] = (
    {"num_beams": 1},
    {"num_beams": 3, "num_return_sequences": 2, "no_repeat_ngram_size": 2},
)
# A step's log-probabilities are off by the rounding of activations to 11 bits (fp16) or 8: so much of a hypothesis'
# score, which is their mean. Logits of the random models of T5 reach 40, of which 8 bits hold the nearest quarter.
# int8 rounds each weight to half a 127th of its output's largest.
SCORE = {FP16: 0.02, BF16: 0.3, INT8: 0.3}


def session(path: Path, target: str = FP16, search: str = "device-while", device: Any = None) -> Session:
    opened = bundle.read(path)
    return Session(opened, NativeBackend(opened, path / "engines" / target, device or HostDevice()), search=search)


def agree(path: Path, target: str, search: str) -> tuple[int, int]:
    """How many outputs have the CPU's tokens, and of how many.

    Of near ties, lower precision may take the other one. So the best output is about as good as the CPU's best, and
    every one of its tokens has about the log-probability that the CPU gives for it.
    """
    reference = s2s_export.load(path, backend="onnxruntime", threads=1)
    ours, n_equal, total, pairs = session(path, target, search), 0, 0, []
    for options in SEARCHES:
        found = ours.generate(SOURCES, max_new_tokens=8, batch_size=3, **options)
        expected = reference.generate(SOURCES, max_new_tokens=8, batch_size=3, **options)
        for source, of, theirs in zip(SOURCES, found, expected, strict=True):
            # The whole beam is about as good: a search that loses its way in a near tie may end elsewhere.
            assert of[0].score > theirs[0].score - 5 * SCORE[target]
            for hypothesis, other in zip(of, theirs, strict=True):
                is_equal = hypothesis.token_ids == other.token_ids
                n_equal, total = n_equal + is_equal, total + 1
                if is_equal:
                    assert abs(hypothesis.score - other.score) < SCORE[target]
                if hypothesis is of[0]:
                    pairs.append((source, hypothesis.token_ids[1:]))
    sources, targets = ([pair[i] for pair in pairs] for i in (0, 1))
    for mine, theirs in zip(ours.score(sources, targets), reference.score(sources, targets), strict=True):
        np.testing.assert_allclose(mine.token_log_probs, theirs.token_log_probs, atol=5 * SCORE[target], rtol=0.05)
    return n_equal, total
