"""Options and printing that commands share."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from ..runtime.session import Session

F = TypeVar("F", bound=Callable[..., Any])


def output_options(command: F) -> F:
    """--quiet, --json, --debug."""
    command = click.option("--debug", is_flag=True, expose_value=False, help="Show a traceback on failure.")(command)
    command = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")(command)
    return click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")(command)


def session_options(command: F) -> F:
    """--backend, --target, --threads, --batch-size. `worker_option` adds --workers."""
    for option in (
        click.option("--batch-size", type=click.IntRange(min=1), help="Sources decoded side by side."),
        click.option("--threads", type=click.IntRange(min=1), help="Threads of one call."),
        click.option("--target", help="Which built engine of the bundle to use; see `s2s inspect`."),
        click.option(
            "--backend", default="auto", show_default=True, help="What executes the graphs; see `s2s doctor`."
        ),
    ):
        command = option(command)
    return command


def shortlist_option(command: F) -> F:
    """--shortlist/--no-shortlist."""
    text = "Choose from the tokens that `s2s shortlist` found: faster, and a few outputs may change.  [default: no]"
    return click.option("--shortlist/--no-shortlist", default=False, help=text)(command)


def search_option(command: F) -> F:
    """--search."""
    return click.option(
        "--search",
        default="auto",
        show_default=True,
        help="Where the search runs on a GPU: device, host, or device-while, device-replay, device-queue.",
    )(command)


def worker_option(command: F) -> F:
    """--workers."""
    return click.option(
        "--workers",
        type=click.IntRange(min=1),
        help="Batches decoded side by side, sharing the weights; by default one a core for a file or stdin.",
    )(command)


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, ensure_ascii=False))


def tell(message: str, quiet: bool) -> None:
    """A line of progress on stderr."""
    if not quiet:
        click.echo(message, err=True)


def tell_choice(session: Session, backend: str, quiet: bool) -> None:
    """Which backend `auto` took, and why a GPU's search runs on the host, where it does."""
    tell(f"backend: {session.backend.name}", quiet or backend != "auto")
    if session.searcher.why:
        tell(f"search: on the host; {session.searcher.why}", quiet)


def _ignore(steps: int, text: str = "") -> None:
    pass


@contextmanager
def bar(length: int, label: str, quiet: bool) -> Iterator[Callable[[int, str], None]]:
    """A progress bar on stderr when it is a terminal; yields `advance(steps, label)`."""
    if quiet or not sys.stderr.isatty():
        yield _ignore
        return
    with click.progressbar(length=length, label=label, file=sys.stderr, width=30) as progress:

        def advance(steps: int, text: str = "") -> None:
            if text:
                progress.label = text
            progress.update(steps)

        yield advance


class Rate:
    """Words for a progress bar: what is done, and sentences and tokens a second since it was made."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._begin = time.perf_counter()
        self._n_sentences = self._n_tokens = 0

    def add(self, n_sentences: int, n_tokens: int) -> str:
        self._n_sentences += n_sentences
        self._n_tokens += n_tokens
        seconds = max(time.perf_counter() - self._begin, 1e-9)
        return f"{self._label} {self._n_sentences / seconds:.1f} sentences/s {self._n_tokens / seconds:.0f} tokens/s"
