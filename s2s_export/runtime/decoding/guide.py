"""Guides: which tokens may follow a text, so that an output is one of a list, matches a pattern, or begins as typed.

A guide reads the generated tokens one after another; what it has to remember is its state. It is asked which tokens may
follow, and whether the output may end. `rules/guides.py` applies it to a search.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from ...errors import InvalidOption


class Guide:
    """start: the state before the first token. longest: tokens of the longest output, None where there is no longest.
    is_whole: whether the output has to be complete when it ends, at max_length too. farthest: the most that `missing`
    returns.

    Guides are compared by `key`: what they were made of.
    """

    start: Hashable = 0
    longest: int | None = None
    is_whole: bool = True
    farthest: int = 0

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self._steps: dict[tuple[Hashable, int], Hashable] = {}

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.key == self.key

    def __hash__(self) -> int:
        return hash((type(self).__name__, self.key))

    def after(self, tokens: Sequence[int]) -> Hashable:
        """The state after these generated tokens."""
        state = self.start
        for token in tokens:
            state = self.next(state, token)
        return state

    def next(self, state: Hashable, token: int) -> Hashable:
        """`step`, remembered."""
        at = (state, token)
        if at not in self._steps:
            self._steps[at] = self.step(state, token)
        return self._steps[at]

    def step(self, state: Any, token: int) -> Hashable:
        """The state after one more token; what an allowed one is not leads to may be any."""
        raise NotImplementedError

    def allowed(self, state: Any) -> Iterable[int] | None:
        """The tokens that may follow, None for all. End tokens don't count: `may_end` decides about them."""
        raise NotImplementedError

    def may_end(self, state: Any) -> bool:
        raise NotImplementedError

    def missing(self, state: Any) -> int:
        """How many tokens, at most, a text needs before it may end."""
        return 0

    def token_ids(self) -> Iterable[int]:
        """The tokens that it names, where they are few."""
        return ()


class Choices(Guide):
    """The output is one of these sequences of token ids: a trie."""

    def __init__(self, choices: Iterable[Sequence[int]]) -> None:
        listed = tuple(dict.fromkeys(tuple(choice) for choice in choices))
        if not listed or not all(listed):
            raise InvalidOption("there are no choices, or one is empty; expected at least one, of at least one token")
        super().__init__(listed)
        self._children: list[dict[int, int]] = [{}]
        self._ends: set[int] = set()
        for choice in listed:
            node = 0
            for token in choice:
                if token not in self._children[node]:
                    self._children[node][token] = len(self._children)
                    self._children.append({})
                node = self._children[node][token]
            self._ends.add(node)
        self._missing = [0] * len(self._children)
        for node in range(len(self._children) - 1, -1, -1):  # children come after their parents
            below = [self._missing[child] + 1 for child in self._children[node].values()]
            self._missing[node] = 0 if node in self._ends else min(below)
        self.farthest = max(self._missing)
        self.longest = max(map(len, listed))

    def token_ids(self) -> Iterable[int]:
        return {token for children in self._children for token in children}

    def step(self, state: int, token: int) -> int:
        return self._children[state].get(token, -1) if state >= 0 else -1

    def allowed(self, state: int) -> Iterable[int]:
        return self._children[state] if state >= 0 else ()

    def may_end(self, state: int) -> bool:
        return state in self._ends

    def missing(self, state: int) -> int:
        return self._missing[state]


class Spellings:
    """The text of every token, as a trie of characters.

    texts: by token id, None for a token that is no text by itself (special tokens, a part of a character).
    strips_space: whether decoding drops the space at the beginning of an output.
    """

    def __init__(self, texts: Sequence[str | None], strips_space: bool) -> None:
        self.texts = tuple(texts)
        self.strips_space = strips_space
        self.children: list[dict[str, int]] = [{}]
        self.tokens: list[list[int]] = [[]]  # by node: the tokens whose text ends there
        for token, text in enumerate(self.texts):
            if not text:
                continue
            node = 0
            for character in text:
                if character not in self.children[node]:
                    self.children[node][character] = len(self.children)
                    self.children.append({})
                    self.tokens.append([])
                node = self.children[node][character]
            self.tokens[node].append(token)

    def below(self, node: int) -> list[int]:
        """The tokens of a node and of all below it."""
        found, waiting = [], [node]
        while waiting:
            node = waiting.pop()
            found += self.tokens[node]
            waiting += self.children[node].values()
        return found


class Typed(Guide):
    """The output begins with this text, however it is cut into tokens; what follows is free.

    is_start: whether the output's text begins here, and not behind a prompt. The state is the text still to be spelled,
    and whether nothing has been spelled yet.
    """

    is_whole = False

    def __init__(self, text: str, spellings: Spellings, is_start: bool) -> None:
        super().__init__((text, is_start))
        self._spellings = spellings
        self.start = (text, is_start and spellings.strips_space)
        self.farthest = len(text)

    def step(self, state: tuple[str, bool], token: int) -> tuple[str, bool]:
        rest, is_first = state
        text = self._spellings.texts[token] or ""
        if is_first and not rest.startswith(text[:1]):
            text = text.removeprefix(" ")
        return rest[len(text) :], False

    def allowed(self, state: tuple[str, bool]) -> Iterable[int] | None:
        rest, is_first = state
        if not rest:
            return None
        found = self._along(0, rest)
        if is_first and not rest.startswith(" ") and (node := self._spellings.children[0].get(" ")) is not None:
            found += self._along(node, rest)
        return found

    def may_end(self, state: tuple[str, bool]) -> bool:
        return not state[0]

    def missing(self, state: tuple[str, bool]) -> int:
        """As many as characters, if each has a token of its own."""
        return len(state[0])

    def _along(self, node: int, rest: str) -> list[int]:
        """Tokens that spell a beginning of the rest, or go on after it."""
        found: list[int] = []
        for character in rest:
            found += self._spellings.tokens[node]
            if character not in self._spellings.children[node]:
                return found
            node = self._spellings.children[node][character]
        return found + self._spellings.below(node)
