"""Source languages in the template, target languages as generation options or as a prefix of the source."""

from __future__ import annotations

import shutil

import pytest
import text_folders

from s2s_export.errors import UsageError
from s2s_export.exporting.tokenizers import write as text_assets
from s2s_export.runtime import text

SENTENCE = "Hello, world! Déjà vu."
BY_SOURCE = ["mbart", "mbart50", "m2m100", "m2m100-plain-languages", "nllb", "nllb-legacy"]


@pytest.mark.parametrize("style", ["slow", "resaved"])
@pytest.mark.parametrize("family", BY_SOURCE)
def test_every_source_language_has_transformers_template(pair_of, family, style):
    pair = pair_of(f"{family}/{style}")
    usual = pair.original.src_lang
    assert len(pair.tokenizer.languages) >= 25
    for code in pair.tokenizer.languages:
        pair.original.src_lang = code
        assert pair.tokenizer.encode(SENTENCE, source_lang=code) == pair.original(SENTENCE)["input_ids"]
        assert pair.tokenizer.encode("", source_lang=code) == pair.original("")["input_ids"]
    pair.original.src_lang = usual
    assert pair.tokenizer.encode(SENTENCE) == pair.original(SENTENCE)["input_ids"]


@pytest.mark.parametrize(
    ("family", "code", "option"),
    [
        ("mbart", "ro_RO", "decoder_start_token_id"),
        ("mbart50", "de_DE", "forced_bos_token_id"),
        ("m2m100", "de", "forced_bos_token_id"),
        ("nllb", "deu_Latn", "forced_bos_token_id"),
    ],
)
def test_a_target_language_is_a_generation_option(pair_of, family, code, option):
    pair = pair_of(f"{family}/slow")
    token = f"__{code}__" if family == "m2m100" else code
    assert pair.tokenizer.target_overrides(code) == {option: pair.original.convert_tokens_to_ids(token)}
    assert pair.tokenizer.target_overrides(None) == {}
    assert pair.tokenizer.encode(SENTENCE, target_lang=code) == pair.tokenizer.encode(SENTENCE)


def test_marian_asks_for_its_target_language_in_the_source(pair_of):
    pair = pair_of("marian-multilingual/slow")
    assert set(pair.tokenizer.languages) == {"fra", "deu", "cmn_Hans"}
    for code in pair.tokenizer.languages:
        wanted = pair.original(f">>{code}<< {SENTENCE}")["input_ids"]
        assert wanted[0] == pair.tokenizer.languages[code]
        assert pair.tokenizer.encode(SENTENCE, target_lang=code) == wanted
        assert pair.tokenizer.encode(f">>{code}<< {SENTENCE}", target_lang=code) == wanted
        assert pair.tokenizer.target_overrides(code) == {}
    with pytest.raises(UsageError, match="name the target language once"):
        pair.tokenizer.encode(f">>deu<< {SENTENCE}", target_lang="fra")


def test_marians_added_languages_are_languages(pair_of, tmp_path):
    folder = tmp_path / "checkpoint"
    original = text_folders.original(pair_of("marian-multilingual/slow").checkpoint)
    original.add_tokens([">>tyv<<"], special_tokens=True)
    original.save_pretrained(str(folder))
    shutil.copyfile(pair_of("marian-multilingual/slow").checkpoint / "config.json", folder / "config.json")
    tokenizer = text.load(tmp_path / "t", text_assets.write_tokenizer(folder, tmp_path / "t"))
    wanted = text_folders.original(folder)(f">>tyv<< {SENTENCE}")["input_ids"]
    assert tokenizer.encode(SENTENCE, target_lang="tyv") == wanted and wanted[0] == tokenizer.languages["tyv"]


def test_an_unknown_language_names_its_neighbour(pair_of):
    with pytest.raises(UsageError, match=r"unknown source language 'eng_Latin'; did you mean 'eng_Latn'\?"):
        pair_of("nllb/slow").tokenizer.encode("a", source_lang="eng_Latin")
    with pytest.raises(UsageError, match=r"unknown target language 'fr_X'; did you mean 'fr_XX'\?"):
        pair_of("mbart50/slow").tokenizer.target_overrides("fr_X")
    with pytest.raises(UsageError, match=r"unknown target language 'fr'; did you mean 'fra'\?"):
        pair_of("marian-multilingual/slow").tokenizer.encode("a", target_lang="fr")
    with pytest.raises(UsageError, match="has no languages; leave it out"):
        pair_of("t5/slow").tokenizer.encode("a", target_lang="fr")
    with pytest.raises(UsageError, match="has no languages; leave it out"):
        pair_of("t5/slow").tokenizer.target_overrides("fr")


def test_the_entry_says_what_the_checkpoint_says(pair_of):
    entry = pair_of("nllb/slow").entry
    assert (entry["source_lang"], entry["target_lang"]) == ("eng_Latn", "fra_Latn")
    assert entry["template"]["prefix"] == ["source_lang"]
    assert pair_of("nllb-legacy/slow").entry["template"]["suffix"][1] == "source_lang"
    assert pair_of("marian-multilingual/slow").entry["target_lang"] == "fra"
    assert pair_of("marian/slow").entry["model_max_length"] == 512
