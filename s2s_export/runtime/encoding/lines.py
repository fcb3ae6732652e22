"""Encodes lines of text, a window of them at a time, for `s2s encode`, and says what it prints of each.

A line that fails affects no other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np

from ...errors import InputError, explain, is_failure
from ..text import from_utf8
from . import EncoderSession, Label, TokenLabel, entities


@dataclass(frozen=True)
class Tagged:
    """The labels of a text's tokens, and the text."""

    tokens: list[TokenLabel]
    text: str


Outcome: TypeAlias = Any  # an embedding [E], a list of Label, a Tagged, or the sentence that says why there is none


@dataclass(frozen=True)
class Settings:
    """pooling, normalize: None as the bundle has them. before: what is put before every text.

    pairs: whether a line is two texts with a tab between them.
    """

    pooling: str | None
    normalize: bool | None
    before: str
    truncate: bool
    batch_size: int
    pairs: bool = False


def encode_lines(
    session: EncoderSession, windows: Iterable[Sequence[str | bytes]], settings: Settings
) -> Iterator[tuple[int, str, Outcome]]:
    """The number, text and outcome of each line, in order."""
    number = 0
    for lines in windows:
        texts = [""] * len(lines)
        ids: dict[int, list[int]] = {}
        outcomes: dict[int, Outcome] = {}
        for place, line in enumerate(lines):
            try:
                texts[place] = line if isinstance(line, str) else from_utf8(line)
                source = _pair(texts[place]) if settings.pairs else settings.before + texts[place]
                ids[place] = session.ids(source, truncate=settings.truncate)
            except BaseException as error:
                if not is_failure(error):
                    raise
                outcomes[place] = explain(error)
        places = list(ids)
        for index, outcome in _outcomes(session, [ids[p] for p in places], [texts[p] for p in places], settings):
            outcomes[places[index]] = outcome
        for place, text in enumerate(texts):
            yield number + place, text, outcomes[place]
        number += len(lines)


def _pair(line: str) -> tuple[str, str]:
    parts = line.split("\t")
    if len(parts) != 2:
        raise InputError(f"found {len(parts) - 1} tabs in the line; expected one, between two texts")
    return parts[0], parts[1]


def _outcomes(
    session: EncoderSession, ids: Sequence[list[int]], texts: Sequence[str], settings: Settings
) -> Iterator[tuple[int, Outcome]]:
    size = settings.batch_size
    if session.head.task == "embedding":
        yield from session.encode_each(ids, pooling=settings.pooling, normalize=settings.normalize, batch_size=size)
    elif session.head.task == "sequence_classification":
        yield from session.classify_each(ids, batch_size=size)
    else:
        for index, tokens in session.tag_each(ids, texts, batch_size=size):
            yield index, Tagged(tokens, texts[index])


def plain(outcome: Outcome) -> str:
    """The line for people and pipes; empty for a line that failed."""
    if isinstance(outcome, str):
        return ""
    if isinstance(outcome, Tagged):
        return "\t".join(f"{e.text} ({e.label} {e.score:.3f})" for e in entities(outcome.tokens, outcome.text))
    if isinstance(outcome, list):
        best: Label = outcome[0]
        return f"{best.label}\t{best.score:.4f}"
    return json.dumps(numbers(outcome))


def record(session: EncoderSession, text: str, outcome: Outcome) -> dict[str, Any]:
    """The JSON object of a line."""
    found: dict[str, Any] = {"source": text}
    if isinstance(outcome, str):
        return {**found, "error": outcome}
    if isinstance(outcome, Tagged):
        found["tokens"] = [asdict(token) for token in outcome.tokens]
        found["entities"] = [asdict(entity) for entity in entities(outcome.tokens, outcome.text)]
    elif isinstance(outcome, list):
        found["labels"] = [asdict(label) for label in outcome]
    else:
        found["embedding"] = numbers(outcome)
    return {**found, "backend": session.backend.name}


def numbers(vector: Any) -> list[float]:
    """The shortest decimals that are read back as the same float32."""
    return [float(str(value)) for value in np.asarray(vector, np.float32)]
