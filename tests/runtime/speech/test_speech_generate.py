"""Speech against transformers' generate(): clips, times, long sound, prompts, languages."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_whisper
from tiny_whisper import clip

from s2s_export.errors import InvalidOption, UnknownOption

PROMPT = [tiny_whisper.IDS["<|startofprev|>"], 72, 105]
pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own about its own options


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 3},
        {"return_timestamps": True},
        {"return_timestamps": True, "num_beams": 3},
        {"language": "de"},
        {"language": "german", "task": "translate", "return_timestamps": True},
        {"task": "translate"},
        {"prompt_ids": PROMPT},
        {"prompt_ids": PROMPT, "return_timestamps": True, "num_beams": 2},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "return_timestamps": True},
        {"max_new_tokens": 9},
    ],
    ids=str,
)
def test_clips(pairs: Any, options: dict[str, Any]) -> None:
    pair, clips = pairs(), [clip(seed, 0.7) for seed in range(3)]
    found = [best.token_ids for best, *_ in pair.session.generate(clips, **options)]
    assert found == pair.generate(clips, **options)
    assert any(len(tokens) > 4 for tokens in found)


@pytest.mark.parametrize(
    "options", [{}, {"return_timestamps": True}, {"num_beams": 2, "return_timestamps": True}], ids=str
)
def test_a_model_of_english_alone(pairs: Any, options: dict[str, Any]) -> None:
    pair, clips = pairs(False), [clip(seed, 0.8) for seed in (5, 6)]
    assert [best.token_ids for best, *_ in pair.session.generate(clips, **options)] == pair.generate(clips, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 2},
        {"condition_on_prev_tokens": True},
        {"prompt_ids": PROMPT},
        {"prompt_ids": PROMPT, "condition_on_prev_tokens": True},
        {"language": "en", "condition_on_prev_tokens": True, "num_beams": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", [1, 2])
def test_long_sound(pairs: Any, options: dict[str, Any], seed: int) -> None:
    pair, sound = pairs(), clip(seed, 3.1)
    [[found]] = pair.session.generate([sound], **options)
    assert [found.token_ids] == pair.generate([sound], return_timestamps=True, **options)
    assert len(found.segments) > 3
    assert [token for segment in found.segments for token in segment.tokens] == found.token_ids


def test_long_and_short_sound_together_give_what_each_gives_alone(pairs: Any) -> None:
    session = pairs().session
    sounds = [clip(1, 3.1), clip(2, 0.5), clip(3, 1.9)]
    together = [best.token_ids for best, *_ in session.generate(sounds, return_timestamps=True)]
    assert together == [session.generate([sound], return_timestamps=True)[0][0].token_ids for sound in sounds]


def test_a_decoder_prompt_of_the_caller_is_searched_as_with_other_models(pairs: Any) -> None:
    pair = pairs()
    prompt = [
        tiny_whisper.IDS[name] for name in ("<|startoftranscript|>", "<|de|>", "<|transcribe|>", "<|notimestamps|>")
    ]
    [[found]] = pair.session.generate([clip(1, 0.7)], decoder_input_ids=prompt)
    assert found.token_ids[:4] == prompt
    [[bare]] = pair.session.generate([clip(1, 0.7)], language="de")
    text = [token for token in found.token_ids[4:] if token != tiny_whisper.IDS["<|endoftext|>"]]
    assert text[:20] == bare.token_ids[:20]  # the first window's; it may be cut at times, which the plain search is not


@pytest.mark.parametrize(
    ("is_multilingual", "options", "error", "message"),
    [
        (True, {"language": "klingon"}, UnknownOption, "klingon"),
        (True, {"language": "fr"}, UnknownOption, "fr"),
        (True, {"task": "sing"}, UnknownOption, "sing"),
        (True, {"language": 3}, InvalidOption, "language is 3"),
        (True, {"prompt_ids": "x"}, InvalidOption, "prompt_ids is 'x'"),
        (True, {"return_timestamps": "yes"}, InvalidOption, "expected True or False"),
        (True, {"max_new_tokens": 63}, InvalidOption, "more than the 64 of the model"),
        (False, {"language": "en"}, InvalidOption, "knows English alone"),
        (False, {"task": "translate"}, InvalidOption, "only transcribes English"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    pairs: Any, is_multilingual: bool, options: Any, error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        pairs(is_multilingual).session.generate([clip(1, 0.5)], **options)


def test_without_times_long_sound_has_no_next_window(pairs: Any) -> None:
    with pytest.raises(InvalidOption, match="longer than a window"):
        pairs().session.generate([clip(1, 3.0)], return_timestamps=False)
