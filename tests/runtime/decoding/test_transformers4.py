"""Diverse beam search and constraints against transformers 4, the last that has them, in an environment of its own."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from decoding_models import TorchState, tiny_model
from exhaustive import holds

from s2s_export.runtime.decoding import Hypothesis, decode, resolve

FOLDER = os.environ.get("TRANSFORMERS_4")
SCRIPT = Path(__file__).parents[2] / "helpers" / "transformers4.py"
V, PAD, END = 31, 1, 2
Case = tuple[int, list[int], dict[str, Any]]  # the model's seed, the source, the options

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not FOLDER, reason="TRANSFORMERS_4 names no folder that pip install --target 'transformers<4.50' made"
    ),
]


def random_case(seed: int) -> Case:
    """Of an even seed one with groups, of an odd one with words to be forced."""
    chance = random.Random(seed)
    source = [*(chance.randint(4, V - 1) for _ in range(chance.randint(2, 6))), END]
    options: dict[str, Any] = {
        "length_penalty": chance.choice([0.0, 0.6, 1.0, 2.0]),
        "early_stopping": chance.choice([True, False, "never"]),
    }
    if seed % 2:
        words = [[chance.randint(4, V - 1) for _ in range(chance.randint(1, 2))] for _ in range(chance.randint(1, 2))]
        options |= {"num_beams": chance.choice([4, 6, 10]), "max_new_tokens": 10, "force_words_ids": words}
    else:
        n_groups, size = chance.randint(2, 4), chance.randint(1, 3)
        options |= {
            "num_beams": n_groups * size,
            "num_beam_groups": n_groups,
            "diversity_penalty": chance.choice([0.1, 0.7, 2.0]),
            "max_new_tokens": chance.randint(3, 9),
            "num_return_sequences": chance.randint(1, n_groups * size),
        }
    return seed % 3, source, options


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Case, list[Hypothesis], list[Any]]]:
    """Each case with our outputs and with the tokens and scores of transformers 4."""
    root = tmp_path_factory.mktemp("tiny")
    for seed in range(3):
        tiny_model("marian", V, seed).save_pretrained(root / str(seed))
    cases = [random_case(seed) for seed in range(240)]
    given = json.dumps([[str(root / str(model)), source, options] for model, source, options in cases])
    done = subprocess.run(
        [sys.executable, SCRIPT], input=given, capture_output=True, text=True, timeout=500,
        env={**os.environ, "PYTHONPATH": str(FOLDER)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = []
    for case, outcome in zip(cases, json.loads(done.stdout), strict=True):
        model = tiny_model("marian", V, case[0])
        options = resolve(model.generation_config.to_dict(), case[2], vocabulary_size=V)
        found.append((case, decode(TorchState(model, [case[1]], options.n_rows), [case[1]], options)[0], outcome))
    return found


def without_padding(tokens: list[int]) -> list[int]:
    ends = [i for i, token in enumerate(tokens) if token == END and i]
    return tokens[: ends[0] + 1] if ends else tokens


def test_groups(outcomes: Any) -> None:
    """The best output is the same; others may differ where the older rules close a source at another step."""
    groups = [entry for entry in outcomes if "num_beam_groups" in entry[0][2]]
    n_equal = 0
    for case, ours, (tokens, scores) in groups:
        assert ours[0].token_ids == without_padding(tokens[0]), case
        assert ours[0].score == pytest.approx(scores[0], abs=1e-3)
        n_equal += [h.token_ids for h in ours] == [without_padding(row) for row in tokens]
    assert n_equal >= 0.95 * len(groups) > 100


def test_constraints(outcomes: Any) -> None:
    """Ours always hold the words, theirs mostly. Beams are allocated otherwise: ours is seldom worse, often better."""
    constrained = [entry for entry in outcomes if "force_words_ids" in entry[0][2]]
    n_worse = n_better = 0
    for case, ours, (tokens, scores) in constrained:
        assert holds(ours[0].token_ids, case[2]["force_words_ids"]), case
        if not holds(tokens[0], case[2]["force_words_ids"]):
            continue
        n_worse += ours[0].score < scores[0] - 1e-3
        n_better += ours[0].score > scores[0] + 1e-3
    assert n_worse <= 0.2 * len(constrained) and n_better > 2 * n_worse
