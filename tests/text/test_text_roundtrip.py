"""The runtime half gives transformers' ids and texts, for every family and every way of writing its folder."""

from __future__ import annotations

import pytest
import text_folders

from s2s_export import text, text_assets


@pytest.mark.parametrize("family", ["marian", "marian-separate", "t5", "byt5", "bart", "mbart50", "m2m100"])
def test_ids_and_texts_equal_transformers(family, tmp_path):
    text_folders.SLOW[family](tmp_path / "checkpoint")
    entry = text_assets.write_tokenizer(tmp_path / "checkpoint", tmp_path / "tokenizer")
    tokenizer, original = text.load(tmp_path / "tokenizer", entry), text_folders.original(tmp_path / "checkpoint")
    for line in text_folders.CORPUS:
        ids = original(line)["input_ids"]
        assert tokenizer.encode(line) == ids
        assert tokenizer.decode(ids) == original.decode(ids, skip_special_tokens=True)
