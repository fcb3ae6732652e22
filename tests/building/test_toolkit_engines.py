"""Other toolkits' models for every kind of target: engines for a CPU, and TensorRT-RTX's, compiled without a GPU."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ctranslate2_files
import fairseq_files
import marian_files
import opennmt_files
import pytest

import s2s_export
from s2s_export.building.build import build

MADE: dict[str, Callable[[Path], Path]] = {
    "ctranslate2": lambda folder: ctranslate2_files.save(folder),
    "ctranslate2-like-t5": lambda folder: ctranslate2_files.save(
        folder, relative="bias", rms=True, gated=True, activation=1, scale_embeddings=False
    ),
    "ctranslate2-vectors": lambda folder: ctranslate2_files.save(folder, relative="vectors", alignment=(0, 0)),
    "ctranslate2-one-key-head": lambda folder: ctranslate2_files.save(folder, key_heads=1, activation=4),
    "ctranslate2-int8": lambda folder: ctranslate2_files.save(folder, quantise="int8", activation=5, tied=True),
    "fairseq": lambda folder: fairseq_files.save(folder),
    "fairseq-like-bart": lambda folder: fairseq_files.save(
        folder, encoder_learned_pos=True, decoder_learned_pos=True, layernorm_embedding=True, no_scale_embedding=True
    ),
    "opennmt-py": lambda folder: opennmt_files.save(folder),
    "opennmt-py-rotary": lambda folder: opennmt_files.save(folder, max_relative_positions=-1),
    "opennmt-py-recurrent": lambda folder: opennmt_files.save(
        folder, encoder_type="brnn", decoder_type="rnn", rnn_type="LSTM"
    ),
    "marian": lambda folder: marian_files.save(folder, tied_embeddings_all=True),
    "marian-recurrent": lambda folder: marian_files.save_recurrent(folder, type="s2s"),
}
FAST = ("fairseq",)
NAMES = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in MADE]
OPTIONS: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 9}


def sources() -> list[list[int]]:
    chance = random.Random(3)
    return [[chance.randrange(4, 25) for _ in range(chance.randint(1, 9))] for _ in range(8)]


def bundle_of(folder: Path, name: str) -> Path:
    (folder / "m").mkdir(exist_ok=True)
    made = MADE[name](folder / "m")
    return s2s_export.export(made if made.exists() else folder / "m", folder / "b").path


@pytest.mark.parametrize("name", NAMES)
def test_engines_for_a_cpu(tmp_path: Path, name: str) -> None:
    bundle = bundle_of(tmp_path, name)
    portable = s2s_export.load(bundle, threads=1).generate(sources(), **OPTIONS)
    build(bundle, "cpu-fp32")
    found = s2s_export.load(bundle, target="cpu-fp32", threads=1).generate(sources(), **OPTIONS)
    assert [[h.token_ids for h in of] for of in found] == [[h.token_ids for h in of] for of in portable]
    build(bundle, "cpu-int8")
    int8 = s2s_export.load(bundle, target="cpu-int8", threads=1)
    for of_source, wanted in zip(int8.generate(sources(), **OPTIONS), portable, strict=True):
        assert abs(of_source[0].score - wanted[0].score) < 0.3  # of random weights, whose distributions are flat


@pytest.mark.slow
@pytest.mark.parametrize("name", MADE)
def test_tensorrt_rtx_compiles_them(tmp_path: Path, trt: Any, name: str) -> None:
    report = build(bundle_of(tmp_path, name), "rtx-fp16")
    assert report.engine["agreement"]["finite"] and report.engine["agreement"]["best_token"] > 0.9
