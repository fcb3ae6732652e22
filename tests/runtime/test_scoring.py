"""Scores of given targets equal PyTorch's, whatever shares a batch; and what can't be scored is said in a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decoding_models import ARCHITECTURES, TorchState, tiny_model

import s2s_export
from s2s_export.errors import InputError, UsageError
from s2s_export.runtime.decoding import resolve
from s2s_export.runtime.decoding.scoring import Score, score_targets


def torch_scores(model: Any, source: list[int], prompt: list[int], target: list[int]) -> list[float]:
    """log_softmax of the logits of one forward pass over the whole target."""
    fed = torch.tensor([[*prompt, *target[:-1]]])
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([source]), decoder_input_ids=fed).logits[0, len(prompt) - 1 :]
    log_probs = logits.float().log_softmax(-1)
    return [float(log_probs[t, token]) for t, token in enumerate(target)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_are_those_of_torch(architecture: str) -> None:
    model = tiny_model(architecture, 31, 1)
    rng = np.random.default_rng(3)
    sources = [[*rng.integers(4, 31, n).tolist(), 2] for n in (5, 2, 7)]
    targets = [[rng.integers(4, 31, n).tolist() for n in lengths] for lengths in ((1, 9, 4), (2, 2), (3,))]
    options = resolve(model.generation_config.to_dict(), {"max_new_tokens": 20}, vocabulary_size=31)
    for prompt in (list(options.prompt), [*options.prompt, 7, 8]):
        found = score_targets(TorchState(model, sources, 3), [prompt] * len(sources), targets)
        for source, scores, wanted in zip(sources, found, targets, strict=True):
            assert [list(score.token_ids) for score in scores] == wanted
            for score in scores:
                reference = torch_scores(model, source, prompt, list(score.token_ids))
                np.testing.assert_allclose(score.token_log_probs, reference, atol=1e-4)


def test_the_normalised_forms() -> None:
    score = Score((5, 6, 2), (-0.5, -1.0, -1.5))
    assert score.log_prob == pytest.approx(-3.0) and score.mean == pytest.approx(-1.0)
    assert score.normalized(1.0) == pytest.approx(-1.0) and score.normalized(0.0) == pytest.approx(-3.0)
    assert score.normalized(2.0) == pytest.approx(-1 / 3) and score.perplexity == pytest.approx(np.e)


@pytest.mark.parametrize("name", ["marian", "t5", "bart", "attention"])
def test_a_session_scores_what_it_generated(name: str, bundled: Any) -> None:
    """An output's score from the search, with no rules in play, and the sum that scoring it gives, are one number."""
    session = s2s_export.load(bundled(name))
    rules = {"forced_eos_token_id": None, "bad_words_ids": None, "renormalize_logits": None}
    sources = [[5, 6, 7, 8, 2], [9, 10, 2], [11, 2]]
    found = session.generate(sources, num_beams=3, num_return_sequences=3, max_new_tokens=8, **rules)
    pairs = [(source, h) for source, of_source in zip(sources, found, strict=True) for h in of_source]
    for batch_size in (1, 2, 16):
        scores = session.score(
            [source for source, _ in pairs], [h.token_ids for _, h in pairs], batch_size=batch_size, max_new_tokens=8
        )
        for score, (_, hypothesis) in zip(scores, pairs, strict=True):
            n = len(score.token_ids)
            assert list(score.token_ids) == hypothesis.token_ids[-n:]
            np.testing.assert_allclose(score.token_log_probs, hypothesis.token_scores[-n:], atol=1e-4)


def test_a_bundle_scores_as_its_checkpoint(exported: Any) -> None:
    import transformers

    checkpoint, bundle = exported("marian")
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(checkpoint).eval()
    session = s2s_export.load(bundle)
    rng = np.random.default_rng(5)
    pairs = [(rng.integers(1, 60, n).tolist(), rng.integers(1, 59, m).tolist()) for n, m in ((3, 9), (8, 2), (3, 3))]
    pairs += [(pairs[0][0], [5, 6, 7]), (pairs[0][0], [5, 6])]
    scores = session.score([s for s, _ in pairs], [t for _, t in pairs], batch_size=2)
    for score, (source, target) in zip(scores, pairs, strict=True):
        reference = torch_scores(model, source, [model.config.decoder_start_token_id], target)
        np.testing.assert_allclose(score.token_log_probs, reference, atol=1e-4)


def test_what_cant_be_scored(bundled: Any) -> None:
    session = s2s_export.load(bundled("marian"))
    for target, message in [
        ([], "the target is empty"), ([99999], "token id 99999; expected ids from 0 to 60"),
        ([5] * 4000, "but the model allows"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=f"pair 1: .*{message}"):
            session.score([[5, 2], [5, 2]], [[6, 0], target])
    with pytest.raises(UsageError, match="as many targets, found 1 and 2"):
        session.score([[5, 2]], [[5], [6]])


def test_the_command_prints_a_table_and_json_lines(number_words: Path, tmp_path: Path) -> None:
    import json

    from command_line import run_here

    bundle = number_words
    data = tmp_path / "pairs.tsv"
    data.write_text(">>deu<< two\tzwei\n>>deu<< two\tdrei\nno tab\n>>fra<< two\tdeux\n", encoding="utf-8")
    table, errors = run_here("score", bundle, "--data", data, status=1)
    lines = table.splitlines()
    assert lines[0] == "log_prob\tmean\ttokens\ttarget" and lines[3] == "" and len(lines) == 5
    right, wrong, french = (float(lines[i].split("\t")[0]) for i in (1, 2, 4))
    assert wrong < -5 < -1 < right <= 0 and -1 < french <= 0
    assert "line 3: found 1 column; expected a source, a tab and a target" in errors
    records = [
        json.loads(line) for line in run_here("score", bundle, "--data", data, "--json", status=1)[0].splitlines()
    ]
    assert [record["target"] for record in records] == ["zwei", "drei", "", "deux"]
    assert "error" in records[2] and records[0]["log_prob"] == pytest.approx(right, abs=1e-4)
    assert sum(records[1]["token_log_probs"]) == pytest.approx(records[1]["log_prob"])
    assert len(records[0]["tokens"]) == len(records[0]["token_ids"])
