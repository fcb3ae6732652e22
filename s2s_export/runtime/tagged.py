"""Donut's outputs as JSON: <s_name>..</s_name> around a value, <sep/> between several (2111.15664).

`fields` gives what transformers' `DonutProcessor.token2json` does for well-formed outputs; what is not closed is passed
over.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

from .text import Tokenizer

OPENING = re.compile(r"<s_([^<>]*)>", re.IGNORECASE)
TASK = re.compile(r"<.*?>")
SEPARATOR = "<sep/>"
CATEGORY = re.compile(r"<([^<>]+)/>")


def fields_of(tokenizer: Tokenizer, ids: Sequence[int], ends: Collection[int]) -> Any:
    """`fields` of an output's ids. ends: the ids of its end and padding tokens; the first tag names the task."""
    text = tokenizer.decode([i for i in ids if i not in ends], skip_special_tokens=False)
    return fields(TASK.sub("", text, count=1).strip())


def fields(text: str, *, is_inner: bool = False) -> Any:
    """text: an output with its special tokens, but without those at its ends.

    A dictionary of names and values; a list of them where <sep/> stands between groups; {"text_sequence": text} where
    there is no tag at all. A value is a text, a dictionary, or a list of them.
    """
    found: dict[str, Any] = {}
    rest = text
    while (opening := OPENING.search(rest)) is not None:
        name, begin = opening[1], opening.end()
        closing = re.compile(rf"</s_{re.escape(name)}>", re.IGNORECASE).search(rest, begin)
        if closing is None:
            rest = rest.replace(opening[0], "")
            continue
        value = _value(rest[begin : closing.start()].strip())
        if value:
            found[name] = value[0] if len(value) == 1 else value
        rest = rest[closing.end() :].strip()
        if rest.startswith(SEPARATOR):
            others = fields(rest.removeprefix(SEPARATOR), is_inner=True)
            return [found, *others]
    if found:
        return [found] if is_inner else found
    return [] if is_inner else {"text_sequence": rest}


def _value(content: str) -> list[Any]:
    if "<s_" in content and "</s_" in content:
        inner = fields(content, is_inner=True)
        return list(inner)
    parts = [part.strip() for part in content.split(SEPARATOR)]
    return [category[1] if (category := CATEGORY.fullmatch(part)) else part for part in parts]
