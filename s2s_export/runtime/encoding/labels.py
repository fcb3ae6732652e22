"""From logits to labels: of a text as a whole, of its tokens, and of the entities that neighbouring tokens make.

Entities are those of transformers' token-classification pipeline with `aggregation_strategy="simple"`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..decoding.state import Floats

OUTSIDE = "O"  # the label of tokens that are in no entity


@dataclass(frozen=True)
class Label:
    """score: a probability; of a regression the value itself."""

    label: str
    score: float


@dataclass(frozen=True)
class TokenLabel:
    """The likeliest label of one token. start, end: its characters in the text; None where a source was ids."""

    token: str
    id: int
    label: str
    score: float
    start: int | None = None
    end: int | None = None


@dataclass(frozen=True)
class Entity:
    """Neighbouring tokens of one label, without its B- or I-. score: the mean of theirs."""

    label: str
    score: float
    start: int | None
    end: int | None
    text: str


def probabilities(logits: Floats, activation: str) -> Floats:
    """Over the last axis. activation: softmax, sigmoid, or none for values that are no probabilities."""
    if activation == "none":
        return logits
    if activation == "sigmoid":
        return np.asarray(1 / (1 + np.exp(-logits)), np.float32)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), np.float32)


def ranked(scores: Floats, labels: Sequence[str]) -> list[Label]:
    """scores [N] -> all labels, best first."""
    return [Label(labels[i], float(scores[i])) for i in np.argsort(-scores, kind="stable").tolist()]


def entities(tokens: Sequence[TokenLabel], text: str | None) -> list[Entity]:
    """The entities of a text, in order. text: None for a source that was ids, whose entities are spelled as tokens."""
    groups: list[list[TokenLabel]] = []
    for token in tokens:
        begins, tag = _parts(token.label)
        if groups and not begins and tag == _parts(groups[-1][-1].label)[1]:
            groups[-1].append(token)
        else:
            groups.append([token])
    return [_entity(group, text) for group in groups if group[0].label != OUTSIDE]


def _parts(label: str) -> tuple[bool, str]:
    """Whether a label begins an entity, and its name without B- and I-."""
    return (True, label[2:]) if label.startswith("B-") else (False, label.removeprefix("I-"))


def _entity(group: Sequence[TokenLabel], text: str | None) -> Entity:
    start, end = group[0].start, group[-1].end
    is_known = text is not None and start is not None and end is not None
    spelled = text[start:end] if is_known and text is not None else " ".join(token.token for token in group)
    score = float(np.mean([token.score for token in group]))
    return Entity(_parts(group[0].label)[1], score, start, end, spelled)
