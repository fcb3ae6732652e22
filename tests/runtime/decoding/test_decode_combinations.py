"""Random combinations of options: none crashes, and what each option promises holds for every output."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from exhaustive import holds
from scripted import ScriptedState
from tiny_names import in_the_long_run

from s2s_export.errors import InputError, InvalidOption
from s2s_export.runtime.decoding import GenerationOptions, Hypothesis, decode, resolve
from s2s_export.runtime.decoding.constraints import Glossary, Term
from s2s_export.runtime.decoding.guide import Choices, Spellings, Typed
from s2s_export.runtime.decoding.option_values import StopStrings
from s2s_export.runtime.decoding.pattern import Pattern

V = 14
START, END = 0, 1
LETTERS = "..abcdefghijkl"
SPELLINGS = Spellings([None, None, *LETTERS[2:]], strips_space=False)
FILLER = -1e8


def spelled(tokens: list[int]) -> str:
    return "".join(LETTERS[token] for token in tokens if token > END)


def random_options(chance: random.Random) -> dict[str, Any]:
    n_beams = chance.choice([1, 2, 3, 4, 6])
    found: dict[str, Any] = {"num_beams": n_beams, "max_new_tokens": chance.randint(4, 12)}

    def some(most: int) -> list[int]:
        return [chance.randint(2, V - 1) for _ in range(chance.randint(1, most))]

    def stops() -> StopStrings:
        texts = StopStrings([spelled(some(2)) for _ in range(2)])
        texts.decode = lambda ids: spelled(list(ids))
        return texts

    may: dict[str, Callable[[], Any]] = {
        "num_return_sequences": lambda: chance.randint(1, n_beams),
        "length_penalty": lambda: chance.choice([0.0, 0.6, 1.0, 2.0]),
        "early_stopping": lambda: chance.choice([True, False, "never"]),
        "patience": lambda: chance.choice([0.5, 1.0, 2.0, 3.5]),
        "coverage_penalty": lambda: chance.choice([0.1, 1.0]),
        "num_beam_groups": lambda: chance.choice([1, 2, 3]),
        "diversity_penalty": lambda: chance.choice([0.0, 0.5, 3.0]),
        "presence_penalty": lambda: chance.uniform(-1, 2),
        "frequency_penalty": lambda: chance.uniform(-1, 2),
        "max_length_ratio": lambda: chance.choice([0.5, 1.0, 2.0]),
        "min_length_ratio": lambda: chance.choice([0.5, 1.0]),
        "stop_strings": stops,
        "return_alternatives": lambda: True,
        "min_alternative_expansion_prob": lambda: chance.choice([0.0, 0.1]),
        "force_words_ids": lambda: [
            [some(2) for _ in range(chance.randint(1, 2))] for _ in range(chance.randint(1, 2))
        ],
        "terms": lambda: Glossary((Term(((5,), (6, 7)), (tuple(some(2)), tuple(some(1)))),)),
        "guides": lambda: [
            chance.choice(
                [
                    lambda: Choices([some(3) for _ in range(3)]),
                    lambda: Typed(spelled(some(3)), SPELLINGS, True),
                    lambda: Pattern(chance.choice(["[a-e]+", "(ab|cd)*", "[^a]{2,4}"]), SPELLINGS),
                ]
            )()
        ],
        "target_prefix_ids": lambda: some(3),
        "prefix_bias_beta": lambda: chance.choice([0.0, 0.2, 0.9]),
        "decoder_input_ids": lambda: some(3),
        "no_repeat_ngram_size": lambda: chance.randint(1, 3),
        "repetition_penalty": lambda: chance.choice([0.8, 1.5]),
        "suppress_tokens": lambda: some(2),
        "do_sample": lambda: True,
        "renormalize_logits": lambda: True,
    }
    for name in chance.sample(sorted(may), chance.choice([1, 2, 2, 3, 3, 4, 5])):
        found[name] = may[name]()
    if found.get("do_sample"):
        found["seed"] = 3
    if chance.random() < 0.7 and "num_beam_groups" in found:
        found["num_beams"] *= found["num_beam_groups"]
    return found


def run(seed: int, sources: list[list[int]], options: GenerationOptions, **given: Any) -> list[list[Hypothesis]]:
    def script(source: int, text: tuple[int, ...]) -> np.ndarray:
        logits = np.random.default_rng([seed, *sources[source], *text]).normal(0, 2, V)
        logits[START] = -30.0
        logits[END] += 0.3 * len(text)
        return logits

    state = ScriptedState(script, len(sources), options.n_rows, V).with_attention(sources)
    return decode(state, sources, options, **given)


def check(options: GenerationOptions, source: list[int], found: list[Hypothesis], n_prompt: int) -> None:
    """What the options promise for the outputs of one source."""
    is_picked = options.guides or options.force_words_ids or options.terms or options.return_alternatives
    assert len(found) <= options.num_return_sequences
    assert found and (is_picked or len(found) == options.num_return_sequences)
    outputs = [h for h in found if h.score * len(h.token_scores) ** options.length_penalty > FILLER and h.token_scores]
    if not options.return_alternatives and not options.do_sample:
        assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
    for hypothesis in outputs:
        tokens = hypothesis.token_ids[n_prompt:]
        text = [token for token in tokens if token != END]
        assert len(tokens) == len(hypothesis.token_scores) and END not in tokens[:-1]
        assert len(hypothesis.token_ids) <= options.max_length
        if options.max_length_ratio:
            assert len(tokens) <= max(1, math.ceil(options.max_length_ratio * len(source)))
        if options.min_length_ratio and tokens[-1] == END:
            assert len(text) >= options.min_length_ratio * len(source)
        if options.stop_strings:
            assert not any(stop in spelled(tokens[:-1]) for stop in options.stop_strings)
        if options.force_words_ids:
            assert holds(tokens, options.force_words_ids)
        if options.terms:
            assert holds(tokens, [term.targets for term in options.terms.matches(source)])
        for guide in options.guides or ():
            assert guide.may_end(guide.after(text)) and (tokens[-1] == END or not guide.is_whole)
        if not options.coverage_penalty:
            mean = sum(hypothesis.token_scores) / len(tokens) ** options.length_penalty
            assert hypothesis.score == pytest.approx(mean, rel=1e-3, abs=1e-3)
    if options.return_alternatives:
        firsts = [hypothesis.token_ids[n_prompt] for hypothesis in outputs]
        assert len(set(firsts)) == len(firsts)


def try_one(seed: int) -> str:
    chance = random.Random(seed)
    given = random_options(chance)
    sources = [[chance.randint(2, V - 1) for _ in range(chance.randint(2, 7))] for _ in range(3)]
    try:
        options = resolve(
            {"decoder_start_token_id": START, "eos_token_id": END, "pad_token_id": START}, given, vocabulary_size=V
        )
    except InvalidOption:
        return "refused"
    alone: list[list[Hypothesis] | None] = []
    for number, source in enumerate(sources):
        try:
            alone += run(seed, [source], options, source_numbers=[number])
        except InputError:
            assert options.guides or options.force_words_ids or options.terms
            alone.append(None)
    for source, found in zip(sources, alone, strict=True):
        if found is not None:
            check(options, source, found, len(options.prompt))
    if None not in alone:
        together = [
            run(seed, sources, options),
            run(seed, sources, options, leave_early=False),
        ]
        for found in together:
            assert [[h.token_ids for h in of] for of in found] == [[h.token_ids for h in of or []] for of in alone]
    return "decoded" if None not in alone else "impossible"


@pytest.mark.parametrize("part", in_the_long_run(range(10), range(5)))
def test_what_options_promise_holds_together(part: int) -> None:
    outcomes = [try_one(seed) for seed in range(part * 40, part * 40 + 40)]
    assert outcomes.count("decoded") > 10


@pytest.mark.slow
def test_of_thousands() -> None:
    for seed in range(400, 6000):
        try:
            try_one(seed)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {random_options(random.Random(seed))}") from error
