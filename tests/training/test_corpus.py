"""The generated corpus: the same pairs each time, right translations, and a held-out part that stays held out."""

from __future__ import annotations

import builtins
import datetime
import re
import subprocess
import sys

import pytest

pytest.importorskip("num2words", reason="num2words is not installed: pip install 's2s-export[train]'")
pytest.importorskip("babel", reason="babel is not installed: pip install 's2s-export[train]'")

from s2s_export.errors import InvalidOption, MissingExtra, UnknownOption
from s2s_export.training import spoken
from s2s_export.training.corpus import (
    KINDS,
    Pair,
    generate_long_pairs,
    generate_pairs,
    is_held_out,
    n_words,
    split,
    untagged,
)
from s2s_export.training.spoken import CURRENCIES, LANGUAGES, NOUNS, English

DE, FR, EN = LANGUAGES["de"], LANGUAGES["fr"], English()
EUR, USD, GBP = CURRENCIES
DAY, WEEK, _, YEAR = NOUNS[:4]


def test_same_arguments_give_same_pairs():
    assert generate_pairs(300, 5) == generate_pairs(300, 5)
    assert generate_pairs(300, 5) != generate_pairs(300, 6)


def test_same_pairs_in_another_process():
    """No dependence on the interpreter's hash seed."""
    code = (
        "from s2s_export.training.corpus import *; print(generate_pairs(40, 5), generate_long_pairs(9, 5, 3, 9, 'fr'))"
    )
    runs = [
        subprocess.run([sys.executable, "-X", "utf8", "-c", code], capture_output=True, check=True).stdout
        for _ in range(2)
    ]
    assert runs[0] == runs[1]


def test_sources_are_unique_and_asked_for_number_comes():
    pairs = generate_pairs(2000, 1)
    assert len({pair.source for pair in pairs}) == len(pairs) == 2000
    assert all(pair.target for pair in pairs)


def test_repeats_are_left_in_on_request():
    pairs = generate_pairs(2000, 1, kinds=["time"], repeats=True)
    assert len(pairs) == 2000 > len(set(pairs))
    assert pairs == generate_pairs(2000, 1, kinds=["time"], repeats=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_has_one_translation_whatever_the_draw(kind):
    """Any two draws that meet in a source agree on its target."""
    first = dict(generate_pairs(500, 1, languages=["de"], kinds=[kind]))
    for seed in (2, 3):
        for source, target in generate_pairs(500, seed, languages=["de"], kinds=[kind]):
            assert first.setdefault(source, target) == target


def test_kinds_do_not_contradict_each_other():
    meaning: dict[str, str] = {}
    for kind in KINDS:
        for source, target in generate_pairs(400, 1, languages=["fr"], kinds=[kind]):
            assert meaning.setdefault(source, target) == target


def test_tags():
    both = generate_pairs(200, 1)
    assert {pair.source.split()[0] for pair in both} == {">>deu<<", ">>fra<<"}
    assert not any("<<" in pair.source for pair in generate_pairs(50, 1, languages=["fr"]))
    assert all(pair.source.startswith(">>fra<< ") for pair in generate_pairs(50, 1, languages=["fr"], tagged=True))
    assert untagged(">>fra<< half past three") == untagged("half past three") == "half past three"
    with pytest.raises(InvalidOption, match="ambiguous"):
        generate_pairs(5, 1, tagged=False)


def test_max_words_does_not_count_the_tag():
    pairs = generate_pairs(500, 1, max_words=2)
    assert {n_words(pair.source) for pair in pairs} == {1, 2}


def test_texts_are_clean():
    """Single ordinary spaces, no line ends or tabs: a pair fits a line of a TSV file."""
    for pair in generate_pairs(3000, 2):
        for text in pair:
            assert re.fullmatch(r"\S+( \S+)*", text)
            assert not re.search("[\t\u00a0\u202f]", text)


def test_split_leaves_no_test_source_in_training():
    parts = split(generate_pairs(4000, 1))
    trained = {untagged(pair.source) for pair in parts.train}
    assert not trained & {untagged(pair.source) for pair in parts.test}
    assert len(parts.train) + len(parts.test) == 4000
    assert 0.03 < len(parts.test) / 4000 < 0.07


def test_split_is_the_same_in_any_draw():
    test = {pair.source for pair in split(generate_pairs(2000, 1)).test}
    other = split(generate_pairs(6000, 2))
    assert not test & {pair.source for pair in other.train}
    assert all(is_held_out(source) and is_held_out(untagged(source)) for source in test)


def test_split_takes_any_fraction():
    pairs = generate_pairs(2000, 1)
    few, many = split(pairs, fraction=0.02), split(pairs, fraction=0.3)
    assert set(few.test) < set(many.test)
    with pytest.raises(InvalidOption, match="between 0 and 1"):
        split(pairs, fraction=1.5)


@pytest.mark.parametrize("language", LANGUAGES)
def test_long_pairs_have_the_words_asked_for(language):
    pairs = generate_long_pairs(300, 1, 10, 60, language)
    lengths = [n_words(pair.source) for pair in pairs]
    assert min(lengths) < 15 and max(lengths) > 55
    assert all(10 <= length <= 60 for length in lengths)
    assert pairs == generate_long_pairs(300, 1, 10, 60, language)
    assert all(n_words(pair.source) == 7 for pair in generate_long_pairs(50, 1, 7, 7, language))


def test_long_pairs_join_as_many_phrases_on_both_sides():
    for source, target in generate_long_pairs(50, 1, 5, 40, "fr", kinds=["ordinal"]):
        assert source.count(", ") == target.count(", ")


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: generate_pairs(5, 1, languages=["it"]), UnknownOption, "language 'it'"),
        (lambda: generate_pairs(5, 1, kinds=["ordinals"]), UnknownOption, "did you mean 'ordinal'"),
        (lambda: generate_pairs(5, 1, kinds=[]), InvalidOption, "no kinds"),
        (lambda: generate_pairs(5, 1, languages=[]), InvalidOption, "no languages"),
        (lambda: generate_pairs(500, 1, kinds=["cardinal"], max_words=0), InvalidOption, "found 0 .* expected 500"),
        (lambda: generate_long_pairs(5, 1, 9, 3, "de"), InvalidOption, "1 <= min_words <= max_words"),
    ],
)
def test_what_cannot_be_drawn_is_refused(call, error, says):
    with pytest.raises(error, match=says):
        call()


@pytest.mark.parametrize("module", ["num2words", "babel.dates"])
def test_missing_package_is_one_sentence(module, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == module:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    spoken._words.cache_clear()
    with pytest.raises(MissingExtra, match=r"pip install 's2s-export\[train\]'"):
        generate_pairs(200, 1, kinds=["date"])


# Checked by hand.


@pytest.mark.parametrize(
    ("n", "en", "de", "fr"),
    [
        (0, "zero", "null", "zéro"),
        (1, "one", "eins", "un"),
        (21, "twenty-one", "einundzwanzig", "vingt et un"),
        (71, "seventy-one", "einundsiebzig", "soixante et onze"),
        (80, "eighty", "achtzig", "quatre-vingts"),
        (99, "ninety-nine", "neunundneunzig", "quatre-vingt-dix-neuf"),
        (200, "two hundred", "zweihundert", "deux cents"),
        (1205, "one thousand two hundred and five", "eintausendzweihundertfünf", "mille deux cent cinq"),
        (80000, "eighty thousand", "achtzigtausend", "quatre-vingt mille"),
    ],
)
def test_cardinals(n, en, de, fr):
    assert (EN.cardinal(n), DE.cardinal(n), FR.cardinal(n)) == (en, de, fr)


@pytest.mark.parametrize(
    ("n", "en", "figures", "de", "fr"),
    [
        (1, "first", "1st", "erste", "premier"),
        (3, "third", "3rd", "dritte", "troisième"),
        (21, "twenty-first", "21st", "einundzwanzigste", "vingt et unième"),
        (80, "eightieth", "80th", "achtzigste", "quatre-vingtième"),
        (200, "two hundredth", "200th", "zweihundertste", "deux centième"),
    ],
)
def test_ordinals(n, en, figures, de, fr):
    assert (EN.ordinal(n), EN.ordinal(n, figures=True), DE.ordinal(n), FR.ordinal(n)) == (en, figures, de, fr)


def test_ordinals_agree_with_their_noun():
    assert [DE.the_ordinal(1, noun) for noun in (DAY, WEEK, YEAR)] == [
        "der erste Tag",
        "die erste Woche",
        "das erste Jahr",
    ]
    assert [FR.the_ordinal(1, noun) for noun in (DAY, WEEK)] == ["le premier jour", "la première semaine"]


def test_quantities():
    assert [DE.quantity(n, WEEK) for n in (1, 21)] == ["eine Woche", "einundzwanzig Wochen"]
    assert [FR.quantity(n, WEEK) for n in (1, 21, 71, 81)] == [
        "une semaine",
        "vingt et une semaines",
        "soixante et onze semaines",
        "quatre-vingt-une semaines",
    ]


def test_years():
    assert EN.year(1998) == "nineteen ninety-eight" and EN.year(2005) == "two thousand and five"
    assert DE.in_year(1998) == "im Jahr neunzehnhundertachtundneunzig"
    assert FR.in_year(1998) == "en mille neuf cent quatre-vingt-dix-huit"


def test_dates():
    first, other = datetime.date(1998, 3, 1), datetime.date(2001, 8, 21)
    assert [DE.date(day, True) for day in (first, other)] == ["Sonntag, 1. März 1998", "Dienstag, 21. August 2001"]
    assert [FR.date(day, False) for day in (first, other)] == ["1er mars 1998", "21 août 2001"]
    assert DE.day_of_month(other) == "der einundzwanzigste August"
    assert [FR.day_of_month(day) for day in (first, other)] == ["le premier mars", "le vingt et un août"]
    assert EN.date(first, "EEEE, d MMMM y") == "Sunday, 1 March 1998"


@pytest.mark.parametrize(
    ("hour", "minute", "en", "de", "fr"),
    [
        (1, 0, "one o'clock", "ein Uhr", "une heure"),
        (3, 15, "quarter past three", "Viertel nach drei", "trois heures et quart"),
        (12, 30, "half past twelve", "halb eins", "douze heures et demie"),
        (12, 45, "quarter to one", "Viertel vor eins", "une heure moins le quart"),
        (3, 40, "twenty to four", "zwanzig vor vier", "quatre heures moins vingt"),
        (3, 21, "twenty-one minutes past three", "einundzwanzig Minuten nach drei", "trois heures vingt et une"),
    ],
)
def test_clock(hour, minute, en, de, fr):
    assert [language.clock(hour, minute, minute % 5 != 0) for language in (EN, DE, FR)] == [en, de, fr]


def test_time_in_figures():
    assert (EN.time(15, 5), DE.time(15, 5), FR.time(15, 5)) == ("3:05 pm", "15:05 Uhr", "15 h 05")
    assert (EN.time(0, 30), EN.time(12, 30)) == ("12:30 am", "12:30 pm")


def test_money():
    assert DE.money(21, 1, GBP) == "einundzwanzig Pfund und ein Penny"
    assert FR.money(21, 80, GBP) == "vingt et une livres et quatre-vingts pence"
    assert FR.money(1, 50, EUR) == "un euro et cinquante centimes"
    assert EN.money(2, 0, USD) == "two dollars"
    assert (DE.price(1234, 50, EUR), FR.price(1234, 50, EUR)) == ("1.234,50 €", "1 234,50 €")


def test_pair_is_a_tuple():
    pair = generate_pairs(1, 1)[0]
    assert isinstance(pair, Pair) and pair == (pair.source, pair.target)
