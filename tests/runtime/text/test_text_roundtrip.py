"""The runtime half gives transformers' ids and texts, for every family and every way of writing its folder."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from text_samples import TEXTS, id_lists, texts

from s2s_export.errors import InputError

# ByT5's own, about a text that ends with </s>.
pytestmark = [pytest.mark.matrix, pytest.mark.filterwarnings("ignore:This sequence already has")]

quick = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def same_text(pair, ids: list[int], skip: bool) -> None:
    expected = pair.plain(ids, skip)
    if expected is None:
        with pytest.raises(InputError, match="outside the tokenizer's vocabulary"):
            pair.tokenizer.decode(ids, skip_special_tokens=skip)
    else:
        assert pair.tokenizer.decode(ids, skip_special_tokens=skip) == expected


def test_texts_have_transformers_ids_and_back(pair):
    for text in TEXTS:
        ids = pair.original(text)["input_ids"]
        assert pair.tokenizer.encode(text) == ids, text
        for skip in (True, False):
            same_text(pair, ids, skip)


@quick
@given(text=texts)
def test_generated_texts_have_transformers_ids(pair, text):
    ids = pair.original(text)["input_ids"]
    assert pair.tokenizer.encode(text) == ids
    same_text(pair, ids, True)


@quick
@given(data=st.data())
def test_any_ids_have_transformers_text(pair, data):
    ids = data.draw(id_lists(pair.size))
    same_text(pair, ids, True)
    same_text(pair, ids, False)


def test_every_id_has_transformers_piece(pair):
    for token in range(len(pair.original)):
        try:
            expected = pair.original.convert_ids_to_tokens(token)
        except (IndexError, ValueError):
            continue
        assert pair.tokenizer.tokens([token]) == [expected or ""]


def test_marian_with_two_vocabularies_spells_the_targets_ids(pair_of):
    pair = pair_of("marian-separate/slow")
    for text in TEXTS:
        ids = pair.original(text_target=text)["input_ids"]
        assert pair.tokenizer.decode(ids) == pair.original.decode(ids, skip_special_tokens=True)
