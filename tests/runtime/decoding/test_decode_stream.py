"""A stream's parts are the output, and no part is taken back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from agreement import Case, random_case
from decoding_models import TorchState, tiny_model
from scripted import ScriptedState

from s2s_export.runtime.decoding import GenerationOptions, decode, decode_stream, resolve


def prepared(case: Case) -> tuple[Any, GenerationOptions]:
    model = tiny_model(case.architecture, case.vocabulary_size, case.model_seed)
    return model, resolve(model.generation_config.to_dict(), case.options, vocabulary_size=case.vocabulary_size)


@pytest.mark.parametrize("seed", range(60))
def test_the_parts_are_the_best_output(seed: int) -> None:
    case = random_case(seed)
    model, options = prepared(case)
    best = decode(TorchState(model, case.sources[:1], options.n_rows), case.sources[:1], options)[0][0]
    parts = list(decode_stream(TorchState(model, case.sources[:1], options.n_rows), case.sources[0], options))
    assert all(parts)
    assert [token for part in parts for token in part] == best.token_ids


@pytest.mark.parametrize("seed", range(0, 60, 4))
def test_the_parts_of_every_source_of_a_batch_are_its_best_output(seed: int) -> None:
    case = random_case(seed)
    model, options = prepared(case)
    told: list[list[int]] = [[] for _ in case.sources]
    state = TorchState(model, case.sources, options.n_rows)
    found = decode(state, case.sources, options, on_prefix=lambda source, tokens: told[source].extend(tokens))
    assert told == [hypotheses[0].token_ids for hypotheses in found]


def test_greedy_search_tells_every_token_at_once() -> None:
    def script(source: int, text: tuple[int, ...]) -> np.ndarray:
        return np.eye(9)[2 + len(text) if len(text) < 6 else 1] * 9

    options = resolve({"decoder_start_token_id": 0, "eos_token_id": 1}, {}, vocabulary_size=9)
    parts = list(decode_stream(ScriptedState(script, 1, 1, 9), [], options))
    assert parts == [[0, 3], [4], [5], [6], [7], [1]]


def test_beams_tell_what_they_agree_on_before_the_end() -> None:
    """All beams share a beginning, so it is told while they differ later."""

    def script(source: int, text: tuple[int, ...]) -> np.ndarray:
        logits = np.full(9, -9.0)
        if len(text) < 4:
            logits[3] = 9.0
        elif len(text) < 8:
            logits[[4, 5]] = [1.0, 0.9]
        else:
            logits[1] = 9.0
        return logits

    options = resolve(
        {"decoder_start_token_id": 0, "eos_token_id": 1}, {"num_beams": 2, "max_new_tokens": 12}, vocabulary_size=9
    )
    parts = list(decode_stream(ScriptedState(script, 1, 2, 9), [], options))
    assert len(parts) > 1
    assert parts[0][0] == 0
    assert [t for part in parts for t in part] == decode(ScriptedState(script, 1, 2, 9), [[]], options)[0][0].token_ids
