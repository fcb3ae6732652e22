"""Lexical constraints: phrases that an output must hold, found by one automaton whatever their number.

A *constraint* is a list of alternative phrases (inflections, say), one of which must occur; a phrase is a sequence of
token ids in a row. All phrases of a source's constraints go into one trie with failure links (Aho and Corasick 1975),
so that a step of a beam costs one lookup, not one for each constraint. A beam's state is its node in the trie and the
set of constraints that it has met; a constraint stays met. Phrases may overlap.

A *glossary* is what sources share: terms with their forms in the source and in the target. Of thousands of entries only
those whose source form occurs in a source constrain it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

Phrase = tuple[int, ...]
EXACT = 3  # constraints whose overlaps are counted
State = tuple[int, int]  # a node of the trie, and the constraints that are met, as bits


class Constraints:
    """The automaton of one source's constraints, each a list of alternative phrases."""

    START: State = (0, 0)

    def __init__(self, constraints: Sequence[Sequence[Phrase]]) -> None:
        self._children: list[dict[int, int]] = [{}]
        self._fail = [0]
        self._met = [0]  # by node: constraints of which a phrase ends there, as bits
        self._ways: list[list[tuple[int, int]]] = [[]]  # by node: constraints passing through it, tokens still missing
        self._shortest = [min(len(phrase) for phrase in phrases) for phrases in constraints]
        self.all_met = (1 << len(constraints)) - 1
        for number, phrases in enumerate(constraints):
            for phrase in phrases:
                self._insert(number, phrase)
        self._link()
        self._needed: dict[State, int] = {}
        self._useful: dict[State, list[int]] = {}
        self.tokens = sorted({token for children in self._children for token in children})  # of any phrase

    def _insert(self, number: int, phrase: Phrase) -> None:
        node = 0
        for place, token in enumerate(phrase):
            if token not in self._children[node]:
                self._children[node][token] = len(self._children)
                self._children.append({})
                self._fail.append(0)
                self._met.append(0)
                self._ways.append([])
            node = self._children[node][token]
            self._ways[node].append((number, len(phrase) - place - 1))
        self._met[node] |= 1 << number

    def _link(self) -> None:
        waiting = list(self._children[0].values())
        for node in waiting:  # grows: breadth first
            for token, child in self._children[node].items():
                fail = self._fail[node]
                while fail and token not in self._children[fail]:
                    fail = self._fail[fail]
                self._fail[child] = self._children[fail].get(token, 0)
                self._met[child] |= self._met[self._fail[child]]
                waiting.append(child)

    def __len__(self) -> int:
        return len(self._shortest)

    def step(self, state: State, token: int) -> State:
        """The state after one more token."""
        node, met = state
        while node and token not in self._children[node]:
            node = self._fail[node]
        node = self._children[node].get(token, 0)
        return node, met | self._met[node]

    def n_met(self, state: State) -> int:
        return state[1].bit_count()

    def is_complete(self, state: State) -> bool:
        return state[1] == self.all_met

    def needed(self, state: State) -> int:
        """How many tokens it takes to meet what is not met.

        Exact, overlaps of phrases included, for up to EXACT constraints; for more, what suffices without overlaps.
        """
        if state not in self._needed:
            is_exact = (self.all_met & ~state[1]).bit_count() <= EXACT
            self._needed[state] = self._fewest(state) if is_exact else self._enough(state)
        return self._needed[state]

    def _fewest(self, state: State) -> int:
        """Breadth first over the tokens that are useful."""
        states, n = {state}, 0
        seen = set(states)
        while not any(self.is_complete(reached) for reached in states):
            states = {self.step(reached, token) for reached in states for token in self.useful(reached)} - seen
            seen |= states
            n += 1
        return n

    def _enough(self, state: State) -> int:
        """The lengths of the shortest phrases, less what the phrase that the text is inside of has already."""
        node, met = state
        total = sum(n for number, n in enumerate(self._shortest) if not met >> number & 1)
        saved = 0
        while node:
            for number, missing in self._ways[node]:
                if not met >> number & 1:
                    saved = max(saved, self._shortest[number] - missing)
            node = self._fail[node]
        return total - saved

    def is_inside(self, state: State) -> bool:
        """Whether the text ends with the beginning of a phrase that is not met."""
        node, met = state
        while node:
            if any(not met >> number & 1 for number, _ in self._ways[node]):
                return True
            node = self._fail[node]
        return False

    def useful(self, state: State) -> list[int]:
        """The tokens that begin or continue a phrase of a constraint that is not met."""
        if state not in self._useful:
            self._useful[state] = self._find_useful(state)
        return self._useful[state]

    def _find_useful(self, state: State) -> list[int]:
        node, met = state
        found: list[int] = []
        while True:
            for token, child in self._children[node].items():
                if any(not met >> number & 1 for number, _ in self._ways[child]):
                    found.append(token)
            if not node:
                return list(dict.fromkeys(found))
            node = self._fail[node]


@dataclass(frozen=True)
class Term:
    """A glossary's entry, as token ids.

    sources: its forms in the source. targets: its forms in the target, one of which the output must hold.
    """

    sources: tuple[Phrase, ...]
    targets: tuple[Phrase, ...]


@dataclass(frozen=True)
class Glossary:
    """Terms, of which only whole words of a source are matches.

    continuations: source tokens that may go on with the word before them; one after a form makes it no match.
    word_ends: those that end with a letter; one before a form that begins with a continuation makes it no match.
    """

    entries: tuple[Term, ...]
    continuations: frozenset[int] = frozenset()
    word_ends: frozenset[int] = frozenset()
    _trie: dict[int, object] = field(default_factory=dict, compare=False, repr=False)
    _hash: int = field(default=0, compare=False, repr=False)

    def __post_init__(self) -> None:
        for term in self.entries:
            for phrase in term.sources:
                node = self._trie
                for token in phrase:
                    node = node.setdefault(token, {})  # type: ignore[assignment]
                node.setdefault(-1, []).append(term)  # type: ignore[attr-defined]

        object.__setattr__(self, "_hash", hash((self.entries, self.continuations, self.word_ends)))

    def __hash__(self) -> int:
        return self._hash

    def __bool__(self) -> bool:
        return bool(self.entries)

    def target_ids(self) -> list[int]:
        """Every token id of a target form."""
        return [i for term in self.entries for phrase in term.targets for i in phrase]

    def matches(self, source: Sequence[int]) -> list[Term]:
        """The terms that occur in a source, each once. Where several begin at one place, the longest counts."""
        found: dict[Term, None] = {}
        place = 0
        while place < len(source):
            longest, terms = self._longest(source, place)
            found.update(dict.fromkeys(terms))
            place += max(1, longest)
        return list(found)

    def _longest(self, source: Sequence[int], place: int) -> tuple[int, list[Term]]:
        node = self._trie
        best: tuple[int, list[Term]] = (0, [])
        if place and source[place] in self.continuations and source[place - 1] in self.word_ends:
            return best
        for end in range(place, len(source)):
            if source[end] not in node:
                break
            node = node[source[end]]  # type: ignore[assignment]
            is_whole = end + 1 == len(source) or source[end + 1] not in self.continuations
            if -1 in node and is_whole:
                best = (end + 1 - place, node[-1])  # type: ignore[assignment]
        return best


def of_source(
    source: Sequence[int], forced: Iterable[Sequence[Phrase]] | None, glossary: Glossary | None
) -> list[tuple[Phrase, ...]]:
    """The constraints of a source: those that every source has, and its terms."""
    found = [tuple(phrases) for phrases in forced or ()]
    if glossary is not None:
        found += [term.targets for term in glossary.matches(source)]
    return list(dict.fromkeys(found))
