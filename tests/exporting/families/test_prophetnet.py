"""ProphetNet, whose two streams are traced: tokens of generate(); what transformers itself can't decode is refused."""

from __future__ import annotations

import pytest
import torch
import transformers
from own_modules import spread

import s2s_export
from s2s_export.errors import UnsupportedModel
from s2s_export.exporting.families import prophetnet

SOURCES = [[5, 6, 7, 8, 9, 2], [4, 2], list(range(3, 28))]
OPTIONS = [
    {"num_beams": 1, "max_new_tokens": 15},
    {"num_beams": 4, "num_return_sequences": 2, "max_new_tokens": 12, "no_repeat_ngram_size": 2},
]


def made(**changes):
    """A random model with large weights, so that its tokens vary."""
    sizes = {"hidden_size": 16, "encoder_ffn_dim": 24, "decoder_ffn_dim": 20, "num_buckets": 8, "vocab_size": 40}
    layers = {"num_encoder_layers": 2, "num_decoder_layers": 2, "max_position_embeddings": 40}
    heads = {"num_encoder_attention_heads": 2, "num_decoder_attention_heads": 4, "relative_max_distance": 20}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = transformers.ProphetNetConfig(**{**sizes, **layers, **heads, **special, "ngram": 2, **changes})
    return spread(transformers.ProphetNetForConditionalGeneration(config)).eval()


@pytest.mark.parametrize(
    "changes",
    [
        {"ngram": 3, "tie_word_embeddings": False, "num_encoder_layers": 1, "num_decoder_layers": 1},
        pytest.param({"ngram": 1, "num_buckets": 32, "activation_function": "relu"}, marks=pytest.mark.slow),
    ],
)
def test_tokens_and_scores_are_those_of_generate(tmp_path, changes):
    made(**changes).save_pretrained(tmp_path / "checkpoint")
    report = s2s_export.export(tmp_path / "checkpoint", tmp_path / "bundle")
    assert all(error.relative < 2e-5 for error in report.parity)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "checkpoint").eval()
    session = s2s_export.load(tmp_path / "bundle", threads=1)
    for options in OPTIONS:
        for source, found in zip(SOURCES, session.generate(SOURCES, **options), strict=True):
            ids = torch.tensor([source])
            with torch.no_grad():
                out = model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), return_dict_in_generate=True,
                    output_scores=True, **options,
                )  # fmt: skip
            for tokens, hypothesis in zip(out.sequences.tolist(), found, strict=True):
                n = len(hypothesis.token_ids)
                assert tokens[:n] == list(hypothesis.token_ids) and len(set(tokens[n:])) <= 1
            if options["num_beams"] > 1:
                assert [h.score for h in found] == pytest.approx(out.sequences_scores.tolist(), abs=1e-4)


def test_what_transformers_can_not_decode_is_refused():
    with pytest.raises(UnsupportedModel, match="pad_token_id is 3; expected 0, as transformers decodes with no other"):
        prophetnet.describe(made(pad_token_id=3))
    with pytest.raises(UnsupportedModel, match="relative_max_distance is 12 and num_buckets 32; expected a distance"):
        prophetnet.describe(made(relative_max_distance=12, num_buckets=32))
