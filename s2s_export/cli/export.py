"""`s2s export`: flags and printing."""

from __future__ import annotations

from typing import Any

import click

from ..progress import Progress
from ._common import output_options, print_json, tell
from ._help import MAKE, Command
from ._options import Name


@click.command("export", cls=Command, section=MAKE, short_help="Export a checkpoint to a bundle.")
@click.argument("checkpoint")
@click.argument("bundle", type=click.Path())
@click.option("--precision", type=Name(["fp32", "fp16", "bf16"]), default="fp32", show_default=True,
              help="The type in which weights are stored.")  # fmt: skip
@click.option("--max-source-length", type=click.IntRange(min=1), help="Most tokens of a source.")
@click.option("--max-target-length", type=click.IntRange(min=1), help="Most tokens of a target.")
@click.option("--force", is_flag=True, help="Replace BUNDLE if it exists.")
@output_options
def command(checkpoint: str, bundle: str, quiet: bool, as_json: bool, **options: Any) -> None:
    """Export CHECKPOINT (a folder in Hugging Face's format, or one that `s2s train` wrote) to the folder BUNDLE.

    \b
    s2s export ./opus-mt-en-de bundle
    s2s translate bundle "A text."

    Models of Marian, CTranslate2, Argos Translate, OpenNMT-py and fairseq are read as well: a folder, or its file.

    Writes the three graphs, compares each output with PyTorch, and moves the bundle into place when all agree.
    """
    from ..exporting.export import STAGES, export

    with Progress(STAGES[0], quiet=quiet) as progress:
        report = export(checkpoint, bundle, progress=progress.rename, **options)
    if as_json:
        print_json({"bundle": str(report.path), "family": report.manifest["family"],
                    "bytes": sum(f["bytes"] for f in report.manifest["files"].values()),
                    "parity": report.manifest["parity"], "notices": report.notices})  # fmt: skip
        return
    for notice in report.notices:
        tell(f"note: {notice}", quiet)
    for error in report.parity:
        tell(error.line(), quiet)
    click.echo(str(report.path))
