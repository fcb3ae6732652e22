"""Languages by their codes: what models and clients write for the same language, and its English name.

Clients say "en", "EN-US" or "zh-Hans"; models "en_XX", "eng_Latn", "eng" or "cmn_Hans". `base` gives the same two
letters for all of them (three where a language has no code of two, ISO 639).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Collection, Mapping
from functools import cache
from typing import Any

from ..errors import InputError, MissingExtra, nearest
from ..runtime.session import Session

# ISO 639-1, ISO 639-3 (several where models use several), English name.
_TABLE = """
af afr Afrikaans|am amh Amharic|ar ara,arb Arabic|az aze,azj Azerbaijani|be bel Belarusian|bg bul Bulgarian|
bn ben Bengali|bs bos Bosnian|ca cat Catalan|cs ces,cze Czech|cy cym Welsh|da dan Danish|de deu,ger German|
el ell Greek|en eng English|eo epo Esperanto|es spa Spanish|et est,ekk Estonian|eu eus,baq Basque|
fa fas,pes Persian|fi fin Finnish|fr fra,fre French|ga gle Irish|gl glg Galician|gu guj Gujarati|ha hau Hausa|
he heb Hebrew|hi hin Hindi|hr hrv Croatian|hu hun Hungarian|hy hye Armenian|id ind Indonesian|is isl Icelandic|
it ita Italian|ja jpn Japanese|ka kat Georgian|kk kaz Kazakh|km khm Khmer|kn kan Kannada|ko kor Korean|
la lat Latin|lb ltz Luxembourgish|lo lao Lao|lt lit Lithuanian|lv lav,lvs Latvian|mk mkd Macedonian|
ml mal Malayalam|mn mon,khk Mongolian|mr mar Marathi|ms msa,zsm Malay|mt mlt Maltese|my mya Burmese|
nb nob Norwegian Bokmål|ne nep,npi Nepali|nl nld,dut Dutch|nn nno Norwegian Nynorsk|no nor Norwegian|
or ori,ory Odia|pa pan Punjabi|pl pol Polish|ps pus,pbt Pashto|pt por Portuguese|ro ron,rum Romanian|
ru rus Russian|sd snd Sindhi|si sin Sinhala|sk slk Slovak|sl slv Slovenian|so som Somali|sq sqi,als Albanian|
sr srp Serbian|sv swe Swedish|sw swa,swh Swahili|ta tam Tamil|te tel Telugu|th tha Thai|tl tgl,fil Tagalog|
tr tur Turkish|uk ukr Ukrainian|ur urd Urdu|uz uzb,uzn Uzbek|vi vie Vietnamese|xh xho Xhosa|yi yid,ydd Yiddish|
yo yor Yoruba|zh zho,cmn,chi Chinese|zu zul Zulu
"""
_ENTRIES = [entry.split(maxsplit=2) for entry in _TABLE.replace("\n", "").split("|")]
NAMES = {code: name for code, _, name in _ENTRIES}
_SHORT = {long: code for code, longs, _ in _ENTRIES for long in longs.split(",")}
MANY = "mul"  # ISO 639-2: several languages, as in the names of OPUS-MT models
_PAIR = re.compile(r"(?:^|[-_.])([a-z]{2,3})-([a-z]{2,3})$")


def base(code: str) -> str:
    """ "en" of "EN-US", "en_XX" or "eng_Latn"."""
    first = re.split(r"[-_]", code.strip().lower(), maxsplit=1)[0]
    return _SHORT.get(first, first)


def name_of(code: str) -> str:
    """The English name; the code itself where we have none."""
    return NAMES.get(base(code), code)


def pair_in(name: str) -> tuple[str, str] | None:
    """The languages at the end of a name such as "en-fr" or "opus-mt-en-fr"; the second may be "mul" for several."""
    match = _PAIR.search(name)
    if match is None:
        return None
    source, target = (base(code) for code in match.groups())
    known = {*NAMES, MANY}
    return (source, target) if source in known and target in known else None


class OfModel:
    """The languages of a model: what its tokenizer says, or else its name.

    sources: two-letter codes of the languages that it reads, empty where nothing says them. targets: two-letter code of
    each language that it writes. Both with the tokenizer's own code, None where the model has only one.
    """

    def __init__(self, name: str, session: Session) -> None:
        self.sources: dict[str, str | None] = {}
        self.targets: dict[str, str | None] = {}
        self._own: Collection[str] = ()
        if not session.has_tokenizer:
            return
        entry = session.tokenizer.entry
        self._own = session.tokenizer.languages
        pair = pair_in(name) or ("", "")
        own: dict[str, str | None] = {base(code): code for code in reversed(list(entry.languages))}
        source = pair[0] or base(entry.source_lang or "")
        target = pair[1] or base(entry.target_lang or "")
        if entry.languages and entry.target_language_by != "source_prefix":
            self.sources, self.targets = own, own
        else:
            self.sources = {source: None} if source else {}
            self.targets = own or ({target: None} if target and target != MANY else {})

    def codes(self, source: str | None, target: str | None) -> dict[str, Any]:
        """`source_lang` and `target_lang` as the tokenizer has them, from codes of clients. Raises InputError."""
        return {
            "source_lang": self._code(source, self.sources, "source"),
            "target_lang": self._code(target, self.targets, "target"),
        }

    def _code(self, code: str | None, known: Mapping[str, str | None], side: str) -> str | None:
        if code is None or code in self._own:
            return code
        if base(code) not in known:
            raise InputError(f"{code} is not supported as a {side} language{nearest(code, known)}")
        return known[base(code)]


_one_at_a_time = threading.Lock()  # the identifier is set to the languages of a call


def detect(text: str, among: Collection[str]) -> list[tuple[str, float]]:
    """The languages that a text may be in, most likely first, with probabilities that add up to 1.

    among: the codes (`base`) that come into question; one that the identifier doesn't know is passed over.
    """
    identifier = _identifier()
    known = sorted(set(among) & set(_known()))
    if len(known) < 2:
        return [(known[0] if known else next(iter(sorted(among)), "en"), 1.0)]
    with _one_at_a_time:
        identifier.set_languages(known)
        ranked = identifier.rank(text)
    return [(str(code), float(probability)) for code, probability in ranked]


@cache
def _known() -> tuple[str, ...]:
    return tuple(str(code) for code in _identifier().labels)


@cache
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise MissingExtra("py3langid", "serve", "finding out the language of a text") from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
