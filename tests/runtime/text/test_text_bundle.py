"""What the runtime refuses: damaged entries, files that are missing or lie outside, texts and ids that are none."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
from text_samples import TEXTS

from s2s_export.errors import BundleError, InputError
from s2s_export.runtime import text


def changed(entry, **fields):
    return {**json.loads(json.dumps(entry)), **fields}


def test_an_entry_survives_json(pair):
    entry = json.loads(json.dumps(pair.entry))
    assert entry == pair.entry
    assert text.load(pair.folder, entry).encode(TEXTS[3]) == pair.tokenizer.encode(TEXTS[3])


@pytest.mark.parametrize(
    "name", ["../tokenizer.json", "/etc/passwd", "a/../../b", "C:\\x", "\\\\host\\x", "..\\x", "a\\..\\..\\b"]
)
def test_a_file_outside_the_bundle_is_refused(pair_of, name):
    pair = pair_of("t5/slow")
    with pytest.raises(BundleError, match="leads out of the bundle"):
        text.load(pair.folder, changed(pair.entry, files={"tokenizer": name}))


def test_a_link_out_of_the_bundle_is_refused(pair_of, tmp_path):
    pair = pair_of("t5/slow")
    (tmp_path / "tokenizer.json").symlink_to(pair.folder / "tokenizer.json")
    with pytest.raises(BundleError, match="leads out of the bundle"):
        text.load(tmp_path, pair.entry)


def test_missing_and_damaged_files_are_named(pair, tmp_path):
    for name in pair.entry["files"].values():
        folder = tmp_path / name
        shutil.copytree(pair.folder, folder)
        (folder / name).write_bytes((folder / name).read_bytes()[:40])
        with pytest.raises(BundleError, match=f"{name} can't be read, expected"):
            text.load(folder, pair.entry)
        (folder / name).unlink()
        with pytest.raises(BundleError, match=f"'{name}' is missing"):
            text.load(folder, pair.entry)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "fasst"}, "kind 'fasst', which this version does not know; did you mean 'fast'"),
        ({"kind": 3}, "kind is 3, expected a string"),
        ({"files": {}}, "has no file for 'model'"),
        ({"files": {"model": 3}}, "files.model is 3, expected a file name"),
        ({"files": []}, r"files is a list, expected an object"),
        ({"template": {"prefix": ["x"]}}, "template.prefix is 'x', expected a whole number"),
        ({"template": {"prefix": 3}}, "prefix is 3, expected a list"),
        ({"languages": {"en": -1}}, "languages.en is -1"),
        ({"source_lang": "xx"}, "default source language 'xx' is not in its languages"),
        ({"target_language_by": "magic"}, "target_language_by is 'magic', expected one of forced_bos_token_id"),
        ({"decode": {"clean_up_tokenization_spaces": 1}}, "clean_up_tokenization_spaces is 1, expected true or false"),
        ({"decode": {"skip_ids": [True]}}, "decode.skip_ids is true"),
        ({"model_max_length": "long"}, "model_max_length is 'long'"),
        ({"options": {"added_tokens": [{"name": 1}]}}, "damaged added tokens"),
        ({"options": {"unk_token": "nope"}}, "lacks its unknown token 'nope'"),
        ({"options": {"language_tokens": 3}}, "options that 'spm_vocab' can't use"),
    ],
)
def test_a_damaged_entry_is_one_sentence(pair_of, fields, message):
    pair = pair_of("m2m100/slow")
    with pytest.raises(BundleError, match=message) as caught:
        text.load(pair.folder, changed(pair.entry, **fields))
    assert "\n" not in str(caught.value)


def test_a_source_that_is_no_text_is_refused(pair):
    with pytest.raises(InputError, match=r"lone surrogate \(U\+D83D\) at character 2"):
        pair.tokenizer.encode("ab\ud83d")
    with pytest.raises(InputError, match="of type bytes, expected text"):
        pair.tokenizer.encode(b"ab")
    with pytest.raises(InputError, match="-1 is not a token id"):
        pair.tokenizer.decode([3, -1])
    with pytest.raises(InputError, match=r"byte 1 of the input \(0xff\) is not UTF-8"):
        text.from_utf8(b"a\xff")
    assert text.from_utf8("é".encode()) == "é"


def test_threads_share_one_tokenizer(pair_of):
    for name in ("marian/slow", "nllb/slow", "m2m100/slow", "byt5/slow"):
        tokenizer = pair_of(name).tokenizer
        texts = TEXTS * 3
        expected = [tokenizer.encode(line) for line in texts]
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(tokenizer.encode, texts)) == expected
            spelled = list(pool.map(tokenizer.decode, expected))
        assert spelled == [tokenizer.decode(ids) for ids in expected]
