"""`s2s verify`: flags and printing."""

from __future__ import annotations

from dataclasses import asdict

import click

from ..errors import ParityError
from ..progress import Progress
from ._common import output_options, print_json, search_option, session_options
from ._help import JUDGE, Command


@click.command("verify", cls=Command, section=JUDGE, short_help="Compare a bundle with its checkpoint.")
@click.argument("bundle", type=click.Path())
@click.option("--checkpoint", required=True, help="The checkpoint that the bundle was exported from.")
@session_options
@search_option
@output_options
def command(
    bundle: str,
    checkpoint: str,
    backend: str,
    target: str | None,
    threads: int | None,
    batch_size: int | None,
    search: str,
    quiet: bool,
    as_json: bool,
) -> None:
    """Print the error of each graph and the agreement of decoded tokens with PyTorch; fail if out of tolerance.

    An engine of lower precision (--target cpu-int8) is judged by its tokens. `s2s evaluate` judges texts instead.
    """
    from ..exporting.verify import verify

    with Progress("read the checkpoint", quiet=quiet) as progress:
        result = verify(
            bundle, checkpoint, backend=backend, target=target, threads=threads, search=search, progress=progress.stage
        )
    if as_json:
        print_json({"is_close": result.is_close, "fault": result.fault, "outputs": [o.record() for o in result.outputs],
                    "searches": [{**asdict(s), "is_enough": s.is_enough} for s in result.searches]})  # fmt: skip
    else:
        of = "portable " if any(s.engine for s in result.searches) else ""  # an engine's own graphs are not compared
        for line in [*(of + o.line() for o in result.outputs), *(s.line() for s in result.searches)]:
            click.echo(line)
    if result.fault:
        raise ParityError(f"{bundle} against {checkpoint}: {result.fault}")
