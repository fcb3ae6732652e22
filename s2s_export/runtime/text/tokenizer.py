"""What all kinds of tokenizers have in common: languages, the template around a text, checks, clean-up.

A kind defines how plain text becomes ids and how ids become text; the rest of the interface is here. A tokenizer does
not change after it was made, and several threads may use it at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence

from s2s_export.errors import InputError, UnknownOption, UsageError
from s2s_export.runtime.text import cleanup
from s2s_export.runtime.text.entry import SOURCE_LANG, Entry

REPLACEMENT = "\ufffd"  # what decoders write for bytes that are not UTF-8, such as an incomplete character


class Tokenizer(ABC):
    """Text to ids and back, with the same results as the checkpoint's tokenizer in transformers."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry

    @property
    def languages(self) -> Mapping[str, int]:
        """Language code -> id of its token; empty for a tokenizer without languages."""
        return self.entry.languages

    def encode(self, text: str, *, source_lang: str | None = None, target_lang: str | None = None) -> list[int]:
        """Ids of one source, including special tokens: `AutoTokenizer(text).input_ids`.

        source_lang: the language that the template names. target_lang changes the ids only for checkpoints whose
        sources name the target language (`>>fra<<` of OPUS-MT); for others see `target_overrides`.
        Raises InputError for text that is not valid Unicode, and UsageError for an unknown language.
        """
        check_text(text)
        if source_lang is not None:
            self._language(source_lang, "source")
        if target_lang is not None:
            self._language(target_lang, "target")
            if self.entry.target_language_by == "source_prefix":
                text = self._ask_for(target_lang, text)
        return self._surround(self._encode(text), source_lang)

    def truncate(self, ids: Sequence[int], limit: int) -> list[int]:
        """A source's `ids` cut to `limit`: `AutoTokenizer(text, truncation=True, max_length=limit).input_ids`.

        What the template puts around a text stays whole. Raises InputError where `limit` has no room for it.
        """
        before, after = self.ends(ids)
        room = limit - before - after
        if len(ids) <= limit:
            return list(ids)
        if room < 0:
            raise InputError(
                f"a source of {limit} tokens has no room for its {before + after} special tokens; allow longer sources"
            )
        inner = list(ids[before : len(ids) - after])
        inner = inner[len(inner) - room :] if self.entry.truncation_side == "left" else inner[:room]
        return [*ids[:before], *inner, *ids[len(ids) - after :]]

    def encode_target(self, text: str) -> list[int]:
        """Ids of a target text without special tokens, in the target's vocabulary. Raises InputError."""
        check_text(text)
        return self._encode_target(text)

    def encode_inner(self, text: str) -> list[int]:
        """Ids of a source text without special tokens. Raises InputError."""
        check_text(text)
        return self._encode(text)

    def spans(self, text: str) -> list[tuple[int, int]] | None:
        """Begin and end, in characters of the text, of each of `encode_inner`'s ids; None where that is not known."""
        return None

    def raw_text(self, ids: Sequence[int]) -> str:
        """As `decode`, before clean-up. Raises InputError."""
        return self._decode(check_ids(ids), True)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Text of one hypothesis: `AutoTokenizer.decode(ids, skip_special_tokens=...)`. Raises InputError."""
        text = self._decode(check_ids(ids), skip_special_tokens)
        return cleanup.clean_up(text) if self.entry.clean_up else text

    def settled(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The beginning of `decode(ids)` that no following id can change, which `StreamDecoder` returns."""
        text = self._decode(self._finished(check_ids(ids), skip_special_tokens), skip_special_tokens)
        text = text.rstrip(REPLACEMENT)
        return cleanup.settled(text) if self.entry.clean_up else text

    @abstractmethod
    def tokens(self, ids: Iterable[int]) -> list[str]:
        """The vocabulary's entry for every id, to label an alignment; "" for an id outside the vocabulary."""

    def source_tokens(self, ids: Iterable[int]) -> list[str]:
        """As `tokens`, for a source: it differs if source and target have separate vocabularies."""
        return self.tokens(ids)

    def target_overrides(self, target_lang: str | None) -> dict[str, int]:
        """Generation options that select a target language; empty for None, or if the source names the language."""
        if target_lang is None:
            return {}
        token = self._language(target_lang, "target")
        by = self.entry.target_language_by
        return {} if by in (None, "source_prefix") else {str(by): token}

    @abstractmethod
    def _encode(self, text: str) -> list[int]:
        """The ids of a text, without the template."""

    def _encode_target(self, text: str) -> list[int]:
        """As `_encode`, for a target: it differs if source and target have separate vocabularies."""
        return self._encode(text)

    @abstractmethod
    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        """Text before clean-up."""

    def _surround(self, ids: list[int], source_lang: str | None) -> list[int]:
        """`ids` with the template's prefix and suffix."""
        source = self.languages.get(source_lang or self.entry.source_lang or "", 0)
        before, after = (
            [source if value == SOURCE_LANG else int(value) for value in side]
            for side in (self.entry.prefix, self.entry.suffix)
        )
        return before + ids + after

    def ends(self, ids: Sequence[int]) -> tuple[int, int]:
        """How many of a source's ids are the template's, before and after its text; foreign ids may lack them."""
        codes = frozenset(self.languages.values())

        def length(side: tuple[int | str, ...], end: Sequence[int]) -> int:
            same = (i in codes if wanted == SOURCE_LANG else i == wanted for i, wanted in zip(end, side, strict=False))
            return len(side) if len(end) == len(side) and all(same) else 0

        after = length(self.entry.suffix, ids[max(0, len(ids) - len(self.entry.suffix)) :])
        return length(self.entry.prefix, ids[: len(self.entry.prefix)]), after

    def _finished(self, ids: list[int], skip_special_tokens: bool) -> list[int]:
        """`ids` without those at the end whose text depends on the ids that follow."""
        return ids

    def _language(self, code: str, side: str) -> int:
        if not self.languages:
            raise UsageError(
                f"a {side} language ('{code}') was given, but this model's tokenizer has no languages; leave it out"
            )
        if code not in self.languages:
            raise UnknownOption(code, self.languages, f"{side} language")
        return self.languages[code]

    def _ask_for(self, target_lang: str, text: str) -> str:
        code = f">>{target_lang}<<"
        if text.startswith(code):
            return text
        if text.startswith(">>") and (end := text.find("<<")) != -1:
            raise UsageError(
                f"the text asks for {text[: end + 2]}, the options for '{target_lang}'; name the target language once"
            )
        return f"{code} {text}"


def check_text(text: str) -> None:
    if not isinstance(text, str):
        raise InputError(f"a source is of type {type(text).__name__}, expected text; decode bytes as UTF-8 first")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"the text has a lone surrogate (U+{ord(text[error.start]):04X}) at character {error.start}, "
            "expected valid Unicode; decode its bytes as UTF-8"
        ) from None


def check_ids(ids: Iterable[int]) -> list[int]:
    checked = [int(value) for value in ids]
    if any(not 0 <= value < 2**31 for value in checked):
        wrong = next(value for value in checked if not 0 <= value < 2**31)
        raise InputError(f"{wrong} is not a token id, expected a whole number of 0 or more; remove padding first")
    return checked


def from_utf8(raw: bytes) -> str:
    """Bytes of one input as text. Raises InputError where they are not UTF-8."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"byte {error.start} of the input (0x{raw[error.start]:02x}) is not UTF-8; convert the input to UTF-8"
        ) from None
