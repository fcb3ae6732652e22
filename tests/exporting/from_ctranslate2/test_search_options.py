"""What CTranslate2's search can do beyond generate()'s, on the same model: prefixes, alternatives, patience.

CTranslate2 is not among what the tests install: `pip install ctranslate2`, or the extra `bench`.
"""

from __future__ import annotations

import random

import ctranslate2_files
import pytest

import s2s_export

ctranslate2 = pytest.importorskip("ctranslate2", reason="ctranslate2 is not installed: pip install ctranslate2")
LONGEST = 9  # new tokens


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """CTranslate2's translator, our session, and sources as ids with their spelling."""
    folder = tmp_path_factory.mktemp("both")
    model = ctranslate2_files.save(folder / "m", pre_norm=False, activation=2, tied=True)
    s2s_export.export(model, folder / "b")
    session = s2s_export.load(folder / "b", threads=1)
    chance = random.Random(7)
    ids = [[chance.randrange(3, 25) for _ in range(chance.randint(2, 9))] for _ in range(25)]
    texts = [session.tokenizer.source_tokens(source) for source in ids]
    encoded = [session.tokenizer.encode(" ".join(text)) for text in texts]
    return ctranslate2.Translator(str(model), intra_threads=1, compute_type="float32"), session, texts, encoded


def spelled(session, hypothesis):
    return [token for token in session.tokenizer.tokens(hypothesis.token_ids[1:]) if token != "</s>"]


def compare(both, theirs, ours):
    _, session, _, _ = both
    for result, hypotheses in zip(theirs, ours, strict=True):
        assert result.hypotheses == [spelled(session, hypothesis) for hypothesis in hypotheses]
        for score, hypothesis in zip(result.scores, hypotheses, strict=True):
            assert hypothesis.score == pytest.approx(score, abs=1e-4)


def decode(both, theirs, ours):
    translator, session, texts, encoded = both
    found = translator.translate_batch(texts, return_scores=True, max_decoding_length=LONGEST, **theirs)
    return found, session.generate(encoded, max_new_tokens=LONGEST, renormalize_logits=True, **ours)


@pytest.mark.parametrize(("n_beams", "beta"), [(1, 0.0), (4, 0.0), (4, 0.3), (4, 0.9)])
def test_a_prefix_forced_or_soft(both, n_beams, beta):
    translator, session, texts, encoded = both
    prefix = [7, 12]
    found = translator.translate_batch(
        texts, [session.tokenizer.tokens(prefix)] * len(texts), beam_size=n_beams, max_decoding_length=LONGEST,
        prefix_bias_beta=beta,
    )  # fmt: skip
    begins = {"target_prefix_ids": prefix, "prefix_bias_beta": beta} if beta else {"decoder_input_ids": [1, *prefix]}
    longest = LONGEST if beta else LONGEST - len(prefix)
    ours = session.generate(encoded, num_beams=n_beams, max_new_tokens=longest, renormalize_logits=True, **begins)
    assert [result.hypotheses[0] for result in found] == [spelled(session, best) for best, *_ in ours]


@pytest.mark.parametrize("patience", [1.0, 2.0])
def test_patience(both, patience):
    found, ours = decode(both, {"beam_size": 4, "patience": patience}, {"num_beams": 4, "patience": patience})
    compare(both, found, [of_source[:1] for of_source in ours])


def test_alternatives(both):
    theirs = {"return_alternatives": True, "num_hypotheses": 4, "beam_size": 2}
    found, ours = decode(both, theirs, {"return_alternatives": True, "num_return_sequences": 4, "num_beams": 2})
    _, session, _, _ = both
    for result, hypotheses in zip(found, ours, strict=True):
        theirs_first = [tokens[:1] for tokens in result.hypotheses]
        assert theirs_first == [spelled(session, hypothesis)[:1] for hypothesis in hypotheses]
        assert result.hypotheses == [spelled(session, hypothesis) for hypothesis in hypotheses]
