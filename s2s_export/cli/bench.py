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
from ._common import tell


class Numbers(click.ParamType):
    """A comma-separated list of whole numbers."""

    name = "N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is no comma-separated list of whole numbers", param, ctx)


class Names(click.ParamType):
    """A comma-separated list of names; empty for none."""

    name = "NAME,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if isinstance(value, tuple) else tuple(part for part in str(value).split(",") if part)


@click.command("bench", short_help="Latency and throughput across backends and peers.")
@click.argument("bundle", type=click.Path())
@click.option("--checkpoint", type=click.Path(), help="The checkpoint it was exported from; peers need it.")
@click.option("--backends", type=Names(), help="Of ours; see `s2s doctor`. [default: all]")
@click.option("--targets", type=Names(), help="Built engines, or 'portable' for the graphs as they are. [default: all]")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True,
              help="Where all systems run; on a GPU the floor is that of its memory.")  # fmt: skip
@click.option("--peers", type=Names(), default="transformers,torch-compile,ctranslate2,optimum", show_default=True,
              help="Other systems; '' for none.")  # fmt: skip
@click.option("--peer-python", multiple=True, metavar="PEER=PYTHON", help="Interpreter that a peer is installed in.")
@click.option("--batch-sizes", type=Numbers(), default="1,8", show_default=True, help="Sources decoded side by side.")
@click.option("--num-beams", type=Numbers(), default="1,4", show_default=True, help="Beams; 1 is greedy search.")
@click.option("--source-lengths", type=Numbers(), default="30", show_default=True, help="Tokens of each source.")
@click.option("--new-tokens", type=click.IntRange(min=1), default=64, show_default=True, help="Of every output.")
@click.option("--threads", type=Numbers(), default="1", show_default=True, help="Threads of one call.")
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="Rounds after the warm-up.")
@click.option("--file", "file", type=click.Path(), metavar="TEXTS", help="Translate this file of mixed lengths, every "
              "system at its best setting; the most of --num-beams.")  # fmt: skip
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="With --file.")
@click.option("--json", "json_path", type=click.Path(allow_dash=True), metavar="FILE",
              help="Write the measurements; '-' prints them in place of the table.")  # fmt: skip
@click.option("--html", "html_path", type=click.Path(), metavar="FILE", help="Write a page with charts.")
@click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")
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
    """Decode the same sources with BUNDLE on every backend and target, and with other systems, one after the other in
    rounds, and print what each takes: encoder, first token, decoder step, sentence, memory, loading.

    Sources are random ids of the model's vocabulary, and every output has exactly --new-tokens tokens.
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
    record = bench(bundle, options, line, lambda stage: tell(stage, quiet))
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
