"""Text of sound that is still coming: on a terminal as it becomes certain, elsewhere a line when it is whole."""

from __future__ import annotations

import json
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TextIO

import click

from ..errors import UsageError

if TYPE_CHECKING:
    from ..runtime.speech.live import Heard, Listener

MICROPHONE = "microphone:"  # as AUDIO; the device's number or name may follow
LIVE_FIELDS = ("id", "start", "end", "text", "words")  # what is known of sound that is still coming
FAINT, PLAIN, TO_END = "\033[2m", "\033[0m", "\033[K"


def is_live(audio: tuple[str, ...], stream: bool) -> bool:
    """Whether the sound is still coming. Raises UsageError for a microphone beside others or without --stream."""
    live = [name for name in audio if name.startswith(MICROPHONE)]
    if live and not stream:
        raise UsageError(f"{live[0]} never ends, so its text comes as it is spoken; add --stream")
    live += [name for name in audio if name == "-" and stream]
    if live and len(audio) > 1:
        raise UsageError(f"{live[0]} with --stream is sound that is still coming; give it alone")
    return bool(live)


def transcribe(listener: Listener, name: str, width: int | None = None, *, as_json: bool = False) -> bool:
    """Listens and prints until the sound ends or Ctrl-C. Returns whether it ended by itself.

    width: columns of the terminal, where not its own. as_json: a line of JSON for each segment, on a terminal too.
    """
    from ..runtime.audio import live

    is_terminal = sys.stdout.isatty() or width is not None
    show: Callable[[Heard], None] = Screen(sys.stdout, width).show if is_terminal else _print
    if as_json:
        show = Records().show
    blocks: Iterator[Any]
    if name.startswith(MICROPHONE):
        blocks = live.microphone(name.removeprefix(MICROPHONE) or None)
    else:
        blocks = live.ahead(live.pipe(sys.stdin.buffer))
    is_whole = True
    try:
        for block in blocks:
            for heard in listener.hear(block):
                show(heard)
    except KeyboardInterrupt:
        is_whole = False
    show(listener.finish())
    return is_whole


def _print(heard: Heard) -> None:
    for segment in heard.segments:
        click.echo(segment.text.strip())
    sys.stdout.flush()


class Records:
    """A line of JSON for each line that is whole: its number, its times in seconds, its text and its words."""

    def __init__(self) -> None:
        self._n = 0

    def show(self, heard: Heard) -> None:
        from ..runtime.speech.formats import describe

        for segment in heard.segments:
            known = describe(segment, self._n)
            self._n += 1
            click.echo(json.dumps({key: known[key] for key in LIVE_FIELDS if key in known}, ensure_ascii=False))
        sys.stdout.flush()


class Screen:
    """Certain words stay where they are written; tentative ones stand behind them, faint, until they are replaced.

    width: columns of the terminal; None to ask it.
    """

    def __init__(self, stream: TextIO, width: int | None = None) -> None:
        self._stream = stream
        self._width = width
        self._line = ""  # what is written of the present line
        self._column = 0  # where the certain text ends

    def show(self, heard: Heard) -> None:
        columns = self._width or shutil.get_terminal_size().columns
        self._stream.write(TO_END)  # the cursor stands behind the certain text
        for segment in heard.segments:
            self._add(segment.text.strip(), columns)
            self._stream.write("\n")
            self._line, self._column = "", 0
        self._add(heard.certain.strip(), columns)
        tentative = _cut(f"{' ' if self._column else ''}{heard.tentative.strip()}", columns - self._column - 1)
        if tentative.strip():
            self._stream.write(f"{FAINT}{tentative}{PLAIN}\033[{_columns(tentative)}D")
        self._stream.flush()

    def _add(self, text: str, columns: int) -> None:
        """Certain text: what is not written yet of this line, broken between words where the terminal ends."""
        if not text.startswith(self._line):  # does not happen: certain text only grows
            self._stream.write("\n")
            self._line, self._column = "", 0
        new, self._line = text[len(self._line) :], text
        for i, word in enumerate(new.split(" ")):
            spaced = f" {word}" if i else word
            if self._column and self._column + _columns(spaced) >= columns:
                self._stream.write("\n")
                spaced, self._column = word, 0
            self._stream.write(spaced)
            self._column += _columns(spaced)


def _columns(text: str) -> int:
    """Wide characters, such as Chinese ones, take two; combining ones none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _cut(text: str, columns: int) -> str:
    """What of the text fits."""
    while text and _columns(text) > columns:
        text = text[:-1]
    return text
