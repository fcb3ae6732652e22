"""The decode loop in C++ on a real engine: numpy's results, whichever way the call goes."""

from __future__ import annotations

import random
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from random_searches import random_options

import s2s_export
from s2s_export.errors import BackendError, BuildError
from s2s_export.runtime.backends import _slots
from s2s_export.runtime.backends.onnxruntime import OnnxRuntimeBackend
from s2s_export.runtime.joining import OpenDecoding
from s2s_export.runtime.native_graphs import library
from s2s_export.runtime.native_search import LOOP, PYTHON, STEPS, loop

try:
    library.load()
except BuildError as missing:  # pragma: no cover
    pytest.skip(str(missing).splitlines()[0], allow_module_level=True)


@pytest.fixture(scope="module")
def engine(exported: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Marian with an engine of our own operators."""
    from s2s_export.building.build import build

    path = tmp_path_factory.mktemp("native") / "marian.bundle"
    shutil.copytree(exported("marian")[1], path)
    build(path, "cpu-fp32")
    return path


@pytest.fixture(scope="module")
def sessions(engine: Path) -> dict[str, s2s_export.Session]:
    found = {name: s2s_export.load(engine, target="cpu-fp32", threads=1, search=name) for name in ("python", "host")}
    if found["host"].backend.operators is None:  # type: ignore[attr-defined]
        pytest.skip("this machine has no fast instruction set for our own operators")
    return found


def sources_of(session: s2s_export.Session, chance: random.Random, n: int) -> list[list[int]]:
    size = session.bundle.vocabulary_size
    return [[chance.randrange(4, size) for _ in range(chance.randint(2, 12))] for _ in range(n)]


def plain(found: Any) -> list[Any]:
    return [[(one.token_ids, one.score, one.token_scores) for one in of_source] for of_source in found]


def counts(session: s2s_export.Session) -> Any:
    return session.searcher.native.counts  # type: ignore[attr-defined]


def test_random_options_give_the_same(sessions: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_slots, "RESERVED", 3)  # caches grow, and are moved
    counts(sessions["host"]).clear()
    for seed in range(60):
        chance = random.Random(seed)
        options = random_options(chance, sessions["host"].bundle.vocabulary_size)
        sources = sources_of(sessions["host"], chance, chance.choice([1, 2, 5]))
        python, native = (plain(sessions[name].decode_batch(sources, options)) for name in ("python", "host"))
        assert native == python, seed
    assert counts(sessions["host"])[LOOP] > 40


def test_alignments_take_a_call_a_step(sessions: Any) -> None:
    sources = sources_of(sessions["host"], random.Random(1), 3)
    counts(sessions["host"]).clear()
    python, native = (
        sessions[name].generate(sources, num_beams=3, alignments=True, max_new_tokens=9) for name in ("python", "host")
    )
    assert plain(python) == plain(native) and list(counts(sessions["host"])) == [STEPS]
    for one, other in zip(python, native, strict=True):
        assert (one[0].alignment == other[0].alignment).all()


@pytest.mark.parametrize("num_beams", [1, 4])
def test_streams_tell_the_same_at_the_same_steps(sessions: Any, num_beams: int) -> None:
    source = sources_of(sessions["host"], random.Random(2), 1)[0]
    options = sessions["host"].options(num_beams=num_beams, max_new_tokens=20)
    python, native = (list(sessions[name].searcher.stream(source, options)) for name in ("python", "host"))
    assert python == native and len(native) > 1


def test_a_source_that_nobody_wants_leaves_at_once(sessions: Any) -> None:
    sources = sources_of(sessions["host"], random.Random(3), 4)
    options = sessions["host"].options(num_beams=2, max_new_tokens=20, min_new_tokens=19)
    found, asked = {}, []
    for name in ("python", "host"):
        n_asked = [0] * len(sources)

        def wanted(source: int, n_asked: list[int] = n_asked) -> bool:
            n_asked[source] += 1
            return source != 1 or n_asked[1] < 4

        found[name] = plain(sessions[name].decode_batch(sources, options, wanted=wanted))
        asked.append(n_asked)
    assert found["host"] == found["python"] and not found["host"][1] and found["host"][0]
    assert asked[0] == asked[1] and asked[0][1] == 4


def test_threads_share_a_session(sessions: Any) -> None:
    sources = [sources_of(sessions["host"], random.Random(seed), 2) for seed in range(4)]
    wanted = [plain(sessions["python"].generate(some, num_beams=3, max_new_tokens=24)) for some in sources]
    found: dict[int, Any] = {}

    def work(i: int) -> None:
        found[i] = plain(sessions["host"].generate(sources[i], num_beams=3, max_new_tokens=24))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(4)] == wanted


def test_without_a_native_session_steps_are_called_one_by_one(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = s2s_export.load(engine, target="cpu-fp32", threads=1)
    monkeypatch.setattr(OnnxRuntimeBackend, "native", lambda self, name: None)
    monkeypatch.setattr(loop.Sessions, "_open", lambda self, name: (_ for _ in ()).throw(BackendError("no session")))
    session.generate([[5, 6, 7]], max_new_tokens=4)
    session.generate([[5, 6, 7]], max_new_tokens=4)
    assert dict(counts(session)) == {STEPS: 2}
    assert session.searcher.native.why_steps == "no session"  # type: ignore[attr-defined]


def test_what_onnx_runtime_says_is_one_sentence(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxRuntimeBackend, "native", lambda self, name: None)
    session = s2s_export.load(engine, target="cpu-fp32", threads=1)
    tensors = loop.OnnxRuntimeState.tensors

    def wrong(self: Any) -> dict[str, Any]:
        found = tensors(self)
        return {**found, "source_mask": found["source_mask"][:, :1].copy()}

    monkeypatch.setattr(loop.OnnxRuntimeState, "tensors", wrong)
    with pytest.raises(BackendError, match="ONNX Runtime failed in the decoder step"):
        session.generate([[5, 6, 7]], max_new_tokens=4)


def test_a_library_that_cannot_be_had_means_numpy(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise BuildError("no C++ compiler; expected one of g++; install one")

    monkeypatch.setattr(library, "load", missing)
    session = s2s_export.load(engine, target="cpu-fp32", threads=1)
    assert session.generate([[5, 6, 7]], max_new_tokens=4)
    assert dict(counts(session)) == {PYTHON: 1}
    assert "no C++ compiler" in session.searcher.native.why_python  # type: ignore[attr-defined]


def test_options_that_numpy_serves_say_why(sessions: Any) -> None:
    session = sessions["host"]
    size = session.bundle.vocabulary_size
    why_not = session.searcher.native.why_not
    assert why_not(session.options(num_beams=4), size) == ""
    assert "do_sample" in why_not(session.options(do_sample=True), size)
    assert "patience" in why_not(session.options(num_beams=2, patience=2.0), size)
    assert "search='python'" in sessions["python"].searcher.native.why_not(session.options(), size)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_sources_that_join_a_batch_are_searched_in_it(sessions: Any, num_beams: int) -> None:
    found: dict[str, dict[Any, Any]] = {"python": {}, "host": {}}
    counts(sessions["host"]).clear()
    for name, results in found.items():
        session, chance = sessions[name], random.Random(6)
        decoding = OpenDecoding(session, num_beams, 6)
        for cohort in range(4):
            options = session.options(num_beams=num_beams, max_new_tokens=6 + 3 * cohort, no_repeat_ngram_size=2)

            def keep(i: int, outputs: Any, cohort: int = cohort, results: dict[Any, Any] = results) -> None:
                results[cohort, i] = plain([outputs])

            sources = sources_of(session, chance, 1 + cohort % 2)
            decoding.join(sources, options, on_result=keep)
            decoding.advance()
        while decoding.n_sources:
            decoding.advance()
    assert found["host"] == found["python"] and len(found["host"]) == 6
    assert dict(counts(sessions["host"])) == {STEPS: 4}
