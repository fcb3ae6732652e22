"""What the value of a generation option may be: one converter a kind, each turning what the user or a JSON file gave
into the immutable form that `GenerationOptions` holds, or raising `BadValue` with what was expected.

`None` never reaches a converter: `resolve` has dealt with it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Convert = Callable[[Any], Any]


class BadValue(Exception):
    """Says what was expected; `resolve` adds the option's name and what was found."""


def boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise BadValue("True or False")


def integer(least: int, *, whole_floats: bool = False) -> Convert:
    """whole_floats: where generate() reads 5.0 as 5; elsewhere it fails, or not, depending on other options."""

    def convert(value: Any) -> int:
        found = _whole(value) if whole_floats else _integer(value)
        if found is None or found < least:
            raise BadValue(f"an integer of at least {least}")
        return found

    return convert


def number(text: str = "a finite number", accept: Callable[[float], bool] = lambda value: True) -> Convert:
    """A finite float; integers count as floats (a JSON file writes 1 for 1.0)."""

    def convert(value: Any) -> float:
        found = _number(value)
        if found is None or not math.isfinite(found) or not accept(found):
            raise BadValue(text)
        return found

    return convert


above_0 = number("a number above 0", lambda value: value > 0.0)


def early_stopping(value: Any) -> bool | str:
    if isinstance(value, bool) or value == "never":
        return value  # type: ignore[no-any-return]
    raise BadValue("True, False or 'never'")


def token_id(value: Any) -> int:
    found = _integer(value)
    if found is None:
        raise BadValue("a token id")
    return found


def special_token_id(value: Any) -> int:
    """One that generate() makes a tensor of, where 5.0 becomes 5."""
    return token_id(_whole(value))


def one_token_id(value: Any) -> int:
    """A token id, or a list of one: generate() takes a list with an id for each source, and a call here has one."""
    items = _list(value)
    if items is not None and len(items) == 1:
        return special_token_id(items[0])
    if items is not None:
        raise BadValue("one token id (sources with different start tokens are separate calls)")
    return special_token_id(value)


def token_ids(value: Any) -> tuple[int, ...]:
    """A token id or a list of them."""
    found = _whole(value)
    if found is not None:
        return (found,)
    return _ids(value, "a token id or a list of token ids", _whole)


def token_list(value: Any) -> tuple[int, ...]:
    return _ids(value, "a list of token ids", _whole)


def prompt(value: Any) -> tuple[int, ...]:
    """A list of token ids that is not empty; also as a batch of one, [[..]], which is what generate() takes."""
    expected = "a list of at least one token id"
    items = _list(value)
    if items is not None and len(items) == 1 and _list(items[0]) is not None:
        value = items[0]
    ids = _ids(value, expected)
    if not ids:
        raise BadValue(expected)
    return ids


def words(value: Any) -> tuple[tuple[int, ...], ...]:
    """A list of words, each a list of token ids; neither may be empty."""
    expected = "a non-empty list of non-empty lists of token ids"
    items = _list(value)
    if not items:
        raise BadValue(expected)
    found = tuple(_ids(item, expected) for item in items)
    if not all(found):
        raise BadValue(expected)
    return tuple(dict.fromkeys(found))


def sequence_bias(value: Any) -> tuple[tuple[tuple[int, ...], float], ...]:
    """{(ids): bias} or [[[ids], bias], ...], not empty; the last bias of a repeated sequence holds."""
    expected = "a non-empty dict of token tuples to numbers, or a list of [token ids, number] pairs"
    pairs = list(value.items()) if isinstance(value, Mapping) else _list(value)
    if not pairs:
        raise BadValue(expected)
    found: dict[tuple[int, ...], float] = {}
    for pair in pairs:
        items = _list(pair)
        bias = _number(items[1]) if items is not None and len(items) == 2 else None
        if items is None or bias is None or math.isnan(bias) or bias == math.inf:
            raise BadValue(expected)
        ids = _ids(items[0], expected)
        if not ids:
            raise BadValue(expected)
        found[ids] = bias
    return tuple(found.items())


def decay(value: Any) -> tuple[int, float]:
    """(tokens before it starts, factor)."""
    expected = "a pair: the number of tokens before the penalty starts, and a factor above 0"
    items = _list(value)
    if items is None or len(items) != 2:
        raise BadValue(expected)
    start, factor = _whole(items[0]), _number(items[1])
    if start is None or start < 0 or factor is None or not 0.0 < factor < math.inf:
        raise BadValue(expected)
    return start, factor


def _integer(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    try:
        return int(operator.index(value))
    except TypeError:
        return None


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, float) and value.is_integer() else _integer(value)


def _number(value: Any) -> float | None:
    if isinstance(value, (bool, str, bytes)):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _list(value: Any) -> list[Any] | None:
    if hasattr(value, "tolist") and not isinstance(value, (str, bytes)):
        value = value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return list(value)
    return None


def _ids(value: Any, expected: str, read: Callable[[Any], int | None] = _integer) -> tuple[int, ...]:
    items = _list(value)
    if items is None:
        raise BadValue(expected)
    found = [read(item) for item in items]
    if any(item is None for item in found):
        raise BadValue(expected)
    return tuple(item for item in found if item is not None)


class StopStrings(tuple[str, ...]):
    """Texts that end an output, with what decides whether a text has one.

    decode: the tokenizer's, from ids to text. It is no part of what two of them are compared by.
    """

    decode: Callable[[Sequence[int]], str] | None = None

    def end(self, ids: Sequence[int]) -> bool:
        """Whether the text of these generated ids holds one of the strings."""
        if self.decode is None:
            raise ValueError("stop_strings have no tokenizer; give them to a session whose bundle has one")
        text = self.decode(ids)
        return any(stop in text for stop in self)


def stop_strings(value: Any) -> StopStrings:
    """A text or a list of texts, none of them empty."""
    items = [value] if isinstance(value, str) else _list(value)
    if not items or not all(isinstance(item, str) and item for item in items):
        raise BadValue("a text or a list of texts, none of them empty")
    if isinstance(value, StopStrings):
        return value
    return StopStrings(items)


def force_words(value: Any) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """generate()'s form: a list of phrases [ids], or of lists of alternative phrases [[ids], ..]."""
    expected = "a non-empty list of phrases, or of lists of alternative phrases, of at least one token id each"
    items = _list(value)
    if not items:
        raise BadValue(expected)
    found = []
    for item in items:
        inner = _list(item)
        if not inner:
            raise BadValue(expected)
        ways = inner if _list(inner[0]) is not None else [inner]
        found.append(tuple(dict.fromkeys(_ids(way, expected) for way in ways)))
        if not all(found[-1]):
            raise BadValue(expected)
    return tuple(found)


def terms(value: Any) -> Any:
    """What `Glossary` (constraints.py) says terms are; a session makes one of a file or of texts."""
    from .constraints import Glossary

    if not isinstance(value, Glossary):
        raise BadValue("a Glossary, or in a session the name of a file of source TAB target lines")
    return value


def guides(value: Any) -> Any:
    """A Guide or several (guide.py)."""
    from .guide import Guide

    items = [value] if isinstance(value, Guide) else _list(value)
    if not items or not all(isinstance(item, Guide) for item in items):
        raise BadValue("a Guide or a list of them, or in a session `choices` or `regex`")
    return tuple(items)


def function(value: Any) -> Any:
    if not callable(value):
        raise BadValue("a function of a source's number and its token ids, which returns the ids that may follow")
    return value
