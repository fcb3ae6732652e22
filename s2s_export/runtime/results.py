"""The files to which results are appended line by line, and which --resume continues.

Line n of the file of `s2s generate` is the result of line n of the input. If a killed run left an incomplete last line,
it is removed, and so is a last line that is not JSON (a power cut may leave zeros). `s2s translate` writes text, so
many lines for each line of the input.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TextIO

from ..errors import InvalidOption
from .cases import to_json


class Results:
    """An open file of results; `path` may be a link, a pipe or a device, or "-" for standard output.

    done: the results that the file had. Raises InvalidOption if they belong to another input, and OSError.
    """

    def __init__(self, path: str, ids: Sequence[Any] | None = None) -> None:
        """ids: the ids of the input's lines, to continue the file; None begins a new one."""
        self.path = Path(path)
        self.done: list[dict[str, Any]] = []
        if path == "-":
            self._file: BinaryIO = sys.stdout.buffer
            return
        if self.path.parent != Path():
            self.path.parent.mkdir(parents=True, exist_ok=True)
        if ids is not None and self.path.exists():
            if not self.path.is_file():
                raise InvalidOption(f"{path}: is not a file; expected one that an earlier run left; leave out --resume")
            self._go_on(ids)
        else:
            self._file = self.path.open("wb")

    def _go_on(self, ids: Sequence[Any]) -> None:
        self._file = self.path.open("r+b")
        try:
            raw = self._file.read()
            self.done, length = self._read(raw, ids)
            self._file.truncate(length)
            self._file.seek(length)
        except BaseException:
            self._file.close()
            raise

    def _read(self, raw: bytes, ids: Sequence[Any]) -> tuple[list[dict[str, Any]], int]:
        """The complete results, and how many bytes they take."""
        lines = raw.split(b"\n")[:-1]
        done: list[dict[str, Any]] = []
        length = 0
        for number, line in enumerate(lines, 1):
            result = _parse(line)
            if result is None:
                if number == len(lines) and done:
                    break
                raise self._foreign(number, "is no result", "what `s2s generate` writes")
            if number > len(ids):
                raise self._foreign(number, "is there", f"no more lines than the input's {len(ids)}")
            if not _equal(result["id"], ids[number - 1]):
                raise self._foreign(number, f"has the id {result['id']!r}", f"the input's, {ids[number - 1]!r}")
            done.append(result)
            length += len(line) + 1
        return done, length

    def _foreign(self, number: int, found: str, expected: str) -> InvalidOption:
        return InvalidOption(
            f"{self.path}: line {number} {found}, expected {expected}; it is not of this work: leave out --resume to "
            "begin anew, or name another file"
        )

    def write(self, result: dict[str, Any]) -> None:
        """Write one line. It is passed to the system at once, so it stays even if the process is killed later."""
        try:
            self._file.write(to_json(result).encode("utf-8") + b"\n")
            self._file.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def __enter__(self) -> Results:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is sys.stdout.buffer:
            return
        try:
            self._file.close()
        except OSError:
            if error is None:
                raise


def open_lines(path: str, n_each: int | None = None) -> tuple[TextIO, int]:
    """A file for lines of text, and for how many lines of the input it holds the output already.

    n_each: to continue the file, how many lines each line of the input gives; None begins a new one. An output that a
    killed run left incomplete is removed. Lines are passed to the system at once. Raises OSError.
    """
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    n_done = 0
    if n_each is not None and place.exists():
        if not place.is_file():
            raise InvalidOption(f"{path}: is not a file; expected one that an earlier run left; leave out --resume")
        with place.open("r+b") as file:
            lines = file.read().split(b"\n")[:-1]
            n_done = len(lines) // n_each
            file.truncate(sum(len(line) + 1 for line in lines[: n_done * n_each]))
    raw = place.open("wb" if n_each is None else "ab")
    return io.TextIOWrapper(raw, encoding="utf-8", newline="\n", line_buffering=True), n_done


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        result = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(result, dict) or "id" not in result or not ("outputs" in result or "error" in result):
        return None
    return result


def _equal(a: Any, b: Any) -> bool:
    """Whether two ids are the same; 1, 1.0 and true are three different ids."""
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
