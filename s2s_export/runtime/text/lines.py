"""The lines of a text file or of standard input, as every command reads them.

A byte-order mark at the beginning (Windows editors write one) is no part of the text: left in, it would stand before a
language token and change the whole translation. A line ends with LF or CR LF; the last may end with the file. No other
character ends one: U+2028 or a form feed stay in the text that they are in. Lines are bytes, so that one which is not
UTF-8 costs no other; `from_utf8` decodes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_lines(stream: Iterable[bytes]) -> Iterator[bytes]:
    """Each line of a binary stream without its end, as it comes."""
    for number, line in enumerate(stream):
        yield without_end(line, number)


def without_end(line: bytes, number: int) -> bytes:
    """The line that has this number, the first being 0, without its end and the byte-order mark."""
    line = line.removesuffix(b"\n").removesuffix(b"\r")
    return line if number else line.removeprefix(BYTE_ORDER_MARK)


def lines_of(path: Path) -> list[bytes]:
    """All lines of a file. Raises OSError."""
    with path.open("rb") as file:
        return list(read_lines(file))
