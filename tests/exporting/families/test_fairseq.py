"""fairseq's checkpoints: against our PyTorch reading, against fairseq where it is installed, and what is refused."""

from __future__ import annotations

import random
from types import SimpleNamespace

import fairseq_files
import pytest
import torch

import s2s_export
from s2s_export.errors import CheckpointError, UnsupportedModel
from s2s_export.exporting.checkpoint import open_checkpoint

KINDS = {
    "post-norm": {},
    "pre-norm": {"layout": "cfg", "encoder_normalize_before": True, "decoder_normalize_before": True,
                 "activation_fn": "gelu", "share_decoder_input_output_embed": True},
    "like BART": {"encoder_learned_pos": True, "decoder_learned_pos": True, "layernorm_embedding": True,
                  "no_scale_embedding": True, "activation_fn": "gelu_accurate"},
    "without positions": {"no_token_positional_embeddings": True, "decoder_normalize_before": True,
                          "activation_fn": "tanh", "alignment_layer": 0, "alignment_heads": 1},
}  # fmt: skip


def sources(n: int) -> list[list[int]]:
    chance = random.Random(3)
    return [[*(chance.randrange(4, 31) for _ in range(chance.randint(1, 9))), 2] for _ in range(n)]


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_generate_and_of_fairseq(tmp_path, kind):
    folder = fairseq_files.save(tmp_path / "m", **KINDS[kind])
    report = s2s_export.export(folder, tmp_path / "b")
    assert max(error.relative for error in report.parity) < 2e-5
    session = s2s_export.load(tmp_path / "b", threads=1)
    assert session.tokenizer.encode("w1 w0 nothing") == [5, 4, 3, 2]
    assert session.tokenizer.decode([2, 6, 5, 2]) == "t2 t1"
    model = open_checkpoint(folder).load_model()
    options = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 9}
    for source in sources(3):
        with torch.no_grad():
            expected = model.generate(
                input_ids=torch.tensor([source]), attention_mask=torch.ones(1, len(source), dtype=torch.long), **options
            )
        for tokens, hypothesis in zip(expected.tolist(), session.generate([source], **options)[0], strict=True):
            assert tokens[: len(hypothesis.token_ids)] == list(hypothesis.token_ids)
    compare_with_fairseq(folder, session)


def compare_with_fairseq(folder, session) -> None:
    """Best hypotheses and scores of fairseq's own generator, of targets that end by themselves.

    It forces the end of others at the end's own probability, which `forced_eos_token_id` does not count.
    """
    try:
        from fairseq.data import Dictionary
        from fairseq.models.transformer import TransformerModel
        from fairseq.sequence_generator import SequenceGenerator
    except ImportError:
        return
    checkpoint = torch.load(folder / "checkpoint_best.pt", weights_only=False)
    args = checkpoint["args"] or checkpoint["cfg"]["model"]
    source, target = (Dictionary.load(str(folder / f"dict.{language}.txt")) for language in ("xx", "yy"))
    model = TransformerModel.build_model(args, SimpleNamespace(source_dictionary=source, target_dictionary=target))
    model.load_state_dict(checkpoint["model"])
    model.eval()
    for n_beams in (1, 4):
        generator = SequenceGenerator([model], target, beam_size=n_beams, max_len_b=40)
        for ids in sources(20):
            sample = {"src_tokens": torch.tensor([ids]), "src_lengths": torch.tensor([len(ids)])}
            theirs = generator.generate([model], {"net_input": {**sample, "prev_output_tokens": None}})[0]
            (ours, *_) = session.generate([ids], num_beams=n_beams, max_new_tokens=41)[0]
            if all(len(hypothesis["tokens"]) < 41 for hypothesis in theirs):
                assert theirs[0]["tokens"].tolist() == list(ours.token_ids[1:])
                assert ours.score == pytest.approx(float(theirs[0]["score"]), abs=1e-5)


def test_old_names_are_read(tmp_path):
    found = []
    for layout in ("args", "old"):
        folder = fairseq_files.save(tmp_path / layout, layout=layout, share_decoder_input_output_embed=True)
        s2s_export.export(folder, tmp_path / f"b-{layout}")
        session = s2s_export.load(tmp_path / f"b-{layout}")
        found.append([h.token_ids for (h, *_) in session.generate(sources(5), num_beams=2, max_new_tokens=8)])
    assert found[0] == found[1]


class Other:
    """A class that no reader knows."""


def test_what_can_not_be_read_is_one_sentence(tmp_path):
    def message(error, change=None, **options) -> str:
        folder = fairseq_files.save(tmp_path / "m", **options)
        checkpoint = torch.load(folder / "checkpoint_best.pt", weights_only=False)
        if change is not None:
            change(checkpoint, folder)
        torch.save(checkpoint, folder / "checkpoint_best.pt")
        with pytest.raises(error) as raised:
            s2s_export.export(folder, tmp_path / "b")
        return str(raised.value)

    assert "fairseq's option task is 'language_modeling'; expected 'translation'" in message(
        UnsupportedModel, task="language_modeling"
    )
    assert "option activation_fn is 'swish'; expected 'relu'" in message(UnsupportedModel, activation_fn="swish")
    assert "3 heads" not in message(CheckpointError, encoder_attention_heads=5)
    assert "has neither dict.yy.txt nor dict.txt" in message(
        CheckpointError, lambda _, folder: (folder / "dict.yy.txt").unlink()
    )
    assert "the decoder knows 29 symbols, its dictionary 5" in message(
        CheckpointError, lambda _, folder: (folder / "dict.yy.txt").write_text("word 3\n")
    )
    assert "dict.yy.txt: line 1 is no symbol and its count" in message(
        CheckpointError, lambda _, folder: (folder / "dict.yy.txt").write_text("word\n")
    )
    assert "has the weight 'decoder.adaptive_softmax.head.weight'" in message(
        UnsupportedModel, lambda c, _: c["model"].update({"decoder.adaptive_softmax.head.weight": torch.zeros(2)})
    )
    assert "'lstm' is no Transformer" in message(
        UnsupportedModel, lambda c, _: c["model"].pop("encoder.layers.0.fc1.weight"), arch="lstm"
    )
    assert "Other, which is not read, as it could run code" in message(
        UnsupportedModel, lambda c, _: c.update(last_optimizer_state=Other())
    )


def test_the_hash_is_of_the_model_alone(tmp_path):
    """Other files beside it, such as an optimizer's, make no other checkpoint of it."""
    folder = fairseq_files.save(tmp_path / "m")
    before = open_checkpoint(folder).sha256()
    torch.save({"state": 1}, folder / "optimizer.pt")
    assert open_checkpoint(folder).sha256() == before
    fairseq_files.save(folder, seed=1)
    assert open_checkpoint(folder).sha256() != before
