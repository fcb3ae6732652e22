"""Texts of any length through a batcher: sentences, white space, tags, languages.

A caller that is cancelled (its client left) cancels what it queued.
"""

from __future__ import annotations

import asyncio
import html
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from ..errors import InputError
from ..runtime.decoding import GenerationOptions, Hypothesis
from ..runtime.sources import Source
from . import languages, markup, splitting, telemetry
from .calls import Call
from .failures import Refused
from .jobs import Job
from .models import Model

AUTO = "auto"
LONG = 2000  # characters that are prepared in another thread, so that other requests are not held up
T = TypeVar("T")


@dataclass(frozen=True)
class Ask:
    """How texts are to be translated. target: a language; source: one, or None to find it out.

    markup: "text", "html" or "xml". sentences, lines: where texts are cut. splitting, ignored: elements, see markup.py.
    options: generation options.
    """

    source: str | None
    target: str
    model: Model | None = None
    markup: str = "text"
    sentences: bool = True
    lines: bool = True
    splitting: Sequence[str] = ()
    ignored: Sequence[str] = ()
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Translated:
    """text: the best one. alternatives: the other hypotheses, without repetitions. source: the language; confidence: 0
    to 1, 1 if it was given. n_characters: of the source."""

    text: str
    alternatives: list[str]
    source: str
    confidence: float
    n_characters: int


async def translate(call: Call, texts: Sequence[str], ask: Ask) -> list[Translated]:
    """Translate texts, each in its own language. Raises Refused, InputError and what a batcher raises."""
    call.state.limits.check_texts(texts)
    found = await asyncio.gather(*(_translate_one(call, text, ask) for text in texts))
    return list(found)


async def _translate_one(call: Call, text: str, ask: Ask) -> Translated:
    if ask.source is not None:
        source, confidence = ask.source, 1.0
    else:
        source, confidence = await off_loop(len(text), lambda: detect(call, text, ask.target), "detect")
    if ask.model is not None:
        model = ask.model
    elif languages.base(source) == languages.base(ask.target):  # nothing to do, as with LibreTranslate
        return Translated(text, [], source, confidence, len(text))
    else:
        model = call.state.models.for_pair(source, ask.target)
    codes = model.languages.codes(source, ask.target)
    session = model.session
    options = session.options(target_lang=codes["target_lang"], **ask.options)
    call.state.limits.check_options(options)
    pieces = await off_loop(len(text), lambda: _pieces(model, text, languages.base(source), codes, ask))
    plain = [piece for piece in pieces if piece.source is not None]
    aligned = any(piece.segment is not None for piece in plain)
    found = await decode(call, model, [piece.source for piece in plain], options, alignments=aligned)
    for piece, hypotheses in zip(plain, found, strict=True):
        piece.outputs = _outputs(model, piece, hypotheses)
    n = 1 if aligned else options.num_return_sequences
    outputs = ["".join(piece.output(i) for piece in pieces) for i in range(n)]
    others = [other for other in dict.fromkeys(outputs) if other != outputs[0]]
    return Translated(outputs[0], others, source, confidence, len(text))


@dataclass
class _Piece:
    """A part of a text: copied as it is, or a source. segment: the markup around a source that has inline elements."""

    text: str
    source: Source | None = None
    segment: markup.Segment | None = None
    is_escaped: bool = False
    outputs: list[str] = field(default_factory=list)

    def output(self, number: int) -> str:
        return self.text if self.source is None else self.outputs[min(number, len(self.outputs) - 1)]


def _pieces(model: Model, text: str, language: str, codes: dict[str, Any], ask: Ask) -> list[_Piece]:
    session = model.session

    def fits(part: str) -> bool:
        limit = session.bundle.max_source_length
        return limit is None or len(session.tokenizer.encode(part, **codes)) <= limit

    def cut(part: str, *, is_escaped: bool = False) -> list[_Piece]:
        return [
            _Piece(piece.text, session.encode(piece.text, **codes), None, is_escaped)
            if piece.is_source
            else _Piece(html.escape(piece.text, quote=False) if is_escaped else piece.text)
            for piece in splitting.split(part, language, fits, sentences=ask.sentences, lines=ask.lines)
        ]

    if ask.markup == "text":
        return cut(text)
    found: list[_Piece] = []
    for part in markup.parse(text, xml=ask.markup == "xml", splitting=ask.splitting, ignored=ask.ignored):
        if isinstance(part, str):
            found.append(_Piece(part))
            continue
        if not part.elements:
            found += cut(part.text, is_escaped=True)
            continue
        core = part.text.strip()
        if session.has_attention and fits(core):
            begin = part.text.index(core)
            found.append(_Piece(html.escape(part.text[:begin], quote=False)))
            moved = [_moved(element, -begin) for element in part.elements]
            found.append(_Piece(core, session.encode(core, **codes), markup.Segment(core, moved)))
            found.append(_Piece(html.escape(part.text[begin + len(core) :], quote=False)))
        else:  # no alignment to place tags by, or too long for one source: what is between two tags is a text
            for inner in _between_tags(part.text, part.elements):
                found += [_Piece(inner[0])] if inner[1] else cut(inner[0], is_escaped=True)
    return found


def _moved(element: markup.Element, by: int) -> markup.Element:
    start, end = max(0, element.start + by), max(0, element.end + by)
    return markup.Element(element.opening, element.closing, start, end, [_moved(c, by) for c in element.children])


def _between_tags(text: str, elements: Sequence[markup.Element]) -> list[tuple[str, bool]]:
    """(text, whether it is a tag), in order."""
    found, at = list[tuple[str, bool]](), 0

    def walk(several: Sequence[markup.Element], end: int) -> None:
        nonlocal at
        for element in several:
            found.extend([(text[at : element.start], False), (element.opening, True)])
            at = element.start
            walk(element.children, element.end)
            found.append((element.closing, True))
        found.append((text[at:end], False))
        at = end

    walk(elements, len(text))
    return [part for part in found if part[0]]


def _outputs(model: Model, piece: _Piece, hypotheses: Sequence[Hypothesis]) -> list[str]:
    if piece.segment is None:
        texts = [hypothesis.text or "" for hypothesis in hypotheses]
        return [html.escape(text, quote=False) for text in texts] if piece.is_escaped else texts
    best = hypotheses[0]
    text = best.text or ""
    words = markup.words_of(text)
    looked = markup.Attention(np.zeros((len(words), 0), np.float32), [])
    if best.alignment is not None and words:
        session = model.session
        generated = best.token_ids[len(best.token_ids) - len(best.alignment) :]
        target = markup.spans(session.target_tokens(generated), text)
        source = markup.spans(session.source_tokens(piece.source), piece.segment.text)
        looked = markup.attention(words, target, source, best.alignment)
    return [markup.place(piece.segment, text, looked)]


def detect(call: Call, text: str, target: str | None = None) -> tuple[str, float]:
    """The language of a text among those that are read (into `target`), and how sure that is. Raises Refused."""
    pairs = call.state.models.sources()
    if not pairs:
        raise Refused(400, "no model says which language it reads; start the server with names such as en-fr=BUNDLE")
    fitting = [source for source, into in pairs.items() if target is None or languages.base(target) in into]
    if not fitting:
        raise Refused(400, f"{target} is not supported")
    return languages.detect(text, fitting)[0]


async def decode(
    call: Call,
    model: Model,
    sources: Sequence[Any],
    options: GenerationOptions,
    *,
    alignments: bool | str = False,
    on_prefix: Callable[[list[int]], None] | None = None,
) -> list[list[Hypothesis]]:
    """The hypotheses of checked sources, through the model's batcher."""
    jobs = model.batcher.submit(
        sources,
        options,
        alignments=alignments,
        timeout=remaining(call),
        on_prefix=on_prefix,
        priority=priority(call),
    )
    return await results(jobs)


async def results(jobs: Sequence[Job]) -> list[list[Hypothesis]]:
    """What jobs give. The first error, or being cancelled, cancels all of them."""
    try:
        return list(await asyncio.gather(*(asyncio.wrap_future(job.future) for job in jobs)))
    except BaseException:
        for job in jobs:
            job.cancel()
        raise


async def stream(
    call: Call, model: Model, source: Source, options: GenerationOptions
) -> AsyncIterator[str | list[Hypothesis]]:
    """Pieces of a source's best output as they become final, and at the end its hypotheses."""
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[list[int] | None] = asyncio.Queue()

    def on_prefix(ids: list[int]) -> None:
        loop.call_soon_threadsafe(arrived.put_nowait, ids)

    [job] = model.batcher.submit(
        [source], options, timeout=remaining(call), on_prefix=on_prefix, priority=priority(call)
    )
    job.future.add_done_callback(lambda _: loop.call_soon_threadsafe(arrived.put_nowait, None))
    decoder = model.session.stream_decoder(source)
    is_first = True
    try:
        while (ids := await arrived.get()) is not None:
            if part := decoder.push(ids):
                if is_first:
                    call.state.metrics.on_first_token(model.name, time.monotonic() - call.arrived)
                is_first = False
                yield part
        hypotheses = await asyncio.wrap_future(job.future)
        if rest := decoder.finish():
            yield rest
        yield hypotheses
    finally:
        job.cancel()


def remaining(call: Call) -> float:
    """Seconds that are left for a request."""
    return max(0.0, call.arrived + call.timeout - time.monotonic())


def priority(call: Call) -> int:
    """X-Request-Priority, from -9 to 9. Raises Refused."""
    value = call.request.headers.get("x-request-priority", "0")
    try:
        found = int(value)
    except ValueError:
        found = 99
    if not -9 <= found <= 9:
        raise Refused(400, f"X-Request-Priority is {value[:20]!r}; expected a whole number from -9 to 9")
    return found


async def off_loop(n_characters: int, work: Callable[[], T], what: str = "tokenise") -> T:
    """Work on a text of this length, in another thread if it is long. what: the name of its span."""
    with telemetry.part(what, s2s__characters=n_characters):
        return await asyncio.to_thread(work) if n_characters > LONG else work()


def require_text(model: Model) -> None:
    """Raises InputError for a model that doesn't read text."""
    if not model.is_text_to_text:
        raise InputError(f"the model '{model.name}' does not read text; name another one")
