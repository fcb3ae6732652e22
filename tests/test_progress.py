"""The progress of long work: lines every 10 seconds without a terminal, a bar with one."""

from __future__ import annotations

import io
import threading

import pytest

from s2s_export import progress
from s2s_export.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_line_says_how_much_is_done_and_how_long_it_takes(clock: Clock) -> None:
    shown = Progress("translating", 1000, clock=clock)
    assert shown.line() == "translating: 0 of 1,000, 0 s"
    clock.now = 20.0
    shown.advance(100, "5 sentences/s")
    assert shown.line() == "translating: 100 of 1,000, about 3 min 0 s left, 5 sentences/s"
    shown.advance(900)
    assert shown.line() is None, "nothing is under way"
    shown.advance(0, more=10)
    clock.now = 8000.0
    assert shown.line() == "translating: 1,000 of 1,010, about 1 min 20 s left, 5 sentences/s"


def test_what_an_earlier_run_did_does_not_count_for_the_time_that_is_left(clock: Clock) -> None:
    shown = Progress("training", 1000, clock=clock)
    shown.skip(900)
    clock.now = 10.0
    shown.advance(10)
    assert shown.line() == "training: 910 of 1,000, about 1 min 30 s left"


def test_a_stage_says_how_long_it_has_taken(clock: Clock) -> None:
    out = io.StringIO()
    shown = Progress(stream=out, clock=clock)
    assert shown.line() is None
    shown.stage("compile")
    clock.now = 4000.0
    assert shown.line() == "compile: 1 h 6 min"
    shown.stage("write")
    assert (shown.line(), out.getvalue()) == ("write: 0 s", "compile ...\nwrite ...\n")


def test_without_a_terminal_a_line_comes_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.02)
    said = threading.Event()

    class Out(io.StringIO):
        def write(self, text: str) -> int:
            found = super().write(text)
            if self.getvalue().count("\n") >= 2:
                said.set()
            return found

    out = Out()
    others = set(threading.enumerate())
    with Progress("exporting", stream=out):
        assert said.wait(5), "nothing was written although nobody advanced it"
    before = out.getvalue()
    assert set(before.splitlines()) == {"exporting: 0 s"}
    left = set(threading.enumerate()) - others
    assert not [thread for thread in left if thread.name == "s2s-progress"]


def test_on_a_terminal_a_bar_is_drawn_and_taken_away(clock: Clock) -> None:
    out = Terminal()
    with Progress("decoding", 4, stream=out, clock=clock) as shown:
        shown.advance(1)
        shown.note("a line that stays")
        clock.now = 1.0
        shown.advance(1)
    text = out.getvalue()
    assert "\r[######..................] decoding: 1 of 4" in text
    assert "\r\033[Ka line that stays\n" in text
    assert "\r[############............] decoding: 2 of 4, about 1 s left" in text
    assert text.endswith("\r\033[K")


def test_quiet_writes_nothing_and_a_closed_stream_is_no_failure() -> None:
    out = Terminal()
    with Progress("a", 2, quiet=True, stream=out) as shown:
        shown.advance(1)
        shown.note("b")
        shown.stage("c")
    assert out.getvalue() == ""
    out.close()
    with Progress("a", 2, stream=out) as shown:
        shown.advance(1)
        shown.note("b")
