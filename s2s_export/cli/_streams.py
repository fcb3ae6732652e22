"""Standard streams that cause trouble: closed ones, pipes whose reader is gone, encodings that lack characters."""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO

from ..errors import S2SError


class Closed(io.RawIOBase):
    """Replaces a stream that was closed before this process began; using it raises an error that says so."""

    def __init__(self, name: str) -> None:
        self._name = name

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        raise self._error()

    def write(self, data: object) -> int:
        raise self._error()

    def _error(self) -> S2SError:
        return S2SError(f"standard {self._name} is closed; open it, or redirect it to a file or to /dev/null")


def make_safe() -> None:
    """Make the three standard streams open, and let output use UTF-8, so that no character makes writing fail.

    If a stream is closed, the next file that is opened would get its number, and what a library prints would be written
    to that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            _occupy(number)
            setattr(sys, name, _stand_in(name))
        elif name != "stdin" and hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def _occupy(number: int) -> None:
    try:
        os.fstat(number)
    except OSError:
        nowhere = os.open(os.devnull, os.O_RDWR)
        if nowhere != number:
            os.dup2(nowhere, number)
            os.close(nowhere)


def _stand_in(name: str) -> io.TextIOWrapper:
    if name == "stderr":  # there is nowhere to report it
        return open(os.devnull, "w", encoding="utf-8")
    raw = Closed({"stdin": "input", "stdout": "output"}[name])
    if name == "stdin":
        return io.TextIOWrapper(io.BufferedReader(raw), encoding="utf-8")
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", write_through=True)


def finish() -> bool:
    """Flush the output streams; returns whether that worked. If not, the interpreter won't try again when it exits."""
    well = True
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, S2SError):
            well = False
            _let_go(stream)
    return well


def _let_go(stream: TextIO) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, stream.fileno())
    except (OSError, ValueError):
        name = "stdout" if stream is sys.stdout else "stderr"
        setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    finally:
        os.close(nowhere)
