"""The built-in corpus: English numbers, dates, times and amounts with their German and French translations.

The reference models are trained on it if no other data is given. A pair is made by drawing a fact at random (the number
21, the third of March) and writing it in English and in the target language. So there are as many pairs as one wants,
nothing is downloaded, and the translations are known to be right. The same arguments give the same pairs.

    >>> generate_pairs(2, seed=3, kinds=["ordinal", "time"])           # doctest: +SKIP
    [Pair(...), Pair(...)]

If there are several target languages, a source begins with the tag of the wanted one, as in Marian's multilingual
models: `>>deu<<` or `>>fra<<`.
"""

from __future__ import annotations

import datetime
import hashlib
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from s2s_export.errors import InvalidOption, UnknownOption
from s2s_export.training.spoken import CURRENCIES, LANGUAGES, NOUNS, English, Language

EN = English()
LONG_KINDS = ("cardinal", "ordinal", "year", "date")
HELD_OUT = 0.05  # of all sources that can be drawn
_TAG = re.compile(r"^>>\w+<< ")


class Pair(NamedTuple):
    source: str
    target: str


class Split(NamedTuple):
    train: list[Pair]
    test: list[Pair]


class Phrase(NamedTuple):
    """A fact in English, and a function that writes it in another language."""

    english: str
    say: Callable[[Language], str]


Maker = tuple[Callable[[random.Random], Phrase], float]  # makes a kind of phrase; the relative frequency of that kind
T = TypeVar("T")


def generate_pairs(
    n: int,
    seed: int,
    *,
    languages: Sequence[str] = ("de", "fr"),
    max_words: int | None = None,
    kinds: Iterable[str] | None = None,
    tagged: bool | None = None,
    repeats: bool = False,
) -> list[Pair]:
    """`n` different pairs; no source occurs twice.

    With `repeats`, pairs that are drawn again are kept, so that the `n` pairs are not all different: 'half past three'
    then occurs as often as it is drawn, and not once among thousands of long numbers. That is better for training.

    `max_words` limits the words of a source, without its tag. `kinds` is a subset of `KINDS`. `tagged` puts the
    language's tag before the source; by default, only if there are several languages.

    Raises UnknownOption for an unknown language or kind, and InvalidOption if there are fewer than `n` pairs.
    """
    speakers = [_lookup(code, LANGUAGES, "language") for code in languages]
    makers = _makers(KINDS if kinds is None else kinds)
    if not speakers:
        raise InvalidOption("no languages given: expected at least one of " + ", ".join(LANGUAGES))
    if tagged is None:
        tagged = len(speakers) > 1
    elif not tagged and len(speakers) > 1:
        raise InvalidOption("several languages without tags make sources ambiguous: ask for one language, or for tags")
    rng = random.Random(seed)
    pairs: list[Pair] = []
    seen: set[str] = set()
    misses = 0
    while len(pairs) < n:
        phrase = _draw(rng, makers)
        language = rng.choice(speakers)
        source = f"{language.tag} {phrase.english}" if tagged else phrase.english
        if source in seen or (max_words is not None and n_words(phrase.english) > max_words):
            misses += 1
            if misses > 1000 + 50 * n:
                raise InvalidOption(
                    f"found {len(pairs)} different sources for these kinds, languages and max_words, expected {n}: "
                    f"ask for fewer, or allow more kinds or words"
                )
            continue
        if not repeats:
            seen.add(source)
        pairs.append(Pair(source, phrase.say(language)))
    return pairs


def generate_long_pairs(
    n: int,
    seed: int,
    min_words: int,
    max_words: int,
    language: str,
    *,
    kinds: Iterable[str] = LONG_KINDS,
) -> list[Pair]:
    """`n` different pairs of phrases joined by commas, for measuring how a model's quality depends on length.

    The number of words of a source is uniformly distributed from `min_words` to `max_words`. There is one target
    language and no tag. 'seventeen, the fourth of May, 1998' is a source of six words.
    """
    if not 1 <= min_words <= max_words:
        raise InvalidOption(f"min_words {min_words} and max_words {max_words}: expected 1 <= min_words <= max_words")
    speaker = _lookup(language, LANGUAGES, "language")
    makers = _makers(kinds)
    rng = random.Random(seed)
    pairs: dict[str, str] = {}
    misses = 0
    while len(pairs) < n:
        phrases = _fill(rng, makers, rng.randint(min_words, max_words))
        source = ", ".join(phrase.english for phrase in phrases)
        if source in pairs:
            misses += 1
            if misses > 1000 + 50 * n:
                raise InvalidOption(f"found {len(pairs)} different sources, expected {n}: allow more words")
            continue
        pairs[source] = ", ".join(phrase.say(speaker) for phrase in phrases)
    return [Pair(source, target) for source, target in pairs.items()]


def split(pairs: Iterable[Pair], *, fraction: float = HELD_OUT) -> Split:
    """Split pairs into those for training and a `fraction` that is held out. The order is kept.

    A hash of the English text alone decides whether a source is held out. So no held-out source occurs in training,
    with any tag, and not in a larger corpus or one with another seed either.
    """
    if not 0 < fraction < 1:
        raise InvalidOption(f"fraction {fraction}: expected a number between 0 and 1")
    result = Split([], [])
    for pair in pairs:
        (result.test if is_held_out(pair.source, fraction) else result.train).append(pair)
    return result


def is_held_out(source: str, fraction: float = HELD_OUT) -> bool:
    """Whether `split` holds out this source; its tag does not matter."""
    digest = hashlib.blake2b(untagged(source).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def untagged(source: str) -> str:
    return _TAG.sub("", source)


def n_words(source: str) -> int:
    """The number of words, separated by spaces, without the tag."""
    return len(untagged(source).split())


def _lookup(name: str, known: Mapping[str, T], what: str) -> T:
    if name not in known:
        raise UnknownOption(name, known, what)
    return known[name]


def _makers(kinds: Iterable[str]) -> list[Maker]:
    makers = [_lookup(kind, KINDS, "kind of phrase") for kind in kinds]
    if not makers:
        raise InvalidOption("no kinds given: expected at least one of " + ", ".join(KINDS))
    return makers


def _draw(rng: random.Random, makers: Sequence[Maker]) -> Phrase:
    makes, weights = zip(*makers, strict=True)
    return rng.choices(makes, weights)[0](rng)


def _fill(rng: random.Random, makers: Sequence[Maker], length: int) -> list[Phrase]:
    """Phrases with `length` words together: any phrase that still fits, or a single word if none is found."""
    phrases: list[Phrase] = []
    left = length
    while left:
        phrase = _draw(rng, makers)
        for _ in range(20):
            if n_words(phrase.english) <= left:
                break
            phrase = _draw(rng, makers)
        else:
            phrase = _number(rng.randint(0, 99))
        phrases.append(phrase)
        left -= n_words(phrase.english)
    return phrases


# The kinds of phrases. Each function draws a fact and one of the ways to write it in English. A source is never
# ambiguous: 1998 is a year and 1,998 a number, because German says them differently.


def _number(n: int) -> Phrase:
    return Phrase(EN.cardinal(n), lambda language: language.cardinal(n))


def _of_magnitude(rng: random.Random, digits: int) -> int:
    """A number of 1 to `digits` figures, each length equally likely, so that small numbers are not rare."""
    n = rng.randint(1, digits)
    return rng.randint(10 ** (n - 1), 10**n - 1)


def _countable(rng: random.Random) -> int:
    n = _of_magnitude(rng, 4)
    return n if n == 1 or n % 100 != 1 else n + 1


def cardinal(rng: random.Random) -> Phrase:
    """seventeen; one thousand two hundred and five; 1,205"""
    n = 0 if rng.random() < 0.001 else _of_magnitude(rng, 6)
    phrase = _number(n)
    return phrase if rng.random() < 0.6 else phrase._replace(english=f"{n:,}")


def ordinal(rng: random.Random) -> Phrase:
    """twenty-first; 21st; the third week; the 3rd week"""
    n = _of_magnitude(rng, 3)
    words = EN.ordinal(n, figures=rng.random() < 0.4)
    if rng.random() < 0.4:
        return Phrase(words, lambda language: language.ordinal(n))
    noun = rng.choice(NOUNS)
    return Phrase(f"the {words} {noun.en[0]}", lambda language: language.the_ordinal(n, noun))


def quantity(rng: random.Random) -> Phrase:
    """twenty-one days; 21 days"""
    n = _countable(rng)
    noun = rng.choice(NOUNS)
    count = EN.cardinal(n) if rng.random() < 0.5 else f"{n:,}"
    return Phrase(f"{count} {noun.en[n != 1]}", lambda language: language.quantity(n, noun))


def year(rng: random.Random) -> Phrase:
    """1998; nineteen ninety-eight; in 1998"""
    n = rng.randint(1100, 2099)
    text = EN.year(n) if rng.random() < 0.5 else str(n)
    if rng.random() < 0.5:
        return Phrase(text, lambda language: language.year(n))
    return Phrase(f"in {text}", lambda language: language.in_year(n))


def date(rng: random.Random) -> Phrase:
    """the third of March; the third of March 1998; 3 March 1998; March 3, 1998; 1998-03-03; Tuesday, 3 March 1998"""
    day = datetime.date(1900, 1, 1) + datetime.timedelta(days=rng.randrange(200 * 365))
    form = rng.choice(("words", "words y", "d MMMM y", "MMMM d, y", "y-MM-dd", "EEEE, d MMMM y"))
    if not form.startswith("words"):
        return Phrase(EN.date(day, form), lambda language: language.date(day, form.startswith("EEEE")))
    text = f"the {EN.ordinal(day.day)} of {EN.date(day, 'MMMM')}"
    if form == "words":
        return Phrase(text, lambda language: language.day_of_month(day))
    return Phrase(f"{text} {day.year}", lambda language: f"{language.day_of_month(day)} {day.year}")


def time(rng: random.Random) -> Phrase:
    """half past three; twenty to four; seven minutes past two; 3:05 pm"""
    hour, minute = rng.randrange(24), rng.randrange(0, 60, rng.choice((1, 5, 15)))  # round ones are more frequent
    if rng.random() < 0.5:
        return Phrase(EN.time(hour, minute), lambda language: language.time(hour, minute))
    hour = hour % 12 + 1
    formal = minute % 5 != 0
    return Phrase(EN.clock(hour, minute, formal), lambda language: language.clock(hour, minute, formal))


def money(rng: random.Random) -> Phrase:
    """twelve euros and fifty cents; €12.50"""
    whole, hundredths, currency = _countable(rng), rng.choice((0, rng.randrange(100))), rng.choice(CURRENCIES)
    if rng.random() < 0.5:
        text = f"{currency.symbol}{whole:,}.{hundredths:02d}"
        return Phrase(text, lambda language: language.price(whole, hundredths, currency))
    return Phrase(EN.money(whole, hundredths, currency), lambda language: language.money(whole, hundredths, currency))


# Each kind with its relative frequency.
KINDS: dict[str, Maker] = {
    "cardinal": (cardinal, 3.0),
    "ordinal": (ordinal, 2.0),
    "quantity": (quantity, 2.0),
    "year": (year, 1.0),
    "date": (date, 3.0),
    "time": (time, 2.0),
    "money": (money, 2.0),
}
