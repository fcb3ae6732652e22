"""`s2s bench`: flags and printing."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from .. import replacing
from ..errors import BackendUnavailable, InvalidOption
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
@click.argument("bundle", type=click.Path(), required=False)
@click.option(
    "--shape",
    metavar="NAME",
    help="In place of BUNDLE, a model with random weights that is made for the run "
    "and built for --targets (cpu-fp32 and cpu-int8): opus-mt, opus-mt-16, t5-small, student, tiny, deep.",
)
@click.option(
    "--checkpoint", type=click.Path(), help="The checkpoint that the bundle was exported from; peers need it."
)
@click.option("--backends", type=Names(), help="Our backends to measure; see `s2s doctor`. [default: all]")
@click.option(
    "--targets", type=Names(), help="Built engines, or 'portable' for the bundle's own graphs. [default: all]"
)
@click.option("--device", type=Name(["cpu", "cuda"]), default="cpu", show_default=True,
              help="Where all systems run. With cuda, the floor is computed from the GPU memory's speed.")  # fmt: skip
@click.option("--peers", type=Names(), help="Other systems to measure; '' for none. [default: transformers, "
              "torch-compile, ctranslate2, optimum; there are openvino and marian too; with --audio faster-whisper, "
              "openvino-genai, transformers]")  # fmt: skip
@click.option(
    "--peer-python", multiple=True, metavar="PEER=PYTHON", help="The Python interpreter for which a peer is installed."
)
@click.option("--peer-model", multiple=True, metavar="PEER=DIR", help="With --audio, the folder that a peer reads in "
              "place of --checkpoint; of openvino-genai one for each precision.")  # fmt: skip
@click.option(
    "--batch-sizes", type=Numbers(), default="1,8", show_default=True, help="Sources that are decoded together."
)
@click.option(
    "--num-beams",
    type=Numbers(),
    help="Numbers of beams; 1 is greedy search. [default: 1,4; with --audio 1,5]",
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
@click.option("--audio", multiple=True, type=click.Path(), metavar="FILE", help="Instead, transcribe this sound with "
              "the same settings everywhere; may be repeated. Word errors are counted against FILE's name with .txt, "
              "where that is there.")  # fmt: skip
@click.option("--language", help="With --audio, the language spoken. [default: each system finds it]")
@click.option("--batched", is_flag=True, help="With --audio, measure the batched mode as well.")
@click.option("--json", "json_path", type=click.Path(allow_dash=True), metavar="FILE",
              help="Write the measurements; '-' prints them instead of the table.")  # fmt: skip
@click.option("--html", "html_path", type=click.Path(), metavar="FILE", help="Write a page with charts.")
@click.option("--quiet", "-q", is_flag=True, help="Show no progress on stderr.")
@click.option("--debug", is_flag=True, expose_value=False, help="Show a traceback on failure.")
def command(
    bundle: str | None,
    shape: str | None,
    checkpoint: str | None,
    backends: tuple[str, ...] | None,
    targets: tuple[str, ...] | None,
    device: str,
    peers: tuple[str, ...] | None,
    peer_python: tuple[str, ...],
    peer_model: tuple[str, ...],
    num_beams: tuple[int, ...] | None,
    audio: tuple[str, ...],
    language: str | None,
    batched: bool,
    json_path: str | None,
    html_path: str | None,
    quiet: bool,
    **given: Any,
) -> None:
    """Measure how fast BUNDLE decodes with every backend and target, compared with other systems.

    All decode the same sources and take turns in rounds. The table has the times of the encoder, first token, decoder
    step, whole sentence and loading, and the memory.

    Sources are random ids of the model's vocabulary, and every output has exactly --new-tokens tokens. With --file,
    every system translates your own texts instead, at its best settings, and outputs end by themselves. With --audio,
    bundles of Whisper transcribe sound, beside faster-whisper, OpenVINO GenAI and transformers.
    """
    from ..measuring.bench import page, run
    from ..measuring.bench import table as text
    from ..measuring.bench.audio import run as sound
    from ..measuring.bench.audio import show
    from ..measuring.bench.contestants import Choice

    for path in filter(None, (json_path, html_path)):
        if path != "-" and not Path(path).absolute().parent.is_dir():
            raise InvalidOption(f"{path}: its folder does not exist; create it first")
    pairs = [_peer_is("--peer-python", text, "PYTHON", "optimum=/opt/o/bin/python") for text in peer_python]
    common: dict[str, Any] = {
        "choice": Choice(backends, targets, device), "checkpoint": checkpoint, "pythons": dict(pairs),
        **({} if peers is None else {"peers": peers}), **({} if num_beams is None else {"num_beams": num_beams}),
    }  # fmt: skip
    line = shlex.join(["s2s", *sys.argv[1:]])
    with Progress(quiet=quiet) as progress, TemporaryDirectory() as scratch:
        if bundle is None:
            bundle, common["checkpoint"] = _made(shape, checkpoint, targets, Path(scratch), progress.stage)
        elif shape is not None:
            raise InvalidOption("found BUNDLE and --shape, expected one of them")
        if audio:
            folders = _folders(peer_model)
            about = {name: given[name] for name in ("threads", "repeats")}
            record = sound.bench(
                bundle,
                sound.Options(audio, language=language, batched=batched, folders=folders, **about, **common),
                line,
                progress.stage,
            )
        else:
            wrong = [n for n, v in (("peer-model", peer_model), ("language", language), ("batched", batched)) if v]
            if wrong:
                raise InvalidOption(f"--{' and --'.join(wrong)} only with --audio; leave it out")
            record = run.bench(bundle, run.Options(**given, **common), line, progress.stage)
    shown = show if audio else text
    if json_path == "-":
        click.echo(json.dumps(record))
    else:
        click.echo(shown.render(record))
        if json_path:
            replacing.write_text(json_path, json.dumps(record, indent=1) + "\n")
    if html_path:
        replacing.write_text(html_path, (show if audio else page).render_page(record))
    if not (record["results"] or any(record[part] and record[part]["results"] for part in ("file", "audio"))):
        raise BackendUnavailable("nothing was measured: no system could run; the table names each one's reason")


def _made(
    shape: str | None,
    checkpoint: str | None,
    targets: tuple[str, ...] | None,
    scratch: Path,
    progress: Callable[[str], None],
) -> tuple[str, str]:
    """The bundle and the checkpoint of a shape, made there."""
    if shape is None:
        raise InvalidOption("missing BUNDLE; or --shape NAME for a model that is made for the run")
    if checkpoint is not None:
        raise InvalidOption("--shape makes a checkpoint of its own; leave --checkpoint out")
    from ..measuring.bench import random_models

    return random_models.prepare(shape, scratch, random_models.TARGETS if targets is None else targets, progress)


def _folders(given: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """The folders of each peer."""
    found: dict[str, tuple[str, ...]] = {}
    for text in given:
        name, folder = _peer_is("--peer-model", text, "DIR", "faster-whisper=faster-whisper-base")
        found[name] = (*found.get(name, ()), folder)
    return found


def _peer_is(flag: str, text: str, what: str, example: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise InvalidOption(f"{flag} is '{text}', expected PEER={what}, for example {example}")
    return name, value
