"""Guided output: never a token outside, whatever else is asked for; exhaustive search and Python's re are the truth."""

from __future__ import annotations

import itertools
import random
import re
from typing import Any

import numpy as np
import pytest
from exhaustive import END, START, WORDS, every_output, options_of, random_script
from scripted import ScriptedState

from s2s_export.errors import InputError, InvalidOption
from s2s_export.runtime.decoding import Hypothesis, decode, resolve
from s2s_export.runtime.decoding.guide import Choices, Guide, Spellings, Typed
from s2s_export.runtime.decoding.pattern import Pattern


def found_with(script: Any, n_sources: int = 1, **given: Any) -> list[list[Hypothesis]]:
    options = options_of(**given)
    return decode(ScriptedState(script, n_sources, options.n_rows, WORDS), [[]] * n_sources, options)


CHOICES = [[2], [2, 3], [4, 4, 2], [3, 0, 3]]


@pytest.mark.parametrize("n_beams", [1, 2, 8])
@pytest.mark.parametrize("seed", range(4))
def test_the_output_is_one_of_the_choices(seed: int, n_beams: int) -> None:
    script = random_script(seed)
    given = {"num_beams": n_beams, "max_new_tokens": 4, "guides": [Choices(CHOICES)]}
    found = found_with(script, 3, num_return_sequences=n_beams, **given)
    for source, of_source in enumerate(found):
        assert all(h.token_ids[1:-1] in CHOICES and h.token_ids[-1] == END for h in of_source)
        assert len({tuple(h.token_ids) for h in of_source}) == len(of_source) <= len(CHOICES)
        if n_beams == 8:  # all are found, the best first
            every = [(score, text) for score, text in every_output(script, source, 4, 1.0) if text[-1] == END]
            wanted = [text for _, text in every if text[1:-1] in CHOICES]
            assert [h.token_ids for h in of_source] == wanted


def test_a_function_allows_tokens_as_in_transformers() -> None:
    seen = set()

    def allow(source: int, ids: np.ndarray) -> list[int]:
        seen.add((source, len(ids)))
        return [2, 3] if len(ids) < 3 else [END, 4 - source % 2]

    for n_beams in (1, 3):
        options = options_of(num_beams=n_beams, max_new_tokens=5, prefix_allowed_tokens_fn=allow)
        state = ScriptedState(random_script(0), 2, n_beams, WORDS)
        found = decode(state, [[], []], options, source_numbers=[7, 8])
        for number, of_source in zip((7, 8), found, strict=True):
            tokens = of_source[0].token_ids[1:]
            assert set(tokens[:2]) <= {2, 3} and set(tokens[2:]) <= {END, 4 - number % 2}
    assert {source for source, _ in seen} == {7, 8}
    for wrong in ([], [99], None):
        with pytest.raises(InputError, match="prefix_allowed_tokens_fn"):
            found_with(random_script(0), prefix_allowed_tokens_fn=lambda source, ids, wrong=wrong: wrong)


# A vocabulary of pieces: 0 starts, 1 ends, 2 is no text.
PIECES = [None, None, None, *"abc01-", " ", "ab", " a", "bc0", " c", "10", "cab", " 0-"]
SPELLINGS = Spellings(PIECES, strips_space=True)
EXPRESSIONS = [
    "a*", "(ab|c)+", "[a-c]{2,3}", "a.c", r"\d+(-\d+)?", "[^a]b?", "ab c0", "(a|b)?c{0,2}", r"(?:ab|a)(?:bc|c)",
    r"\w \w", "^a+?b*?$", "0{2}|1{3,}",
]  # fmt: skip


def text_of(tokens: list[int]) -> str:
    return "".join(PIECES[token] or "" for token in tokens).removeprefix(" ")


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_a_pattern_allows_what_re_matches(expression: str) -> None:
    """Of all sequences of up to three tokens, exactly those that re.fullmatch accepts may end."""
    guide, n_matches = Pattern(expression, SPELLINGS), 0
    for n in range(4):
        for tokens in itertools.product(range(3, len(PIECES)), repeat=n):
            is_allowed = all(t in guide.allowed(guide.after(tokens[:i])) for i, t in enumerate(tokens))
            accepts = is_allowed and guide.may_end(guide.after(tokens))
            text = text_of(list(tokens))
            if text_of(list(tokens[:1])) == "" and n:  # a lone space at first, which decoding drops
                continue
            assert accepts == bool(re.fullmatch(expression, text)), (text, tokens)
            n_matches += accepts
    assert n_matches


def random_expression(chance: random.Random, depth: int = 3) -> str:
    if depth == 0:
        return chance.choice(["a", "b", ".", "[ab]", "[^a]", "ab"])
    inner = [random_expression(chance, depth - 1) for _ in range(2)]
    repeat = chance.choice(["", "", "?", "*", "+", "{2}", "{1,2}", "{0,}", "*?"])
    return chance.choice([f"(?:{inner[0]}){repeat}", f"({inner[0]}|{inner[1]}){repeat}", inner[0] + inner[1]])


@pytest.mark.parametrize("seed", range(60))
def test_random_expressions_are_read_as_re_reads_them(seed: int) -> None:
    expression = random_expression(random.Random(seed))
    try:
        guide = Pattern(expression, SPELLINGS)
    except InvalidOption:
        assert not any(re.fullmatch(expression, text) for text in ("", "a", "b", "ab", "aa"))
        return
    for n in range(6):
        for letters in itertools.product("ab", repeat=n):
            tokens = [PIECES.index(letter) for letter in letters]
            states = [guide.after(tokens[:i]) for i in range(n + 1)]
            is_allowed = all(token in guide.allowed(state) for token, state in zip(tokens, states, strict=False))
            is_match = re.fullmatch(expression, "".join(letters)) is not None
            assert (is_allowed and guide.may_end(states[-1])) == is_match, (expression, letters)
            if is_match:  # what is missing from each beginning suffices
                assert all(guide.missing(state) <= n - i for i, state in enumerate(states))


@pytest.mark.parametrize("n_beams", [1, 3])
@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_a_search_keeps_to_a_pattern(expression: str, n_beams: int) -> None:
    size = len(PIECES)

    def script(source: int, text: tuple[int, ...]) -> np.ndarray:
        logits = np.random.default_rng([source, *text]).normal(0, 2, size)
        logits[END] += len(text)
        return logits

    defaults = {"decoder_start_token_id": START, "eos_token_id": END, "pad_token_id": START}
    given = {"num_beams": n_beams, "max_new_tokens": 30, "guides": [Pattern(expression, SPELLINGS)]}
    options = resolve(defaults, given, vocabulary_size=size)
    for of_source in decode(ScriptedState(script, 4, n_beams, size), [[]] * 4, options):
        tokens = of_source[0].token_ids[1:]
        assert tokens[-1] == END and re.fullmatch(expression, text_of(tokens[:-1]))


@pytest.mark.parametrize("typed", ["a", "ab", "cab 0", "a c", "c", "0-1", "bc01"])
def test_an_output_begins_as_typed(typed: str) -> None:
    """Whatever pieces spell it: every sequence of pieces whose text begins so is possible, and no other."""
    guide = Typed(typed, SPELLINGS, is_start=True)
    n_possible = 0
    for n in range(1, 4):
        for tokens in itertools.product(range(3, len(PIECES)), repeat=n):
            possible = True
            for i, token in enumerate(tokens):
                allowed = guide.allowed(guide.after(tokens[:i]))
                possible = possible and (allowed is None or token in allowed)
            text = text_of(list(tokens))
            if possible and guide.may_end(guide.after(tokens)):
                n_possible += 1
                assert text.startswith(typed), tokens
            elif text.startswith(typed):
                assert PIECES[tokens[0]] == " " and n > 1 and PIECES[tokens[1]].startswith(" "), tokens
    assert n_possible
    later = Typed(" c", SPELLINGS, is_start=False)
    assert set(later.allowed(later.start) or ()) == {PIECES.index(" "), PIECES.index(" c")}


class Nothing(Guide):
    def step(self, state: Any, token: int) -> int:
        return 0

    def allowed(self, state: Any) -> list[int]:
        return []

    def may_end(self, state: Any) -> bool:
        return False


def test_what_allows_nothing_is_said() -> None:
    for expression, message in [
        ("x+", "allows nothing that the model's tokens can spell"), ("(", "is not a regular expression"),
        (r"(a)\1", "uses groupref"), (r"a(?=b)", "uses assert"), ("(?i)a", "has flags"), (r"\ba", "at_boundary"),
        ("a$b", "uses at_end"), ("a^", "uses at_beginning"),
        ("a{30000}", "smaller repetitions"),
    ]:  # fmt: skip
        with pytest.raises(InvalidOption, match=message):
            Pattern(expression, SPELLINGS)
    for choices in ([], [[]]):
        with pytest.raises(InvalidOption, match="expected at least one"):
            Choices(choices)
    with pytest.raises(InvalidOption, match="a choice has 3 tokens and an end token, but there is room for 3"):
        options_of(guides=[Choices([[2], [2, 2, 2]])], max_new_tokens=3)
    with pytest.raises(InvalidOption, match="expected a Guide"):
        options_of(guides=["a"])
    for n_beams in (1, 3):
        with pytest.raises(InputError, match="nothing that is allowed"):
            found_with(random_script(0), num_beams=n_beams, guides=[Nothing(0)], max_new_tokens=4)


def test_guides_together_allow_what_each_allows() -> None:
    chance = random.Random(0)
    for n_beams in (1, 4):
        some = [chance.sample(CHOICES, 3), [[2, 3], [4, 4, 2], [0]]]
        found = found_with(random_script(1), guides=[Choices(c) for c in some], num_beams=n_beams, max_new_tokens=5)
        assert found[0][0].token_ids[1:-1] in [choice for choice in some[0] if choice in some[1]]
