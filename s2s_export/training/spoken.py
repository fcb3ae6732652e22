"""Writes numbers, dates, times and amounts in English, German and French, for the generated corpus.

A `Language` turns a fact (21, a date, 12.50 EUR) into words. `corpus` writes the same fact in English and in another
language, which makes a pair of sentences. Number words come from num2words, dates and number formats from the CLDR
tables in Babel. What is wrong in these for running text (French ordinals after a plural s, the first of a month,
gender) is corrected here.
"""

from __future__ import annotations

import datetime
import functools
import re
from decimal import Decimal
from typing import NamedTuple

from s2s_export.errors import MissingExtra

PURPOSE = "the built-in training corpus"


class Noun(NamedTuple):
    """A countable noun: English (singular, plural), German (article, singular, plural), French (article, ...)."""

    en: tuple[str, str]
    de: tuple[str, str, str]
    fr: tuple[str, str, str]


NOUNS = (
    Noun(("day", "days"), ("der", "Tag", "Tage"), ("le", "jour", "jours")),
    Noun(("week", "weeks"), ("die", "Woche", "Wochen"), ("la", "semaine", "semaines")),
    Noun(("month", "months"), ("der", "Monat", "Monate"), ("le", "mois", "mois")),
    Noun(("year", "years"), ("das", "Jahr", "Jahre"), ("la", "année", "années")),
    Noun(("hour", "hours"), ("die", "Stunde", "Stunden"), ("la", "heure", "heures")),
    Noun(("page", "pages"), ("die", "Seite", "Seiten"), ("la", "page", "pages")),
    Noun(("book", "books"), ("das", "Buch", "Bücher"), ("le", "livre", "livres")),
    Noun(("train", "trains"), ("der", "Zug", "Züge"), ("le", "train", "trains")),
    Noun(("house", "houses"), ("das", "Haus", "Häuser"), ("la", "maison", "maisons")),
    Noun(("letter", "letters"), ("der", "Brief", "Briefe"), ("la", "lettre", "lettres")),
)


class Currency(NamedTuple):
    """Names of a currency and of its hundredth part, each as (singular, plural)."""

    code: str
    symbol: str
    en: tuple[str, str, str, str]
    de: tuple[str, str]
    fr: tuple[str, str, str, str]


CURRENCIES = (
    Currency(
        "EUR", "€", ("euro", "euros", "cent", "cents"), ("Euro", "Cent"), ("euro", "euros", "centime", "centimes")
    ),
    Currency(
        "USD", "$", ("dollar", "dollars", "cent", "cents"), ("Dollar", "Cent"), ("dollar", "dollars", "cent", "cents")
    ),
    Currency(
        "GBP", "£", ("pound", "pounds", "penny", "pence"), ("Pfund", "Pence"), ("livre", "livres", "penny", "pence")
    ),
)


@functools.lru_cache(maxsize=1 << 16)
def _words(n: int, language: str, to: str) -> str:
    try:
        from num2words import num2words
    except ImportError:
        raise MissingExtra("num2words", "train", PURPOSE) from None
    # num2words writes commas inside English numbers; in the corpus, a comma separates phrases.
    return num2words(n, lang=language, to=to).replace(",", "")


def _date(day: datetime.date, pattern: str, language: str) -> str:
    try:
        from babel.dates import format_date
    except ImportError:
        raise MissingExtra("babel", "train", PURPOSE) from None
    return format_date(day, pattern, locale=language)


def _amount(value: Decimal, code: str, language: str) -> str:
    try:
        from babel.numbers import format_currency
    except ImportError:
        raise MissingExtra("babel", "train", PURPOSE) from None
    return re.sub(r"\s", " ", format_currency(value, code, locale=language))  # CLDR uses narrow and non-breaking spaces


class Language:
    """A target language of the corpus. `code` is its ISO 639-1 code, `tag` the Marian prefix (ISO 639-3)."""

    code: str
    tag: str

    def cardinal(self, n: int) -> str:
        return _words(n, self.code, "cardinal")

    def ordinal(self, n: int) -> str:
        return _words(n, self.code, "ordinal")

    def the_ordinal(self, n: int, noun: Noun) -> str:
        """For example "the third week": article, ordinal, noun."""
        raise NotImplementedError

    def quantity(self, n: int, noun: Noun) -> str:
        """For example "three weeks". `n` is 1, or does not end in 01 (for which German has no settled form)."""
        raise NotImplementedError

    def year(self, n: int) -> str:
        return _words(n, self.code, "year")

    def in_year(self, n: int) -> str:
        raise NotImplementedError

    def date(self, day: datetime.date, weekday: bool) -> str:
        """The date with day and year in figures, in CLDR's long format, or its full one with the weekday."""
        return _date(day, "full" if weekday else "long", self.code)

    def day_of_month(self, day: datetime.date) -> str:
        """For example "the third of March", in words."""
        raise NotImplementedError

    def clock(self, hour: int, minute: int, formal: bool) -> str:
        """For example "half past three", in words. hour: 1 to 12. formal: with the word 'minutes'."""
        raise NotImplementedError

    def time(self, hour: int, minute: int) -> str:
        """For example "15:05", in figures. hour: 0 to 23."""
        raise NotImplementedError

    def money(self, whole: int, hundredths: int, currency: Currency) -> str:
        """In words."""
        raise NotImplementedError

    def price(self, whole: int, hundredths: int, currency: Currency) -> str:
        """In figures."""
        return _amount(Decimal(whole) + Decimal(hundredths) / 100, currency.code, self.code)


class German(Language):
    code, tag = "de", ">>deu<<"

    def the_ordinal(self, n: int, noun: Noun) -> str:
        return f"{noun.de[0]} {self.ordinal(n)} {noun.de[1]}"

    def quantity(self, n: int, noun: Noun) -> str:
        article, one, many = noun.de
        if n == 1:
            return f"{'eine' if article == 'die' else 'ein'} {one}"
        return f"{self.cardinal(n)} {many}"

    def in_year(self, n: int) -> str:
        return f"im Jahr {self.year(n)}"

    def day_of_month(self, day: datetime.date) -> str:
        return f"der {self.ordinal(day.day)} {_date(day, 'MMMM', 'de')}"

    def clock(self, hour: int, minute: int, formal: bool) -> str:
        after = hour % 12 + 1
        if minute == 0:
            return f"{'ein' if hour == 1 else self.cardinal(hour)} Uhr"
        if minute == 30:
            return f"halb {self.cardinal(after)}"
        to = minute > 30
        count = 60 - minute if to else minute
        if count == 15:
            words = "Viertel"
        elif formal:
            words = "eine Minute" if count == 1 else f"{self.cardinal(count)} Minuten"
        else:
            words = self.cardinal(count)
        return f"{words} vor {self.cardinal(after)}" if to else f"{words} nach {self.cardinal(hour)}"

    def time(self, hour: int, minute: int) -> str:
        return f"{hour}:{minute:02d} Uhr"

    def money(self, whole: int, hundredths: int, currency: Currency) -> str:
        def some(n: int, name: str) -> str:
            return f"{'ein' if n == 1 else self.cardinal(n)} {name}"

        unit, part = currency.de
        if hundredths == 1 and part == "Pence":
            part = "Penny"
        return some(whole, unit) + (f" und {some(hundredths, part)}" if hundredths else "")


class French(Language):
    code, tag = "fr", ">>fra<<"

    def ordinal(self, n: int) -> str:
        # num2words appends -ième to the plural: quatre-vingtsième, deux centsième.
        return re.sub(r"(vingt|cent)sième$", r"\1ième", super().ordinal(n))

    def the_ordinal(self, n: int, noun: Noun) -> str:
        article, one, _ = noun.fr
        ordinal = "première" if n == 1 and article == "la" else self.ordinal(n)
        return f"{article} {ordinal} {one}"

    def _count(self, n: int, feminine: bool) -> str:
        words = self.cardinal(n)
        return words + "e" if feminine and re.search(r"\bun$", words) else words

    def quantity(self, n: int, noun: Noun) -> str:
        article, one, many = noun.fr
        return f"{self._count(n, article == 'la')} {one if n == 1 else many}"

    def in_year(self, n: int) -> str:
        return f"en {self.year(n)}"

    def date(self, day: datetime.date, weekday: bool) -> str:
        # CLDR writes '1 mars'; French writes '1er mars', for the first of a month only.
        return re.sub(r"\b1 (?=\D)", "1er ", super().date(day, weekday))

    def day_of_month(self, day: datetime.date) -> str:
        number = "premier" if day.day == 1 else self.cardinal(day.day)
        return f"le {number} {_date(day, 'MMMM', 'fr')}"

    def clock(self, hour: int, minute: int, formal: bool) -> str:
        def hours(n: int) -> str:
            return "une heure" if n == 1 else f"{self.cardinal(n)} heures"

        if minute == 0:
            return hours(hour)
        if minute == 30:
            return f"{hours(hour)} et demie"
        if minute < 30:
            return f"{hours(hour)} {'et quart' if minute == 15 else self._count(minute, True)}"
        rest = "le quart" if minute == 45 else self._count(60 - minute, True)
        return f"{hours(hour % 12 + 1)} moins {rest}"

    def time(self, hour: int, minute: int) -> str:
        return f"{hour} h {minute:02d}"

    def money(self, whole: int, hundredths: int, currency: Currency) -> str:
        one, many, part, parts = currency.fr
        words = f"{self._count(whole, one == 'livre')} {one if whole == 1 else many}"
        if hundredths:
            words += f" et {self.cardinal(hundredths)} {part if hundredths == 1 else parts}"
        return words


class English:
    """The source language, which can write each fact in several ways."""

    def cardinal(self, n: int) -> str:
        return _words(n, "en", "cardinal")

    def ordinal(self, n: int, figures: bool = False) -> str:
        return _words(n, "en", "ordinal_num" if figures else "ordinal")

    def year(self, n: int) -> str:
        return _words(n, "en", "year")

    def date(self, day: datetime.date, pattern: str) -> str:
        """`pattern` in CLDR's letters, such as 'd MMMM y'."""
        return _date(day, pattern, "en")

    def clock(self, hour: int, minute: int, formal: bool) -> str:
        if minute == 0:
            return f"{self.cardinal(hour)} o'clock"
        if minute == 30:
            return f"half past {self.cardinal(hour)}"
        to = minute > 30
        count = 60 - minute if to else minute
        words = "quarter" if count == 15 else self.cardinal(count)
        if formal and count != 15:
            words += " minute" if count == 1 else " minutes"
        return f"{words} to {self.cardinal(hour % 12 + 1)}" if to else f"{words} past {self.cardinal(hour)}"

    def time(self, hour: int, minute: int) -> str:
        return f"{hour % 12 or 12}:{minute:02d} {'am' if hour < 12 else 'pm'}"

    def money(self, whole: int, hundredths: int, currency: Currency) -> str:
        one, many, part, parts = currency.en
        words = f"{self.cardinal(whole)} {one if whole == 1 else many}"
        if hundredths:
            words += f" and {self.cardinal(hundredths)} {part if hundredths == 1 else parts}"
        return words


LANGUAGES: dict[str, Language] = {language.code: language for language in (German(), French())}
