"""Marian as a peer: the files that are written for it stand for the same model, and it decodes them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import s2s_export
from s2s_export import bundle
from s2s_export.exporting.checkpoint import open_checkpoint
from s2s_export.measuring.bench.contestants import Absent, Choice, Job, marian

ROOT = Path(__file__).parents[3]
TRAINED = ROOT / "examples" / "models" / "number-words"


def saved(folder: Path, **changes: object) -> Path:
    given = {
        "vocab_size": 31, "d_model": 16, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "scale_embedding": True,
        "activation_function": "relu", "pad_token_id": 26, "eos_token_id": 0, "forced_eos_token_id": None,
    }  # fmt: skip
    config = transformers.MarianConfig(**{**given, "decoder_start_token_id": 26, **changes})
    transformers.MarianMTModel(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("is_tied", [True, False])
def test_what_is_written_is_read_back_as_the_model(tmp_path, is_tied, monkeypatch):
    checkpoint = TRAINED if is_tied else saved(tmp_path / "apart", decoder_vocab_size=27, tie_word_embeddings=False,
                                               share_encoder_decoder_embeddings=False)  # fmt: skip
    monkeypatch.setattr(marian, "_library", lambda: None)
    marian.prepare(Job("marian", "", str(checkpoint), 1, {}), str(tmp_path))
    biases = [np.load(tmp_path / file)["decoder_ff_logit_out_b"][0] for file in (marian.ENDING, marian.ENDLESS)]
    assert biases[1][marian.END] == marian.NEVER and np.array_equal(biases[0][1:], biases[1][1:])
    (tmp_path / marian.ENDLESS).unlink()
    model, found = open_checkpoint(checkpoint).load_model(), open_checkpoint(tmp_path).load_model()
    here, there = model.state_dict(), found.state_dict()
    n_words = len(here["model.decoder.embed_tokens.weight"]) - 1
    for part, weight in here.items():
        if "embed_positions" in part or "shared" in part:  # Marian's have another base; the encoder's and decoder's
            continue
        has_rows = part.endswith("embed_tokens.weight") or part in ("lm_head.weight", "final_logits_bias")
        cut = (slice(None), slice(n_words)) if part == "final_logits_bias" else slice(len(weight) - 1)
        assert torch.equal(weight[cut], there[part][cut]) if has_rows else torch.equal(weight, there[part]), part


def test_who_is_not_marians_says_so(exported, tmp_path, monkeypatch):
    [entry] = marian.entries(bundle.read(exported("t5")[1]), Choice())
    assert entry.reason == "decodes Marian's models, and this is a t5"
    monkeypatch.setattr(marian, "_library", lambda: None)
    other = saved(tmp_path / "other", eos_token_id=2)
    with pytest.raises(Absent, match="end token, activation or scale"):
        marian.prepare(Job("marian", "", str(other), 1, {}), str(tmp_path))


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("_pymarian") is None, reason="pymarian is not installed: pip install pymarian"
)
def test_a_trained_models_tokens(number_words, tmp_path):
    session = s2s_export.load(number_words, threads=1)
    job = Job("marian", str(number_words), str(TRAINED), 1, {})
    marian.prepare(job, str(tmp_path))
    system = marian.open(job, str(tmp_path))
    lines = (ROOT / "examples" / "data" / "number-words.test.tsv").read_text(encoding="utf-8").splitlines()[:100]
    sources = [session.encode(line.split("\t")[0]) for line in lines]
    theirs = system.translate(sources, 4, 60, {"mini_batch": 16})
    ours = [list(outputs[0].token_ids)[1:-1] for outputs in session.generate(sources, num_beams=4, max_new_tokens=60)]
    assert sum(a == b for a, b in zip(ours, theirs, strict=True)) >= 97
    fixed = system.decode([source[:3] for source in sources if len(source) > 3][:5], 2, 9)
    assert [len(ids) for ids in fixed] == [9] * 5
