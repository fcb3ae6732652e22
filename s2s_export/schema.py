"""Reads JSON files that may contain anything, and checks their values before they are used.

A check is a function of a value and of its path in the file, such as `graphs.encoder.inputs[2].name`. It returns None
for a correct value, and otherwise the first mistake, such as "graphs.encoder.file is 3,
expected text". Checks are combined to have the structure of the document that they describe:

    check = record({"name": text, "shape": list_of(integer(1))}, optional={"comment": text})
    check({"name": "x", "shape": [2, "a"]}, "")  # "shape[1] is 'a', expected a whole number of at least 1"

`record` ignores keys that it does not name, as a newer version may have added them.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

Check = Callable[[Any, str], "str | None"]

MOST_LEVELS = 64  # how deep lists and objects may be nested; our own files have about eight levels
MOST_SHOWN = 60  # characters of a wrong value
LONGEST_NAME = 255  # bytes of a file's name on Linux, macOS and Windows


class Unreadable(Exception):
    """Why a file is not a JSON document, for a message that names the file."""


def read_json(path: Path) -> Any:
    """The document in a file. Raises Unreadable: it is missing, no regular file, not JSON or nested too deeply."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe or a device may block for ever
            raise Unreadable("it is not a regular file")
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from error
    except ValueError as error:
        raise Unreadable(str(error)) from error
    except RecursionError as error:
        raise Unreadable(f"lists and objects nested more than {MOST_LEVELS} deep") from error
    if _is_deeper_than(document, MOST_LEVELS):
        raise Unreadable(f"lists and objects nested more than {MOST_LEVELS} deep")
    return document


def _is_deeper_than(document: Any, levels: int) -> bool:
    level = [document]
    for _ in range(levels + 1):
        level = [child for value in level for child in _children(value)]
        if not level:
            return False
    return True


def _children(value: Any) -> list[Any]:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [child for child in children if isinstance(child, (dict, list))]


# Values


def anything(value: Any, where: str) -> str | None:
    return None


def text(value: Any, where: str) -> str | None:
    return None if isinstance(value, str) else wrong(value, where, "text")


def boolean(value: Any, where: str) -> str | None:
    return None if isinstance(value, bool) else wrong(value, where, "true or false")


def file_name(value: Any, where: str) -> str | None:
    """The name of a file that some file system can have. That it stays in its folder is checked where it is opened."""
    if is_file_name(value):
        return None
    return wrong(value, where, "the name of a file")


def is_file_name(value: Any) -> TypeGuard[str]:
    if not isinstance(value, str) or not value or "\0" in value or not _is_utf8(value):
        return False
    return max(len(part.encode("utf-8")) for part in value.split("/")) <= LONGEST_NAME


def number(value: Any, where: str) -> str | None:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return None
    return wrong(value, where, "a number")


def integer(least: int) -> Check:
    def check(value: Any, where: str) -> str | None:
        if isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**63:
            return None
        return wrong(value, where, f"a whole number of at least {least}")

    return check


def one_of(*values: str) -> Check:
    def check(value: Any, where: str) -> str | None:
        if isinstance(value, str) and value in values:
            return None
        return wrong(value, where, f"one of {', '.join(values)}" if len(values) > 1 else f"'{values[0]}'")

    return check


def null_or(inner: Check) -> Check:
    return lambda value, where: None if value is None else inner(value, where)


def either(one: Check, other: Check, expected: str) -> Check:
    def check(value: Any, where: str) -> str | None:
        return wrong(value, where, expected) if one(value, where) and other(value, where) else None

    return check


# Lists and objects


def list_of(inner: Check) -> Check:
    def check(value: Any, where: str) -> str | None:
        if not isinstance(value, list):
            return wrong(value, where, "a list")
        return _first(inner(item, f"{where}[{i}]") for i, item in enumerate(value))

    return check


def mapping_of(inner: Check, key: Check = anything) -> Check:
    """An object with any keys, whose values all pass the same check."""

    def check(value: Any, where: str) -> str | None:
        if not isinstance(value, dict):
            return wrong(value, where, "an object")
        return _first(key(name, where) or inner(item, below(where, name)) for name, item in value.items())

    return check


def record(required: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    """An object with the keys `required`, and perhaps those of `optional`."""

    def check(value: Any, where: str) -> str | None:
        if not isinstance(value, dict):
            return wrong(value, where, "an object")
        if missing := [below(where, name) for name in required if name not in value]:
            return f"lacks {', '.join(missing)}"
        known = {**required, **(optional or {})}
        return _first(known[name](value[name], below(where, name)) for name in known if name in value)

    return check


def all_of(*checks: Check) -> Check:
    return lambda value, where: _first(check(value, where) for check in checks)


def wrong(value: Any, where: str, expected: str) -> str:
    return f"{where or 'the document'} is {shown(value)}, expected {expected}"


def shown(value: Any) -> str:
    """A value in a message: short, on one line and printable."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        return ascii(value) if len(value) <= MOST_SHOWN else f"{value[:MOST_SHOWN]!a}..."
    found = json.dumps(value)
    return found if len(found) <= MOST_SHOWN else f"{found[:MOST_SHOWN]}..."


def below(where: str, name: str) -> str:
    plain = name if name.isprintable() and len(name) <= MOST_SHOWN else shown(name)
    return f"{where}.{plain}" if where else plain


def _first(found: Any) -> str | None:
    return next((message for message in found if message), None)


def _is_utf8(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
