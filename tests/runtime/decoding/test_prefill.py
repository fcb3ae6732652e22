"""A decoder prompt that is run at once gives what it gives token by token, on every kind of engine."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import transformers

import s2s_export
from s2s_export.building.build import build
from s2s_export.runtime.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeState

# Tables of positions with padding and without, relative biases, learned ones of a GPT-2, and keys that heads share.
FAMILIES = [
    "marian",
    "m2m_100",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("t5-gated", "roberta-gpt2", "t5gemma")),
]
SOURCES = [[5, 6, 7, 8, 2], [9, 10, 2], [11, 12, 13, 14, 15, 16, 2]]
PROMPT = [5, 9, 11, 20, 31, 7, 8, 9, 30, 12, 6, 14, 17, 18, 19, 21, 22, 23, 24]  # longer than a cache's first room
TOLERANCE = 1e-5
KERNELS = {"cpu-fp32": "own", "plain-fp32": "onnxruntime"}


@pytest.fixture(scope="module")
def built(exported, tmp_path_factory):
    """built(name) -> a copy of a tiny bundle with engines of both kinds of kernels."""
    root = tmp_path_factory.mktemp("prefill")

    def make(name):
        bundle = root / f"{name}.bundle"
        if not bundle.exists():
            shutil.copytree(exported(name)[1], bundle)
            for target, kernels in KERNELS.items():
                recipe = root / f"{target}.toml"
                recipe.write_text(f'flavour = "cpu"\nprecision = "fp32"\n[options]\nkernels = "{kernels}"\n')
                build(bundle, str(recipe))
        return bundle

    return make


@pytest.fixture
def calls(monkeypatch):
    """How many tokens each call of a prefill graph was given."""
    found = []
    run = OnnxRuntimeBackend.prefill

    def counted(self, values, tokens):
        found.append(tokens.shape[1])
        return run(self, values, tokens)

    monkeypatch.setattr(OnnxRuntimeBackend, "prefill", counted)
    return found


def token_by_token(monkeypatch, decode):
    with monkeypatch.context() as patch:
        patch.setattr(OnnxRuntimeState, "prefill", lambda self, tokens: False)
        return decode()


@pytest.mark.parametrize("target", ["portable", *KERNELS])
@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_and_scores_are_those_of_single_tokens(built, calls, monkeypatch, name, target):
    session = s2s_export.load(built(name), target=target, threads=1)
    for n_beams, prompt in ((1, PROMPT[:2]), (1, PROMPT), (4, PROMPT)):
        options = {"num_beams": n_beams, "max_new_tokens": 20, "decoder_input_ids": prompt}
        options["num_return_sequences"] = min(n_beams, 3)

        def decode(options=options):
            return session.generate(SOURCES, repetition_penalty=1.1, **options)

        expected = token_by_token(monkeypatch, decode)
        before = len(calls)
        found = decode()
        assert len(calls) == before + 1 and calls[-1] == len(session.options(**options).prompt) - 1
        for of_source, wanted in zip(found, expected, strict=True):
            assert [h.token_ids for h in of_source] == [h.token_ids for h in wanted]
            np.testing.assert_allclose([h.score for h in of_source], [h.score for h in wanted], atol=TOLERANCE)


@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_are_those_of_transformers(exported, calls, name):
    """generate() runs the prompt at once too."""
    checkpoint, bundle = exported(name)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(checkpoint, attn_implementation="eager").eval()
    session = s2s_export.load(bundle, target="portable", threads=1)
    prompt = list(session.options(decoder_input_ids=PROMPT).prompt)
    for n_beams in (1, 3):
        options = {"num_beams": n_beams, "max_new_tokens": 12}
        for source, (best, *_) in zip(
            SOURCES, session.generate(SOURCES, decoder_input_ids=PROMPT, **options), strict=True
        ):
            with torch.no_grad():
                out = model.generate(torch.tensor([source]), decoder_input_ids=torch.tensor([prompt]), **options)
            assert out[0].tolist()[: len(best.token_ids)] == list(best.token_ids)
    assert len(calls) == 2


def test_sources_leave_and_alignments_follow(built, calls, monkeypatch):
    """Caches with a prompt in them are copied when sources leave, and grow."""
    session = s2s_export.load(built("m2m_100"), target="cpu-fp32", threads=1)
    ends = session.options().eos_token_id

    def decode():
        return session.generate(
            SOURCES * 3, do_sample=True, seed=3, num_return_sequences=2, max_new_tokens=22, top_k=5,
            decoder_input_ids=PROMPT, alignments=True, sequence_bias=[[[ends[0]], 6.0]],
        )  # fmt: skip

    found, expected = decode(), token_by_token(monkeypatch, decode)
    assert len({len(best[0].token_ids) for best in found}) > 1 and calls
    for (best, *_), (wanted, *_) in zip(found, expected, strict=True):
        assert best.token_ids == wanted.token_ids
        np.testing.assert_allclose(best.alignment, wanted.alignment, atol=1e-5)


def test_int8_runs_prompts_at_once(built, calls, monkeypatch):
    bundle = built("marian")
    build(bundle, "cpu-int8")
    session = s2s_export.load(bundle, target="cpu-int8", threads=1)

    def decode():
        return session.generate(SOURCES, num_beams=2, max_new_tokens=8, decoder_input_ids=PROMPT)

    found, expected = decode(), token_by_token(monkeypatch, decode)
    assert calls == [len(session.options(decoder_input_ids=PROMPT).prompt) - 1]
    scores = [[best.score for best, *_ in decoded] for decoded in (found, expected)]
    np.testing.assert_allclose(scores[0], scores[1], atol=0.05)  # sums of rounded numbers, in another order


def test_targets_are_scored_after_a_prompt(built, calls, monkeypatch):
    session = s2s_export.load(built("marian"), target="cpu-fp32", threads=1)

    def score():
        targets = [[7, 8, 0], [9, 0], [4, 4, 4, 0]]
        return [s.log_prob for s in session.score(SOURCES, targets, decoder_input_ids=PROMPT)]

    np.testing.assert_allclose(score(), token_by_token(monkeypatch, score), atol=1e-4)
    assert calls


def test_a_bundle_without_the_graph_goes_token_by_token(built, calls, tmp_path):
    bundle = built("marian")
    older = tmp_path / "older"
    shutil.copytree(bundle, older, ignore=shutil.ignore_patterns("engines"))
    manifest = json.loads((older / "manifest.json").read_text())
    del manifest["graphs"]["prefill"], manifest["files"]["prefill.onnx"]
    (older / "prefill.onnx").unlink()
    (older / "manifest.json").write_text(json.dumps(manifest))
    options = {"num_beams": 2, "max_new_tokens": 8, "decoder_input_ids": PROMPT}
    found = s2s_export.load(older, threads=1).generate(SOURCES, **options)
    assert not calls
    expected = s2s_export.load(bundle, target="portable", threads=1).generate(SOURCES, **options)
    assert [h.token_ids for h, *_ in found] == [h.token_ids for h, *_ in expected]


def test_a_prompt_as_long_as_the_limit_is_refused_as_before(built):
    from s2s_export.errors import InvalidOption

    session = s2s_export.load(built("marian"), threads=1)
    with pytest.raises(InvalidOption, match="the decoder prompt has"):
        session.generate(SOURCES, decoder_input_ids=[5] * 48)
    found = session.generate(SOURCES[:1], decoder_input_ids=[5] * 47, max_new_tokens=1)
    assert len(found[0][0].token_ids) == 49
