"""`s2s translate`: flags and printing."""

from __future__ import annotations

import sys
from typing import Any

import click

from ..errors import InputError, UsageError
from ._common import bar, output_options, print_json, session_options, tell
from ._options import generation_options, given


@click.command("translate", short_help="Text to text.")
@click.argument("bundle", type=click.Path())
@click.argument("text", nargs=-1)
@session_options
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

    With --num-return-sequences N every source gives N lines, best first.
    """
    from ..alignments import check_path, write_alignments
    from ..runtime import DEFAULT_BATCH_SIZE, load
    from ..text import from_utf8

    if alignments:
        check_path(alignments)
    texts = list(text) or [from_utf8(line.rstrip(b"\r\n")) for line in sys.stdin.buffer]
    session = load(bundle, backend, target, threads)
    tell(f"backend: {session.backend.name}", quiet or backend != "auto")
    languages = {"source_lang": source_lang, "target_lang": target_lang}
    chosen = session.options(target_lang=target_lang, **given(options))
    if stream:
        if as_json or alignments or chosen.num_return_sequences > 1:
            raise UsageError("--stream prints one text as it comes; leave out --json, --alignments and n-best")
        for line in texts:
            for part in session.stream(line, truncate=truncate, **languages, **given(options)):
                click.echo(part, nl=False)
            click.echo()
        return
    sources = []
    for number, line in enumerate(texts, 1):
        try:
            sources.append(session.encode(line, truncate=truncate, **languages))
        except InputError as error:
            raise InputError(f"line {number}: {error}") from None
    with bar(len(sources), "translating", quiet) as advance:
        found = session.decode(
            sources,
            chosen,
            batch_size=batch_size or DEFAULT_BATCH_SIZE,
            alignments=bool(alignments),
            on_batch=lambda indices, _: advance(len(indices), ""),
        )
    if alignments:
        write_alignments(alignments, session, sources, found)
    for source, hypotheses in zip(texts, found, strict=True):
        if as_json:
            outputs = [{"text": h.text, "score": h.score, "token_ids": list(h.token_ids)} for h in hypotheses]
            print_json({"source": source, "outputs": outputs, "backend": session.backend.name})
            continue
        for hypothesis in hypotheses:
            click.echo(f"{hypothesis.score:.4f}\t{hypothesis.text}" if scores else hypothesis.text)
