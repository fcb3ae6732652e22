"""Decodes files line by line: the JSON lines of `s2s generate`, and lines of text.

In: {"id": "7", "text": "..."} or {"id": "7", "input_ids": [..]}, plus `source_lang`, `target_lang`, any generation
option by its Hugging Face name, and what is done to the outputs: `confidence`, `mbr`, `keep`, `keep_unknown`. Out, in
input order: {"id": "7", "outputs": [{"token_ids": [..], "score": -0.31, "text": "..."}], "backend": "onnxruntime"}, or
{"id": "7", "error": "..."} for a line that fails.

Lines with equal options are decoded in batches together, within a window of the input: results come out in input
order, and a window of many batches is enough to sort them by length. A line that fails, for whatever reason, does not
keep other lines from being decoded: a batch that fails is halved until the failing line is alone.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, NoReturn

from ..errors import InputError, InvalidOption, explain, is_failure
from .decoding import GenerationOptions, Hypothesis
from .finishing import Finishing
from .scheduling import DEFAULT_BATCH_SIZE
from .session import Session
from .sources import Source
from .speech import formats
from .text import from_utf8

DEEPEST_ID = 20  # how deep lists and objects in an id may be nested
CONTENT = ("text", "input_ids", "audio", "image")
OF_TEXT = ("source_lang", "target_lang", "template")  # fields that say how a text becomes a source
WINDOW = 16  # batches of each worker that are sorted by length together; at most so many are lost when killed

NO_DEFAULTS: Mapping[str, Any] = {}
AS_DECODED = Finishing()  # nothing is done to outputs
Key = tuple[GenerationOptions, bool]
Failure = str  # what is wrong, in one sentence
Outcome = list[Hypothesis] | Failure  # what one line gave


@dataclass(frozen=True)
class Case:
    """One line after parsing: what to decode and how, or why it can't be decoded. text: None where ids were given."""

    id: Any
    source: Source | None = None
    options: GenerationOptions | None = None
    error: Failure | None = None
    text: str | None = None
    finishing: Finishing = AS_DECODED

    @property
    def key(self) -> Key | None:
        """Lines with equal keys are decoded together."""
        return None if self.options is None else (self.options, self.finishing.wants_alignments)


def read_case(
    session: Session, line: bytes, number: int, *, truncate: bool = False, defaults: Mapping[str, Any] = NO_DEFAULTS
) -> Case:
    """Parse a line. Never raises: what is wrong with it becomes its `error`. Without an `id`, the id is its number.

    defaults: fields for lines that lack them.
    """
    try:
        fields = _parse(line, number)
    except BaseException as error:
        if not is_failure(error):
            raise
        return Case(str(number), error=explain(error))
    return case_of(session, fields, number, truncate=truncate, defaults=defaults)


def case_of(
    session: Session,
    fields: dict[str, Any],
    number: int,
    *,
    content: Any = None,
    truncate: bool = False,
    defaults: Mapping[str, Any] = NO_DEFAULTS,
) -> Case:
    """Like `read_case`, of a line's fields. content: the source where they do not hold it, as its kind takes it."""
    name: Any = str(number)
    fields = dict(fields)
    try:
        if "id" in fields:
            name = _id(fields.pop("id"))
        own = [key for key in ("source_lang", "template") if fields.get(key) is not None]
        fields = {**defaults, **fields}
        languages = {key: _language(key, fields.pop(key, None)) for key in OF_TEXT}
        given = [key for key in dict.fromkeys((*CONTENT, session.kind.field)) if key in fields]
        if len(given) != (content is None):
            found = " and ".join(f"'{key}'" for key in given) or "none"
            expected = f"exactly one of {', '.join(map(repr, _fields(session)))}" if content is None else "none of them"
            raise InputError(f"found {found}; expected {expected}")
        if given and given != ["text"] and own:
            raise InputError(f"'{own[0]}' says what becomes of a text, but the line has '{given[0]}'; leave it out")
        value = fields.pop(given[0]) if given else content
        finishing = _finishing(session, fields)
        options = session.options(target_lang=languages["target_lang"], **fields)
        if given:
            source = _source(session, given[0], value, languages, truncate)
        else:
            source = session.check_source(value, truncate=truncate)
        text = value if given == ["text"] else None
        return Case(name, source, options, text=text, finishing=finishing)
    except BaseException as error:
        if not is_failure(error):
            raise
        return Case(name, error=explain(error))


def check_defaults(session: Session, defaults: Mapping[str, Any]) -> None:
    """Raises UnknownOption for a name that no line could have. Values are judged with a line's own options."""
    fields = {key: value for key, value in defaults.items() if key not in OF_TEXT}
    _finishing(session, fields)
    with suppress(InvalidOption, InputError):
        session.options(**fields)


def _finishing(session: Session, fields: dict[str, Any]) -> Finishing:
    """Takes what is done to outputs out of the fields of a line."""
    keep = fields.pop("keep", None)
    keep = [keep] if isinstance(keep, str) else keep or []
    if not isinstance(keep, list) or not all(isinstance(pattern, str) for pattern in keep):
        raise InputError(f"'keep' is {keep!r}; expected a pattern or a list of them")
    flags = {}
    for name in ("confidence", "mbr", "keep_unknown"):
        flags[name] = fields.pop(name, False)
        if not isinstance(flags[name], bool):
            raise InputError(f"'{name}' is {flags[name]!r}; expected true or false")
    found = Finishing(keep=tuple(keep), **flags)
    found.check(session)
    return found


def _parse(line: bytes, number: int) -> dict[str, Any]:
    text = from_utf8(line)
    if not text.strip():
        raise InputError(f"line {number} is empty; expected a JSON object")
    try:
        fields = json.loads(text, parse_constant=_no_number)
    except ValueError as error:
        raise InputError(f"line {number} is not JSON ({error}); expected a JSON object") from None
    except RecursionError:
        raise InputError(f"line {number} is nested too deeply; expected a JSON object of plain values") from None
    if not isinstance(fields, dict):
        raise InputError(f"line {number} holds {type(fields).__name__}; expected a JSON object")
    return fields


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")


def _id(value: Any) -> Any:
    """The id, checked to be one that can be written as JSON. For others the line is named by its number."""
    nested, depth = [value], 0
    while nested := [inner for outer in nested for inner in _parts(outer)]:
        depth += 1
        if depth > DEEPEST_ID:
            raise InputError(f"'id' is nested more than {DEEPEST_ID} deep; expected a string or a number")
    try:
        json.dumps(value, allow_nan=False)
    except ValueError as error:
        raise InputError(f"'id' can't be written as JSON ({error}); expected a string or a number") from None
    return value


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _language(key: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        expected = "a string" if key == "template" else "the code of a language as a string"
        raise InputError(f"'{key}' is {type(value).__name__}; expected {expected}")
    return value


def _fields(session: Session) -> tuple[str, ...]:
    """The fields in which this bundle takes a source."""
    return ("text", session.kind.field) if session.kind.has_ids else (session.kind.field,)


def _source(session: Session, field: str, content: Any, languages: dict[str, Any], truncate: bool) -> Source:
    if field not in _fields(session):
        raise InputError(f"this bundle takes no '{field}'; expected {' or '.join(map(repr, _fields(session)))}")
    if field == "text":
        if not isinstance(content, str):
            raise InputError(f"'text' is {type(content).__name__}; expected a string")
        return session.encode(content, truncate=truncate, **languages)
    return session.check_source(session.kind.from_json(content), truncate=truncate)


def read_sources(
    session: Session, lines: Sequence[str | bytes], **options: Any
) -> tuple[list[Source], dict[int, Failure]]:
    """The token ids of lines of text, empty for a line that is blank or fails; and the failures by index.

    options: those of `Session.encode`.
    """
    sources: list[Source] = []
    failures = {}
    for number, line in enumerate(lines):
        sources.append([])
        try:
            text = line if isinstance(line, str) else from_utf8(line)
            if not text.strip():
                continue  # a blank line gives a blank line
            sources[-1] = session.encode(text, **options)
        except BaseException as error:
            if not is_failure(error):
                raise
            failures[number] = explain(error)
    return sources, failures


def window_size(session: Session, batch_size: int) -> int:
    """The number of lines that are sorted by length together."""
    return WINDOW * batch_size * session.workers


def decode_each(
    session: Session,
    sources: Sequence[Source],
    options: GenerationOptions,
    *,
    batch_size: int = DEFAULT_BATCH_SIZE,
    alignments: bool | str = False,
    source_numbers: Sequence[int] | None = None,
) -> Iterator[tuple[int, Outcome]]:
    """The index and outcome of each source, as they are ready. A source that fails does not affect the others.

    After an error, the sources without a result are halved and each half is decoded, until the failing one is alone.
    """
    numbers = range(len(sources)) if source_numbers is None else source_numbers
    waiting = [list(range(len(sources)))]
    while waiting:
        part = waiting.pop()
        undone = dict.fromkeys(part)
        try:
            batches = session.batches(
                [sources[i] for i in part],
                options,
                batch_size=batch_size,
                alignments=alignments,
                source_numbers=[numbers[i] for i in part],
            )
            error = None
            while error is None:
                finished, error = _next(batches)
                if finished is None:
                    break
                for place, hypotheses in zip(*finished, strict=True):
                    del undone[part[place]]
                    yield part[place], hypotheses
        finally:
            batches.close()  # type: ignore[attr-defined]
        left = list(undone)
        if error is None or not left:
            continue
        if len(left) == 1:
            yield left[0], explain(error)
            continue
        middle = len(left) // 2
        waiting += [left[middle:], left[:middle]]


def _next(batches: Iterator[Any]) -> tuple[Any, BaseException | None]:
    """The next batch, None after the last one; or the error that ends them."""
    try:
        return next(batches, None), None
    except BaseException as error:
        if not is_failure(error):
            raise
        return None, error


def decode_cases(
    session: Session,
    cases: Iterable[Case],
    *,
    batch_size: int = DEFAULT_BATCH_SIZE,
    progress: Callable[[int, int], None] | None = None,
    n_skipped: int = 0,
) -> Iterator[dict[str, Any]]:
    """The output line of each case, in order, as soon as it and all before it are ready.

    progress: called with how many cases and tokens are done. n_skipped: how many of the first cases have results
    already. They are only counted, since sampling depends on a line's position among those with equal options.
    """
    cases = iter(cases)
    counts: dict[Key, int] = defaultdict(int)
    for case in islice(cases, n_skipped):
        if case.key is not None:
            counts[case.key] += 1
    while window := list(islice(cases, window_size(session, batch_size))):
        yield from _decode_window(session, window, counts, batch_size, progress)


def _decode_window(
    session: Session,
    window: Sequence[Case],
    counts: dict[Key, int],
    batch_size: int,
    progress: Callable[[int, int], None] | None,
) -> Iterator[dict[str, Any]]:
    groups: dict[Key, list[int]] = {}
    done: dict[int, dict[str, Any]] = {}
    for place, case in enumerate(window):
        if case.key is None:
            done[place] = {"id": case.id, "error": case.error}
        else:
            groups.setdefault(case.key, []).append(place)
    first = 0  # the next to be yielded
    for key, places in groups.items():
        options, alignments = key
        numbers = range(counts[key], counts[key] + len(places))
        counts[key] += len(places)
        sources = [window[place].source for place in places]
        found = decode_each(
            session, sources, options, batch_size=batch_size, alignments=alignments, source_numbers=numbers
        )
        for index, outcome in found:
            case = window[places[index]]
            outcome = finished(session, case.finishing, case.text, case.source, outcome)
            done[places[index]] = {"id": case.id, **result_of(session, outcome, case.finishing)}
            if progress:
                progress(1, 0 if isinstance(outcome, str) or not outcome else len(outcome[0].token_ids))
            while first in done:
                yield done.pop(first)
                first += 1
    while first in done:
        yield done.pop(first)
        first += 1


def finished(session: Session, finishing: Finishing, text: str | None, source: Source, outcome: Outcome) -> Outcome:
    """The outcome after what is done to outputs; a failure of that is the source's own."""
    if isinstance(outcome, str):
        return outcome
    try:
        return finishing.apply(session, text, source, outcome)
    except BaseException as error:
        if not is_failure(error):
            raise
        return explain(error)


def result_of(session: Session, outcome: Outcome, finishing: Finishing) -> dict[str, Any]:
    if isinstance(outcome, str):
        return {"error": outcome}
    outputs = [{**describe(hypothesis), **finishing.details(session, hypothesis)} for hypothesis in outcome]
    result = {"outputs": outputs, "backend": session.backend.name}
    if outcome and outcome[0].segments is not None:
        result["segments"] = [formats.describe(part, i) for i, part in enumerate(outcome[0].segments)]
    return result


def describe(hypothesis: Hypothesis) -> dict[str, Any]:
    entry: dict[str, Any] = {"token_ids": list(hypothesis.token_ids), "score": float(hypothesis.score)}
    if hypothesis.text is not None:
        entry["text"] = hypothesis.text
    return entry


def to_json(result: dict[str, Any]) -> str:
    """One line of JSON that every UTF-8 reader can read: what UTF-8 can't encode is escaped, and a score that is not
    finite is null."""
    try:
        line = json.dumps(result, ensure_ascii=False, allow_nan=False)
    except ValueError:
        line = json.dumps(_finite(result), ensure_ascii=False)
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate
        return json.dumps(json.loads(line))
    return line


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value
