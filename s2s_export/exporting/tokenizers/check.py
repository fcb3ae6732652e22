"""Compares the written tokenizer with that of transformers, on fixed texts and on the whole vocabulary."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from s2s_export.errors import CheckpointError, S2SError
from s2s_export.runtime import text

SAMPLES = (
    "",
    " ",
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog.",
    "Déjà vu: l'été où il n'y a pas d'eau, ça coûte 12,50 € !",
    "Größe, Straße und Füße; »Grüße« – „ja“.",
    "Тридцать три корабля лавировали.",
    "今日は良い天気ですね。東京へ行きます",
    "我们明天去北京,好吗?",
    "안녕하세요, 반갑습니다.",
    "مرحبا بالعالم، كيف الحال؟",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "e\u0301 n\u0303 A\u030a \u1e9b\u0323 ﬁ Ⅷ ½ ＡＢＣ",  # combining marks and compatibility forms
    "🙂 👩‍👩‍👧 🇫🇷 \U0001f9d1\U0001f3fd\u200d\U0001f4bb",
    "  two  spaces   and\ttabs\nand\r\nlines  ",
    "\u00a0\u2003\u3000 wide\u200bspaces\ufeff",
    "control \x00\x01\x07\x1b\x7f\x85 characters",
    "can 't . wo n't ! it 's , they 're ' fine ' ?",
    "</s> <s> <pad> <unk> <mask> <extra_id_0> <2> [MASK]",
    "a</s>b <pad>c<unk> d",
    ">>fra<< text >>deu<< more",
    ">>a b<< c<< d",
    "en_XX eng_Latn __en__ fr_XX text",
    "▁ ▁▁ a▁b ⁇ \ufffd",
    "https://example.org/?q=a_b&c=1#x user@example.org",
    "1234567890 3.14159 1e-9 ٣٤ ½",
    "zzzxqj " * 3,
)
_WINDOW = 64  # ids decoded together when the vocabulary is compared
_MAX_LANGUAGES = 4  # source languages compared, spread over the table


def compare(original: Any, folder: Path, entry: Mapping[str, Any]) -> None:
    """Raises CheckpointError at the first text or id for which the runtime's tokenizer differs from `original`."""
    tokenizer = text.load(folder, entry)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for what, expected, found in _cases(original, tokenizer):
            wanted, got = _outcome(expected), _outcome(found)
            if wanted != got:
                raise CheckpointError(
                    f"{what} gives {got!r:.200}, expected {wanted!r:.200} as {type(original).__name__} in transformers "
                    "does; remove the tokenizer files to export for ids only, and report this tokenizer"
                )


_Case = tuple[str, Callable[[], Any], Callable[[], Any]]


def _cases(original: Any, tokenizer: text.Tokenizer) -> Iterator[_Case]:
    sequences: list[list[int]] = [[]]
    for sample in SAMPLES:
        ids = original(sample)["input_ids"]
        sequences.append(ids)
        yield f"tokenizing {sample!r}", partial(_given, ids), partial(tokenizer.encode, sample)
    yield from _source_languages(original, tokenizer)
    yield from _target_languages(original, tokenizer)
    size = max(len(original), len(getattr(original, "target_encoder", ())))
    sequences += [list(range(start, min(start + _WINDOW, size))) for start in range(0, size, _WINDOW)]
    for ids in sequences:
        for skip in (True, False):
            yield (
                f"decoding {ids}",
                partial(original.decode, ids, skip_special_tokens=skip),
                partial(tokenizer.decode, ids, skip_special_tokens=skip),
            )


def _given(value: Any) -> Any:
    return value


def _source_languages(original: Any, tokenizer: text.Tokenizer) -> Iterator[_Case]:
    if tokenizer.entry.source_lang is None:
        return
    usual = original.src_lang
    for code in _some(tokenizer.languages):
        original.src_lang = code
        for sample in SAMPLES[:3]:
            ids = original(sample)["input_ids"]
            yield (
                f"tokenizing {sample!r} in {code}",
                partial(_given, ids),
                partial(tokenizer.encode, sample, source_lang=code),
            )
    original.src_lang = usual


def _target_languages(original: Any, tokenizer: text.Tokenizer) -> Iterator[_Case]:
    if tokenizer.entry.target_language_by != "source_prefix":
        return
    for code in _some(tokenizer.languages):
        ids = original(f">>{code}<< {SAMPLES[2]}")["input_ids"]
        yield (
            f"tokenizing for {code}",
            partial(_given, ids),
            partial(tokenizer.encode, SAMPLES[2], target_lang=code),
        )


def _some(languages: Mapping[str, int]) -> list[str]:
    codes = list(languages)
    return codes[:: max(1, len(codes) // _MAX_LANGUAGES)]


def _outcome(call: Callable[[], Any]) -> Any:
    """The result, or a marker that the tokenizer refused the input."""
    try:
        return call()
    except S2SError:
        return "refused"
    except (IndexError, ValueError, KeyError, OverflowError):  # how transformers refuses an id
        return "refused"
