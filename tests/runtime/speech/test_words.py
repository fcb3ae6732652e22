"""Times of tokens and words: a planted path, transformers' own functions, and spellings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny_whisper
import torch
from tiny_whisper import clip

from s2s_export.runtime.audio.log_mel import log_mel
from s2s_export.runtime.speech.words import token_times, warp, words

BEGIN, END = 100, 99


def test_a_planted_path_is_found() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        steps = np.sort(rng.choice(np.arange(1, 60), size=11, replace=False))
        row_of = np.searchsorted(steps, np.arange(60), side="right")
        cost = np.ones((12, 60))
        cost[row_of, np.arange(60)] = 0
        rows, columns = warp(cost)
        assert (rows == row_of).all() and (columns == np.arange(60)).all()


def test_paths_are_those_of_transformers() -> None:
    from transformers.models.whisper.generation_whisper import _dynamic_time_warping

    rng = np.random.default_rng(1)
    for n, m in ((1, 1), (1, 9), (9, 1), (7, 30), (30, 7), (40, 150)):
        matrix = rng.integers(0, 4, (n, m)).astype(np.float64)  # many ties
        expected = _dynamic_time_warping(matrix)
        found = warp(matrix)
        assert (found[0] == expected[0]).all() and (found[1] == expected[1]).all()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("n_beams", [1, 3])
def test_token_times_are_those_of_transformers(pairs: Any, n_beams: int) -> None:
    pair, sound = pairs(), clip(4, 0.8)
    features = torch.from_numpy(log_mel(sound, tiny_whisper.BANDS))[None]
    with torch.no_grad():
        out = pair.model.generate(
            features, return_timestamps=True, return_token_timestamps=True, num_beams=n_beams, language="en",
            return_segments=True,
        )  # fmt: skip
    first = out["segments"][0][0]["result"]
    search = pair.session._speech_search
    encoded = search.decoder.encode([search.kind.features(sound)])
    starts = search.starts(encoded, "en", None, timestamps=True)
    options = pair.session.options(num_beams=n_beams)
    [window] = search.decoder.decode(encoded, starts, options, timestamps=True, attention=True)
    found = token_times(window.attention, tiny_whisper.POSITIONS, search.speech.median_filter_width)
    expected = first["token_timestamps"].numpy()[len(starts[0]) :]
    assert np.abs(found - expected[: len(found)]).max() <= 0.02 + 1e-6


def test_words_begin_with_spaces_and_keep_their_punctuation() -> None:
    pieces = [" He", "llo", ",", ' "', "you", '"', "!", " Bye"]
    tokens = [BEGIN, *range(len(pieces)), BEGIN + 9]
    times = [0.5, 1.0, 1.2, 1.2, 1.4, 1.8, 1.9, 2.0, 3.0, 3.2]
    found = words(tokens, times, [-0.1] * len(tokens), lambda ids: "".join(pieces[i] for i in ids), BEGIN, END)
    assert [word.word for word in found] == [" Hello,", ' "you"!', " Bye"]
    assert [(word.start, word.end) for word in found] == [(0.5, 1.2), (1.2, 2.0), (2.0, 3.0)]
    assert all(word.probability == pytest.approx(np.exp(-0.1)) for word in found)


def test_bytes_of_a_character_stay_together_and_chinese_has_no_spaces() -> None:
    raw = "你好".encode()
    found = words(
        list(range(6)), [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.0] * 6,
        lambda ids: bytes(raw[i] for i in ids).decode("utf-8", "replace"), BEGIN, END, "zh",
    )  # fmt: skip
    assert [(word.word, word.start, word.end) for word in found] == [("你", 0.0, 0.3), ("好", 0.3, 0.6)]
