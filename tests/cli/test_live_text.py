"""What `s2s transcribe --stream` shows of sound that is still coming."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest

from s2s_export.cli._live import Screen, is_live
from s2s_export.errors import UsageError
from s2s_export.runtime.speech.live import Heard
from s2s_export.runtime.speech.segments import Segment

CODES = re.compile(r"\033\[(\d*)([KDm])|([^\033])")


def shown(written: str, width: int) -> tuple[list[str], str]:
    """The rows of a terminal, and what of them is faint."""
    rows: list[list[tuple[str, bool]]] = [[]]
    row = column = 0
    is_faint = False
    for number, code, character in CODES.findall(written):
        if code == "K":
            del rows[row][column:]
        elif code == "D":
            column -= int(number)
        elif code == "m":
            is_faint = number == "2"
        elif character == "\n":
            rows.append([])
            row, column = row + 1, 0
        else:
            rows[row][column:] = [(character, is_faint)]
            column += 1
        assert column < width, "the terminal would go on in the next row"
    return ["".join(c for c, _ in line) for line in rows], "".join(c for line in rows for c, faint in line if faint)


def line(text: str) -> Segment:
    return Segment(0, 1, (), text=text)


def test_tentative_words_are_replaced() -> None:
    stream = io.StringIO()
    screen = Screen(stream, 40)
    screen.show(Heard((), "", " And so my fell", 1.0))
    assert shown(stream.getvalue(), 40) == (["And so my fell"], "And so my fell")
    screen.show(Heard((), " And so", " my fellow Americans ask not what you", 2.0))
    assert shown(stream.getvalue(), 40) == (
        ["And so my fellow Americans ask not what"],
        " my fellow Americans ask not what",
    )
    screen.show(Heard((line(" And so my fellow Americans."),), " Ask", " not", 3.0))
    assert shown(stream.getvalue(), 40) == (["And so my fellow Americans.", "Ask not"], " not")
    screen.show(Heard((line(" Ask not."), line(" Well.")), "", "", 4.0))
    assert shown(stream.getvalue(), 40) == (["And so my fellow Americans.", "Ask not.", "Well.", ""], "")


def test_certain_words_are_broken_where_the_terminal_ends() -> None:
    stream = io.StringIO()
    screen = Screen(stream, 12)
    for certain in (" one two", " one two three", " one two three four five"):
        screen.show(Heard((), certain, " six seven", 1.0))
    assert shown(stream.getvalue(), 12) == (["one two", "three four", "five six se"], " six se")


@pytest.mark.parametrize(
    ("audio", "stream", "message"),
    [(("microphone:",), False, "add --stream"), (("-", "a.wav"), True, "give it alone")],
)
def test_wrong_uses(audio: Any, stream: bool, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        is_live(audio, stream)


def test_files_are_not_live() -> None:
    assert not is_live(("a.wav", "-"), False) and not is_live(("a.wav", "b.wav"), True)
    assert is_live(("-",), True) and is_live(("microphone:2",), True)
