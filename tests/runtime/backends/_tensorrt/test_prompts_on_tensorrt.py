"""Decoders alone by engines, on a device of host memory: the tokens of the portable graphs, whose promise holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_decoders
from fake_tensorrt import FakeDevice, build, fake_library
from small import recipe

import s2s_export
from s2s_export import bundle
from s2s_export.building.build import build as build_target
from s2s_export.errors import BackendError
from s2s_export.runtime.backends._tensorrt.backend import TensorRTBackend
from s2s_export.runtime.session import Session

PROMPTS = [[1, 5, 9, 12, 7, 33, 8], [4], [1, 22, 9, 9, 31], [6, 7, 6, 7, 6, 7, 8, 9, 10, 11, 12, 13], [3, 3, 5]]
SEARCHES: tuple[dict[str, Any], ...] = (
    {"num_beams": 1, "max_new_tokens": 14},
    {"num_beams": 4, "num_return_sequences": 3, "max_new_tokens": 12, "length_penalty": 0.6},
    {"num_beams": 3, "max_new_tokens": 12, "repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
)
FAST = ("gpt2", "gemma2")
DECODED = ("gpt2", "gpt2-scaled", "llama", "mistral", "qwen2-windows", "qwen3", "gemma2", "phi", "phi3-part")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def opened(folder: Path, name: str, precision: str = "fp32") -> tuple[Session, Session]:
    """On the fake library's engines, and on the portable graphs."""
    path = s2s_export.export(tiny_decoders.save(name, folder / "checkpoint"), folder / "bundle").path
    engines = build(bundle.read(path, kinds=bundle.GENERATING), recipe(precision), folder)
    backend = TensorRTBackend(
        "tensorrt-rtx", bundle.read(path, kinds=bundle.GENERATING), engines, fake_library(), FakeDevice()
    )
    return Session(bundle.read(path, kinds=bundle.GENERATING), backend, search="host"), s2s_export.load(path, threads=1)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in DECODED])
def test_tokens_equal_the_portable_graphs(tmp_path: Path, name: str) -> None:
    session, portable = opened(tmp_path, name)
    for search in SEARCHES:
        found, expected = (each.generate(PROMPTS, **search) for each in (session, portable))
        assert [[h.token_ids for h in of] for of in found] == [[h.token_ids for h in of] for of in expected]
        scores = [(h.score, e.score) for f, e in zip(found, expected, strict=True) for h, e in zip(f, e, strict=True)]
        assert all(abs(a - b) < 1e-5 for a, b in scores)


def test_what_an_engine_has_no_room_for_is_said(tmp_path: Path) -> None:
    session, _ = opened(tmp_path, "gpt2")
    longest = recipe().ranges["S"].max
    with pytest.raises(BackendError, match=f"has {longest + 1} tokens, but the engine was built for at most {longest}"):
        session.generate([[5] * (longest + 1)], max_new_tokens=3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "phi"])
def test_tensorrt_rtx_compiles_them(tmp_path: Path, trt: Any, name: str) -> None:
    path = s2s_export.export(tiny_decoders.save(name, tmp_path / "checkpoint"), tmp_path / "bundle").path
    report = build_target(path, "rtx-fp16")
    assert any("6 KV_CACHE_UPDATE" in line for line in report.engine["summary"])
    assert report.engine["agreement"]["best_token"] > 0.97
