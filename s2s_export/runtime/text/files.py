"""Reads the files in a tokenizer's folder. Raises BundleError for any file that can't be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from s2s_export.errors import BundleError, is_failure
from s2s_export.runtime.text import panics

# Words, marks, spaces, digits, other scripts, a special token.
TRIAL = "A b\u00e9\u0301 \u200b日本 \U0001f642\n 3.14 </s>"
TRIED = 300  # ids at the beginning of a vocabulary: special tokens and bytes are among them


def sentencepiece_model(path: Path) -> Any:
    """A `SentencePieceProcessor`. Encoding and decoding don't change it, so that threads may share it."""
    from sentencepiece import SentencePieceProcessor

    try:
        return SentencePieceProcessor(model_proto=path.read_bytes())
    except (OSError, RuntimeError, TypeError) as error:
        raise _unreadable(path, "a sentencepiece model") from error


def vocabulary(path: Path) -> dict[str, int]:
    """Piece -> id from a vocab.json."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(path, "a JSON vocabulary") from error
    if not isinstance(data, dict) or not all(isinstance(value, int) for value in data.values()):
        raise _unreadable(path, "an object that maps pieces to ids")
    return data


def tokenizers_model(path: Path) -> Any:
    """A `tokenizers.Tokenizer` that neither truncates nor pads, and the decoder's settings."""
    from tokenizers import Tokenizer

    try:
        with panics.unheard():
            tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
            tokenizer.no_truncation()
            tokenizer.no_padding()
            _try(tokenizer)
    except BaseException as error:  # plain Exceptions, and panics
        if not is_failure(error):
            raise
        raise _unreadable(path, "a tokenizer.json that this version of the tokenizers package reads") from error
    return tokenizer


def _try(tokenizer: Any) -> None:
    """Damage that only shows in use shows here, while panics are kept off stderr."""
    ids = tokenizer.encode(TRIAL, add_special_tokens=False).ids
    ids += range(min(TRIED, tokenizer.get_vocab_size()))
    for skip_special_tokens in (True, False):
        tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)


def _unreadable(path: Path, expected: str) -> BundleError:
    return BundleError(f"the tokenizer file {path} can't be read, expected {expected}; export the bundle again")
