"""Word error rate: insertions, deletions and substitutions over the words of the reference."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

# A word, with apostrophes inside; each character of scripts without spaces counts as one.
WITHOUT_SPACES = "\u0e00-\u0eff\u1000-\u109f\u3040-\u30ff\u3400-\u9fff"
WORD = re.compile(rf"[{WITHOUT_SPACES}]|[^\W_{WITHOUT_SPACES}]+(?:'[^\W_{WITHOUT_SPACES}]+)*")


@dataclass(frozen=True)
class WordErrors:
    """n_errors: the least edits that make one text of the other. n_words: of the reference."""

    n_errors: int
    n_words: int

    def __add__(self, other: WordErrors) -> WordErrors:
        return WordErrors(self.n_errors + other.n_errors, self.n_words + other.n_words)

    @property
    def rate(self) -> float:
        return self.n_errors / max(1, self.n_words)


def words_of(text: str) -> list[str]:
    """Without case and punctuation; numbers stay as they are written."""
    return WORD.findall(text.casefold().replace("\u2019", "'"))


def word_errors(found: str, reference: str) -> WordErrors:
    a, b = words_of(found), words_of(reference)
    return WordErrors(distance(a, b), len(b))


def distance(a: Sequence[str], b: Sequence[str]) -> int:
    """Levenshtein's."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row, before = [i], row
        for j, y in enumerate(b, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (x != y)))
    return row[-1]
