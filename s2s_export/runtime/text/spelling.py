"""The text that each target token stands for inside an output, for outputs that are guided character by character."""

from __future__ import annotations

import unicodedata

from s2s_export.errors import InputError
from s2s_export.runtime.text.tokenizer import REPLACEMENT, Tokenizer


def spell(tokenizer: Tokenizer, size: int) -> tuple[list[str | None], bool]:
    """The text of every id below `size`, and whether decoding drops the space at the beginning of an output.

    None for a token that has no text of its own: special tokens, tokens that are a part of a character. A token's text
    is what it adds between two others, so that it does not depend on the kind of tokenizer.
    """
    left, right = _anchor(tokenizer, size)
    before, after = _decode(tokenizer, [left]), _decode(tokenizer, [left, right])[len(_decode(tokenizer, [left])) :]
    texts: list[str | None] = []
    for token in range(size):
        text = None if token in tokenizer.entry.skip_ids else _decode(tokenizer, [left, token, right])
        fits = text is not None and text.startswith(before) and text.endswith(after)
        inner = text[len(before) : len(text) - len(after)] if text is not None and fits else ""
        texts.append(inner if inner and REPLACEMENT not in inner else None)
    spaced = next((i for i, text in enumerate(texts) if text and text[0] == " " and len(text) > 1), None)
    return texts, spaced is not None and not _decode(tokenizer, [spaced]).startswith(" ")


def _anchor(tokenizer: Tokenizer, size: int) -> tuple[int, int]:
    """Two tokens between which another one is put: letters that change nothing beside them."""
    usable = None
    for token in range(size):
        if token in tokenizer.entry.skip_ids:
            continue
        once = _decode(tokenizer, [token])
        if not once or REPLACEMENT in once or not once.isascii() or not once.isalpha():
            continue
        if _decode(tokenizer, [token, token]) == once * 2:
            return token, token
        usable = token if usable is None else usable
    if usable is None:
        raise InputError("the tokenizer has no token of letters, so that no text can guide an output; leave it out")
    return usable, usable


def _decode(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Before clean-up, which would move spaces; "" for an id that is no token."""
    try:
        return tokenizer.raw_text(ids)
    except InputError:
        return ""


def continues_word(piece: str) -> bool:
    """Whether a vocabulary's entry goes on with the word before it. Letters of scripts without spaces don't."""
    return bool(piece) and piece[0].isalnum() and unicodedata.category(piece[0]) != "Lo"
