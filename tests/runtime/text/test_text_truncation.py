"""Sources that are too long are cut as the checkpoint's own tokenizer cuts them, whatever surrounds a text."""

from __future__ import annotations

import pytest

from s2s_export.errors import InputError
from s2s_export.runtime import text

SENTENCE = "Hello, world! Déjà vu: the quick brown fox jumps over the lazy dog, and so on. " * 2


def templates(tokenizer):
    return len(tokenizer.entry.prefix) + len(tokenizer.entry.suffix)


@pytest.mark.parametrize("side", ["right", "left"])
def test_truncation_is_transformers_own(pair, side):
    tokenizer = text.load(pair.folder, {**pair.entry, "truncation_side": side})
    usual, pair.original.truncation_side = pair.original.truncation_side, side
    try:
        assert usual == pair.entry["truncation_side"]
        written_out = () if pair.name.startswith("byt5") else ("one two </s>", "</s> </s> </s> </s> </s> </s>")
        for sentence in (SENTENCE, "a", "en_XX fr_XX", *written_out):  # ByT5 makes one end token of two
            ids = tokenizer.encode(sentence)
            for limit in range(templates(tokenizer) + 1, 24):
                wanted = pair.original(sentence, truncation=True, max_length=limit)["input_ids"]
                assert tokenizer.truncate(ids, limit) == wanted, (sentence, limit)
    finally:
        pair.original.truncation_side = usual


@pytest.mark.parametrize("family", ["mbart", "mbart50", "m2m100", "nllb", "nllb-legacy"])
def test_the_source_language_stays(pair_of, family):
    pair = pair_of(f"{family}/slow")
    for code in list(pair.tokenizer.languages)[::9]:
        ids = pair.tokenizer.truncate(pair.tokenizer.encode(SENTENCE, source_lang=code), 8)
        assert len(ids) == 8 and pair.tokenizer.languages[code] in ids and pair.original.eos_token_id in ids


def test_ids_without_the_template_are_cut_plainly(pair_of):
    tokenizer = pair_of("mbart/slow").tokenizer
    assert tokenizer.truncate([9, 8, 7, 6, 5], 3) == [9, 8, 7]


def test_a_limit_without_room_is_refused(pair_of):
    tokenizer = pair_of("mbart/slow").tokenizer
    with pytest.raises(InputError, match="a source of 1 tokens has no room for its 2 special tokens"):
        tokenizer.truncate(tokenizer.encode("Hello"), 1)
