"""Options and printing that commands share."""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import click

from ..engines import PORTABLE
from ..errors import printable

if TYPE_CHECKING:
    from ..runtime.session import Session

F = TypeVar("F", bound=Callable[..., Any])


class Interrupted(click.Abort):
    """Ctrl-C. The message says what was kept."""


def output_options(command: F) -> F:
    """--quiet, --json, --debug."""
    command = click.option("--debug", is_flag=True, expose_value=False, help="Show a traceback on failure.")(command)
    command = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")(command)
    return click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")(command)


def session_options(command: F) -> F:
    """--backend, --target, --threads, --batch-size. `worker_option` adds --workers."""
    for option in (
        click.option("--batch-size", type=click.IntRange(min=1), help="Sources that are decoded together."),
        click.option(
            "--threads",
            type=click.IntRange(min=1),
            help="CPU threads for each batch, up to the cores there are; by default at most 4.",
        ),
        click.option("--no-engines", "target", flag_value=PORTABLE, help="Run the portable graphs: target 'portable'."),
        click.option("--target", help="Which built engine of the bundle to use; see `s2s inspect`."),
        click.option(
            "--backend", default="auto", show_default=True, help="What executes the graphs; see `s2s doctor`."
        ),
    ):
        command = option(command)
    return command


def shortlist_option(command: F) -> F:
    """--shortlist/--no-shortlist."""
    text = "Consider only the tokens that `s2s shortlist` found: faster, but a few outputs may change.  [default: no]"
    return click.option("--shortlist/--no-shortlist", default=False, help=text)(command)


def search_option(command: F) -> F:
    """--search."""
    return click.option(
        "--search",
        default="auto",
        show_default=True,
        help="Where the search runs with a GPU: auto, device, host, or device-while, device-replay, device-queue.",
    )(command)


def worker_option(command: F) -> F:
    """--workers."""
    return click.option(
        "--workers",
        type=click.IntRange(min=1),
        help="Batches decoded in parallel, with shared weights. [default: one for each core, for a file or stdin]",
    )(command)


def print_json(value: Any) -> None:
    click.echo(printable(json.dumps(value, ensure_ascii=False)))


def tell(message: str, quiet: bool) -> None:
    """A line of progress on stderr."""
    if not quiet:
        click.echo(message, err=True)


def tell_choice(session: Session, backend: str, quiet: bool) -> None:
    """Report the backend that `auto` chose, and why the search runs on the host if a GPU runs the graphs."""
    tell(f"backend: {session.backend.name}", quiet or backend != "auto")
    if session.searcher.why:
        tell(f"search: on the host; {session.searcher.why}", quiet)


def _ignore(steps: int, text: str = "", more: int = 0) -> None:
    pass


@contextmanager
def bar(length: int, label: str, quiet: bool) -> Iterator[Callable[..., None]]:
    """A progress bar on stderr when it is a terminal; yields `advance(steps, label, more)`.

    more: by how many steps the total grows."""
    if quiet or not sys.stderr.isatty():
        yield _ignore
        return
    with click.progressbar(length=length, label=label, file=sys.stderr, width=30) as progress:

        def advance(steps: int, text: str = "", more: int = 0) -> None:
            progress.length = (progress.length or 0) + more
            if text:
                progress.label = text
            progress.update(steps)

        yield advance


@contextmanager
def writing(path: str | None) -> Iterator[None]:
    """What is printed inside goes to the file, line by line, so that it stays if the process is killed."""
    if path is None:
        yield
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", buffering=1) as file, redirect_stdout(file):
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
    """Text for a progress bar: a label, and sentences and tokens per second since the object was made."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._begin = time.perf_counter()
        self._n_sentences = self._n_tokens = 0

    def add(self, n_sentences: int, n_tokens: int) -> str:
        self._n_sentences += n_sentences
        self._n_tokens += n_tokens
        seconds = max(time.perf_counter() - self._begin, 1e-9)
        return f"{self._label} {self._n_sentences / seconds:.1f} sentences/s {self._n_tokens / seconds:.0f} tokens/s"
