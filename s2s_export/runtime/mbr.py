"""Minimum Bayes risk: of several outputs, the one that agrees most with all others (arXiv 2005.10283).

The utility is chrF (sacrebleu), and every output counts as much as another: give samples, or an n-best list, whose
share in the list is then their weight. n outputs are compared n * n times.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import MissingExtra


def order(texts: Sequence[str]) -> list[int]:
    """The indices of the texts, the one with the highest expected chrF first; equal ones stay in their order."""
    metric = require()
    distinct = list(dict.fromkeys(texts))
    counts = {text: texts.count(text) for text in distinct}
    expected = {
        text: sum(
            counts[other] * (100.0 if other == text else metric.sentence_score(text, [other]).score)
            for other in distinct
        )
        for text in distinct
    }
    return sorted(range(len(texts)), key=lambda i: -expected[texts[i]])


def require() -> Any:
    """The metric. Raises MissingExtra."""
    try:
        from sacrebleu.metrics.chrf import CHRF
    except ImportError as error:
        raise MissingExtra("sacrebleu", "evaluate", "reranking by minimum Bayes risk") from error
    return CHRF()
