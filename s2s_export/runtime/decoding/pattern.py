"""Outputs that match a regular expression: a guide over the characters of tokens.

The expression is parsed by Python's own parser and becomes a nondeterministic automaton over characters (Thompson
1968), which is made deterministic as far as texts reach into it. A token may follow if its whole text can be read. The
whole output has to match, as with `re.fullmatch`.

What has no automaton (backreferences, lookarounds, word boundaries) is refused by name.
"""

from __future__ import annotations

import re
import warnings
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from ...errors import InvalidOption
from .guide import Guide, Spellings

with warnings.catch_warnings():  # Python 3.10 has the parser elsewhere
    warnings.simplefilter("ignore", DeprecationWarning)
    try:
        from re import _parser as sre  # type: ignore[attr-defined]
    except ImportError:
        import sre_parse as sre

Test = Callable[[str], bool]
States = frozenset[int]
MOST_STATES = 20_000  # of the automaton, since {n,m} copies what it repeats
CATEGORIES: dict[str, Test] = {
    "CATEGORY_DIGIT": str.isdecimal,
    "CATEGORY_NOT_DIGIT": lambda c: not c.isdecimal(),
    "CATEGORY_SPACE": str.isspace,
    "CATEGORY_NOT_SPACE": lambda c: not c.isspace(),
    "CATEGORY_WORD": lambda c: c.isalnum() or c == "_",
    "CATEGORY_NOT_WORD": lambda c: not (c.isalnum() or c == "_"),
}


class Automaton:
    """start, end: states. edges: by state, the tests of characters and where they lead. free: by state, where it leads
    without a character."""

    def __init__(self, expression: str) -> None:
        self.edges: list[list[tuple[Test, int]]] = []
        self.free: list[list[int]] = []
        try:
            parsed = sre.parse(expression)
        except (re.error, RecursionError, OverflowError) as error:
            raise InvalidOption(
                f"regex {expression!r} is not a regular expression ({error}); write it as Python's re does"
            ) from None
        if parsed.state.flags & ~int(re.UNICODE):
            raise InvalidOption(f"regex {expression!r} has flags; expected none; write both cases of a letter out")
        self._expression = expression
        self.start = self._state()
        self.end = self._sequence(_without_anchors(list(parsed)), self.start)

    def closure(self, states: Iterable[int]) -> States:
        """With all that is reached without a character."""
        found, waiting = set(states), list(states)
        while waiting:
            for state in self.free[waiting.pop()]:
                if state not in found:
                    found.add(state)
                    waiting.append(state)
        return frozenset(found)

    def read(self, states: States, character: str) -> States:
        return self.closure({to for state in states for test, to in self.edges[state] if test(character)})

    def distances(self) -> list[int]:
        """The fewest characters from each state to the end."""
        before: list[list[tuple[int, int]]] = [[] for _ in self.edges]
        for state, edges in enumerate(self.edges):
            for to, cost in [*((to, 1) for _, to in edges), *((to, 0) for to in self.free[state])]:
                before[to].append((state, cost))
        found = [len(self.edges)] * len(self.edges)
        found[self.end] = 0
        waiting = deque([self.end])
        while waiting:
            state = waiting.popleft()
            for other, cost in before[state]:
                if found[state] + cost < found[other]:
                    found[other] = found[state] + cost
                    waiting.append(other)
        return found

    def _state(self) -> int:
        if len(self.edges) >= MOST_STATES:
            raise InvalidOption(
                f"regex {self._expression!r} needs more than {MOST_STATES} states; expected smaller repetitions"
            )
        self.edges.append([])
        self.free.append([])
        return len(self.edges) - 1

    def _sequence(self, parts: Any, state: int) -> int:
        """Adds what the parts match behind a state. Returns the state at their end."""
        for operation, argument in parts:
            state = getattr(self, f"_{str(operation).lower()}", self._unknown(operation))(argument, state)
        return state

    def _unknown(self, operation: Any) -> Callable[[Any, int], int]:
        def refuse(argument: Any, state: int) -> int:
            raise InvalidOption(
                f"regex {self._expression!r} uses {str(operation).lower()}, which can't guide an output; expected "
                "characters, classes, alternatives, groups and repetitions"
            )

        return refuse

    def _edge(self, test: Test, state: int) -> int:
        end = self._state()
        self.edges[state].append((test, end))
        return end

    def _literal(self, code: int, state: int) -> int:
        return self._edge(chr(code).__eq__, state)

    def _not_literal(self, code: int, state: int) -> int:
        return self._edge(chr(code).__ne__, state)

    def _any(self, argument: None, state: int) -> int:
        return self._edge(lambda c: c != "\n", state)

    def _in(self, members: Any, state: int) -> int:
        return self._edge(_class(members), state)

    def _branch(self, argument: Any, state: int) -> int:
        end = self._state()
        for branch in argument[1]:
            first = self._state()
            self.free[state].append(first)
            self.free[self._sequence(branch, first)].append(end)
        return end

    def _subpattern(self, argument: Any, state: int) -> int:
        if argument[1] or argument[2]:
            raise InvalidOption(f"regex {self._expression!r} has flags; expected none; write both cases out")
        return self._sequence(argument[-1], state)

    def _max_repeat(self, argument: Any, state: int) -> int:
        least, most, part = argument
        for _ in range(least):
            state = self._sequence(part, state)
        if most is sre.MAXREPEAT:
            loop = self._state()
            self.free[state].append(loop)
            self.free[self._sequence(part, loop)].append(loop)
            return loop
        end = self._state()
        self.free[state].append(end)
        for _ in range(most - least):
            first = self._state()
            self.free[state].append(first)
            state = self._sequence(part, first)
            self.free[state].append(end)
        return end

    _min_repeat = _max_repeat

    def _at(self, where: Any, state: int) -> int:
        return self._unknown(where)(where, state)


def _without_anchors(parts: list[Any]) -> list[Any]:
    """Without a ^ at the beginning and a $ at the end, which mean nothing where the whole output has to match."""
    if parts and str(parts[0][1]) in ("AT_BEGINNING", "AT_BEGINNING_STRING"):
        parts = parts[1:]
    if parts and str(parts[-1][1]) in ("AT_END", "AT_END_STRING"):
        parts = parts[:-1]
    return parts


def _class(members: Any) -> Test:
    tests: list[Test] = []
    is_negated = False
    for kind, argument in members:
        name = str(kind)
        if name == "NEGATE":
            is_negated = True
        elif name == "LITERAL":
            tests.append(chr(argument).__eq__)
        elif name == "RANGE":
            tests.append(lambda c, low=argument[0], high=argument[1]: low <= ord(c) <= high)  # type: ignore[misc]
        else:
            tests.append(CATEGORIES[str(argument)])
    return lambda c: any(test(c) for test in tests) is not is_negated


class Pattern(Guide):
    """The output's text matches an expression as a whole. The state is the automaton's, and whether no text was read.

    is_start: whether the output's text begins here, and not behind a prompt.
    """

    def __init__(self, expression: str, spellings: Spellings, is_start: bool = True) -> None:
        super().__init__((expression, is_start))
        self._automaton = Automaton(expression)
        self._spellings = spellings
        self._reads: dict[tuple[States, str], States] = {}
        self._allowed: dict[tuple[States, bool], list[int]] = {}
        self.start = (self._automaton.closure([self._automaton.start]), is_start and spellings.strips_space)
        self._distances = self._automaton.distances()
        self.farthest = max(self._distances)
        if not self.allowed(self.start) and not self.may_end(self.start):
            raise InvalidOption(
                f"regex {expression!r} allows nothing that the model's tokens can spell; expected one that some text "
                "matches"
            )

    def step(self, state: tuple[States, bool], token: int) -> tuple[States, bool]:
        states, is_first = state
        text = self._spellings.texts[token] or ""
        as_is = self._read_all(states, text)
        if is_first and text.startswith(" "):  # the space that decoding drops
            as_is = self._read_all(states, text[1:]) or as_is
        return as_is, False

    def allowed(self, state: tuple[States, bool]) -> list[int]:
        if state not in self._allowed:
            states, is_first = state
            found = self._below(0, states)
            if is_first and (node := self._spellings.children[0].get(" ")) is not None:
                alone = self._spellings.tokens[node] if found or self.may_end(state) else []
                found = [*found, *alone, *self._below(node, states)]
            self._allowed[state] = list(dict.fromkeys(found))
        return self._allowed[state]

    def may_end(self, state: tuple[States, bool]) -> bool:
        return self._automaton.end in state[0]

    def missing(self, state: tuple[States, bool]) -> int:
        """As many as characters, if each has a token of its own."""
        return min((self._distances[s] for s in state[0]), default=self.farthest)

    def _read(self, states: States, character: str) -> States:
        at = (states, character)
        if at not in self._reads:
            self._reads[at] = self._automaton.read(states, character)
        return self._reads[at]

    def _read_all(self, states: States, text: str) -> States:
        for character in text:
            states = self._read(states, character)
        return states

    def _below(self, node: int, states: States) -> list[int]:
        """The tokens below a node of the spellings whose characters can be read."""
        found, waiting = [], [(node, states)]
        while waiting:
            node, states = waiting.pop()
            for character, child in self._spellings.children[node].items():
                if after := self._read(states, character):
                    found += self._spellings.tokens[child]
                    waiting.append((child, after))
        return found
