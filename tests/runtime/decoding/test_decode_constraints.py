"""Lexical constraints: exhaustive search is the truth, and every returned output holds its terms."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from exhaustive import END, START, WORDS, every_output, holds, options_of, random_script
from scripted import ScriptedState

from s2s_export.errors import InputError, InvalidOption
from s2s_export.runtime.decoding import Hypothesis, decode, resolve
from s2s_export.runtime.decoding import chain as chain_module
from s2s_export.runtime.decoding.constraints import Constraints, Glossary, Term


def found_with(script: Any, sources: list[list[int]], **given: Any) -> list[list[Hypothesis]]:
    options = options_of(**given)
    return decode(ScriptedState(script, len(sources), options.n_rows, WORDS), sources, options)


CONSTRAINTS = [
    [[2]], [[3, 4]], [[4, 4]], [[2], [3]], [[2, 3], [3, 4]], [[[2, 2], [3]]], [[[4], [2, 3]], [[3]]], [[2, 3, 2]],
]  # fmt: skip


@pytest.mark.parametrize("words", CONSTRAINTS, ids=str)
@pytest.mark.parametrize("is_dense", [False, True])
def test_with_enough_beams_the_best_under_constraints_are_found(
    words: Any, is_dense: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_dense:
        monkeypatch.setattr(chain_module, "MOST_CANDIDATES", 0)
    script = random_script(len(str(words)))
    found = found_with(
        script, [[], []], num_beams=300, num_return_sequences=4, max_new_tokens=4, early_stopping="never",
        force_words_ids=words,
    )  # fmt: skip
    for source, of_source in enumerate(found):
        wanted = [pair for pair in every_output(script, source, 4, 1.0) if holds(pair[1], words)][: len(of_source)]
        assert [hypothesis.token_ids for hypothesis in of_source] == [tokens for _, tokens in wanted]
        np.testing.assert_allclose([h.score for h in of_source], [score for score, _ in wanted], atol=1e-5)


@pytest.mark.parametrize("seed", range(40))
def test_every_output_of_few_beams_holds_its_terms(seed: int) -> None:
    chance = random.Random(seed)
    words = [
        [[chance.randint(2, 4) for _ in range(chance.randint(1, 3))] for _ in range(chance.randint(1, 2))]
        for _ in range(chance.randint(1, 3))
    ]
    n_beams = chance.randint(2, 5)
    found = found_with(
        random_script(seed), [[2], [3, 4], []], num_beams=n_beams, num_return_sequences=chance.randint(1, n_beams),
        max_new_tokens=chance.randint(9, 12), early_stopping=chance.choice([True, False, "never"]),
        length_penalty=chance.choice([0.0, 1.0, 2.0]), force_words_ids=words,
    )  # fmt: skip
    for of_source in found:
        assert of_source and all(holds(hypothesis.token_ids, words) for hypothesis in of_source), (words, of_source)


def test_a_glossary_applies_only_where_its_source_words_occur() -> None:
    glossary = Glossary((Term(((9, 8),), ((3, 3),)), Term(((7,),), ((4, 2), (2, 2, 2)))), frozenset({6}))
    script = random_script(3)
    sources = [[5, 9, 8, 5], [5, 5], [7, 9, 8], [9, 8, 6], [9, 5, 8]]
    given = {"num_beams": 4, "num_return_sequences": 2, "max_new_tokens": 9}
    plain, found = found_with(script, sources, **given), found_with(script, sources, terms=glossary, **given)
    matched = [[[[3, 3]]], [], [[[4, 2], [2, 2, 2]], [[3, 3]]], [], []]
    for constraints, before, after in zip(matched, plain, found, strict=True):
        if constraints:
            assert all(holds(hypothesis.token_ids, constraints) for hypothesis in after)
        else:
            assert [h.token_ids for h in before] == [h.token_ids for h in after]
            assert [h.score for h in before] == pytest.approx([h.score for h in after])


def test_a_term_is_a_whole_word() -> None:
    term = Term(((5, 6), (15, 6)), ((3,),))
    glossary = Glossary((term,), continuations=frozenset({5, 6, 7}), word_ends=frozenset({5, 6, 7, 15}))
    for source, is_match in [
        ([5, 6], True), ([9, 5, 6, 9], True), ([7, 5, 6], False), ([5, 6, 7], False), ([7, 15, 6], True),
    ]:  # fmt: skip
        assert glossary.matches(source) == ([term] if is_match else []), source


def test_thousands_of_entries_are_one_lookup() -> None:
    entries = tuple(Term(((100 + i, 100 + i // 7),), ((i % 50,),)) for i in range(5000))
    glossary = Glossary(entries)
    assert glossary.matches([1, 105, 100, 2, 107, 101]) == [entries[5], entries[7]]
    assert Glossary((Term(((1,),), ((5,),)), Term(((1, 2),), ((6,),)))).matches([1, 2]) == [Term(((1, 2),), ((6,),))]


@pytest.mark.parametrize("seed", range(30))
def test_the_automaton_counts_as_a_plain_search_does(seed: int) -> None:
    chance = random.Random(seed)
    words = [
        tuple(tuple(chance.randint(2, 3) for _ in range(chance.randint(1, 3))) for _ in range(chance.randint(1, 2)))
        for _ in range(chance.randint(1, 4))
    ]
    constraints = Constraints(words)
    state, text = Constraints.START, []
    for _ in range(12):
        useful, needed = constraints.useful(state), constraints.needed(state)
        if not constraints.is_complete(state):
            assert min(constraints.needed(constraints.step(state, token)) for token in useful) < needed
        text.append(chance.randint(2, 4))
        state = constraints.step(state, text[-1])
        assert constraints.n_met(state) == sum(holds(text, [word]) for word in words)
        assert constraints.is_complete(state) == holds(text, words) == (constraints.needed(state) == 0)


def test_what_cant_be_met_is_said() -> None:
    script = random_script(0)
    with pytest.raises(InputError, match="must hold 1 terms of 3 tokens, but has room for 2"):
        found_with(script, [[]], num_beams=2, max_new_tokens=2, force_words_ids=[[2, 3, 4]])
    with pytest.raises(InputError, match="another option bans their tokens"):
        found_with(script, [[]], num_beams=2, max_new_tokens=5, force_words_ids=[[2]], suppress_tokens=[2])
    for given, message in [
        ({"force_words_ids": [[2]]}, "needs a beam search, expected num_beams above 1"),
        ({"force_words_ids": [[END]], "num_beams": 2}, r"has the end token \[1\]"),
        ({"force_words_ids": [[2]], "num_beams": 2, "do_sample": True}, "can't be used when sampling"),
        ({"force_words_ids": [[2]], "num_beams": 4, "num_beam_groups": 2}, "can't be combined"),
        ({"force_words_ids": [[]], "num_beams": 2}, "expected a non-empty list of phrases"),
        ({"force_words_ids": [[99]], "num_beams": 2}, "expected token ids from 0 to 4"),
        ({"terms": "glossary.tsv", "num_beams": 2}, "expected a Glossary"),
    ]:
        with pytest.raises(InvalidOption, match=message):
            options_of(**given)
    glossary = Glossary((Term(((9,),), ((3,),)),))
    with pytest.raises(InvalidOption, match="sources have no token ids for it to read"):
        resolve({"bos_token_id": START}, {"terms": glossary, "num_beams": 2}, vocabulary_size=9, reads_source_ids=False)
