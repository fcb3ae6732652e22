"""`s2s bench`: flags and printing."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from .. import replacing
from ..errors import InvalidOption
from ..progress import Progress
from ._help import JUDGE, Command
from ._options import Name


class Numbers(click.ParamType):
    """A comma-separated list of whole numbers."""

    name = "N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a comma-separated list of whole numbers", param, ctx)


class Names(click.ParamType):
    """A comma-separated list of names; empty for none."""

    name = "NAME,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if isinstance(value, tuple) else tuple(part for part in str(value).split(",") if part)


@click.command("bench", cls=Command, section=JUDGE, short_help="Latency and throughput across backends and peers.")
@click.argument("bundle", type=click.Path())
@click.option(
    "--checkpoint", type=click.Path(), help="The checkpoint that the bundle was exported from; peers need it."
)
@click.option("--backends", type=Names(), help="Our backends to measure; see `s2s doctor`. [default: all]")
@click.option(
    "--targets", type=Names(), help="Built engines, or 'portable' for the bundle's own graphs. [default: all]"
)
@click.option("--device", type=Name(["cpu", "cuda"]), default="cpu", show_default=True,
              help="Where all systems run. With cuda, the floor is computed from the GPU memory's speed.")  # fmt: skip
@click.option("--peers", type=Names(), default="transformers,torch-compile,ctranslate2,optimum", show_default=True,
              help="Other systems to measure; '' for none.")  # fmt: skip
@click.option(
    "--peer-python", multiple=True, metavar="PEER=PYTHON", help="The Python interpreter for which a peer is installed."
)
@click.option(
    "--batch-sizes", type=Numbers(), default="1,8", show_default=True, help="Sources that are decoded together."
)
@click.option(
    "--num-beams", type=Numbers(), default="1,4", show_default=True, help="Numbers of beams; 1 is greedy search."
)
@click.option("--source-lengths", type=Numbers(), default="30", show_default=True, help="Tokens in each source.")
@click.option("--new-tokens", type=click.IntRange(min=1), default=64, show_default=True, help="Tokens in each output.")
@click.option("--threads", type=Numbers(), default="1", show_default=True, help="CPU threads for each batch.")
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="Rounds after the warm-up.")
@click.option("--file", "file", type=click.Path(), metavar="TEXTS", help="Instead, translate this file, every system "
              "with its best settings and the largest of --num-beams.")  # fmt: skip
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    help="Most tokens of each output with --file.",
)
@click.option("--json", "json_path", type=click.Path(allow_dash=True), metavar="FILE",
              help="Write the measurements; '-' prints them instead of the table.")  # fmt: skip
@click.option("--html", "html_path", type=click.Path(), metavar="FILE", help="Write a page with charts.")
@click.option("--quiet", "-q", is_flag=True, help="Show no progress on stderr.")
@click.option("--debug", is_flag=True, expose_value=False, help="Show a traceback on failure.")
def command(
    bundle: str,
    checkpoint: str | None,
    backends: tuple[str, ...] | None,
    targets: tuple[str, ...] | None,
    device: str,
    peers: tuple[str, ...],
    peer_python: tuple[str, ...],
    json_path: str | None,
    html_path: str | None,
    quiet: bool,
    **given: Any,
) -> None:
    """Measure how fast BUNDLE decodes with every backend and target, compared with other systems.

    All decode the same sources and take turns in rounds. The table has the times of the encoder, first token, decoder
    step, whole sentence and loading, and the memory.

    Sources are random ids of the model's vocabulary, and every output has exactly --new-tokens tokens. With --file,
    every system translates your own texts instead, at its best settings, and outputs end by themselves.
    """
    from ..measuring.bench.contestants import Choice
    from ..measuring.bench.page import render_page
    from ..measuring.bench.run import Options, bench
    from ..measuring.bench.table import render

    for path in filter(None, (json_path, html_path)):
        if path != "-" and not Path(path).absolute().parent.is_dir():
            raise InvalidOption(f"{path}: its folder does not exist; create it first")
    pythons = dict(_peer_python(text) for text in peer_python)
    options = Options(
        checkpoint=checkpoint, choice=Choice(backends, targets, device), peers=peers, pythons=pythons, **given
    )
    line = shlex.join(["s2s", *sys.argv[1:]])
    with Progress(quiet=quiet) as progress:
        record = bench(bundle, options, line, progress.stage)
    if json_path == "-":
        click.echo(json.dumps(record))
    else:
        click.echo(render(record))
        if json_path:
            replacing.write_text(json_path, json.dumps(record, indent=1) + "\n")
    if html_path:
        replacing.write_text(html_path, render_page(record))


def _peer_python(text: str) -> tuple[str, str]:
    name, equals, python = text.partition("=")
    if not equals or not name or not python:
        raise InvalidOption(f"--peer-python is '{text}', expected PEER=PYTHON, for example optimum=/opt/o/bin/python")
    return name, python
