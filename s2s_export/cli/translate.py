"""`s2s translate`: flags and printing."""

from __future__ import annotations

import sys
from typing import Any

import click

from ..errors import UsageError
from ._common import (
    Rate,
    bar,
    output_options,
    print_json,
    search_option,
    session_options,
    shortlist_option,
    tell_choice,
    worker_option,
)
from ._options import generation_options, given


@click.command("translate", short_help="Text to text.")
@click.argument("bundle", type=click.Path())
@click.argument("text", nargs=-1)
@session_options
@worker_option
@search_option
@shortlist_option
@generation_options
@click.option("--source-lang", help="Language of the source, for a model that has several.")
@click.option("--target-lang", help="Language to translate into, for a model that has several.")
@click.option("--truncate", is_flag=True, help="Cut sources that are longer than the model allows.")
@click.option("--scores", is_flag=True, help="Print each hypothesis's score before it.")
@click.option(
    "--alignments",
    type=click.Path(dir_okay=False),
    help="Write alignments: a .json file of all texts, or a .png, .svg or .pdf heat map of the first.",
)
@click.option("--stream", is_flag=True, help="Print pieces as soon as they are certain.")
@output_options
def command(
    bundle: str,
    text: tuple[str, ...],
    backend: str,
    target: str | None,
    threads: int | None,
    batch_size: int | None,
    workers: int | None,
    search: str,
    shortlist: bool,
    source_lang: str | None,
    target_lang: str | None,
    truncate: bool,
    scores: bool,
    alignments: str | None,
    stream: bool,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Translate each TEXT, or each line of standard input, with BUNDLE. Output order is input order.

    With --num-return-sequences N every source gives N lines, best first. A blank line comes out blank. A line that
    fails (too long, not UTF-8) gives an empty line and a sentence on stderr; the others still come out and the exit
    status is 1.
    """
    from ..runtime.alignments import check_path, write_alignments
    from ..runtime.cases import read_sources
    from ..runtime.scheduling import DEFAULT_BATCH_SIZE, n_tokens
    from ..runtime.session import load
    from ..runtime.text import read_lines

    if alignments:
        check_path(alignments)
    if stream and (as_json or alignments):
        raise UsageError("--stream prints text as it comes; leave out --json and --alignments")
    one_by_one = bool(text) or stream  # texts typed on the command line are few: all cores for each
    n_workers = workers or (1 if one_by_one else None)
    session = load(bundle, backend, target, threads, workers=n_workers, shortlist=shortlist, search=search)
    tell_choice(session, backend, quiet)
    languages = {"source_lang": source_lang, "target_lang": target_lang}
    chosen = session.options(target_lang=target_lang, **given(options))
    if stream and chosen.num_return_sequences > 1:
        raise UsageError("--stream prints the best hypothesis; leave out --num-return-sequences")
    lines: list[str | bytes] = list(text) or list(read_lines(sys.stdin.buffer))
    sources, failures = read_sources(session, lines, truncate=truncate, **languages)
    good = [number for number, source in enumerate(sources) if source]
    if stream:
        for source in sources:
            for part in session.stream_ids(source, chosen) if source else ():
                click.echo(part, nl=False)
            click.echo()
    else:
        rate = Rate("translating")
        with bar(len(good), "translating", quiet) as advance:
            found = session.decode(
                [sources[number] for number in good],
                chosen,
                batch_size=batch_size or DEFAULT_BATCH_SIZE,
                alignments=bool(alignments),
                on_batch=lambda indices, done: advance(len(indices), rate.add(len(indices), n_tokens(done))),
            )
        if alignments:
            write_alignments(alignments, session, [sources[number] for number in good], found)
        by_line = dict(zip(good, found, strict=True))
        for number, line in enumerate(lines):
            if as_json:
                print_json(_record(session, line, by_line.get(number, []), failures.get(number)))
            elif number in failures:
                click.echo()
            elif number not in by_line:  # a blank line; it has as many outputs as the others
                click.echo("\n" * (chosen.num_return_sequences - 1))
            for hypothesis in by_line[number] if number in by_line and not as_json else ():
                click.echo(f"{hypothesis.score:.4f}\t{hypothesis.text}" if scores else hypothesis.text)
    for number, message in failures.items():
        click.echo(f"s2s: line {number + 1}: {message}", err=True)
    if failures:
        raise click.exceptions.Exit(1)


def _record(session: Any, line: str | bytes, hypotheses: list[Any], error: str | None) -> dict[str, Any]:
    from ..runtime.cases import describe

    source = line if isinstance(line, str) else line.decode("utf-8", errors="replace")
    if error is not None:
        return {"source": source, "error": error}
    return {"source": source, "outputs": [describe(h) for h in hypotheses], "backend": session.backend.name}
