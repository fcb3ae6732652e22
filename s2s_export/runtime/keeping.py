"""Keeps parts of the source as they are: placeholders, addresses, and what the vocabulary can't spell.

An output that lacks such a part gets it in the place of the words that attend to it: the alignment says which. Where
no word does, or that word translates something else too, it is put where its neighbours in the source are. A part that
the output has as often as the source stays where the model put it.

Syntaxes of message catalogues, by name: `gettext` (%s, %(name)d, %1$s, %%), `icu` ({name}, {0, number}), `qt` (%1, %L2,
%n), `html` (<b>, &amp;), `url` (https://..., me@example.org).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import InvalidOption
from .confidence import words
from .decoding import Hypothesis
from .session import Session
from .sources import Source

SYNTAXES = {
    "gettext": r"%(?:\d+\$)?(?:\([^()\s]+\))?[-+#0]*(?:\d+|\*)?(?:\.(?:\d+|\*))?(?:hh|h|ll|l|[jztL])?[a-zA-Z%]",
    "icu": r"\{[^{}\s,]+(?:,[^{}]*)?\}",
    "qt": r"%(?:L?\d{1,2}|n)",
    "html": r"</?[A-Za-z][^<>]*>|&(?:[A-Za-z]+|#\d+|#x[0-9A-Fa-f]+);",
    "url": r"(?:https?://|www\.)[^\s<>\"]*[^\s<>\".,;:!?')]|[\w.+-]+@[\w-]+(?:\.[\w-]+)+",
}
Span = tuple[int, int, bool]  # first character, the one after the last, whether it is the unknown token
MOST = 0.5  # share of a word's attention on a part, from which on the word stands for the part


@dataclass(frozen=True)
class Part:
    """Characters start to end of the source, and the source tokens that spell them."""

    text: str
    start: int
    tokens: tuple[int, ...]


def expressions(patterns: Sequence[str]) -> list[re.Pattern[str]]:
    """Compiled; a pattern may be the name of a syntax. Raises InvalidOption."""
    found = []
    for pattern in patterns:
        try:
            compiled = re.compile(SYNTAXES.get(pattern, pattern))
        except re.error as error:
            raise InvalidOption(
                f"keep has {pattern!r}, which is neither a regular expression ({error}) nor one of "
                f"{', '.join(SYNTAXES)}; correct it"
            ) from None
        if compiled.fullmatch(""):
            raise InvalidOption(
                f"keep has {pattern!r}, which matches an empty text; expected one that needs characters"
            )
        found.append(compiled)
    return found


def keep(
    session: Session, text: str, source: Source, hypothesis: Hypothesis, patterns: Sequence[str], *, unknown: bool
) -> Hypothesis:
    """The hypothesis with a text that has the parts of the source `text` which are to be kept."""
    if hypothesis.alignment is None or hypothesis.text is None:
        return hypothesis
    ids = session.kind.ids(source)
    spans = spans_of(text, session.source_tokens(source), session.tokenizer.entry.special_ids.get("unk"), ids)
    parts = parts_of(text, spans, patterns, unknown=unknown)
    lacking = [part for place, part in enumerate(parts) if _is_lacking(place, parts, hypothesis.text)]
    if not lacking:
        return hypothesis
    offset = len(hypothesis.token_scores) - len(hypothesis.alignment)
    attention = [
        (word, np.mean([hypothesis.alignment[place - offset] for place in places], axis=0))
        for word, places in words(session, hypothesis)
    ]
    entry = session.tokenizer.entry
    special = {*entry.skip_ids, *entry.languages.values()}
    covered = {i for part in parts for i in part.tokens}
    content = [
        i for i, (start, end, _) in enumerate(spans) if end > start and i not in covered and ids[i] not in special
    ]
    prompt = hypothesis.token_ids[: len(hypothesis.token_ids) - len(hypothesis.token_scores)]
    beginning = session.tokenizer.decode(prompt)  # of a forced prefix
    return replace(hypothesis, text=" ".join(filter(None, (beginning, copied(attention, lacking, content)))))


def _is_lacking(place: int, parts: Sequence[Part], text: str) -> bool:
    """Whether the output lacks this part. Of equal ones, the output's are taken to be the first."""
    before = sum(part.text == parts[place].text for part in parts[:place])
    return before >= text.count(parts[place].text)


def copied(attention: Sequence[tuple[str, np.ndarray]], parts: Sequence[Part], content: Sequence[int]) -> str:
    """The words of an output, each with its attention [S], joined by spaces, with the parts in their places.

    content: the source positions of other words. A word that translates one of them, attending to it more than the
    other words do, is not replaced.
    """
    out: list[str | None] = [word for word, _ in attention]
    of_content = np.asarray([weights[list(content)] for _, weights in attention]).reshape(len(attention), len(content))
    translates = set(of_content.argmax(axis=0).tolist()) if len(attention) else set()
    positions = [content[int(weights.argmax())] if len(content) else -1 for weights in of_content]
    before: dict[int, list[str]] = {}
    for part in sorted(parts, key=lambda part: part.start):
        shares = [float(weights[list(part.tokens)].sum()) if part.tokens else 0.0 for _, weights in attention]
        free = [i for i, word in enumerate(out) if word is not None and shares[i] >= MOST and i not in translates]
        if free:
            first = last = max(free, key=lambda i: shares[i])
            while last + 1 in free:
                last += 1
            while first - 1 in free:
                first -= 1
            ending = re.search(r"[.,;:!?…]*$", attention[last][0])
            before.setdefault(first, []).append(part.text + (ending.group() if ending else ""))
            for i in range(first, last + 1):
                out[i] = None
        else:
            start = min(part.tokens, default=0)
            place = next((i for i, position in enumerate(positions) if position > start), len(out))
            before.setdefault(place, []).append(part.text)
    joined: list[str] = []
    for i in range(len(out) + 1):
        joined += before.get(i, [])
        if i < len(out) and out[i] is not None:
            joined.append(str(out[i]))
    return " ".join(joined)


def parts_of(
    text: str, spans: Sequence[tuple[int, int, bool]], patterns: Sequence[str], *, unknown: bool
) -> list[Part]:
    """What is to be kept of a source, in order and without overlaps; matches of patterns go before unknown words."""
    found: list[tuple[int, int]] = []
    for compiled in expressions(patterns):
        found += [match.span() for match in compiled.finditer(text)]
    if unknown:
        for start, end, is_unknown in spans:
            if is_unknown and end > start:
                left, right = text.rfind(" ", 0, start) + 1, text.find(" ", end)
                found.append((left, len(text) if right < 0 else right))
    parts: list[Part] = []
    covered = -1
    for start, end in sorted(dict.fromkeys(found), key=lambda span: (span[0], -span[1])):
        if start < covered:
            continue
        covered = end
        tokens = tuple(i for i, (a, b, _) in enumerate(spans) if a < end and b > start)
        parts.append(Part(text[start:end], start, tokens))
    return parts


def spans_of(text: str, pieces: Sequence[str], unknown_id: int | None, ids: Sequence[int]) -> list[Span]:
    """Where in the text each source token is. Special tokens have no characters."""
    found: list[Span] = []
    at = 0
    waiting: list[int] = []  # unknown tokens, whose end the next known token tells
    for piece, token in zip(pieces, ids, strict=True):
        is_unknown = token == unknown_id
        spelled = piece.replace("▁", "").replace("Ġ", "")
        where = -1 if is_unknown or not spelled else text.find(spelled, at)
        if is_unknown:
            waiting.append(len(found))
            found.append((at, at, True))
            continue
        if where < 0:
            found.append((at, at, False))
            continue
        _give(found, waiting, text, at, where)
        found.append((where, where + len(spelled), False))
        at = where + len(spelled)
    _give(found, waiting, text, at, len(text))
    return found


def _give(found: list[Span], waiting: list[int], text: str, start: int, end: int) -> None:
    """The characters between two known tokens belong to the unknown ones there."""
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    for i in waiting:
        found[i] = (start, end, True)
    waiting.clear()
