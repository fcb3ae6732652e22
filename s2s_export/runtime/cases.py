"""Work given as JSON lines: the input and output of `s2s generate`.

In: {"id": "7", "text": "..."} or {"id": "7", "input_ids": [..]}, plus `source_lang`, `target_lang` and any generation
option by its Hugging Face name. Out, in input order: {"id": "7", "outputs": [{"token_ids": [..], "score": -0.31,
"text": "..."}], "backend": "onnxruntime"}, or {"id": "7", "error": "..."} for a line that fails.

Lines with equal options are decoded in batches together, whatever their places in the file.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError, S2SError
from .decoding import GenerationOptions, Hypothesis
from .scheduling import DEFAULT_BATCH_SIZE, n_tokens
from .session import Session
from .text import from_utf8

CONTENT = ("text", "input_ids", "audio")


@dataclass(frozen=True)
class Case:
    """One line, understood: what to decode and how; or why it can't be."""

    id: Any
    source: list[int] | None = None
    options: GenerationOptions | None = None
    error: str | None = None


def read_case(session: Session, line: bytes, number: int, *, truncate: bool = False) -> Case:
    """Never raises S2SError: a line's mistake is that line's `error`. An `id` that is left out is the line's number."""
    name: Any = str(number)
    try:
        fields = _parse(line, number)
        name = fields.pop("id", name)
        languages = {key: fields.pop(key, None) for key in ("source_lang", "target_lang")}
        given = [key for key in CONTENT if key in fields]
        if len(given) != 1:
            found = " and ".join(f"'{key}'" for key in given) or "none"
            raise InputError(f"found {found}; expected exactly one of 'text', 'input_ids'")
        content = fields.pop(given[0])
        options = session.options(target_lang=languages["target_lang"], **fields)
        return Case(name, _source(session, given[0], content, languages, truncate), options)
    except S2SError as error:
        return Case(name, error=str(error))


def _parse(line: bytes, number: int) -> dict[str, Any]:
    text = from_utf8(line)
    if not text.strip():
        raise InputError(f"line {number} is empty; expected a JSON object")
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise InputError(f"line {number} is not JSON ({error}); expected a JSON object") from None
    if not isinstance(fields, dict):
        raise InputError(f"line {number} holds {type(fields).__name__}; expected a JSON object")
    return fields


def _source(session: Session, kind: str, content: Any, languages: dict[str, Any], truncate: bool) -> list[int]:
    if kind == "audio":
        raise InputError("this bundle takes text or token ids, no audio; use 'text' or 'input_ids'")
    if kind == "text":
        if not isinstance(content, str):
            raise InputError(f"'text' is {type(content).__name__}; expected a string")
        return session.encode(content, truncate=truncate, **languages)
    if not isinstance(content, list) or any(isinstance(i, bool) or not isinstance(i, int) for i in content):
        raise InputError("'input_ids' is no list of whole numbers; expected token ids")
    return session.check_source(content, truncate=truncate)


def read_sources(
    session: Session, lines: Sequence[str | bytes], **options: Any
) -> tuple[list[list[int]], dict[int, str]]:
    """The ids of plain lines of text, empty where a line is blank or fails, and what is wrong with the latter by index.

    options: as of `Session.encode`.
    """
    sources: list[list[int]] = []
    failures = {}
    for number, line in enumerate(lines):
        sources.append([])
        try:
            text = line if isinstance(line, str) else from_utf8(line)
            if not text.strip():
                continue  # a blank line comes out blank
            sources[-1] = session.encode(text, **options)
        except InputError as error:
            failures[number] = str(error)
    return sources, failures


def decode_cases(
    session: Session,
    cases: Iterable[Case],
    *,
    batch_size: int = DEFAULT_BATCH_SIZE,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """The output line of each case, in order. progress: called with how many cases and tokens are done."""
    cases = list(cases)
    done: list[dict[str, Any]] = [{"id": case.id, "error": case.error} for case in cases]
    groups: dict[GenerationOptions, list[int]] = defaultdict(list)
    for number, case in enumerate(cases):
        if case.options is not None:
            groups[case.options].append(number)
    for options, numbers in groups.items():
        sources = [cases[number].source or [] for number in numbers]
        for number, result in zip(numbers, _decode_group(session, sources, options, batch_size, progress), strict=True):
            done[number] = {"id": cases[number].id, **result}
    return done


def _decode_group(
    session: Session,
    sources: list[list[int]],
    options: GenerationOptions,
    batch_size: int,
    progress: Callable[[int, int], None] | None,
) -> list[dict[str, Any]]:
    def finished(indices: list[int], hypotheses: list[list[Hypothesis]]) -> None:
        if progress:
            progress(len(indices), n_tokens(hypotheses))

    try:
        found = session.decode(sources, options, batch_size=batch_size, on_batch=finished)
    except S2SError as error:
        if len(sources) == 1:
            return [{"error": str(error)}]
        # One source must not take the others with it.
        return [_decode_group(session, [source], options, 1, progress)[0] for source in sources]
    name = session.backend.name
    return [{"outputs": [describe(h) for h in hypotheses], "backend": name} for hypotheses in found]


def describe(hypothesis: Hypothesis) -> dict[str, Any]:
    entry: dict[str, Any] = {"token_ids": list(hypothesis.token_ids), "score": float(hypothesis.score)}
    if hypothesis.text is not None:
        entry["text"] = hypothesis.text
    return entry
