"""Added tokens (`</s>`, `<extra_id_0>`, `__en__`), which must not be cut into pieces where they occur in a text.

The tokenizers that are written in Python in transformers find them with a trie. Where tokens overlap, the ids depend on
which one is chosen. So the search below makes the same decisions in the same order as transformers' `Trie.split`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_END = ""  # a trie node with this key is the end of a token


@dataclass(frozen=True)
class AddedToken:
    """lstrip, rstrip: the token includes the spaces on that side. single_word: it matches only between spaces."""

    id: int
    content: str
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


class AddedTokens:
    """Cuts a text at the added tokens."""

    def __init__(self, tokens: Iterable[AddedToken]) -> None:
        self.by_content = {token.content: token for token in tokens if token.content}
        self._root: dict[str, Any] = {}
        for content in self.by_content:
            node = self._root
            for character in content:
                node = node.setdefault(character, {})
            node[_END] = True

    def split(self, text: str) -> list[str]:
        """The parts of the text, in order. A part that is a key of `by_content` is that token."""
        parts = self._cut(text)
        for i, part in enumerate(parts):
            token = self.by_content.get(part)
            if token is None:
                continue
            left = parts[i - 1] if i > 0 else ""
            right = parts[i + 1] if i + 1 < len(parts) else ""
            if token.rstrip and right:
                parts[i + 1] = right.lstrip()
            if token.lstrip and left:
                parts[i - 1] = left.rstrip()
            if token.single_word and left and left[-1] != " ":
                parts[i - 1] += part
                parts[i] = ""
            elif token.single_word and right and right[0] != " ":
                parts[i + 1] = part + parts[i + 1]
                parts[i] = ""
        return [part for part in parts if part]

    def _cut(self, text: str) -> list[str]:
        cuts = [0]
        open_matches: dict[int, dict[str, Any]] = {}  # start -> node reached so far, in order of start
        skip = 0
        for at, character in enumerate(text):
            if at < skip:
                continue
            dead = []
            found = None
            for start, node in open_matches.items():
                if _END in node:
                    found = self._longest(text, open_matches, start, at)
                    break
                if character in node:
                    open_matches[start] = node[character]
                else:
                    dead.append(start)
            if found is not None:
                start, end = found
                cuts += [start, end]
                skip = max(skip, end)
                open_matches = {}
            else:
                for start in dead:
                    del open_matches[start]
            if at >= skip and character in self._root:
                open_matches[at] = self._root[character]
        for start, node in open_matches.items():
            if _END in node:
                cuts += [start, len(text)]
                break
        cuts.append(len(text))
        parts = []
        begin = 0
        for end in cuts:
            if end > begin:
                parts.append(text[begin:end])
                begin = end
        return parts

    @staticmethod
    def _longest(text: str, open_matches: dict[int, dict[str, Any]], start: int, at: int) -> tuple[int, int]:
        """The longest completion of the earliest open match, once a token that began at `start` has ended before `at`.

        Matches that began earlier have already been extended with `text[at]`; this one has not.
        """
        end = at
        for other, node in open_matches.items():
            if other > start:
                break
            ahead = at + 1 if other < start else at
            end = ahead
            if _END in node:
                start, end = other, ahead
            while ahead < len(text) and text[ahead] in node:
                node = node[text[ahead]]
                ahead += 1
                if _END in node:
                    start, end = other, ahead
        return start, end
