"""Ensembles: the average of the members' distributions, searched as one model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoding_models import TorchState, tiny_model
from exhaustive import END, START, WORDS, every_output, log_softmax, options_of, random_script
from scripted import ScriptedState

import s2s_export
from s2s_export.errors import InvalidOption, UnknownOption
from s2s_export.runtime.decoding import StepQuery, decode, resolve
from s2s_export.runtime.ensembles import EnsembleState


@pytest.mark.parametrize("average", ["log_probs", "probs"])
def test_the_best_output_is_that_of_exhaustive_search(average: str) -> None:
    scripts = [random_script(seed) for seed in (1, 2, 3)]

    def mean(source: int, text: tuple[int, ...]) -> np.ndarray:
        each = np.stack([log_softmax(script(source, text)) for script in scripts])
        return each.mean(axis=0) if average == "log_probs" else np.log(np.exp(each).mean(axis=0))

    options = options_of(num_beams=200, num_return_sequences=5, max_new_tokens=4, early_stopping="never")
    state = EnsembleState([ScriptedState(script, 2, 200, WORDS) for script in scripts], average)
    for source, found in enumerate(decode(state, [[], []], options)):
        wanted = every_output(mean, source, 4, 1.0)[:5]
        assert [hypothesis.token_ids for hypothesis in found] == [text for _, text in wanted]
        np.testing.assert_allclose([h.score for h in found], [score for score, _ in wanted], atol=1e-5)
    assert (START, END) == (0, 1)


@pytest.mark.parametrize("n_beams", [1, 4])
def test_of_a_model_with_itself_it_is_the_model(n_beams: int) -> None:
    model = tiny_model("marian", 31, 1)
    sources = [[5, 6, 7, 2], [9, 2], [8, 7, 2]]
    options = resolve(
        model.generation_config.to_dict(), {"num_beams": n_beams, "max_new_tokens": 9}, vocabulary_size=31
    )
    alone = decode(TorchState(model, sources, n_beams), sources, options, alignments=True)
    for average in ("log_probs", "probs"):
        twice = EnsembleState([TorchState(model, sources, n_beams) for _ in range(2)], average)
        for one, two in zip(alone, decode(twice, sources, options, alignments=True), strict=True):
            assert one[0].token_ids == two[0].token_ids
            np.testing.assert_allclose(one[0].token_scores, two[0].token_scores, atol=1e-5)
            assert one[0].alignment is not None and two[0].alignment is not None
            np.testing.assert_allclose(one[0].alignment, two[0].alignment, atol=1e-5)


def test_a_query_is_answered_as_by_one_model() -> None:
    state = EnsembleState([ScriptedState(random_script(seed), 1, 2, WORDS) for seed in (1, 2)], "probs")
    probes = np.array([[[4, 0], [1, 1]]])
    result = state.step(np.zeros((1, 2), np.int64), np.zeros((1, 2), np.int64), StepQuery(3, probes, dense=True))
    assert result.log_probs is not None and result.probe_log_probs is not None
    np.testing.assert_allclose(np.exp(result.log_probs).sum(axis=-1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(result.candidate_ids, np.argsort(-result.log_probs, axis=-1)[..., :3])
    np.testing.assert_array_equal(result.probe_log_probs, np.take_along_axis(result.log_probs, probes, -1))


def test_bundles_decode_together(exported: Any, bundled: Any, tmp_path: Path) -> None:
    import shutil

    bundle = exported("marian")[1]
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    sources = [[5, 6, 7, 0], [9, 0]]
    plain = s2s_export.load(bundle).generate(sources, num_beams=3, max_new_tokens=8)
    session = s2s_export.load(bundle, ensemble=[copy], ensemble_average="probs")
    found = session.generate(sources, num_beams=3, max_new_tokens=8)
    assert [of[0].token_ids for of in found] == [of[0].token_ids for of in plain]
    assert session.score(sources, [of[0].token_ids for of in found])[0].log_prob < 0
    with pytest.raises(InvalidOption, match="a vocabulary of another size"):
        s2s_export.load(bundle, ensemble=[bundled("lstm")])
    with pytest.raises(UnknownOption, match="average of an ensemble"):
        s2s_export.load(bundle, ensemble=[copy], ensemble_average="mean")
    with pytest.raises(InvalidOption, match="without a shortlist"):
        s2s_export.load(bundle, ensemble=[copy], shortlist=True)
