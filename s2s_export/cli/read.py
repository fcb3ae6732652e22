"""`s2s read`: flags and printing."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from ..progress import Progress
from ._common import output_options, search_option, session_options, tell, tell_choice, writing
from ._help import USE, Command
from ._options import generation_options, given

if TYPE_CHECKING:
    from ..runtime.decoding import Hypothesis
    from ..runtime.session import Session

BATCH_SIZE = 8  # encoding takes most of the time, and is no faster for more of them together


@click.command("read", cls=Command, section=USE, short_help="Read pictures: their text, or a caption.")
@click.argument("bundle", type=click.Path())
@click.argument("image", nargs=-1, required=True)
@click.option("--prompt", help="How the output begins, such as Donut's <s_cord-v2>.")
@click.option("--fields", is_flag=True, help="Print the fields that Donut's tags name, as JSON.")
@click.option("--scores", is_flag=True, help="Print each hypothesis's score before it.")
@click.option("--output", type=click.Path(dir_okay=False), help="Write here what would go to standard output.")
@session_options
@search_option
@generation_options
@output_options
def command(
    bundle: str,
    image: tuple[str, ...],
    prompt: str | None,
    fields: bool,
    scores: bool,
    output: str | None,
    backend: str,
    target: str | None,
    threads: int | None,
    batch_size: int | None,
    search: str,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Read each IMAGE file ("-" for standard input) with BUNDLE, a bundle whose model reads pictures.

    Prints the outputs of each picture in order, best first, a line each; with --json an object for each picture.
    A file that can't be read gives an empty line and a message on stderr; the others are read all the same, and the
    exit status is 1.
    """
    from ..runtime.reading import read_each
    from ..runtime.results import open_lines
    from ..runtime.session import load

    if fields and scores:
        raise UsageError("--fields prints JSON; leave out --scores, or take --json, which has them")
    session = load(bundle, backend, target, threads, search=search)
    chosen = session.reading_options(prompt, **given(options))
    tell_choice(session, backend, quiet, target)
    ends = {*chosen.eos_token_id, *([] if chosen.pad_token_id is None else [chosen.pad_token_id])}
    failed = False
    file = None if output is None else open_lines(output)[0]
    is_shown = file is None and sys.stdout.isatty()  # what is printed there is progress enough
    with writing(file), Progress("reading", len(image), quiet=quiet or is_shown) as progress:
        for name, outcome in read_each(session, image, chosen, batch_size or BATCH_SIZE, _opened):
            progress.advance(1)
            if isinstance(outcome, str):
                failed = True
                outcome = outcome if name in outcome else f"{name}: {outcome}"
                click.echo(_record(name, {"error": outcome}) if as_json else "")
                tell(f"s2s: {outcome}", False)
                continue
            outputs = [_described(session, hypothesis, ends, fields) for hypothesis in outcome]
            if as_json:
                click.echo(_record(name, {"outputs": outputs, "backend": session.backend.name}))
                continue
            for described in outputs:
                text = json.dumps(described["fields"], ensure_ascii=False) if fields else described["text"]
                click.echo(f"{described['score']:.4f}\t{text}" if scores else text)
    if failed:
        raise click.exceptions.Exit(1)


def _opened(name: str) -> Any:
    return sys.stdin.buffer.read() if name == "-" else name


def _described(session: Session, hypothesis: Hypothesis, ends: set[int], fields: bool) -> dict[str, Any]:
    from ..runtime.cases import describe
    from ..runtime.tagged import fields_of

    found = describe(hypothesis)
    return {**found, "fields": fields_of(session.tokenizer, hypothesis.token_ids, ends)} if fields else found


def _record(name: str, more: dict[str, Any]) -> str:
    from ..runtime.cases import to_json

    return to_json({"source": name, **more})
