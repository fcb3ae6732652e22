"""How the tokenizers package fails where it did not expect to: with a panic.

A panic of its Rust code arrives in Python as a BaseException, so `except Exception` misses it, and before that it has
written lines of its own to stderr, which nothing can switch off. Here it becomes one of our errors; where a file is
opened and tried for the first time, its lines are kept off too.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from s2s_export.errors import InputError, S2SError, is_failure, shortened

_STDERR = 2
_LONGEST = 200  # characters of the library's own message
_one_at_a_time = threading.Lock()  # the file descriptor belongs to the whole process


@contextmanager
def as_input_error(doing: str) -> Iterator[None]:
    """Any failure inside that is none of ours is raised as InputError."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, S2SError) or not is_failure(error):
            raise
        raise InputError(
            f"the tokenizers library can't {doing} ({shortened(error, _LONGEST)}); leave this input out, or export the "
            "bundle again if others fail too"
        ) from error


@contextmanager
def unheard() -> Iterator[None]:
    """What is written to stderr meanwhile appears only if nothing fails."""
    with _one_at_a_time, tempfile.TemporaryFile() as held:
        try:
            kept = os.dup(_STDERR)
        except OSError:  # it is closed: nothing can be heard
            yield
            return
        os.dup2(held.fileno(), _STDERR)
        try:
            yield
        finally:
            os.dup2(kept, _STDERR)
            os.close(kept)
        held.seek(0)
        with suppress(OSError):
            os.write(_STDERR, held.read())
