"""`s2s encode`: flags and printing."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from ..bundle import POOLINGS
from ..errors import UsageError
from ..progress import Progress
from ._common import count_lines, output_options, session_options, tell, worker_option, writing
from ._help import USE, Command
from ._options import Name

if TYPE_CHECKING:
    from ..runtime.encoding.lines import Outcome


@click.command("encode", cls=Command, section=USE, short_help="Embeddings, labels: for encoders such as BERT.")
@click.argument("bundle", type=click.Path())
@click.argument("text", nargs=-1)
@click.option("--input", "input_file", type=click.File("rb"), help="Encode the lines of this file.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False),
    help="Write here what would go to standard output; FILE.npy: the embeddings as an array [texts, width].",
)
@click.option(
    "--pooling", type=Name(list(POOLINGS)), help="From tokens to one vector. [default: what the checkpoint says]"
)
@click.option("--normalize/--no-normalize", default=None, help="Vectors of length 1. [default: as the checkpoint says]")
@click.option("--prompt", help="Put this before every text, such as E5's 'query: '.")
@click.option("--prompt-name", help="The same, one of the bundle's prompts by its name; see `s2s inspect`.")
@click.option(
    "--pairs", is_flag=True, help="Two texts in each TEXT or line, with a tab between them, as rerankers read."
)
@click.option("--truncate", is_flag=True, help="Cut texts that are longer than the model allows.")
@session_options
@worker_option
@output_options
def command(
    bundle: str,
    text: tuple[str, ...],
    input_file: BinaryIO | None,
    output: str | None,
    pooling: str | None,
    normalize: bool | None,
    prompt: str | None,
    prompt_name: str | None,
    pairs: bool,
    truncate: bool,
    backend: str,
    target: str | None,
    threads: int | None,
    batch_size: int | None,
    workers: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Encode each TEXT, or each line of a file or of standard input, with BUNDLE. Output order is input order.

    Prints a line for each text: an embedding as a JSON list of numbers; a classifier's best label and its score; a
    token classifier's entities. --json prints an object for each text, with all labels and all tokens. A line that
    fails gives an empty line and a message on stderr; the others are encoded all the same, and the exit status is 1.
    """
    from ..runtime.cases import to_json
    from ..runtime.encoding import DEFAULT_BATCH_SIZE, load_encoder
    from ..runtime.encoding.lines import Settings, encode_lines, plain, record
    from ..runtime.results import open_lines

    if text and input_file is not None:
        raise UsageError("found TEXT and --input; expected one of them")
    is_array = output is not None and output.endswith(".npy")
    session = load_encoder(bundle, backend, target, threads, workers=workers or (1 if text else None))
    if session.head.task != "embedding":
        _refuse_for_labels(session.head.task, pooling, normalize, prompt, prompt_name, is_array)
    if pairs and (prompt is not None or prompt_name is not None):
        raise UsageError("--pairs gives two texts, before which nothing is put; leave out --prompt and --prompt-name")
    if is_array and as_json:
        raise UsageError("--output FILE.npy writes an array; leave out --json")
    tell(f"backend: {session.backend.name}, {session.engine}", quiet)
    settings = Settings(
        pooling, normalize, session.prompt(prompt, prompt_name), truncate, batch_size or DEFAULT_BATCH_SIZE, pairs
    )
    stdin = sys.stdin.buffer if input_file is None else input_file
    known = len(text) or count_lines(stdin)  # 0 for a pipe, whose lines are counted as they arrive
    lines: list[Outcome] = []
    failed = False
    file = None if output is None or is_array else open_lines(output)[0]
    is_shown = output is None and sys.stdout.isatty()  # what is printed there is progress enough
    with writing(file), Progress("encoding", known, quiet=quiet or is_shown) as progress:
        for number, line, outcome in encode_lines(session, _windows(text, stdin, session, settings), settings):
            progress.advance(1, more=0 if known else 1)
            if isinstance(outcome, str):
                failed = True
                tell(f"s2s: line {number + 1}: {outcome}", False)
            if is_array:
                lines.append(outcome)
            else:
                click.echo(to_json(record(session, line, outcome)) if as_json else plain(outcome))
    if is_array:
        assert output is not None
        _write_array(output, lines, session.width)
    if failed:
        raise click.exceptions.Exit(1)


def _refuse_for_labels(task: str, *given: Any) -> None:
    names = ("--pooling", "--normalize", "--prompt", "--prompt-name", "--output FILE.npy")
    if wrong := [name for name, value in zip(names, given, strict=True) if value not in (None, False)]:
        raise UsageError(f"{wrong[0]} is for embeddings, but the model is for {task.replace('_', ' ')}; leave it out")


def _windows(text: tuple[str, ...], stdin: BinaryIO, session: Any, settings: Any) -> Any:
    """Windows of the input, whose lines are encoded together."""
    from ._common import arriving

    if text:
        yield [*text]
        return
    from ..runtime.cases import WINDOW
    from ..runtime.text import without_end

    first = 0
    for lines in arriving(stdin, WINDOW * settings.batch_size * session.workers):
        yield [without_end(line, first + place) for place, line in enumerate(lines)]
        first += len(lines)


def _write_array(path: str, outcomes: list[Any], width: int) -> None:
    """[texts, width] float32; a text that failed is a row of NaN."""
    import numpy as np

    rows = np.full((len(outcomes), width), np.nan, np.float32)
    for row, outcome in zip(rows, outcomes, strict=True):
        if not isinstance(outcome, str):
            row[...] = outcome
    with open(path, "wb") as file:
        np.save(file, rows, allow_pickle=False)
