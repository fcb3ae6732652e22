"""`s2s shortlist`: flags and printing."""

from __future__ import annotations

import click

from ..progress import Progress
from ._common import output_options, print_json
from ._help import MAKE, Command


@click.command("shortlist", cls=Command, section=MAKE, short_help="Build the lexical shortlist of a bundle.")
@click.argument("bundle", type=click.Path())
@click.option("--data", type=click.Path(), metavar="PAIRS.TSV", help="A parallel text; each line: source, tab, target. "
              "Without it, the existing shortlist is added to engines built since.")  # fmt: skip
@click.option("--best", type=click.IntRange(min=1), default=50, show_default=True,
              help="Number of target tokens for each source token.")  # fmt: skip
@click.option("--frequent", type=click.IntRange(min=0), default=100, show_default=True,
              help="Number of the most frequent target tokens, which are always included.")  # fmt: skip
@click.option("--measure", "n_measured", type=click.IntRange(min=0), default=100, show_default=True,
              help="Number of pairs held out to compare outputs on, at most a tenth of all.")  # fmt: skip
@output_options
def command(
    bundle: str, data: str | None, best: int, frequent: int, n_measured: int, quiet: bool, as_json: bool
) -> None:
    """Learn from a parallel text which target tokens each source token may be translated to.

    With --shortlist, BUNDLE then decodes faster, as the output projection computes only tokens that the batch may need.

    The share of sentences whose tokens stay the same is measured, printed and recorded.
    """
    from ..building.shortlist.making import Options, make, summary

    options = Options(best=best, frequent=frequent, n_measured=n_measured)
    with Progress(quiet=quiet) as progress:
        record = make(bundle, data, options, progress.stage)
    if as_json:
        print_json({key: value for key, value in record.items() if key not in ("targets", "files", "head")}
                   | {"targets": list(record["targets"])})  # fmt: skip
        return
    for line in summary(record):
        click.echo(line)
