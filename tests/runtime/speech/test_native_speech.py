"""Speech by the search in C++: what numpy's search gives, bit for bit, in the loop and step by step."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_whisper
from tiny_whisper import IDS, clip

import s2s_export
from s2s_export.errors import BuildError
from s2s_export.runtime.native_graphs import library
from s2s_export.runtime.native_search import LOOP, PYTHON, STEPS, loop

try:
    library.load()
except BuildError as missing:  # pragma: no cover
    pytest.skip(str(missing).splitlines()[0], allow_module_level=True)

START, EARLIER = IDS["<|startoftranscript|>"], IDS["<|startofprev|>"]
GERMAN = [START, IDS["<|de|>"], IDS["<|transcribe|>"]]
# Of a window: its prompt, and options.
CASES: list[tuple[list[int], dict[str, Any]]] = [
    ([*GERMAN, IDS["<|notimestamps|>"]], {}),
    ([*GERMAN, IDS["<|notimestamps|>"]], {"num_beams": 5, "num_return_sequences": 3}),
    (GERMAN, {}),
    (GERMAN, {"num_beams": 5, "num_return_sequences": 2}),
    ([START], {}),
    ([START], {"num_beams": 2}),
    ([EARLIER, 72, 105, *GERMAN], {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2}),
    ([EARLIER, 72, 105, *GERMAN], {"num_beams": 3, "length_penalty": 0.5, "early_stopping": True}),
    ([EARLIER, 72, *GERMAN], {"num_beams": 5, "max_initial_timestamp_index": None, "suppress_tokens": []}),
]


@pytest.fixture(scope="module")
def engine(pairs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from s2s_export.building.build import build

    path = tmp_path_factory.mktemp("native_speech") / "whisper.bundle"
    shutil.copytree(pairs().bundle, path)
    build(path, "cpu-fp32")
    if s2s_export.load(path, target="cpu-fp32").backend.operators is None:  # type: ignore[attr-defined]
        pytest.skip("this machine has no fast instruction set for our own operators")
    return path


def windows(session: s2s_export.Session, *, no_speech: bool, attention: bool = False) -> list[Any]:
    """Everything that three windows give in each case."""
    decoder = session._speech_search.decoder  # type: ignore[union-attr]
    encoded = decoder.encode([session.kind.features(clip(seed, 0.7)) for seed in range(3)])  # type: ignore[attr-defined]
    found: list[Any] = []
    for prompt, options in CASES:
        times = IDS["<|notimestamps|>"] not in prompt
        for window in decoder.decode(
            encoded,
            [prompt] * 3,
            session.options(**options),
            timestamps=times,
            no_speech=no_speech,
            attention=attention,
        ):
            outputs = [(one.token_ids, one.score, one.token_scores) for one in window.hypotheses]
            seen = None if window.attention is None else window.attention.tobytes()
            found.append((prompt, options, outputs, window.avg_logprob, window.no_speech_prob, seen))
    return found


def counts(session: s2s_export.Session) -> dict[str, int]:
    return dict(session.searcher.native.counts)  # type: ignore[attr-defined]


@pytest.mark.parametrize("no_speech", [False, True])
@pytest.mark.parametrize("is_direct", [True, False], ids=["direct", "session"])
def test_windows(engine: Path, is_direct: bool, no_speech: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    python = s2s_export.load(engine, target="cpu-fp32", threads=1, search="python")
    wanted = windows(python, no_speech=no_speech)
    assert counts(python) == {PYTHON: len(CASES)}
    if not is_direct:
        monkeypatch.setattr(loop.Sessions, "_open_graph", lambda self, name: None)
    session = s2s_export.load(engine, target="cpu-fp32", threads=1)
    assert windows(session, no_speech=no_speech) == wanted
    assert counts(session) == {LOOP: len(CASES)}
    opened = loop.Sessions.of(session.backend).get("decoder_step")  # type: ignore[arg-type]
    assert (opened.by == loop.DIRECT) == is_direct
    assert any(token >= tiny_whisper.IDS["<|notimestamps|>"] for _, _, outputs, *_ in wanted for token in outputs[0][0])
    if no_speech:
        assert len({of_window[4] for of_window in wanted}) > 3


def test_with_attention_steps_are_called_one_by_one(engine: Path) -> None:
    found = []
    for search, kind in (("python", PYTHON), ("auto", STEPS)):
        session = s2s_export.load(engine, search=search, threads=1, target="portable")
        found.append(windows(session, no_speech=True, attention=True))
        assert counts(session) == {kind: len(CASES)}
    assert found[0] == found[1] and all(np.frombuffer(of_window[5], np.float32).any() for of_window in found[0])


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"condition_on_prev_tokens": True}], ids=str)
def test_long_sound_has_transformers_tokens(pairs: Any, engine: Path, options: dict[str, Any]) -> None:
    session = s2s_export.load(engine, target="cpu-fp32", threads=1)
    sound = clip(1, 3.1)
    [[found]] = session.generate([sound], **options)
    assert [found.token_ids] == pairs().generate([sound], return_timestamps=True, **options)
    assert set(counts(session)) == {LOOP}
