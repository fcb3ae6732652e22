"""Text models in CTranslate2's format: against our PyTorch reading, against CTranslate2 itself, and what is refused."""

from __future__ import annotations

import json
import random
import struct
import zipfile

import ctranslate2_files
import numpy as np
import pytest
import torch

import s2s_export
from s2s_export.errors import CheckpointError, S2SError, UnsupportedModel
from s2s_export.exporting.checkpoint import open_checkpoint

KINDS = {
    "pre-norm": {},
    "post-norm": {"pre_norm": False, "activation": 2, "tied": True, "embedding_norm": True},
    "old": {"version": 3, "text": True, "activation": 3, "stored_positions": False},
    "zero start": {"from_zero": True, "pre_norm": False, "config": {"add_source_eos": True}, "tied": True},
    "relative vectors": {"relative": "vectors", "sizes": (31, 27), "scale_embeddings": False, "alignment": (0, 0)},
    "like T5": {"relative": "bias", "rms": True, "gated": True, "activation": 1, "scale_embeddings": False},
    "one key head": {"key_heads": 1, "activation": 4, "scale_embeddings": 2.5, "config": {"layer_norm_epsilon": 0.01}},
    "int8": {"quantise": "int8", "activation": 5, "tied": True},
    "int16": {"quantise": "int16", "activation": 6, "text": True},
    "float16": {"quantise": "float16"},
    "bfloat16": {"quantise": "bfloat16"},
}


def sources(n: int = 20, longest: int = 9) -> list[list[int]]:
    chance = random.Random(3)
    return [[chance.randrange(3, 25) for _ in range(chance.randint(1, longest))] for _ in range(n)]


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_and_scores_are_those_of_generate(tmp_path, kind):
    """The bundle against our PyTorch reading of the folder, and against CTranslate2 where it is installed."""
    folder = ctranslate2_files.save(tmp_path / "m", **KINDS[kind])
    report = s2s_export.export(folder, tmp_path / "b")
    assert max(error.relative for error in report.parity) < 2e-5
    assert report.manifest["model_type"] == "ctranslate2"
    assert any("dequantised" in notice for notice in report.notices) == kind.startswith("int")
    session = s2s_export.load(tmp_path / "b", threads=1)
    model = open_checkpoint(folder).load_model()
    options = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 9}
    for source in sources(3):
        with torch.no_grad():
            expected = model.generate(
                input_ids=torch.tensor([source]), attention_mask=torch.ones(1, len(source), dtype=torch.long), **options
            )
        found = session.generate([source], **options)[0]
        for tokens, hypothesis in zip(expected.tolist(), found, strict=True):
            assert tokens[: len(hypothesis.token_ids)] == list(hypothesis.token_ids)
    compare_with_ctranslate2(folder, session)


def compare_with_ctranslate2(folder, session) -> None:
    try:
        import ctranslate2
    except ImportError:
        return
    translator = ctranslate2.Translator(str(folder), intra_threads=1, compute_type="float32")
    texts = [session.tokenizer.source_tokens(source) for source in sources()]
    for n_beams in (1, 2, 4):
        theirs = translator.translate_batch(
            texts, beam_size=n_beams, num_hypotheses=n_beams, return_scores=True, max_decoding_length=9
        )
        # CTranslate2 renormalises what is left where the end is not allowed.
        options = {"num_beams": n_beams, "num_return_sequences": n_beams, "renormalize_logits": True}
        ours = session.generate(
            [session.tokenizer.encode(" ".join(text)) for text in texts], max_new_tokens=9, **options
        )
        for result, hypotheses in zip(theirs, ours, strict=True):
            for tokens, score, hypothesis in zip(result.hypotheses, result.scores, hypotheses, strict=True):
                assert [t for t in session.tokenizer.tokens(hypothesis.token_ids[1:]) if t != "</s>"] == tokens
                assert hypothesis.score == pytest.approx(score, abs=1e-4)


@pytest.fixture
def spm(tmp_path):
    import sentencepiece

    (tmp_path / "text").write_text("one two three four five six\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "spm"), vocab_size=31, hard_vocab_limit=False,
        minloglevel=2,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spm.model"))


def with_pieces(folder, spm, extra=(), **options):
    tokens = [*ctranslate2_files.SPECIAL, *extra, *(spm.id_to_piece(i) for i in range(3, spm.get_piece_size()))]
    ctranslate2_files.save(folder, sizes=(len(tokens),) * 2, **options)
    (folder / "shared_vocabulary.json").write_text(json.dumps(tokens))
    return tokens


def test_a_package_of_argos_translate_is_read_from_its_file_and_its_folder(tmp_path, spm):
    package = tmp_path / "translate-en_xx-1_0"
    tokens = with_pieces(package / "model", spm, ["__xx__"])
    (package / "sentencepiece.model").write_bytes(spm.serialized_model_proto())
    metadata = {"from_code": "en", "to_code": "xx", "type": "translate", "target_prefix": "__xx__"}
    (package / "metadata.json").write_text(json.dumps(metadata))
    (package / "stanza").mkdir()
    (package / "stanza" / "model.pt").write_bytes(b"code")
    file = tmp_path / "en_xx.argosmodel"
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(package.rglob("*")):
            archive.write(path, path.relative_to(tmp_path))
    for i, given in enumerate((file, package)):
        report = s2s_export.export(given, tmp_path / f"b{i}")
        assert report.manifest["provenance"]["checkpoint"] == given.name
        defaults = report.manifest["generation"]
        assert (defaults["num_beams"], defaults["length_penalty"]) == (4, 0.2)
        assert tokens[defaults["forced_bos_token_id"]] == "__xx__"
        session = s2s_export.load(tmp_path / f"b{i}")
        assert session.tokenizer.encode("two three") == [tokens.index(p) for p in spm.encode_as_pieces("two three")]
        assert session.tokenizer.decode(session.tokenizer.encode("two three")) == "two three"
        (hypothesis,) = session.generate([session.tokenizer.encode("two")], max_new_tokens=5)[0]
        assert tokens[hypothesis.token_ids[1]] == "__xx__" and "__xx__" not in hypothesis.text


def test_language_tokens_and_codes_make_languages(tmp_path, spm):
    with_pieces(tmp_path / "nllb", spm, ["eng_Latn", "fra_Latn"])
    with_pieces(tmp_path / "opus", spm, [">>fra<<", ">>deu<<"], config={"add_source_eos": True})
    (tmp_path / "nllb" / "sentencepiece.bpe.model").write_bytes(spm.serialized_model_proto())
    for name in ("source.spm", "target.spm"):
        (tmp_path / "opus" / name).write_bytes(spm.serialized_model_proto())
    found = {}
    for name in ("nllb", "opus"):
        s2s_export.export(tmp_path / name, tmp_path / f"{name}-bundle")
        found[name] = s2s_export.load(tmp_path / f"{name}-bundle").tokenizer
    nllb, opus = found["nllb"], found["opus"]
    assert nllb.encode("two", source_lang="fra_Latn")[0] == 4 and nllb.encode("two")[0] == 3
    assert nllb.target_overrides("fra_Latn") == {"forced_bos_token_id": 4}
    assert opus.encode("two", target_lang="fra") == [3, *opus.encode("two")] and opus.encode("two")[-1] == 2


def message(folder, bundle, error=CheckpointError) -> str:
    with pytest.raises(error) as raised:
        s2s_export.export(folder, bundle)
    return str(raised.value)


def test_what_can_not_be_read_is_one_sentence(tmp_path):
    folder = ctranslate2_files.save(tmp_path / "m")
    variables = ctranslate2_files.random_variables()
    bundle, file = tmp_path / "b", folder / "model.bin"

    def write(changes, spec="TransformerSpec", **options):
        changed = variables | changes
        kept = {name: value for name, value in changed.items() if value is not None}
        ctranslate2_files.write_model(file, kept, spec, **options)

    write({}, "TransformerDecoderSpec")
    assert "holds a TransformerDecoderSpec; expected one of TransformerSpec, WhisperSpec" in message(
        folder, bundle, UnsupportedModel
    )
    write({}, version=7)
    assert "has binary version 7; expected 2 to 6" in message(folder, bundle, UnsupportedModel)
    write({}, revision=8)
    assert "has revision 8 of TransformerSpec; expected 2 to 7" in message(folder, bundle, UnsupportedModel)
    write({"decoder/activation": np.array(9, np.int8)})
    assert "decoder/activation is 9; expected 0 to 6 (relu" in message(folder, bundle, UnsupportedModel)
    write({"decoder/layer_0/self_attention/rotary_dim": np.array(8, np.int32)})
    assert "has the weight 'decoder/layer_0/self_attention/rotary_dim'" in message(folder, bundle, UnsupportedModel)
    write({name: None for name in variables if "/attention/" in name})
    assert "its decoder has no attention to the source" in message(folder, bundle, UnsupportedModel)
    write({"decoder/layer_1/ffn/linear_1/weight": np.zeros((3, 4), np.float32)})
    assert "linear_1/weight' has shape [3, 4], expected [24, 36]" in message(folder, bundle)
    write({"decoder/layer_1/ffn/layer_norm/gamma": None})
    assert "has no weight 'decoder/layer_1/ffn/layer_norm/gamma'" in message(folder, bundle)
    write({"decoder/num_heads": np.array(0, np.int16)})
    assert "has 0 heads" in message(folder, bundle)
    write({"decoder/projection/bias": np.full(31, np.nan, np.float32)})
    assert "'decoder/projection/bias' holds NaN or infinity" in message(folder, bundle)
    write({})
    file.write_bytes(file.read_bytes()[:-40])
    assert "model.bin: ends early or is damaged" in message(folder, bundle)
    write({})
    vocabulary = folder / "shared_vocabulary.json"
    vocabulary.write_text("[1]")
    assert "holds no list of tokens" in message(folder, bundle)
    vocabulary.write_text(json.dumps(ctranslate2_files.pieces(30)))
    assert "the source vocabulary has 30 tokens, the model 31" in message(folder, bundle)
    vocabulary.unlink()
    assert "has no shared_vocabulary and no source_vocabulary" in message(folder, bundle)
    (tmp_path / "x.argosmodel").write_bytes(b"nothing")
    assert "can't be unpacked" in message(tmp_path / "x.argosmodel", bundle)
    with zipfile.ZipFile(tmp_path / "y.argosmodel", "w") as archive:
        archive.writestr("a/../../metadata.json", "{}")
    assert "has no model/model.bin" in message(tmp_path / "y.argosmodel", bundle)
    (tmp_path / "z.bin").write_bytes(b"")
    assert "is a file; expected a checkpoint folder, or a file of another toolkit" in message(
        tmp_path / "z.bin", bundle
    )


def test_damage_never_surfaces_as_another_librarys_error(tmp_path):
    """Random cuts and changes of bytes: a model, or one of our errors; and never much memory."""
    folder = ctranslate2_files.save(tmp_path / "m", relative="bias")
    file = folder / "model.bin"
    whole = file.read_bytes()
    chance = random.Random(5)
    places = [i for i in range(len(whole) - 4) if whole[i : i + 4].isascii() and whole[i : i + 4].isalpha()]
    n_refused = 0
    for i in range(300):
        raw = bytearray(whole)
        if i % 3 == 0:
            raw = raw[: chance.randrange(len(raw))]
        for _ in range(chance.randint(0, 3)):
            # Near a name are the numbers that say how the bytes are to be read.
            at = min(chance.choice(places) + chance.randrange(-12, 40), len(raw) - 4) if len(raw) > 60 else 0
            raw[max(at, 0) : max(at, 0) + 4] = struct.pack("<I", chance.choice([0, 1, 255, 2**31 - 1, 2**32 - 1]))
        file.write_bytes(raw)
        try:
            open_checkpoint(folder).load_model()
        except S2SError as error:
            n_refused += 1
            assert len(str(error)) < 600
    assert n_refused > 150
