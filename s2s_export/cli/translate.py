"""`s2s translate`: flags and printing."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from ..errors import UsageError, explain, is_failure
from ..progress import Progress
from ._common import (
    Rate,
    arriving,
    count_lines,
    output_options,
    search_option,
    session_options,
    shortlist_option,
    tell,
    tell_choice,
    worker_option,
    writing,
)
from ._help import USE, Command
from ._options import further_options, generation_options, named
from ._search_options import ensemble_options, finishing_of, search_options
from ._shards import shard_option

if TYPE_CHECKING:
    from ..runtime.cases import Outcome
    from ..runtime.decoding import GenerationOptions
    from ..runtime.finishing import Finishing
    from ..runtime.session import Session
    from ..runtime.sharding import Shard


@click.command("translate", cls=Command, section=USE, short_help="Translate text.")
@click.argument("bundle", type=click.Path())
@click.argument("text", nargs=-1)
@click.option("--input", "input_file", type=click.File("rb"), help="Translate the lines of this file.")
@click.option("--output", type=click.Path(dir_okay=False), help="Write here what would go to standard output.")
@click.option("--resume", is_flag=True, help="Continue an interrupted run: keep what --output holds, add the rest.")
@shard_option
@session_options
@worker_option
@search_option
@shortlist_option
@generation_options
@search_options
@further_options
@ensemble_options
@click.option("--source-lang", help="Language of the source, for models with several.")
@click.option("--target-lang", help="Language to translate into, for models with several.")
@click.option("--template", help="Make a prompt of each text: 'chat', the checkpoint's, or a text with {text} in it.")
@click.option("--truncate", is_flag=True, help="Cut sources that are longer than the model allows.")
@click.option("--scores", is_flag=True, help="Print each hypothesis's score before it.")
@click.option(
    "--alignments",
    type=click.Path(dir_okay=False),
    help="Write alignments: a .json file of all texts, or a .png, .svg or .pdf heat map of the first.",
)
@click.option(
    "--alignment-layer", type=int, help="Decoder layer of the alignments, from 0; -1 is the last. [default: -1]"
)
@click.option("--alignment-head", type=int, help="Attention head of the alignments, from 0. [default: mean of all]")
@click.option("--stream", is_flag=True, help="Print pieces of text as soon as they are final.")
@output_options
def command(
    bundle: str,
    text: tuple[str, ...],
    input_file: BinaryIO | None,
    output: str | None,
    resume: bool,
    shard: Shard | None,
    backend: str,
    target: str | None,
    threads: int | None,
    batch_size: int | None,
    workers: int | None,
    search: str,
    shortlist: bool,
    source_lang: str | None,
    target_lang: str | None,
    template: str | None,
    truncate: bool,
    scores: bool,
    alignments: str | None,
    alignment_layer: int | None,
    alignment_head: int | None,
    stream: bool,
    ensemble: tuple[str, ...],
    ensemble_average: str,
    further: tuple[str, ...],
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Translate each TEXT, or each line of a file or of standard input, with BUNDLE. Output order is input order.

    With --num-return-sequences N every source gives N lines, best first. A blank line gives a blank line. A line that
    fails (too long, not UTF-8) gives an empty line and a message on stderr; the other lines are translated all the
    same, and the exit status is 1.
    """
    from ..runtime.alignments import Chosen, check_path, write_alignments
    from ..runtime.cases import finished, read_sources, window_size
    from ..runtime.results import open_lines
    from ..runtime.scheduling import DEFAULT_BATCH_SIZE
    from ..runtime.session import load

    attention = Chosen(alignment_layer, alignment_head)
    if alignments:
        check_path(alignments)
    elif attention != Chosen():
        raise UsageError("--alignment-layer and --alignment-head choose what --alignments FILE writes; give it too")
    if text and input_file is not None:
        raise UsageError("found TEXT and --input; expected one of them")
    if resume or shard is not None:
        _check_parts(input_file, output, resume, alignments, stream)
    for given_text in text:
        if is_a_file(given_text):
            tell(f"'{given_text}' is translated as a text; for the lines of that file: --input {given_text}", quiet)
    if stream and (as_json or alignments):
        raise UsageError("--stream prints text while it is decoded; leave out --json and --alignments")
    one_by_one = bool(text) or stream  # a text on the command line gets all cores
    n_workers = workers or (1 if one_by_one else None)
    session = load(
        bundle,
        backend,
        target,
        threads,
        workers=n_workers,
        shortlist=shortlist,
        search=search,
        ensemble=ensemble,
        ensemble_average=ensemble_average,
    )
    tell_choice(session, backend, quiet, target)
    languages = {"source_lang": source_lang, "target_lang": target_lang, "template": template}
    finishing = finishing_of(options, session, stream=stream)
    chosen = session.options(target_lang=target_lang, **named(further, options))
    if stream and chosen.num_return_sequences > 1:
        raise UsageError("--stream prints only the best hypothesis; leave out --num-return-sequences")
    batch_size = batch_size or DEFAULT_BATCH_SIZE
    # A blank line gives as many lines of output as the others, and so does one that fails.
    n_each = 1 if stream or as_json else chosen.num_return_sequences
    file, n_done = (None, 0)
    if output is not None:
        file, n_done = open_lines(output if shard is None else shard.part(output), n_each if resume else None)
    size = 1 if stream else window_size(session, batch_size)
    if resume or shard is not None:
        assert input_file is not None
        part = _part(input_file, shard)
        if n_done > len(part):
            raise UsageError(
                f"{output} holds the output of {n_done} lines, but there are {len(part)} to translate; it is not of "
                "this work: leave out --resume to begin anew, or name another file"
            )
        tell(f"continuing after {n_done} of {len(part)} lines", quiet or not resume)
        known = len(part) - n_done
        windows = _windows_of(input_file, part[n_done:], size)
    else:
        stdin = sys.stdin.buffer if input_file is None else input_file
        known = len(text) or count_lines(stdin)  # 0 for a pipe, whose lines are counted as they arrive
        windows = _windows(text, stdin, size)
    printer = Printer(session, as_json, scores, n_blank=0 if stream else n_each, finishing=finishing)
    wants_alignments = attention.wanted if alignments else finishing.wants_alignments
    aligned: list[tuple[list[int], list[Any]]] = []
    rate = Rate()
    is_shown = output is None and sys.stdout.isatty()  # what is printed there is progress enough
    with writing(file), Progress("translating", known, quiet=quiet or is_shown) as progress:
        for first, lines, n_known in windows:
            progress.advance(0, more=0 if known else n_known)
            sources, failures = read_sources(session, lines, truncate=truncate, **languages)
            if stream:
                outcomes = _stream(session, sources[0], failures.get(0), chosen)
            else:
                outcomes = _outcomes(session, sources, failures, chosen, batch_size, first, wants_alignments)
            for place, outcome in outcomes:
                outcome = finished(session, finishing, _shown(lines[place]), sources[place], outcome)
                printer.print(first + place, lines[place], outcome)
                n_tokens = len(outcome[0].token_ids) if outcome and not isinstance(outcome, str) else 0
                progress.advance(1, rate.add(1, n_tokens))
                if alignments and outcome and not isinstance(outcome, str):
                    aligned.append((sources[place], outcome))
    if alignments:
        write_alignments(
            alignments, session, [source for source, _ in aligned], [found for _, found in aligned], attention
        )
    if printer.n_failed:
        raise click.exceptions.Exit(1)


def is_a_file(text: str) -> bool:
    """Whether a text on the command line is also the name of a file."""
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a name, or with a NUL
        return False


def _check_parts(
    input_file: BinaryIO | None, output: str | None, resume: bool, alignments: str | None, stream: bool
) -> None:
    """Raises UsageError where work can't be done in parts."""
    name = "--resume" if resume else "--shard"
    if input_file is None or output is None:
        raise UsageError(f"{name} is of the lines of a file; give --input and --output")
    if not input_file.seekable():
        raise UsageError(f"{name} needs to know how many lines there are; give --input a file that is no pipe")
    if alignments or stream:
        raise UsageError(f"{name} writes text; leave out --alignments and --stream")


def _part(file: BinaryIO, shard: Shard | None) -> range:
    """The lines of a file that are to be translated."""
    n_lines = sum(1 for _ in file)
    file.seek(0)
    return range(n_lines) if shard is None else shard.of_items(n_lines)


def _windows_of(file: BinaryIO, part: range, size: int) -> Iterator[tuple[int, list[str | bytes], int]]:
    """Like `_windows`, of these lines of a file."""
    from ..runtime.text import without_end

    chosen = itertools.islice(file, part.start, part.stop)
    for first in range(part.start, part.stop, size):
        lines = list(itertools.islice(chosen, size))
        yield first, [without_end(line, first + place) for place, line in enumerate(lines)], len(lines)


def _windows(text: tuple[str, ...], stdin: BinaryIO, size: int) -> Iterator[tuple[int, list[str | bytes], int]]:
    """Windows of the input: the number of the first line, the lines, and by how many the total known so far grows.

    A window ends when it is full or, for input that is typed or piped slowly, when no further line has arrived yet.
    """
    if text:
        for first in range(0, len(text), size):
            yield first, [*text[first : first + size]], 0
        return
    from ..runtime.text import without_end

    first = 0
    for lines in arriving(stdin, size):
        yield first, [without_end(line, first + place) for place, line in enumerate(lines)], len(lines)
        first += len(lines)


def _outcomes(
    session: Session,
    sources: list[list[int]],
    failures: dict[int, str],
    options: GenerationOptions,
    batch_size: int,
    first: int,
    alignments: bool | str,
) -> Iterator[tuple[int, Outcome]]:
    """The outcome of each line of a window, in order, once it and all before it are ready; [] for a blank line."""
    from ..runtime.cases import decode_each

    good = [place for place, source in enumerate(sources) if source]
    done: dict[int, Outcome] = {place: [] for place, source in enumerate(sources) if not source}
    done |= failures
    shown = 0
    found = decode_each(
        session,
        [sources[place] for place in good],
        options,
        batch_size=batch_size,
        alignments=alignments,
        source_numbers=[first + place for place in good],
    )
    for index, outcome in found:
        done[good[index]] = outcome
        while shown in done:
            yield shown, done.pop(shown)
            shown += 1
    while shown in done:
        yield shown, done.pop(shown)
        shown += 1


def _stream(
    session: Session, source: list[int], failure: str | None, options: GenerationOptions
) -> Iterator[tuple[int, Outcome]]:
    """Print one line's output piece by piece. Yields its outcome, which is empty or the failure."""
    if failure is not None:
        yield 0, failure
        return
    parts = session.stream_ids(source, options) if source else iter(())
    while True:
        try:
            part = next(parts, None)
        except BaseException as error:
            if not is_failure(error):
                raise
            yield 0, explain(error)
            return
        if part is None:
            break
        click.echo(part, nl=False)
    click.echo()
    yield 0, []


class Printer:
    """Prints the outcome of each line: its hypotheses, or an empty line and a message on stderr."""

    def __init__(self, session: Session, as_json: bool, scores: bool, n_blank: int, finishing: Finishing) -> None:
        """n_blank: how many empty lines to print for a blank line."""
        self._session, self._as_json, self._scores, self._n_blank = session, as_json, scores, n_blank
        self._finishing = finishing
        self.n_failed = 0

    def print(self, number: int, line: str | bytes, outcome: Outcome) -> None:
        from ..runtime.cases import to_json

        error = outcome if isinstance(outcome, str) else None
        hypotheses = [] if isinstance(outcome, str) else outcome
        if self._as_json:
            click.echo(to_json(_record(self._session, line, hypotheses, error, self._finishing)))
        elif error is not None:
            click.echo("\n" * max(1, self._n_blank), nl=False)
        else:
            for hypothesis in hypotheses:
                score = f"{hypothesis.score:.4f}\t" if self._scores else ""
                click.echo(f"{score}{hypothesis.text}")
            # A source that gives fewer outputs than the others, such as a blank line, gives as many lines.
            click.echo("\n" * (self._n_blank - len(hypotheses)), nl=False)
        if error is not None:
            self.n_failed += 1
            click.echo(f"s2s: line {number + 1}: {error}", err=True)


def _shown(line: str | bytes) -> str:
    return line if isinstance(line, str) else line.decode("utf-8", errors="replace")


def _record(
    session: Session, line: str | bytes, hypotheses: list[Any], error: str | None, finishing: Finishing
) -> dict[str, Any]:
    from ..runtime.cases import describe

    source = _shown(line)
    if error is not None:
        return {"source": source, "error": error}
    outputs = [{**describe(h), **finishing.details(session, h)} for h in hypotheses]
    return {"source": source, "outputs": outputs, "backend": session.backend.name}
