"""Options and printing that commands share."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from itertools import islice
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO, TypeVar

import click

from ..engines import PORTABLE
from ..errors import printable
from ._help import ENGINE, REPORTING, option

if TYPE_CHECKING:
    from ..runtime.session import Session

F = TypeVar("F", bound=Callable[..., Any])


class Interrupted(click.Abort):
    """Ctrl-C. The message says what was kept."""


def output_options(command: F) -> F:
    """--quiet, --json, --debug."""
    command = option(
        "--debug", section=REPORTING, is_flag=True, expose_value=False, help="Show a traceback on failure."
    )(command)
    command = option("--json", "as_json", section=REPORTING, is_flag=True, help="Print the result as one JSON object.")(
        command
    )
    return option("--quiet", "-q", section=REPORTING, is_flag=True, help="No progress on stderr.")(command)


def session_options(command: F) -> F:
    """--backend, --target, --threads, --batch-size. `worker_option` adds --workers."""
    for one in (
        option("--batch-size", section=ENGINE, type=click.IntRange(min=1), help="Sources that are decoded together."),
        option(
            "--threads",
            section=ENGINE,
            type=click.IntRange(min=1),
            help="CPU threads for each batch, up to the cores there are; by default at most 4.",
        ),
        option(
            "--no-engines",
            "target",
            section=ENGINE,
            flag_value=PORTABLE,
            help="Run the portable graphs: target 'portable'.",
        ),
        option(
            "--target",
            section=ENGINE,
            help="Which built engine of the bundle to use; see `s2s inspect`. [default: a GPU's only engine where that "
            "GPU works; else cpu-fp32 if it is built, else the portable graphs]",
        ),
        option(
            "--backend",
            section=ENGINE,
            default="auto",
            show_default=True,
            help="What executes the graphs; auto is the first in the list of `s2s doctor` that works here.",
        ),
    ):
        command = one(command)
    return command


def shortlist_option(command: F) -> F:
    """--shortlist/--no-shortlist."""
    text = "Consider only the tokens that `s2s shortlist` found: faster, but a few outputs may change.  [default: no]"
    return option("--shortlist/--no-shortlist", section=ENGINE, default=False, help=text)(command)


def search_option(command: F) -> F:
    """--search."""
    return option(
        "--search",
        section=ENGINE,
        default="auto",
        show_default=True,
        help="Where the search runs with a GPU: auto, device, host, or device-while, device-replay, device-queue.",
    )(command)


def worker_option(command: F) -> F:
    """--workers."""
    return option(
        "--workers",
        section=ENGINE,
        type=click.IntRange(min=1),
        help="Batches decoded in parallel, with shared weights. [default: one for each core, for a file or stdin]",
    )(command)


def print_json(value: Any) -> None:
    click.echo(printable(json.dumps(value, ensure_ascii=False)))


def tell(message: str, quiet: bool) -> None:
    """A line of progress on stderr."""
    if not quiet:
        click.echo(message, err=True)


def tell_choice(session: Session, backend: str, quiet: bool, target: str | None = None) -> None:
    """Report what runs: the backend, the engine and its precision, what `auto` passed over although this machine has
    it, and why the search runs on the host if a GPU runs the graphs. backend, target: as the user gave them."""
    tell(f"backend: {session.backend.name}, {session.engine}", quiet)
    if backend == "auto" and target is None:
        for reason in session.passed_over():
            tell(f"not taken: {reason}", quiet)
    if session.searcher.why:
        tell(f"search: on the host; {session.searcher.why}", quiet)


def count_lines(stream: BinaryIO) -> int:
    """How many lines are left in a file; 0 for a pipe or a terminal, which can't be read twice."""
    if not stream.seekable():
        return 0
    begin, n_lines, last = stream.tell(), 0, b"\n"
    while block := stream.read(1 << 20):
        n_lines, last = n_lines + block.count(b"\n"), block[-1:]
    stream.seek(begin)
    return n_lines + (last != b"\n")


@contextmanager
def writing(file: TextIO | None) -> Iterator[None]:
    """What is printed inside goes to the file, line by line, so that it stays if the process is killed."""
    if file is None:
        yield
        return
    with file, redirect_stdout(file):
        yield


PAUSE = 0.05  # seconds to wait for another line before the lines so far are processed


def arriving(stream: BinaryIO, most: int) -> Iterator[list[bytes]]:
    """The lines of a stream, `most` at a time; fewer if the writer of a pipe pauses."""
    if stream.seekable():  # a file: there is no writer to wait for
        while lines := list(islice(stream, most)):
            yield lines
        return
    arrived: queue.Queue[bytes | BaseException | None] = queue.Queue(maxsize=2 * most)

    def read() -> None:
        try:
            for line in stream:
                arrived.put(line)
            arrived.put(None)
        except BaseException as error:
            arrived.put(error)

    threading.Thread(target=read, name="s2s-lines", daemon=True).start()
    lines = []
    while True:
        try:
            item = arrived.get(timeout=PAUSE if lines else None)
        except queue.Empty:
            item = b""
        if isinstance(item, bytes) and item:
            lines.append(item)
            if len(lines) < most:
                continue
        if lines:
            yield lines
            lines = []
        if isinstance(item, BaseException):
            raise item
        if item is None:
            return


class Rate:
    """Sentences and tokens per second since the object was made, as text for a progress bar."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        self._n_sentences = self._n_tokens = 0

    def add(self, n_sentences: int, n_tokens: int) -> str:
        self._n_sentences += n_sentences
        self._n_tokens += n_tokens
        seconds = max(time.perf_counter() - self._begin, 1e-9)
        return f"{self._n_sentences / seconds:.1f} sentences/s, {self._n_tokens / seconds:.0f} tokens/s"
