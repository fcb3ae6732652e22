"""Reads the files in a tokenizer's folder. Raises BundleError for any file that can't be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from s2s_export.errors import BundleError


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
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # tokenizers raises plain Exception
        raise _unreadable(path, "a tokenizer.json that this version of the tokenizers package reads") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _unreadable(path: Path, expected: str) -> BundleError:
    return BundleError(f"the tokenizer file {path} can't be read, expected {expected}; export the bundle again")
