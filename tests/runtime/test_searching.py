"""The search on the host: renormalising by few tokens where that is precise, and again by all where it is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scripted import ScriptedState

from s2s_export.errors import InputError
from s2s_export.runtime.decoding import decode, resolve
from s2s_export.runtime.searching import HostSearch, Told

V, START, END, BANNED = 12, 1, 2, 3
SOURCES = [[5, 6, END], [7, END], [8, 9, 4, END]]


class Kind:
    def ids(self, source: list[int]) -> list[int]:
        return source

    def length(self, source: list[int]) -> int:
        return len(source)


class Searched:
    """A host's search over scripted states. likely: from which length on the banned token is all but certain."""

    def __init__(self, likely: int) -> None:
        self.states: list[ScriptedState] = []
        self.likely = likely
        self.search = HostSearch(self._begin, Kind())  # type: ignore[arg-type]

    def script(self, source: int, text: tuple[int, ...]) -> np.ndarray:
        logits = np.random.default_rng([source, *text]).normal(0, 2, V)
        logits[BANNED] = 25.0 if len(text) >= self.likely else -3.0
        return logits

    def _begin(self, sources: Any, options: Any) -> ScriptedState:
        self.states.append(ScriptedState(self.script, len(sources), options.n_rows, V))
        return self.states[-1]


def options_of(**given: Any) -> Any:
    config = {"decoder_start_token_id": START, "eos_token_id": END, "pad_token_id": BANNED, "max_length": 9}
    return resolve(config, {"bad_words_ids": [[BANNED]], "renormalize_logits": True, **given}, vocabulary_size=V)


def expected(searched: Searched, options: Any) -> list[Any]:
    return decode(searched._begin(SOURCES, options), SOURCES, options)


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("likely", [99, 3, 1])
def test_tokens_and_scores_are_those_of_the_whole_distribution(num_beams: int, likely: int) -> None:
    searched, options = Searched(likely), options_of(num_beams=num_beams)
    wanted = expected(searched, options)
    searched.states.clear()
    found = searched.search.decode(SOURCES, options)
    for one, other in zip(found, wanted, strict=True):
        assert [h.token_ids for h in one] == [h.token_ids for h in other]
        assert [h.score for h in one] == pytest.approx([h.score for h in other], abs=2e-5)
    dense = [any(query.dense for query in state.queries) for state in searched.states]
    assert dense == ([False] if likely == 99 else [False, True])
    searched.states.clear()
    searched.search.decode(SOURCES, options)
    assert len(searched.states) == 1, "what was imprecise before is not tried again"


@pytest.mark.parametrize("num_beams", [1, 3])
def test_nothing_is_told_twice_when_decoding_begins_again(num_beams: int) -> None:
    searched, options = Searched(likely=4), options_of(num_beams=num_beams)
    wanted = [outputs[0].token_ids for outputs in expected(searched, options)]
    told: dict[int, list[int]] = {number: [] for number in range(len(SOURCES))}
    searched.search.decode(SOURCES, options, on_prefix=lambda source, tokens: told[source].extend(tokens))
    assert [told[number] for number in range(len(SOURCES))] == wanted
    searched = Searched(likely=4)
    (alone,) = [outputs[0].token_ids for outputs in searched.search.decode([SOURCES[0]], options)]
    searched = Searched(likely=4)
    parts = list(searched.search.stream(SOURCES[0], options))
    assert all(parts) and sum(parts, []) == alone and len(searched.states) == 2  # noqa: RUF017


def test_what_is_told_again_is_left_out() -> None:
    heard: list[tuple[int, list[int]]] = []
    told = Told(lambda source, tokens: heard.append((source, tokens)))
    told(0, [1, 2])
    told(1, [9])
    told.again()
    told(0, [1])
    told(0, [2, 3])
    told(1, [9, 8])
    assert heard == [(0, [1, 2]), (1, [9]), (0, [3]), (1, [8])]


def test_another_error_is_no_reason_to_begin_again() -> None:
    def fail(*given: Any) -> Any:
        raise InputError("no")

    with pytest.raises(InputError):
        HostSearch(fail, Kind()).decode(SOURCES, options_of())  # type: ignore[arg-type]
