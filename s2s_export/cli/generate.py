"""`s2s generate`: flags and printing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from ..progress import Progress
from ._common import (
    Interrupted,
    Rate,
    output_options,
    print_json,
    search_option,
    session_options,
    shortlist_option,
    tell,
    tell_choice,
    worker_option,
)
from ._help import USE, Command
from ._options import further_options, generation_options, named
from ._search_options import ensemble_options, search_options
from ._shards import shard_option

if TYPE_CHECKING:
    from ..runtime.cases import Case
    from ..runtime.sharding import Shard


@click.command(
    "generate", cls=Command, section=USE, short_help="Decode a file of JSON lines: text or token ids, any option."
)
@click.argument("bundle", type=click.Path())
@click.option(
    "--input", "input_path", required=True, type=click.File("rb"), help="The input, one JSON object in each line."
)
@click.option(
    "--output",
    "output_path",
    required=True,
    type=click.Path(allow_dash=True),
    help="The file for the results; - is stdout.",
)
@session_options
@worker_option
@search_option
@shortlist_option
@generation_options
@search_options
@further_options
@ensemble_options
@click.option("--source-lang", help="Language of the sources, for models with several.")
@click.option("--target-lang", help="Language to translate into, for models with several.")
@click.option(
    "--resume", is_flag=True, help="Continue an interrupted run: keep the results in --output and add the missing ones."
)
@shard_option
@click.option("--truncate", is_flag=True, help="Cut sources that are longer than the model allows.")
@output_options
def command(
    bundle: str,
    input_path: Any,
    output_path: str,
    backend: str,
    target: str | None,
    threads: int | None,
    batch_size: int | None,
    workers: int | None,
    search: str,
    shortlist: bool,
    ensemble: tuple[str, ...],
    ensemble_average: str,
    resume: bool,
    shard: Shard | None,
    truncate: bool,
    further: tuple[str, ...],
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Decode every line of a JSON-lines file with BUNDLE.

    A line holds an id, a "text" or "input_ids", and any generation option by its Hugging Face name. Options given here
    hold for the lines that lack them; what neither says comes from the checkpoint. A line that fails
    gives {"id": ..., "error": ...}; the other lines are decoded all the same, and the exit status is 1. Results are
    written in input order as soon as they are ready. What an interrupted run wrote is kept, and --resume
    continues after it.
    """
    from ..runtime.cases import check_defaults, decode_cases, read_case
    from ..runtime.results import Results
    from ..runtime.scheduling import DEFAULT_BATCH_SIZE
    from ..runtime.session import load
    from ..runtime.text import read_lines

    if shard is not None:
        if output_path == "-":
            raise UsageError("--shard writes a file for each shard; give --output the name of a file instead of -")
        output_path = shard.part(output_path)
    if resume and output_path == "-":
        raise UsageError("--resume continues a file; give --output the name of a file instead of -")
    if (
        os.path.exists(output_path)
        and os.path.isfile(input_path.name)
        and os.path.samefile(output_path, input_path.name)
    ):
        raise UsageError(f"--output and --input are the same file, {output_path}; expected two different ones")
    session = load(
        bundle,
        backend,
        target,
        threads,
        workers=workers,
        shortlist=shortlist,
        search=search,
        ensemble=ensemble,
        ensemble_average=ensemble_average,
    )
    tell_choice(session, backend, quiet, target)
    defaults = named(further, options)
    check_defaults(session, defaults)
    lines = list(read_lines(input_path))
    part = range(len(lines)) if shard is None else shard.of_items(len(lines))
    lines = lines[: part.stop]
    cases: Iterator[Case] = (
        read_case(session, line, number, truncate=truncate, defaults=defaults) for number, line in enumerate(lines, 1)
    )
    ids = None
    if resume:
        known = list(cases)
        cases, ids = iter(known), [case.id for case in known[part.start :]]
    rate = Rate()
    with Results(output_path, ids) as results, Progress("decoding", len(part), quiet=quiet) as progress:
        n_skipped = len(results.done)
        tell(f"continuing after {n_skipped} of {len(part)} lines", quiet or not resume)
        progress.skip(n_skipped)
        failures = [(result["id"], result["error"]) for result in results.done if "error" in result]
        found = decode_cases(
            session,
            cases,
            batch_size=batch_size or DEFAULT_BATCH_SIZE,
            progress=lambda n, tokens: progress.advance(n, rate.add(n, tokens)),
            n_skipped=part.start + n_skipped,
        )
        n_written = 0
        try:
            for result in found:
                results.write(result)
                n_written += 1
                if "error" in result:
                    failures.append((result["id"], result["error"]))
        except KeyboardInterrupt:
            done = n_skipped + n_written
            raise Interrupted(f"{output_path} has {done} of {len(part)} results; continue with --resume") from None
    if as_json:
        print_json({"lines": len(part), "failed": len(failures), "backend": session.backend.name})
    if failures:
        name, message = failures[0]
        click.echo(f"s2s: {len(failures)} of {len(part)} lines failed, the first: id {name}: {message}", err=True)
        raise click.exceptions.Exit(1)
