"""Marian's own files: as marian-decoder decodes them where pymarian is installed, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import random
import subprocess
import sys

import marian_files
import numpy as np
import pytest
import torch
import yaml

import s2s_export
from s2s_export.errors import CheckpointError, UnsupportedModel
from s2s_export.exporting.checkpoint import open_checkpoint
from s2s_export.exporting.families import marian_npz

SCRIPT = """
import json, sys, _pymarian
arguments, lines = json.loads(sys.argv[1])
print(_pymarian.Translator(arguments).translate("\\n".join(lines)))
"""
KINDS = {
    "all tied": {"tied_embeddings_all": True},
    "two vocabularies": {"sizes": (31, 27), "transformer_ffn_activation": "swish"},
    "tied to the output": {"sizes": (25, 33), "tied_embeddings": True, "transformer_ffn_activation": "gelu"},
}
RECURRENT = {
    "s2s": {"type": "s2s", "sizes": (31, 27)},
    "s2s, deep": {"type": "s2s", "enc_depth": 3, "dec_depth": 2, "dec_cell_base_depth": 4, "skip": True,
                  "tied_embeddings_all": True},
    "s2s, one direction above": {"type": "s2s", "enc_type": "bi-unidirectional", "enc_depth": 3, "dec_depth": 3},
    "amun": {"type": "amun"},
}  # fmt: skip
CASES = [pytest.param(kind, marks=[pytest.mark.slow] if kind in RECURRENT and kind != "s2s" else [])
         for kind in (*KINDS, *RECURRENT)]  # fmt: skip


def saved(folder, kind):
    return (
        marian_files.save(folder, **KINDS[kind])
        if kind in KINDS
        else marian_files.save_recurrent(folder, **RECURRENT[kind])
    )


@pytest.mark.parametrize("kind", CASES)
def test_tokens_are_those_of_generate(tmp_path, kind):
    """The bundle against our PyTorch reading of the files."""
    folder = saved(tmp_path / "m", kind)
    report = s2s_export.export(folder, tmp_path / "b")
    assert max(error.relative for error in report.parity) < 2e-5
    assert report.manifest["model_type"] == "marian-npz"
    model = open_checkpoint(folder).load_model()
    source = [5, 6, 7, 8, 0]
    options = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 9}
    with torch.no_grad():
        expected = model.generate(
            input_ids=torch.tensor([source]), attention_mask=torch.ones(1, 5, dtype=torch.long), **options
        )
    found = s2s_export.load(tmp_path / "b").generate([source], **options)[0]
    for tokens, hypothesis in zip(expected.tolist(), found, strict=True):
        assert tokens[: len(hypothesis.token_ids)] == list(hypothesis.token_ids)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, *RECURRENT])
def test_hypotheses_and_scores_are_those_of_marian(tmp_path, kind):
    if importlib.util.find_spec("_pymarian") is None:
        pytest.skip("pymarian is not installed: pip install pymarian")
    folder = saved(tmp_path / "m", kind)
    s2s_export.export(folder, tmp_path / "b")
    session = s2s_export.load(tmp_path / "b", threads=1)
    chance = random.Random(3)
    # Marian's longest target is a multiple of the source with its end token, so sources of one length are decoded.
    sources = [[chance.randrange(2, 25) for _ in range(6)] for _ in range(40)]
    vocabularies = f"{folder}/source.yml {folder}/target.yml"
    for n_beams in (1, 4):
        arguments = (
            f"--models {folder}/model.npz --vocabs {vocabularies} --beam-size {n_beams} --normalize 1 --n-best "
            "--cpu-threads 1 --max-length-factor 2 --quiet --quiet-translation"
        )
        lines = [" ".join(f"w{i}" for i in source) for source in sources]
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, json.dumps([arguments, lines])], capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr
        best: dict[int, tuple[str, float]] = {}
        for line in done.stdout.splitlines():
            number, text, _, score = (part.strip() for part in line.split("|||"))
            best.setdefault(int(number), (text, float(score)))
        options = {"num_beams": n_beams, "max_new_tokens": 14, "early_stopping": False}
        found = session.generate([[*source, 0] for source in sources], **options)
        n_equal = 0
        for i, (hypothesis, *_) in enumerate(found):
            own = " ".join(f"w{token}" for token in hypothesis.token_ids[1:] if token)
            n_equal += own == best[i][0]
            if own == best[i][0]:
                assert hypothesis.score == pytest.approx(best[i][1], abs=2e-4)
            else:  # Marian goes on with fewer beams where some have ended, so that it finds less
                assert n_beams > 1 and kind in RECURRENT and hypothesis.score > best[i][1] + 1e-5
        assert n_equal >= 30


@pytest.fixture
def pieces(tmp_path):
    """A sentencepiece model with Marian's ids of the special tokens."""
    import sentencepiece

    (tmp_path / "text").write_text("one two three four five six\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "spm"), vocab_size=31, hard_vocab_limit=False,
        eos_id=0, unk_id=1, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spm.model"))


def test_a_vocabulary_that_is_a_sentencepiece_model_makes_a_tokenizer(tmp_path, pieces):
    folder = marian_files.save(tmp_path / "m", tied_embeddings_all=True)
    for file in folder.glob("*.yml"):
        file.unlink()
    (folder / "vocab.spm").write_bytes(pieces.serialized_model_proto())
    s2s_export.export(folder, tmp_path / "b")
    session = s2s_export.load(tmp_path / "b")
    assert session.tokenizer.encode("two three") == [*pieces.encode("two three"), 0]


def test_lists_of_pieces_beside_their_models_make_a_tokenizer(tmp_path, pieces):
    """As OPUS-MT's archives: the list's ids, not those of the models."""
    folder = marian_files.save(tmp_path / "m", tied_embeddings_all=True)
    names = [pieces.id_to_piece(i) for i in range(2, pieces.get_piece_size())]
    ids = {"</s>": 0, "<unk>": 1} | {name: i for i, name in enumerate(reversed(names), start=2)}
    for side in ("source", "target"):
        (folder / f"{side}.spm").write_bytes(pieces.serialized_model_proto())
        (folder / f"{side}.yml").write_text(yaml.safe_dump(ids, allow_unicode=True), encoding="utf-8")
    (folder / "decoder.yml").write_text("beam-size: 6")
    s2s_export.export(folder, tmp_path / "b")
    session = s2s_export.load(tmp_path / "b")
    assert session.tokenizer.encode("two three") == [*(ids[p] for p in pieces.encode_as_pieces("two three")), 0]
    assert session.tokenizer.decode(session.tokenizer.encode("two three")) == "two three"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "char-s2s"}, "Marian's option type is 'char-s2s'; expected 'transformer'"),
        ({"transformer_preprocess": "n"}, "option transformer-preprocess is 'n'; expected ''"),
        ({"transformer_decoder_autoreg": "rnn"}, "transformer-decoder-autoreg is 'rnn'; expected 'self-attention'"),
    ],
)
def test_other_models_of_marian_are_refused(tmp_path, change, message):
    with pytest.raises(UnsupportedModel, match=message):
        s2s_export.export(marian_files.save(tmp_path / "m", **change), tmp_path / "b")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"enc_cell": "lstm"}, "option enc-cell is 'lstm'; expected 'gru' for s2s"),
        ({"enc_cell_depth": 2}, "option enc-cell-depth is 2; expected 1"),
        ({"layer_normalization": True}, "option layer-normalization is True; expected False"),
        ({"dec_depth": 0}, "option dec-depth is 0; expected 1 to 100"),
    ],
)
def test_other_recurrent_models_are_refused(tmp_path, change, message):
    with pytest.raises(UnsupportedModel, match=message):
        s2s_export.export(marian_files.save_recurrent(tmp_path / "m", **change), tmp_path / "b")


def test_damaged_files_are_refused(tmp_path):
    folder = marian_files.save(tmp_path / "m")
    file = folder / "model.npz"
    with np.load(file) as arrays:
        whole = dict(arrays)
    cases = {
        "the weights lack encoder_l1_self_Wq": {k: v for k, v in whole.items() if k != "encoder_l1_self_Wq"},
        "has no special:model.yml": {k: v for k, v in whole.items() if k != marian_npz.OPTIONS},
        r"decoder_l2_ffn_W1 has shape \[3, 4\]": whole | {"decoder_l2_ffn_W1": np.zeros((3, 4), np.float32)},
    }
    for message, weights in cases.items():
        np.savez(file, **weights)
        with pytest.raises(CheckpointError, match=message):
            s2s_export.export(folder, tmp_path / "b")
    file.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"can't be read as a model of Marian"):
        s2s_export.export(folder, tmp_path / "b")
    file.rename(folder / "a.npz")
    (folder / "b.npz").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"has 2 .npz files"):
        s2s_export.export(folder, tmp_path / "b")
