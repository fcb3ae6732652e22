"""Cuts a text of any length into sources that a model takes, and leaves the white space between them as it is.

Lines are cut into sentences (sentencex knows abbreviations in many languages). A sentence that is longer than the model
allows is cut where a clause ends, else at a space, else between two characters, as near to its middle as possible.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..errors import InputError, MissingExtra

BREAKS = (re.compile(r"(?<=[;:,、，；：–—])\s*"), re.compile(r"\s+"))  # better ones first
MIDDLE = 0.3  # a break is taken if it is at least this share of the text away from both of its ends


@dataclass(frozen=True)
class Piece:
    """A part of a text. is_source: whether it is to be translated; otherwise it is copied."""

    text: str
    is_source: bool


def split(
    text: str, language: str, fits: Callable[[str], bool], *, sentences: bool = True, lines: bool = True
) -> list[Piece]:
    """The pieces of a text; joined, they are the text.

    language: two letters. fits: whether the model takes a text as one source. sentences, lines: whether to cut at the
    ends of sentences and lines; what doesn't fit is cut in any case.
    """
    parts = text.splitlines(keepends=True) if lines else [text]
    if sentences:
        parts = [sentence for part in parts for sentence in _sentences(part, language)]
    return [piece for part in parts for piece in _pieces(part, fits)]


def _sentences(text: str, language: str) -> list[str]:
    if not text.strip():
        return [text]
    try:
        import sentencex
    except ImportError as error:
        raise MissingExtra("sentencex", "serve", "cutting a text into sentences") from error
    found = list(sentencex.segment(language, text))
    return found if "".join(found) == text else [text]  # nothing of a text may be lost


def _pieces(text: str, fits: Callable[[str], bool]) -> Iterator[Piece]:
    core = text.strip()
    if not core:
        if text:
            yield Piece(text, False)
        return
    begin = text.index(core)
    if begin:
        yield Piece(text[:begin], False)
    if fits(core):
        yield Piece(core, True)
    elif len(core) == 1:
        raise InputError(f"the text has the character {core!r}, which alone is longer than the model allows")
    else:
        at = _middle(core)
        yield from _pieces(core[:at], fits)
        yield from _pieces(core[at:], fits)
    if end := text[begin + len(core) :]:
        yield Piece(end, False)


def _middle(text: str) -> int:
    """Where to cut a text in two."""
    middle = len(text) // 2
    for pattern in BREAKS:
        places = [match.end() for match in pattern.finditer(text) if 0 < match.end() < len(text)]
        nearest = min(places, key=lambda place: abs(place - middle), default=None)
        if nearest is not None and min(nearest, len(text) - nearest) >= MIDDLE * len(text):
            return nearest
    return middle
