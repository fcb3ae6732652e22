"""Words to pieces by a file of merges, as subword-nmt and fastBPE learn and apply them (1508.07909).

A line of the file is a pair of symbols, the first learned first; fastBPE adds how often it was seen, and subword-nmt
puts a version before all. Pieces that end inside a word end with `@@`, by which they are joined again.
"""

from __future__ import annotations

import itertools
from pathlib import Path

from s2s_export.errors import BundleError

SEPARATOR = "@@"
END = "</w>"  # of a word, in the file


class BpeCodes:
    """The merges of a file, and the words that were split by them. Safe to use from several threads."""

    def __init__(self, ranks: dict[tuple[str, str], int], *, is_end_apart: bool = False) -> None:
        """is_end_apart: whether a word begins with its end as a symbol of its own (subword-nmt's version 0.1)."""
        self._ranks, self._is_end_apart = ranks, is_end_apart
        self._known: dict[str, list[str]] = {}

    @classmethod
    def read(cls, path: Path) -> BpeCodes:
        """Raises BundleError for a file that holds no merges."""
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(f"{path}: can't be read as UTF-8 ({error}); restore the file of merges") from error
        has_version = lines[0].startswith("#version:")
        if has_version:
            is_end_apart = lines[0].split(":", 1)[1].strip() == "0.1"
        else:  # fastBPE counts, and subword-nmt's first version did not
            is_end_apart = len(lines[0].split()) == 2
        ranks: dict[tuple[str, str], int] = {}
        for number, line in enumerate(lines[has_version:], start=1 + has_version):
            parts = line.strip("\r\n ").split(" ")
            if parts == [""]:
                continue
            if len(parts) not in (2, 3) or (len(parts) == 3 and not parts[2].isdigit()):
                raise BundleError(f"{path}: line {number} is no pair of symbols; restore the file of merges")
            ranks.setdefault((parts[0], parts[1]), len(ranks))
        if not ranks:
            raise BundleError(f"{path}: holds no merges; restore the file")
        return cls(ranks, is_end_apart=is_end_apart)

    def split(self, word: str) -> list[str]:
        """The pieces of a word, all but the last with `@@`. A word that ends with it is a piece already."""
        if word.endswith(SEPARATOR):
            return [word]
        if word not in self._known:
            self._known[word] = self._split(word)
        return self._known[word]

    def _split(self, word: str) -> list[str]:
        symbols = [*word, END] if self._is_end_apart else [*word[:-1], word[-1] + END]
        while len(symbols) > 1:
            pairs = list(itertools.pairwise(symbols))
            best = min(pairs, key=lambda pair: self._ranks.get(pair, len(self._ranks)))
            if best not in self._ranks:
                break
            merged: list[str] = []
            for symbol in symbols:
                if merged and (merged[-1], symbol) == best:
                    merged[-1] += symbol
                else:
                    merged.append(symbol)
            symbols = merged
        if symbols[-1] == END:
            symbols.pop()
        else:
            symbols[-1] = symbols[-1].removesuffix(END)
        return [symbol + SEPARATOR for symbol in symbols[:-1]] + symbols[-1:]


def joined(text: str) -> str:
    """Pieces with spaces between them as words."""
    return (text + " ").replace(f"{SEPARATOR} ", "").rstrip(" ")
