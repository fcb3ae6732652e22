"""What tokens spell inside an output, for every kind of tokenizer: joined, the texts of ids are what decoding gives."""

from __future__ import annotations

import random

import pytest

from s2s_export.errors import InputError
from s2s_export.runtime.text import spell

# ByT5's own, about a text that ends with </s>.
pytestmark = pytest.mark.filterwarnings("ignore:This sequence already has")

TEXTS = ["Hello, world! The quick brown fox", "a b c", "It's 12,50 euros", "sea shells by the shore"]


def test_spellings_joined_are_the_text(pair) -> None:
    size = pair.size
    texts, strips = spell(pair.tokenizer, size)
    assert len(texts) == size and sum(text is not None for text in texts) > size // 4
    n_compared = 0
    chance = random.Random(1)
    usable = [i for i, text in enumerate(texts) if text and text.isascii()]
    sequences = [pair.tokenizer.encode_target(text) for text in TEXTS]
    sequences += [chance.choices(usable, k=6) for _ in range(40)]
    for ids in sequences:
        if any(texts[i] is None for i in ids):
            continue
        joined = "".join(texts[i] or "" for i in ids)
        try:
            found = pair.tokenizer.raw_text(ids)
        except InputError:
            continue
        n_compared += 1
        # At the ends decoding may drop spaces, which no pattern of an output has to match.
        assert found.strip() == joined.strip(), (ids, found, joined)
        if joined[:1] == " " and joined[1:2].strip():
            assert found.startswith(" ") != strips
    assert n_compared > 20
