"""The progress of long work, in one form everywhere: a bar on a terminal, elsewhere a line every 10 seconds.

    with Progress("translating", total=5000) as progress:
        progress.advance(32, "240 tokens/s")
        progress.note("a line of its own")

Counted work (`total` or `more`) shows how much is done and the time that is left; stages show their name and how long
they have taken. A thread writes, so that a stage that takes long is seen to be alive. What ends within 10 seconds
writes nothing but its notes where there is no terminal.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import TextIO

EVERY = 10.0  # seconds between lines, where there is no terminal
REDRAW = 0.5  # seconds between drawings of a bar that nobody advances
QUICKEST = 0.05  # seconds between drawings of one that is advanced
WIDTH = 24  # characters of the bar


class Progress:
    """Use it as a context manager. Safe to call from several threads.

    label: what is done. total: of the steps, where they are counted. stream: None is standard error as it is when
    something is written. quiet: nothing is written, notes neither.
    """

    def __init__(
        self,
        label: str = "",
        total: int = 0,
        *,
        quiet: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._label, self._total, self._quiet, self._stream, self._clock = label, total, quiet, stream, clock
        self._done = self._skipped = 0
        self._text = ""
        self._began = self._stage_began = clock()
        self._drawn_at = -QUICKEST
        self._is_drawn = False
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Progress:
        self._began = self._stage_began = self._clock()
        if not self._quiet:
            self._thread = threading.Thread(target=self._beat, name="s2s-progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar away and write nothing more."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(timeout=1.0)
            self._thread = None
        with self._lock:
            self._clear()

    def advance(self, steps: int, text: str = "", more: int = 0) -> None:
        """steps: that were done. text: shown beside the count, such as a rate. more: by how many the total grows."""
        with self._lock:
            self._done += steps
            self._total += more
            self._text = text or self._text
            if self._clock() - self._drawn_at >= QUICKEST:
                self._draw()

    def skip(self, steps: int, more: int = 0) -> None:
        """Steps that an earlier run did: they count as done, and not for the time that is left. more: as above."""
        with self._lock:
            self._total += more
            self._done += steps
            self._skipped += steps

    def stage(self, name: str) -> None:
        """The next stage, which is noted as it begins."""
        self.note(f"{name} ...")
        self.rename(name)

    def rename(self, label: str) -> None:
        """Another label, without a note."""
        with self._lock:
            self._label, self._text, self._stage_began = label, "", self._clock()
            self._draw()

    def note(self, text: str) -> None:
        """A line that stays."""
        if self._quiet:
            return
        with self._lock:
            self._clear()
            self._write(text + "\n")
            self._draw()

    def line(self) -> str | None:
        """What is known now, in one line; None where nothing is under way: all that is known of is done."""
        with self._lock:
            now = self._clock()
            if not self._total:
                return f"{self._label}: {_time(now - self._stage_began)}" if self._label else None
            if self._done >= self._total:
                return None
            own = self._done - self._skipped
            if own > 0:
                time_ = f"about {_time((now - self._began) / own * (self._total - self._done))} left"
            else:
                time_ = _time(now - self._began)
            parts = [f"{self._done:,} of {self._total:,}", time_, self._text]
            return f"{self._label}: {', '.join(filter(None, parts))}"

    def _beat(self) -> None:
        said_at = self._clock()
        while not self._ended.wait(REDRAW if self._is_terminal() else EVERY):
            with self._lock:
                if self._ended.is_set():
                    return
                if self._is_terminal():
                    self._draw()
                elif (text := self.line()) is not None and self._clock() - said_at >= EVERY / 2:
                    said_at = self._clock()
                    self._write(text + "\n")

    def _draw(self) -> None:
        if self._quiet or self._ended.is_set() or not self._is_terminal() or (text := self.line()) is None:
            return
        if self._total:
            full = WIDTH * min(self._done, self._total) // self._total
            text = f"[{'#' * full}{'.' * (WIDTH - full)}] {text}"
        columns = shutil.get_terminal_size().columns
        self._write(f"\r{text[: columns - 1]}\033[K")
        self._drawn_at, self._is_drawn = self._clock(), True

    def _clear(self) -> None:
        if self._is_drawn:
            self._write("\r\033[K")
            self._is_drawn = False

    def _is_terminal(self) -> bool:
        with suppress(OSError, ValueError):  # a stream that was closed
            return (self._stream or sys.stderr).isatty()
        return False

    def _write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # closed or full: progress is no reason to fail
            stream = self._stream or sys.stderr
            stream.write(text)
            stream.flush()


def _time(seconds: float) -> str:
    """A duration in words: 8 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
