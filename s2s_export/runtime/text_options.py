"""Generation options that are given as text, made into token ids with the bundle's tokenizer.

    target_prefix   the output begins with the tokens of this text; with prefix_bias_beta it is drawn to them
    typed_prefix    the output's text begins so, its last word being unfinished perhaps: what a translator has typed
    terms           a glossary: the name of a file, or pairs of a source form and a target form or a list of them
    force_words     texts that the output must hold, or lists of alternatives
    stop_strings    texts that end the output
    choices         the output is one of these texts
    regex           the output's text matches this regular expression as a whole

A glossary file has a term a line: its form in the source, a tab, its form in the target, and further target forms
behind further tabs, any one of which will do. Blank lines are passed over.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from ..bundle import Bundle
from ..errors import InvalidOption, explain
from .decoding import GenerationOptions
from .decoding.constraints import Glossary, Term
from .decoding.guide import Choices, Guide, Spellings, Typed
from .decoding.option_values import StopStrings
from .decoding.pattern import Pattern
from .text import Tokenizer, continues_word, from_utf8, lines_of, spell

NAMES = frozenset({"target_prefix", "typed_prefix", "terms", "force_words", "stop_strings", "choices", "regex"})
MOST_KEPT = 32  # glossaries, and patterns, of earlier calls
T = TypeVar("T")
PREFIXES = ("target_prefix", "typed_prefix")
Resolve = Callable[[Mapping[str, Any]], GenerationOptions]


class TextOptions:
    """Of one bundle. What takes long to make (the spelling of every token, a glossary) is kept."""

    def __init__(self, tokenizer: Tokenizer, bundle: Bundle) -> None:
        self._tokenizer = tokenizer
        self._size = bundle.vocabulary_size
        self._source_size = int(bundle.manifest["sizes"].get("source_vocabulary_size", self._size))
        self._unknown = tokenizer.entry.special_ids.get("unk")
        self._glossaries: dict[Any, Glossary] = {}
        self._patterns: dict[Any, Guide] = {}

    def to_ids(self, given: Mapping[str, Any], resolve: Resolve) -> dict[str, Any]:
        """The options without texts. Raises InvalidOption, which names the option."""
        left = {name: value for name, value in given.items() if name not in NAMES}
        texts = {name: given[name] for name in NAMES & given.keys() if given[name] is not None}
        guides: list[Guide] = []
        is_start = True
        if "target_prefix" in texts and "typed_prefix" in texts:
            raise InvalidOption("target_prefix and typed_prefix are both given; expected one of them")
        for name in PREFIXES:
            if name in texts:
                head, tail = _text(name, texts[name]), ""
                if name == "typed_prefix":
                    head, tail = _split(head)
                is_start = not head.strip() or (name == "target_prefix" and bool(left.get("prefix_bias_beta")))
                left |= self._begin(name, head, left, resolve)
                if tail:
                    guides.append(Typed(tail, self.spellings, is_start))
        if "terms" in texts:
            left["terms"] = self.glossary(texts["terms"])
        if "force_words" in texts:
            left["force_words_ids"] = self._forced(texts["force_words"])
        if "stop_strings" in texts:
            left["stop_strings"] = self._stops(texts["stop_strings"])
        if "choices" in texts:
            guides.append(Choices(self._phrases("choices", _texts("choices", texts["choices"]))))
        if "regex" in texts:
            regex = _text("regex", texts["regex"])
            key = (regex, is_start)
            guides.append(kept(self._patterns, key, lambda: Pattern(regex, self.spellings, is_start)))
        if guides:
            left["guides"] = [*left.get("guides", ()), *guides]
        return left

    @cached_property
    def spellings(self) -> Spellings:
        return Spellings(*spell(self._tokenizer, self._size))

    def glossary(self, given: Any) -> Glossary:
        """From a file's name, pairs, or a mapping of source forms to target forms."""
        if isinstance(given, Glossary):
            return given
        if isinstance(given, (str, os.PathLike)):
            status = _status(Path(given))
            key: Any = (str(given), status.st_mtime_ns, status.st_size)
            pairs = None
        else:
            pairs = _pairs(given)
            key = tuple(pairs)
        return kept(self._glossaries, key, lambda: self._glossary(_read(Path(given)) if pairs is None else pairs))

    def _glossary(self, pairs: Sequence[tuple[str, tuple[str, ...]]]) -> Glossary:
        terms = []
        for source, targets in pairs:
            sources = dict.fromkeys(
                tuple(self._tokenizer.encode_inner(form)) for form in _forms(source) if form.strip()
            )
            if any(self._unknown in ids for ids in sources):
                raise InvalidOption(
                    f"terms has the source form {source!r}, which the model's tokens can't spell; leave it out"
                )
            terms.append(Term(tuple(ids for ids in sources if ids), self._ways("terms", targets)))
        pieces = self._tokenizer.source_tokens(range(self._source_size))
        return Glossary(
            tuple(terms),
            continuations=frozenset(i for i, piece in enumerate(pieces) if continues_word(piece)),
            word_ends=frozenset(i for i, piece in enumerate(pieces) if piece[-1:].isalnum()),
        )

    def _forced(self, given: Any) -> list[tuple[tuple[int, ...], ...]]:
        items = [given] if isinstance(given, str) else given
        if not isinstance(items, Sequence) or not items:
            raise InvalidOption(f"force_words is {given!r}, expected texts, or lists of alternative texts")
        return [self._ways("force_words", _texts("force_words", item)) for item in items]

    def _ways(self, name: str, texts: Iterable[str]) -> tuple[tuple[int, ...], ...]:
        """The token ids of alternative texts, at the beginning of an output and inside it."""
        forms = [form for text in texts for form in (text.strip(), " " + text.strip())]
        return tuple(dict.fromkeys(self._phrases(name, forms)))

    def _phrases(self, name: str, texts: Iterable[str]) -> list[tuple[int, ...]]:
        found = []
        for text in texts:
            ids = tuple(self._tokenizer.encode_target(text))
            if not ids:
                raise InvalidOption(f"{name} has an empty text; expected words")
            if self._unknown in ids:
                raise InvalidOption(
                    f"{name} has {text.strip()!r}, which the model's tokens can't spell; leave it out, or write it "
                    "with other characters"
                )
            found.append(ids)
        return found

    def phrase(self, name: str, text: str) -> list[int]:
        """The ids of a text that is part of an output. Raises InvalidOption, which has the option's name."""
        (ids,) = self._phrases(name, [text])
        return list(ids)

    def _stops(self, given: Any) -> StopStrings:
        stops = StopStrings(_texts("stop_strings", given))
        stops.decode = self._tokenizer.decode
        return stops

    def _begin(self, name: str, text: str, others: Mapping[str, Any], resolve: Resolve) -> dict[str, Any]:
        """The options by which an output begins with a text."""
        if "decoder_input_ids" in others:
            raise InvalidOption(f"{name} and decoder_input_ids are both given; expected one of them")
        if not text.strip():
            return {}
        (ids,) = self._phrases(name, [text])
        if others.get("prefix_bias_beta"):
            return {"target_prefix_ids": list(ids)}
        plain = resolve({key: value for key, value in others.items() if key != "prefix_bias_beta"})
        forced = plain.forced_bos_token_id  # a language token, which comes before the text
        start = [*plain.prompt, *([] if forced is None or len(plain.prompt) != 1 else [forced])]
        return {"decoder_input_ids": [*start, *ids]}


def kept(memory: dict[Any, T], key: Any, make: Callable[[], T]) -> T:
    """What was made for this key, or now; the MOST_KEPT last ones are kept."""
    found = memory.pop(key, None)
    memory[key] = found = make() if found is None else found
    while len(memory) > MOST_KEPT:
        memory.pop(next(iter(memory)), None)
    return found


def by_prefix(options: Mapping[str, Any], n_texts: int) -> list[tuple[dict[str, Any], list[int]]]:
    """The options of each distinct prefix and which texts have it, where a prefix is given for each text; else []."""
    listed = [name for name in PREFIXES if isinstance(options.get(name), (list, tuple))]
    if not listed:
        return []
    parts: dict[tuple[Any, ...], list[int]] = {}
    for name in listed:
        if len(options[name]) != n_texts:
            raise InvalidOption(f"{name} has {len(options[name])} texts, expected one for each of {n_texts} sources")
    for place in range(n_texts):
        parts.setdefault(tuple(options[name][place] for name in listed), []).append(place)
    return [
        ({**options, **{name: text or None for name, text in zip(listed, texts, strict=True)}}, places)
        for texts, places in parts.items()
    ]


def _split(typed: str) -> tuple[str, str]:
    """Whole words, and the last one with the space before it, which may be unfinished."""
    at = max((i for i, character in enumerate(typed) if character.isspace()), default=-1)
    return ("", typed) if at < 0 else (typed[:at], " " + typed[at + 1 :])


def _forms(text: str) -> list[str]:
    """How a source may write a term: as it is, and at the beginning of a sentence."""
    text = text.strip()
    return [form for way in (text, text[:1].upper() + text[1:]) for form in (way, " " + way)]


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidOption(f"{name} is {value!r}, expected a text")
    return value


def _texts(name: str, value: Any) -> tuple[str, ...]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, Sequence) or not items or not all(isinstance(i, str) and i.strip() for i in items):
        raise InvalidOption(f"{name} is {value!r}, expected texts, none of them empty")
    return tuple(items)


def _pairs(given: Any) -> list[tuple[str, tuple[str, ...]]]:
    items = list(given.items()) if isinstance(given, Mapping) else given
    expected = "terms has {!r}, expected pairs of a source form and a target form or a list of them, none of them empty"
    if not isinstance(items, Sequence) or not items:
        raise InvalidOption(expected.format(given))
    found = []
    for item in items:
        if not isinstance(item, Sequence) or isinstance(item, str) or len(item) != 2:
            raise InvalidOption(expected.format(item))
        source, targets = item
        ways = (targets,) if isinstance(targets, str) else tuple(targets) if isinstance(targets, Sequence) else ()
        if (
            not isinstance(source, str)
            or not ways
            or not all(isinstance(t, str) and t.strip() for t in (source, *ways))
        ):
            raise InvalidOption(expected.format(item))
        found.append((source, ways))
    return found


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise InvalidOption(f"terms: {explain(error)}; expected a file of source TAB target lines") from None


def _read(path: Path) -> list[tuple[str, tuple[str, ...]]]:
    found = []
    try:
        lines = lines_of(path)
    except OSError as error:
        raise InvalidOption(f"terms: {explain(error)}; expected a file of source TAB target lines") from None
    for number, line in enumerate(lines, 1):
        text = from_utf8(line)
        if not text.strip():
            continue
        columns = [column.strip() for column in text.split("\t")]
        if len(columns) < 2 or not all(columns):
            raise InvalidOption(
                f"terms: {path}: line {number} has {'an empty term' if len(columns) > 1 else 'one column'}; expected a "
                "source form, a tab and a target form"
            )
        found.append((columns[0], tuple(columns[1:])))
    if not found:
        raise InvalidOption(f"terms: {path} has no terms; expected lines of source TAB target")
    return found
