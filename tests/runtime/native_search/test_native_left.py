"""Greedy search whose steps leave their normalisers out: numpy's tokens and scores, bit for bit."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from random_searches import random_options

import s2s_export
from s2s_export.errors import BuildError
from s2s_export.runtime.native_graphs import library

try:
    library.load()
except BuildError as missing:  # pragma: no cover
    pytest.skip(str(missing).splitlines()[0], allow_module_level=True)

TOKENS = 4001


def made(folder: Path) -> Path:
    """A Marian of one narrow layer with a vocabulary that screening pays for, some of whose tokens nearly tie."""
    import torch
    from transformers import MarianConfig, MarianMTModel

    from s2s_export.building.build import build

    torch.manual_seed(1)
    config = MarianConfig(
        vocab_size=TOKENS, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=64, init_std=0.6,
        pad_token_id=0, eos_token_id=3, decoder_start_token_id=0, bos_token_id=None, forced_eos_token_id=3,
        scale_embedding=True,
    )  # fmt: skip
    model = MarianMTModel(config).eval()
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        embedding[2000:2200] = embedding[1000:1200] * (1 + 1e-7 * torch.rand(200, 1))
    model.generation_config.bad_words_ids = [[0]]
    model.save_pretrained(folder / "marian")
    s2s_export.export(folder / "marian", folder / "marian.bundle")
    build(folder / "marian.bundle", "cpu-fp32")
    return folder / "marian.bundle"


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, s2s_export.Session]:
    bundle = made(tmp_path_factory.mktemp("left"))
    found = {name: s2s_export.load(bundle, target="cpu-fp32", threads=1, search=name) for name in ("python", "host")}
    if found["host"].backend.operators is None:  # type: ignore[attr-defined]
        pytest.skip("this machine has no fast instruction set for our own operators")
    return found


def screened(session: s2s_export.Session) -> tuple[int, int, int]:
    return library.screened(session.backend.operators)  # type: ignore[attr-defined]


def compare(sessions: Any, seeds: Sequence[int]) -> None:
    for seed in seeds:
        chance = random.Random(seed)
        options = random_options(chance, TOKENS)
        if options.num_beams > 1:
            continue
        n_sources = chance.randint(1, 4)
        sources = [[chance.randrange(4, TOKENS) for _ in range(chance.randint(2, 9))] for _ in range(n_sources)]
        python, native = (
            [[(one.token_ids, one.score, one.token_scores) for one in of_source] for of_source in found]
            for found in (sessions[name].decode_batch(sources, options) for name in ("python", "host"))
        )
        assert native == python, seed


def test_random_options_give_the_same(sessions: Any) -> None:
    before = screened(sessions["host"])
    compare(sessions, range(150))
    rows, kept, _ = (now - then for now, then in zip(screened(sessions["host"]), before, strict=True))
    assert rows > 300 and rows <= kept < rows * 31  # of 251 blocks


def test_what_beams_are_compared_by_is_computed_whole(sessions: Any) -> None:
    before = screened(sessions["host"])
    sessions["host"].generate([[5, 6, 7]], num_beams=2, max_new_tokens=9)
    assert screened(sessions["host"]) == before


@pytest.mark.slow
def test_thousands_of_random_options_give_the_same(sessions: Any) -> None:
    compare(sessions, range(1000, 16000))
