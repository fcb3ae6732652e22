"""OpenNMT-py's checkpoints: against our PyTorch reading, against OpenNMT-py where it is installed, what is refused."""

from __future__ import annotations

import random

import opennmt_files
import pytest
import torch

import s2s_export
from s2s_export.errors import CheckpointError, UnsupportedModel
from s2s_export.exporting.checkpoint import open_checkpoint

RELATIVE = {"position_encoding": False}
RNN = {"position_encoding": False, "encoder_type": "brnn", "decoder_type": "rnn"}
KINDS = {
    "sinusoids": {},
    "relative vectors": RELATIVE | {"max_relative_positions": 4, "pos_ffn_activation_fn": "gelu"},
    "rotary": RELATIVE | {"max_relative_positions": -1, "pos_ffn_activation_fn": "silu", "layer_norm": "rms",
                          "add_qkvbias": True},
    "rotary halves": RELATIVE | {"max_relative_positions": -1, "rotary_interleave": False, "num_kv": 2,
                                 "pos_ffn_activation_fn": "gated-gelu"},
    "buckets": RELATIVE | {"max_relative_positions": 12, "relative_positions_buckets": 8, "add_ffnbias": False,
                           "lambda_align": 0.1, "alignment_heads": 2},
    "lstm": RNN | {"bridge": True},
    "lstm without feeding": RNN | {"encoder_type": "rnn", "global_attention": "dot", "input_feed": 0},
    "gru": RNN | {"rnn_type": "GRU", "global_attention": "mlp"},
}  # fmt: skip
SLOW = ("lstm without feeding", "gru")
CASES = [pytest.param(kind, marks=[pytest.mark.slow] if kind in SLOW else []) for kind in KINDS]


def sources(n: int) -> list[list[int]]:
    chance = random.Random(3)
    return [[chance.randrange(4, 31) for _ in range(chance.randint(1, 9))] for _ in range(n)]


@pytest.mark.parametrize("kind", CASES)
def test_tokens_are_those_of_generate_and_of_opennmt_py(tmp_path, kind):
    folder = opennmt_files.save(tmp_path / "m", **KINDS[kind])
    report = s2s_export.export(folder / "model_step_1.pt", tmp_path / "b")
    assert max(error.relative for error in report.parity) < 2e-5
    assert report.manifest["provenance"]["checkpoint"] == "model_step_1.pt"
    session = s2s_export.load(tmp_path / "b", threads=1)
    model = open_checkpoint(folder).load_model()
    options = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 9}
    for source in sources(3):
        with torch.no_grad():
            expected = model.generate(
                input_ids=torch.tensor([source]), attention_mask=torch.ones(1, len(source), dtype=torch.long), **options
            )
        for tokens, hypothesis in zip(expected.tolist(), session.generate([source], **options)[0], strict=True):
            assert tokens[: len(hypothesis.token_ids)] == list(hypothesis.token_ids)
    compare_with_opennmt_py(folder, session)


def compare_with_opennmt_py(folder, session) -> None:
    """Greedy decoding by OpenNMT-py's own model."""
    try:
        from onmt.inputters.inputter import dict_to_vocabs
        from onmt.model_builder import build_base_model
    except ImportError:
        return
    checkpoint = torch.load(folder / "model_step_1.pt", weights_only=False)
    model = build_base_model(checkpoint["opt"], dict_to_vocabs(checkpoint["vocab"]))
    model.load_state_dict(checkpoint, strict=True)
    model.eval()
    for source in sources(20):
        with torch.no_grad():
            ids, length = torch.tensor(source)[None, :, None], torch.tensor([len(source)])
            states, last, length = model.encoder(ids, length)
            model.decoder.init_state(ids, states, last)
            tokens, score = [2], 0.0
            while len(tokens) < 10 and tokens[-1] != 3:
                token = torch.tensor([[[tokens[-1]]]])
                out, _ = model.decoder(token, states, src_len=length, step=len(tokens) - 1)
                best = torch.log_softmax(model.generator(out[:, -1]), -1)[0].max(0)
                tokens.append(int(best.indices))
                score += float(best.values)
        (hypothesis,) = session.generate([source], num_beams=1, max_new_tokens=9)[0]
        assert tokens == list(hypothesis.token_ids)
        assert hypothesis.score == pytest.approx(score / (len(tokens) - 1), abs=1e-5)


def test_version_2_is_read_without_its_classes(tmp_path):
    """Its vocabularies are objects of torchtext; its norms and its generator have other names."""
    newer, older = (opennmt_files.save(tmp_path / f"m{version}", version) for version in (3, 2))
    found = []
    for folder in (newer, older):
        s2s_export.export(folder, tmp_path / f"b-{folder.name}")
        session = s2s_export.load(tmp_path / f"b-{folder.name}")
        found.append([h.token_ids for (h, *_) in session.generate(sources(5), num_beams=2, max_new_tokens=8)])
        assert session.tokenizer.encode("w3 w1 nothing") == [7, 5, 0]
        assert session.tokenizer.decode([2, 7, 5, 3]) == "w3 w1"
    assert found[0] == found[1]


def test_weights_may_be_beside_the_checkpoint(tmp_path):
    from safetensors.torch import save_file

    folder = opennmt_files.save(tmp_path / "m")
    file = folder / "model_step_1.pt"
    checkpoint = torch.load(file, weights_only=False)
    generator = {f"generator.{name}": value for name, value in checkpoint.pop("generator").items()}
    save_file(checkpoint.pop("model") | generator, folder / "model_step_1.00.safetensors")
    torch.save(checkpoint | {"generator": None}, file)
    model = open_checkpoint(folder).load_model()
    assert len(model.model.structure.encoder.blocks) == opennmt_files.LAYERS


class Dangerous:
    def __reduce__(self):
        return print, ("code ran",)


def test_what_can_not_be_read_is_one_sentence(tmp_path, capsys):
    def message(error, change=None, **options) -> str:
        folder = opennmt_files.save(tmp_path / "m", **options)
        if change is not None:
            checkpoint = torch.load(folder / "model_step_1.pt", weights_only=False)
            change(checkpoint)
            torch.save(checkpoint, folder / "model_step_1.pt")
        with pytest.raises(error) as raised:
            s2s_export.export(folder, tmp_path / "b")
        return str(raised.value)

    assert "option copy_attn is True; expected False" in message(UnsupportedModel, copy_attn=True)
    assert "max_relative_positions is -2" in message(UnsupportedModel, max_relative_positions=-2)
    assert "pos_ffn_activation_fn is 'mish'; expected 'relu'" in message(UnsupportedModel, pos_ffn_activation_fn="mish")
    assert "decoder_type is 'transformer_lm'" in message(UnsupportedModel, decoder_type="transformer_lm")
    rnn = {"encoder_type": "rnn", "decoder_type": "rnn"}
    assert "rnn_type is 'SRU'; expected 'LSTM' or 'GRU'" in message(UnsupportedModel, **rnn, rnn_type="SRU")
    assert "coverage_attn is True" in message(UnsupportedModel, **rnn, coverage_attn=True)
    assert "has no weight 'encoder.layer_norm.bias'" in message(
        CheckpointError, lambda c: c["model"].pop("encoder.layer_norm.bias")
    )
    assert "has the weight 'decoder.more'" in message(
        UnsupportedModel, lambda c: c["model"].update({"decoder.more": torch.zeros(2)})
    )
    assert "its vocabulary has no tokens for 'tgt'" in message(CheckpointError, lambda c: c["vocab"].pop("tgt"))
    refused = message(UnsupportedModel, lambda c: c.update(optim=Dangerous()))
    assert "print, which is not read, as it could run code" in refused and "code ran" not in capsys.readouterr().out
    folder = opennmt_files.save(tmp_path / "m")
    file = folder / "model_step_1.pt"
    whole = file.read_bytes()
    (folder / "model_step_2.pt").write_bytes(whole)
    with pytest.raises(CheckpointError, match=r"has 2 checkpoints \(model_step_1.pt, model_step_2.pt\); name the file"):
        s2s_export.export(folder, tmp_path / "b")
    (folder / "model_step_2.pt").unlink()
    for n in (len(whole) // 2, 100, 0):
        file.write_bytes(whole[:n])
        with pytest.raises(CheckpointError):
            s2s_export.export(folder, tmp_path / "b")
