"""Text with tags: what is to be translated, and where the tags go in the translation.

`parse` cuts HTML or XML into what is copied (tags that structure a page, comments, scripts) and into segments: running
text with the inline elements in it, such as <b> or <a href="..">. `place` puts the elements of a segment around the
words of its translation that were translated from theirs, by the model's alignment: each element once, nested as
before.
"""

from __future__ import annotations

import html
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..runtime.decoding.state import Floats

TOKEN = re.compile(r"<!--.*?-->|<!\[CDATA\[.*?\]\]>|<[!?][^>]*>|</?[A-Za-z][^<>]*>", re.DOTALL)
NAME = re.compile(r"</?([A-Za-z][^\s/>]*)")
# Elements of HTML that are part of running text; all others separate texts.
INLINE = frozenset(
    [
        "a",
        "abbr",
        "acronym",
        "b",
        "bdi",
        "bdo",
        "big",
        "cite",
        "dfn",
        "em",
        "font",
        "i",
        "img",
        "ins",
        "del",
        "kbd",
        "label",
        "mark",
        "q",
        "s",
        "samp",
        "small",
        "span",
        "strike",
        "strong",
        "sub",
        "sup",
        "tt",
        "u",
        "var",
        "wbr",
    ]
)
VOID = frozenset(
    ["area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track", "wbr"]
)
COPIED = frozenset(["script", "style", "code", "pre", "textarea", "svg", "math"])  # with what is in them
NOT_TRANSLATED = re.compile(r"translate\s*=\s*[\"']?no\b|class\s*=\s*[\"'][^\"']*\bnotranslate\b", re.IGNORECASE)
Span = tuple[int, int]  # characters


@dataclass
class Element:
    """An inline element: its tags, and the characters [start, end) of the segment's text that it holds."""

    opening: str
    closing: str
    start: int
    end: int
    children: list[Element] = field(default_factory=list)


@dataclass
class Segment:
    """Running text, unescaped, and the inline elements in it."""

    text: str
    elements: list[Element]


@dataclass
class _Tag:
    raw: str
    name: str = ""
    kind: str = "text"  # text, open, close, void, other
    partner: int = -1
    is_inline: bool = False
    is_copied: bool = False


def parse(
    markup: str, *, xml: bool = False, splitting: Collection[str] = (), ignored: Collection[str] = ()
) -> list[str | Segment]:
    """What is copied, and the segments. xml: all elements are inline but those in `splitting`.

    splitting: further elements that separate texts. ignored: elements that are copied with what is in them.
    """
    tags = [_classify(raw, xml) for raw in _tokens(markup)]
    _pair(tags)
    for tag in tags:
        if tag.kind in ("open", "close", "void"):
            tag.is_inline = (xml or tag.name in INLINE) and tag.name not in splitting
            is_marked = tag.kind == "open" and not xml and NOT_TRANSLATED.search(tag.raw) is not None
            tag.is_copied = tag.name in ignored or is_marked or (not xml and tag.name in COPIED)
    _separate(tags)
    return _segments(tags)


def _tokens(markup: str) -> list[str]:
    found, at = [], 0
    for match in TOKEN.finditer(markup):
        found += [markup[at : match.start()], match.group()]
        at = match.end()
    return [token for token in (*found, markup[at:]) if token]


def _classify(raw: str, xml: bool) -> _Tag:
    if not TOKEN.fullmatch(raw):
        return _Tag(raw)
    match = NAME.match(raw)
    if match is None:
        return _Tag(raw, kind="other")
    name = match.group(1) if xml else match.group(1).lower()
    if raw.startswith("</"):
        return _Tag(raw, name, "close")
    return _Tag(raw, name, "void" if raw.endswith("/>") or (not xml and name in VOID) else "open")


def _pair(tags: list[_Tag]) -> None:
    """Give opening and closing tags their partners; those that have none stay alone."""
    opened: list[int] = []
    for place, tag in enumerate(tags):
        if tag.kind == "open":
            opened.append(place)
        elif tag.kind == "close":
            found = next((n for n in range(len(opened) - 1, -1, -1) if tags[opened[n]].name == tag.name), None)
            if found is not None:
                tag.partner, tags[opened[found]].partner = opened[found], place
                del opened[found:]


def _separate(tags: list[_Tag]) -> None:
    """What is inline only by its name, but has no partner or holds what is not inline, separates texts too."""
    n_separating = [0]
    for tag in tags:
        separates = tag.kind == "other" or (tag.kind != "text" and not tag.is_inline) or tag.is_copied
        n_separating.append(n_separating[-1] + separates)
    for place, tag in enumerate(tags):
        if tag.kind == "open" and tag.is_inline:
            end = tag.partner
            holds = end >= 0 and n_separating[end] - n_separating[place + 1] > 0
            if end < 0 or holds:
                tag.is_inline = False
                if end >= 0:
                    tags[end].is_inline = False
        elif tag.kind == "close" and tag.partner < 0:
            tag.is_inline = False


def _segments(tags: list[_Tag]) -> list[str | Segment]:
    out: list[str | Segment] = []
    text, roots, stack = "", list[Element](), list[Element]()
    place = 0

    def flush() -> None:
        nonlocal text, roots
        if text.strip():
            out.append(Segment(text, roots))
        else:
            out.append(html.escape(text, quote=False) if not roots else _emptied(text, roots))
        text, roots = "", []

    while place < len(tags):
        tag = tags[place]
        if tag.kind == "text":
            text += html.unescape(tag.raw)
        elif tag.is_inline and not tag.is_copied:
            if tag.kind == "close":
                stack.pop().end = len(text)
            else:
                closing = tags[tag.partner].raw if tag.kind == "open" else ""
                element = Element(tag.raw, closing, len(text), len(text))
                (stack[-1].children if stack else roots).append(element)
                if tag.kind == "open":
                    stack.append(element)
        else:
            flush()
            last = tag.partner if tag.is_copied and tag.kind == "open" and tag.partner > place else place
            out.append("".join(each.raw for each in tags[place : last + 1]))
            place = last
        place += 1
    flush()
    return [part for part in out if part != ""]


def _emptied(text: str, roots: Sequence[Element]) -> str:
    """The markup of elements around white space."""
    found, at = "", 0
    for element in roots:
        found += html.escape(text[at : element.start], quote=False) + element.opening
        inner = [
            Element(e.opening, e.closing, e.start - element.start, e.end - element.start, e.children)
            for e in element.children
        ]
        found += _emptied(text[element.start : element.end], inner) + element.closing
        at = element.end
    return found + html.escape(text[at:], quote=False)


def spans(tokens: Sequence[str], text: str) -> list[Span]:
    """The characters of `text` that each token of it stands for; an empty span for special tokens."""
    found, at = [], 0
    for token in tokens:
        surface = token.replace("\u2581", " ").replace("\u0120", " ").replace("</w>", "").strip()
        start = text.find(surface, at, at + len(surface) + 16) if surface else -1
        if start < 0:
            found.append((at, at))
        else:
            at = start + len(surface)
            found.append((start, at))
    return found


def words_of(text: str) -> list[Span]:
    return [match.span() for match in re.finditer(r"\S+", text)]


@dataclass(frozen=True)
class Attention:
    """What the words of a translation were translated from.

    weights [W, S]: of each word to each source token, their sum over the word's tokens. source: the characters of each
    source token, empty for special tokens.
    """

    weights: Floats
    source: Sequence[Span]

    def origin(self, word: int) -> int | None:
        """The source character that a word comes from, None where nothing says so."""
        if not self.weights[word].any():
            return None
        start, end = self.source[int(self.weights[word].argmax())]
        return (start + end - 1) // 2

    def mass(self, word: int, start: int, end: int) -> float:
        """The weight of a word on the source tokens that begin in [start, end)."""
        inside = [start <= a < end for a, _ in self.source]
        return float(self.weights[word][inside].sum())


def attention(words: Sequence[Span], target: Sequence[Span], source: Sequence[Span], alignment: Floats) -> Attention:
    """target: the span of each row of alignment [T, S]; source: the span of each column."""
    real = np.array([start < end for start, end in source], dtype=bool)
    weights = np.zeros((len(words), len(source)), np.float32)
    for word, (start, end) in enumerate(words):
        rows = [t for t, (a, b) in enumerate(target) if a < end and b > start and a < b]
        weights[word] = alignment[rows].sum(axis=0) * real
    return Attention(weights, source)


def place(segment: Segment, translation: str, looked: Attention) -> str:
    """The translation with the segment's elements. looked: of the words of the translation, as `attention` gives it."""
    words = words_of(translation)
    before: dict[int, list[str]] = {}
    after: dict[int, list[str]] = {}
    _arrange(segment.elements, (0, len(words)), looked, before, after)
    out, at = "", 0
    for number, (start, end) in enumerate(words):
        out += html.escape(translation[at:start], quote=False) + "".join(before.get(number, ()))
        out += html.escape(translation[start:end], quote=False) + "".join(after.get(number, ()))
        at = end
    return out + "".join(before.get(len(words), ())) + html.escape(translation[at:], quote=False)


def _arrange(
    elements: Sequence[Element],
    room: Span,
    looked: Attention,
    before: dict[int, list[str]],
    after: dict[int, list[str]],
) -> None:
    """Give each element its words within `room`, then those in it theirs. Elements beside each other share no word."""
    chosen: list[tuple[int, int, Element]] = []
    free = set(range(*room))
    origin = {n: looked.origin(n) for n in free}
    for element in elements:
        mine = {n for n in free if (o := origin[n]) is not None and element.start <= o < element.end}
        if not mine and element.start < element.end and free:  # the word that looks at it most
            masses = {n: looked.mass(n, element.start, element.end) for n in free}
            best = max(masses, key=lambda n: (masses[n], -n))
            mine = {best} if masses[best] > 0 else set()
        if mine:
            lo, hi = _longest_run(mine, free)
        else:
            following = [n for n in sorted(free) if (o := origin[n]) is not None and o >= element.start]
            lo = hi = following[0] if following else room[1]
        free -= set(range(lo, hi))
        chosen.append((lo, hi, element))
    for lo, hi, element in sorted(chosen, key=lambda item: item[:2]):
        if lo == hi:
            before.setdefault(lo, []).append(_emptied_of(element))
            continue
        before.setdefault(lo, []).append(element.opening)
        _arrange(element.children, (lo, hi), looked, before, after)
        after.setdefault(hi - 1, []).append(element.closing)


def _emptied_of(element: Element) -> str:
    return element.opening + "".join(map(_emptied_of, element.children)) + element.closing


def _longest_run(mine: set[int], free: set[int]) -> Span:
    """The stretch of free words that holds most of an element's; words between two of its words belong to it."""
    runs: list[list[int]] = []
    for word in sorted(mine):
        if runs and all(between in free for between in range(runs[-1][-1], word)):
            runs[-1].append(word)
        else:
            runs.append([word])
    best = max(runs, key=len)
    return best[0], best[-1] + 1
