"""Writing a tokenizer: folders without one, with a damaged one, and one that would differ."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import sentencepiece
import text_folders

from s2s_export.errors import CheckpointError, UnsupportedModel
from s2s_export.exporting.tokenizers import check as text_check
from s2s_export.exporting.tokenizers import reference as text_reference
from s2s_export.exporting.tokenizers import write as text_assets
from s2s_export.runtime import text


def test_a_checkpoint_without_tokenizer_files_has_no_entry(tmp_path):
    text_folders.dump(tmp_path / "config.json", {"model_type": "t5"})
    assert text_assets.write_tokenizer(tmp_path, tmp_path / "tokenizer") is None
    assert not (tmp_path / "tokenizer").exists()


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("marian", "source.spm"),
        ("marian", "target.spm"),
        ("marian", "vocab.json"),
        ("marian-separate", "target_vocab.json"),
        ("t5", "spiece.model"),
        ("bart", "merges.txt"),
        ("bart", "vocab.json"),
        ("mbart", "sentencepiece.bpe.model"),
        ("m2m100", "vocab.json"),
        ("m2m100", "sentencepiece.bpe.model"),
        ("nllb", "sentencepiece.bpe.model"),
        ("pegasus", "spiece.model"),
    ],
)
def test_a_missing_file_is_one_sentence(tmp_path, family, name):
    text_folders.SLOW[family](tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / name).unlink()
    with pytest.raises(CheckpointError, match=r"the tokenizer in .* (lacks|can't be loaded)") as caught:
        text_assets.write_tokenizer(tmp_path / "checkpoint", tmp_path / "tokenizer")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("marian/slow", "source.spm"),
        ("marian/slow", "vocab.json"),
        ("t5/slow", "spiece.model"),
        ("t5/resaved", "tokenizer.json"),
        ("t5/resaved", "tokenizer_config.json"),
        ("m2m100/slow", "sentencepiece.bpe.model"),
    ],
)
def test_a_damaged_file_is_one_sentence(pair_of, tmp_path, case, name):
    folder = tmp_path / "checkpoint"
    shutil.copytree(pair_of(case).checkpoint, folder)
    (folder / name).write_bytes((folder / name).read_bytes()[:50])
    with pytest.raises(
        CheckpointError, match=r"the tokenizer in .* can't be loaded \(.*\); restore its files"
    ) as caught:
        text_assets.write_tokenizer(folder, tmp_path / "tokenizer")
    assert "\n" not in str(caught.value)


def test_languages_that_transformers_loses_are_refused(tmp_path):
    text_folders.slow_nllb(tmp_path / "checkpoint", listed=False)
    if "eng_Latn" in text_folders.original(tmp_path / "checkpoint").get_vocab():
        pytest.skip("this transformers keeps the languages of a folder that does not list them")
    with pytest.raises(CheckpointError, match="no token for its source language 'eng_Latn'"):
        text_assets.write_tokenizer(tmp_path / "checkpoint", tmp_path / "tokenizer")


@pytest.mark.parametrize("family", ["mbart", "mbart50", "nllb", "nllb-legacy"])
def test_languages_that_a_fine_tune_added_are_languages(pair_of, tmp_path, family):
    """Whatever their shape: a token is a language if the tokenizer takes it for one."""
    folder = tmp_path / "checkpoint"
    original = text_folders.original(pair_of(f"{family}/slow").checkpoint)
    added = ["tyv_Cyrl", "kbd", "lang_new1", "<2grc>"]
    original.add_special_tokens({"extra_special_tokens": added[:2]}, replace_extra_special_tokens=False)
    original.add_tokens(added[2:], special_tokens=True)
    original.save_pretrained(str(folder))
    shutil.copyfile(pair_of(f"{family}/slow").checkpoint / "config.json", folder / "config.json")
    entry = text_assets.write_tokenizer(folder, tmp_path / "tokenizer")
    tokenizer, again = text.load(tmp_path / "tokenizer", entry), text_folders.original(folder)
    assert set(added) < set(tokenizer.languages) and not {"<pad>", "</s>", "<mask>"} & set(tokenizer.languages)
    usual = again.src_lang
    for code in added:
        again.src_lang = code
        assert tokenizer.encode("Hello, world!", source_lang=code) == again("Hello, world!")["input_ids"]
        assert list(tokenizer.target_overrides(code).values()) == [again.convert_tokens_to_ids(code)]
    again.src_lang = usual


def test_a_random_tokenizer_is_refused(pair_of, tmp_path):
    folder = tmp_path / "marian"
    shutil.copytree(pair_of("marian/slow").checkpoint, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    sampling = {"enable_sampling": True, "nbest_size": -1, "alpha": 0.1}
    text_folders.dump(folder / "tokenizer_config.json", {**config, "sp_model_kwargs": sampling})
    with pytest.raises(UnsupportedModel, match="samples its pieces"):
        text_assets.write_tokenizer(folder, tmp_path / "tokenizer")


def test_a_tokenizer_without_a_kind_is_refused_by_name(tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    text_folders.dump(folder / "config.json", {"model_type": "perceiver"})
    text_folders.dump(folder / "tokenizer_config.json", {"tokenizer_class": "PerceiverTokenizer"})
    with pytest.raises(UnsupportedModel, match="is a PerceiverTokenizer written in Python"):
        text_assets.write_tokenizer(folder, tmp_path / "tokenizer")


def test_the_check_finds_a_difference(pair_of, tmp_path):
    pair = pair_of("marian/slow")
    folder = tmp_path / "tokenizer"
    shutil.copytree(pair.folder, folder)
    text_check.compare(pair.original, folder, pair.entry)
    vocab = json.loads((folder / "vocab.json").read_text())
    first, second = [piece for piece in vocab if piece.startswith("▁")][:2]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    text_folders.dump(folder / "vocab.json", vocab)
    with pytest.raises(CheckpointError, match="MarianTokenizer in transformers"):
        text_check.compare(pair.original, folder, pair.entry)
    wrong = {**pair.entry, "template": {"prefix": [], "suffix": []}}
    with pytest.raises(CheckpointError, match="tokenizing '' gives"):
        text_check.compare(pair.original, pair.folder, wrong)


def test_the_bundle_needs_neither_checkpoint_nor_truncation(pair_of, tmp_path):
    """A tokenizer.json that truncates and pads, as training scripts leave them behind, gives whole unpadded ids."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(pair_of("t5/resaved").checkpoint, folder)
    data = json.loads((folder / "tokenizer.json").read_text())
    data["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    data["padding"] = {
        "strategy": {"Fixed": 40},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    }
    text_folders.dump(folder / "tokenizer.json", data)
    entry = text_assets.write_tokenizer(folder, tmp_path / "tokenizer")
    original = text_folders.original(folder)
    shutil.rmtree(folder)
    tokenizer = text.load(tmp_path / "tokenizer", entry)
    assert tokenizer.encode(text_folders.CORPUS[0]) == original(text_folders.CORPUS[0])["input_ids"]


def test_a_sentencepiece_model_keeps_its_own_ids(tmp_path):
    (tmp_path / "a.model").write_bytes(text_folders.spm(pad_id=0, unk_id=1, bos_id=2, eos_id=3))
    (tmp_path / "b.model").write_bytes(text_folders.spm("bpe", pad_id=0, unk_id=1, bos_id=2, eos_id=3))
    entry = text_reference.write_sentencepiece(
        tmp_path / "a.model", tmp_path / "t", eos_id=3, pad_id=0, target_model=tmp_path / "b.model"
    )
    tokenizer = text.load(tmp_path / "t", json.loads(json.dumps(entry)))
    source, target = (
        sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / name)) for name in ("a.model", "b.model")
    )
    for line in ("", *text_folders.CORPUS):
        assert tokenizer.encode(line) == [*source.encode(line), 3]
        ids = target.encode(line)
        assert tokenizer.decode([2, *ids, 3, 0, 0]) == target.decode(ids)
        stream = text.StreamDecoder(tokenizer)
        assert "".join([*(stream.push([value]) for value in ids), stream.finish()]) == target.decode(ids)
    assert tokenizer.tokens([3, 10**6]) == ["</s>", ""]
    with_bos = text_reference.write_sentencepiece(
        tmp_path / "a.model", tmp_path / "t", eos_id=3, bos_id=2, prepend_bos=True
    )
    assert text.load(tmp_path / "t", with_bos).encode("Hello")[0] == 2


def test_a_reference_model_brings_its_sentencepiece_model(tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    text_folders.dump(folder / "config.json", {"model_type": "s2s-transformer", **ids})
    tags = [">>deu<<", ">>fra<<"]
    model = text_folders.spm(pad_id=0, bos_id=1, eos_id=2, unk_id=3, user_defined_symbols=",".join(tags))
    (folder / "tokenizer.model").write_bytes(model)
    entry = text_assets.write_tokenizer(folder, tmp_path / "tokenizer")
    tokenizer = text.load(tmp_path / "tokenizer", entry)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert tokenizer.languages == {"deu": 4, "fra": 5}
    assert tokenizer.encode("Hello", target_lang="fra") == [*processor.encode(">>fra<< Hello"), 2]
    assert tokenizer.target_overrides("fra") == {}
    assert tokenizer.decode([1, *processor.encode("Hello, world!"), 2, 0]) == "Hello, world!"
    (folder / "tokenizer.model").write_bytes(model[:100])
    with pytest.raises(CheckpointError, match=r"tokenizer\.model can't be read"):
        text_assets.write_tokenizer(folder, tmp_path / "tokenizer")
    (folder / "tokenizer.model").unlink()
    assert text_assets.write_tokenizer(folder, tmp_path / "tokenizer") is None


FRESH = """
import json, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers", "onnx", "numpy", "safetensors", "sacremoses"}:
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Block())
from s2s_export.runtime import text
for folder, entry, line, ids in json.load(sys.stdin):
    tokenizer = text.load(folder, entry)
    assert tokenizer.encode(line) == ids, folder
    decoder = text.StreamDecoder(tokenizer)
    assert decoder.push(ids) + decoder.finish() == tokenizer.decode(ids)
"""


def test_a_fresh_interpreter_needs_no_export_library(pair_of):
    cases = []
    for family in text_folders.SLOW:
        pair = pair_of(f"{family}/slow")
        line = text_folders.CORPUS[1]
        if family != "marian-separate":
            cases.append([str(pair.folder), pair.entry, line, pair.original(line)["input_ids"]])
    subprocess.run([sys.executable, "-c", FRESH], input=json.dumps(cases), text=True, check=True, timeout=120)
