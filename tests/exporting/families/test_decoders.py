"""Decoders alone: prompts of unequal length in one batch give what generate() gives for each alone."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_decoders
import torch
import transformers

import s2s_export
from s2s_export.building.build import build

PROMPTS = [[1, 5, 9, 12, 7, 33, 8], [4], [1, 22, 9, 9, 31], [6, 7, 6, 7, 6, 7, 8, 9, 10, 11, 12, 13], [3, 3, 5]]
# A table and biases; rotary angles with shared keys; a window of every layer; caps and a window of some layers; one
# norm for both sublayers and a part of a head turned. The others are compared by their own export.
DECODED = ["gpt2", "llama", "mistral", "gemma2", "phi"]
FEW = ("gpt2", "gemma2")  # of which the fast tests build engines


def swept(names, few):
    """Parameters of which those that are not among the few are for the slow tests."""
    return [pytest.param(name, marks=() if name in few else pytest.mark.slow) for name in names]


SEARCHES = [
    {"num_beams": 1, "max_new_tokens": 14},
    {"num_beams": 4, "num_return_sequences": 3, "max_new_tokens": 12, "length_penalty": 0.6},
    {"num_beams": 3, "max_new_tokens": 14, "repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
    {"num_beams": 1, "max_new_tokens": 12, "min_new_tokens": 9, "no_repeat_ngram_size": 3, "repetition_penalty": 0.8},
    {"num_beams": 2, "max_length": 20, "min_length": 15, "bad_words_ids": [[9], [7, 8], [12, 13]]},
    {"num_beams": 2, "early_stopping": True, "max_new_tokens": 10, "sequence_bias": [[[5, 9], 4.0]]},
    {"num_beams": 2, "max_new_tokens": 8, "encoder_no_repeat_ngram_size": 2},
]
SCORE_TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """made(name) -> (model, bundle), exported at its first use."""
    root = tmp_path_factory.mktemp("decoders")
    found = {}

    def make(name):
        if name not in found:
            checkpoint = tiny_decoders.save(name, root / name)
            bundle = s2s_export.export(checkpoint, root / f"{name}.bundle").path
            model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, attn_implementation="eager").eval()
            found[name] = (model, bundle)
        return found[name]

    return make


def generated(model, prompt, options):
    """generate()'s sequences without what fills them up, and their scores, for one prompt."""
    with torch.no_grad():
        out = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            return_dict_in_generate=True, output_scores=True, **options,
        )  # fmt: skip
    scores = getattr(out, "sequences_scores", None)
    return out.sequences.tolist(), None if scores is None else scores.tolist()


def assert_equal(session, model, options, prompts=PROMPTS):
    for prompt, hypotheses in zip(prompts, session.generate(prompts, **options), strict=True):
        sequences, scores = generated(model, prompt, options)
        for i, (hypothesis, sequence) in enumerate(zip(hypotheses, sequences, strict=True)):
            n = len(hypothesis.token_ids)
            rest = set(sequence[n:])
            assert (list(hypothesis.token_ids), len(rest) <= 1) == (sequence[:n], True), (prompt, options)
            if scores is not None:
                assert abs(hypothesis.score - scores[i]) < SCORE_TOLERANCE


@pytest.mark.parametrize("name", swept(tiny_decoders.CONFIGS, DECODED))
def test_prompts_of_unequal_length_share_a_batch(made, name):
    model, bundle = made(name)
    session = s2s_export.load(bundle, threads=1)
    for options in SEARCHES[:2]:
        assert_equal(session, model, options)


@pytest.mark.parametrize("options", SEARCHES[2:], ids=lambda options: ",".join(options))
@pytest.mark.parametrize("name", swept(["gpt2", "qwen2"], FEW))
def test_options_are_those_of_generate(made, name, options):
    model, bundle = made(name)
    assert_equal(s2s_export.load(bundle, threads=1), model, options, PROMPTS)


@pytest.mark.parametrize("kernels", swept(["own", "onnxruntime"], ["own"]))
@pytest.mark.parametrize("name", swept(DECODED, FEW))
def test_engines_give_the_same(made, tmp_path, name, kernels):
    model, bundle = made(name)
    recipe = tmp_path / f"{kernels}-fp32.toml"
    recipe.write_text(f'flavour = "cpu"\nprecision = "fp32"\n[options]\nkernels = "{kernels}"\n')
    report = build(bundle, str(recipe))
    assert all(entry["equal"] == 1.0 for entry in report.engine["accuracy"]["searches"])
    session = s2s_export.load(bundle, target=f"{kernels}-fp32", threads=1)
    for options in SEARCHES[:2]:
        assert_equal(session, model, options)


@pytest.mark.parametrize("name", swept(["llama", "gemma2"], FEW))
def test_int8_engines_are_near(made, name):
    _, bundle = made(name)
    build(bundle, "cpu-int8")
    options = {"num_beams": 1, "max_new_tokens": 10}
    found, expected = (
        s2s_export.load(bundle, target=target, threads=1).generate(PROMPTS, **options)
        for target in ("cpu-int8", "portable")
    )
    same = [a[0].token_ids[: len(p) + 2] == b[0].token_ids[: len(p) + 2]
            for a, b, p in zip(found, expected, PROMPTS, strict=True)]  # fmt: skip
    assert np.mean(same) >= 0.6


def test_the_backend_torch_runs_them(made):
    model, bundle = made("llama")
    assert_equal(s2s_export.load(bundle, "torch"), model, SEARCHES[1])


@pytest.mark.parametrize("options", [{"top_k": 7}, {"top_p": 0.8, "num_beams": 3}], ids=["rows", "beams"])
def test_draws_do_not_depend_on_the_batch(made, options):
    session = s2s_export.load(made("llama")[1], threads=1)
    options = {"do_sample": True, "seed": 11, "max_new_tokens": 9, "num_return_sequences": 2, **options}
    together = session.generate(PROMPTS, **options)
    for number, (prompt, hypotheses) in enumerate(zip(PROMPTS, together, strict=True)):
        chosen = session.options(**options)
        alone = session.decode_batch([prompt], chosen, source_numbers=[number])[0]
        assert [h.token_ids for h in hypotheses] == [h.token_ids for h in alone]
    assert any(h[0].token_ids != h[1].token_ids for h in together)


def test_sampling_filters_keep_what_generate_keeps(made):
    """With one token left after the filters nothing is drawn."""
    model, bundle = made("gpt2")
    session = s2s_export.load(bundle, threads=1)
    options = {"do_sample": True, "top_k": 1, "max_new_tokens": 10}
    for prompt, (best, *_) in zip(PROMPTS, session.generate(PROMPTS, **options), strict=True):
        sequences, _ = generated(model, prompt, options)
        assert list(best.token_ids) == sequences[0][: len(best.token_ids)]


@pytest.mark.slow
def test_verify_agrees(made):
    from s2s_export.exporting.verify import verify

    _, bundle = made("mistral")
    result = verify(bundle, bundle.with_suffix(""))
    assert result.is_close, [line.line() for line in (*result.outputs, *result.searches)]
    assert [search.n_equal for search in result.searches] == [8, 8]
