"""Every family whose decoder step is made of our own operators runs without ONNX Runtime, with the same numbers."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from random_searches import random_options
from tiny_models import CONFIGS
from tiny_names import STRUCTURES

import s2s_export
from s2s_export.building.build import build
from s2s_export.errors import BuildError
from s2s_export.runtime.backends.onnxruntime import OnnxRuntimeBackend
from s2s_export.runtime.native_graphs import library
from s2s_export.runtime.native_search import LOOP, loop

try:
    library.load()
except BuildError as missing:  # pragma: no cover
    pytest.skip(str(missing).splitlines()[0], allow_module_level=True)

# An expert's rows are chosen at run time, and T5Gemma's attention is of no kind that a kernel computes.
OTHERS = {"switch_transformers": "there is Softmax", "t5gemma": "there is LessOrEqual"}
WHOLE = [name for name in CONFIGS if not name.startswith((*OTHERS, "t5gemma2"))]
QUICK = {*STRUCTURES, "bart", "t5"}


def quick(name: str) -> Any:
    return pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)


def engine_of(exported: Any, name: str, target: str, folder: Path) -> Path:
    path = folder / f"{name}.bundle"
    shutil.copytree(exported(name)[1], path)
    build(path, target)
    return path


def opened(path: Path, target: str) -> tuple[s2s_export.Session, loop.Sessions]:
    session = s2s_export.load(path, target=target, threads=1)
    if session.backend.operators is None:  # type: ignore[attr-defined]
        pytest.skip("this machine has no fast instruction set for our own operators")
    return session, loop.Sessions.of(session.backend)  # type: ignore[arg-type]


def decoded(session: s2s_export.Session, n_searches: int) -> list[Any]:
    size = session.bundle.vocabulary_size
    found = []
    for seed in range(n_searches):
        chance = random.Random(seed)
        options = random_options(chance, size)
        sources = [[chance.randrange(4, size) for _ in range(chance.randint(2, 12))] for _ in range(1 + seed % 3)]
        of_sources = session.decode_batch(sources, options)
        found.append([[(one.token_ids, one.score, one.token_scores) for one in of] for of in of_sources])
    assert session.searcher.native.counts[LOOP] > 0.5 * n_searches  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("target", ["cpu-fp32", "cpu-int8"])
@pytest.mark.parametrize("name", [quick(name) for name in WHOLE])
def test_the_numbers_are_those_of_onnx_runtime(
    exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, target: str
) -> None:
    path = engine_of(exported, name, target, tmp_path)
    session, sessions = opened(path, target)
    directly = decoded(session, 12)
    assert sessions.why_not_direct == ""
    monkeypatch.setattr(OnnxRuntimeBackend, "native", lambda self, name: None)
    assert decoded(opened(path, target)[0], 12) == directly


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_other_families_are_onnx_runtimes(exported: Any, tmp_path: Path, name: str) -> None:
    session, sessions = opened(engine_of(exported, name, "cpu-fp32", tmp_path), "cpu-fp32")
    decoded(session, 3)
    assert sessions.why_not_direct == OTHERS[name]
