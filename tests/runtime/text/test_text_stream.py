"""A stream's pieces joined are the text, and no piece is ever taken back."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from text_samples import TEXTS, id_lists

from s2s_export.errors import InputError
from s2s_export.runtime import text
from s2s_export.runtime.text import cleanup

quick = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def stream(tokenizer, ids: list[int], skip: bool, step: int = 1) -> list[str]:
    decoder = text.StreamDecoder(tokenizer, skip_special_tokens=skip)
    parts = [decoder.push(ids[i : i + step]) for i in range(0, len(ids), step)]
    return [*parts, decoder.finish()]


def test_streams_of_texts_join_to_the_text(pair):
    for sample in TEXTS[::3]:
        ids = [token for token in pair.tokenizer.encode(sample) if pair.plain([token], False) is not None]
        assert "".join(stream(pair.tokenizer, ids, True)) == pair.tokenizer.decode(ids), sample


@quick
@given(data=st.data())
def test_streams_of_any_ids_join_to_the_text(pair, data):
    ids = data.draw(id_lists(pair.size))
    skip, step = data.draw(st.booleans()), data.draw(st.integers(1, 3))
    try:
        expected = pair.tokenizer.decode(ids, skip_special_tokens=skip)
    except InputError:
        return
    assert "".join(stream(pair.tokenizer, ids, skip, step)) == expected


@pytest.mark.parametrize("family", ["byt5", "bart", "mt5"])
def test_an_unfinished_character_waits(pair_of, family):
    tokenizer = pair_of(f"{family}/slow").tokenizer
    ids = tokenizer.encode("né 🙂 🏽!")
    parts = stream(tokenizer, ids, True)
    assert "".join(parts) == tokenizer.decode(ids)
    assert not any("\ufffd" in part for part in parts)


def test_text_comes_before_the_end(pair_of):
    for name in ("marian/slow", "t5/slow", "byt5/slow", "bart/slow", "m2m100/slow", "nllb/slow"):
        tokenizer = pair_of(name).tokenizer
        parts = stream(tokenizer, tokenizer.encode("the quick brown fox jumps over the lazy dog"), True)
        assert sum(bool(part) for part in parts[:-1]) > 5, name


rule_texts = st.lists(st.sampled_from([*(rule for rule, _ in cleanup.RULES), *" .?!,'ntmsvrexy"]), max_size=8).map(
    "".join
)


@settings(max_examples=1500, deadline=None)
@given(left=rule_texts, right=rule_texts)
def test_what_clean_up_settles_stays(left, right):
    assert cleanup.clean_up(left + right).startswith(cleanup.settled(left))


def test_a_cleaned_stream_joins_to_the_text(pair_of, tmp_path):
    pair = pair_of("t5/slow")
    entry = {**pair.entry, "decode": {**pair.entry["decode"], "clean_up_tokenization_spaces": True}}
    tokenizer = text.load(pair.folder, entry)
    for sample in ("I ca n't . Wo n't you ? It 's ' fine ' , they 've we 're", "a ' b '  's . . ,", "n't 's"):
        ids = tokenizer.encode(sample)
        assert tokenizer.decode(ids) == pair.original.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=True
        )
        assert "".join(stream(tokenizer, ids, True)) == tokenizer.decode(ids)
