"""`s2s transcribe`: flags and printing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError, explain, is_failure
from ._common import Interrupted, output_options, search_option, session_options, tell, tell_choice
from ._options import generation_options, given

if TYPE_CHECKING:
    from ..runtime.session import Session
    from ..runtime.speech.formats import Transcript

FORMATS = ("text", "srt", "vtt", "tsv", "json", "lrc")
NONE = "none"


class Temperatures(click.ParamType):
    name = "T[,T...]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is no list of numbers such as 0,0.2,0.4", param, ctx)


class Threshold(click.ParamType):
    name = "X|none"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == NONE or isinstance(value, float):
            return value
        try:
            return float(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor 'none'", param, ctx)


class Clip(click.ParamType):
    name = "START-END"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        begin, _, end = str(value).partition("-")
        try:
            return float(begin or 0), float(end) if end else None
        except ValueError:
            self.fail(f"{value!r} is no pair of seconds such as 12.5-60 or 90-", param, ctx)


@click.command("transcribe", short_help="Transcribe speech.")
@click.argument("bundle", type=click.Path())
@click.argument("audio", nargs=-1, required=True)
@click.option("--language", help="The language spoken, a code or a name. [default: found from the sound]")
@click.option("--task", type=click.Choice(["transcribe", "translate"]), help="translate: into English.")
@click.option("--timestamps", type=click.Choice(["none", "segment", "word"]), help="[default: segment]")
@click.option("--format", "form", type=click.Choice(FORMATS), default="text", show_default=True)
@click.option("--output-dir", type=click.Path(file_okay=False), help="Write a file for each audio here.")
@click.option("--temperature", type=Temperatures(), help="Tried one after the other. [default: 0,0.2,0.4,0.6,0.8,1]")
@click.option(
    "--compression-ratio-threshold", type=Threshold(), help="Text that zlib makes smaller is repeated. [default: 2.4]"
)
@click.option(
    "--logprob-threshold", type=Threshold(), help="Text less likely than this is decoded again. [default: -1]"
)
@click.option("--no-speech-threshold", type=Threshold(), help="From this probability on, nobody speaks. [default: 0.6]")
@click.option("--condition-on-previous-text/--no-condition-on-previous-text", default=None, help="[default: no]")
@click.option("--initial-prompt", help="Text that is taken to stand before the first window.")
@click.option("--hotwords", help="Words to expect, told before every window.")
@click.option("--vad", is_flag=True, default=None, help="Leave out the parts in which nobody speaks.")
@click.option("--batched", is_flag=True, default=None, help="Decode the parts with speech side by side: faster.")
@click.option("--clip", type=Clip(), multiple=True, help="Seconds to transcribe, such as 12.5-60; may be repeated.")
@click.option("--hallucination-silence-threshold", type=float, help="Leave out improbable words within such silence.")
@click.option("--max-line-width", type=click.IntRange(min=1), help="Characters of a subtitle's line.")
@click.option("--max-line-count", type=click.IntRange(min=1), help="Lines of a subtitle.")
@click.option("--max-words-per-line", type=click.IntRange(min=1), help="Words of a subtitle's line.")
@click.option("--highlight-words", is_flag=True, help="A subtitle for each word, underlined.")
@click.option("--picture", type=click.Path(dir_okay=False), help="Draw the words over the waveform: .png, .svg, .pdf.")
@click.option("--stream", is_flag=True, help="Print each segment as soon as it is known.")
@session_options
@search_option
@partial(generation_options, without=("temperature",))
@output_options
def command(
    bundle: str,
    audio: tuple[str, ...],
    form: str,
    output_dir: str | None,
    max_line_width: int | None,
    max_line_count: int | None,
    max_words_per_line: int | None,
    highlight_words: bool,
    picture: str | None,
    stream: bool,
    backend: str,
    target: str | None,
    threads: int | None,
    batch_size: int | None,
    search: str,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Transcribe each AUDIO file ("-" for standard input) with BUNDLE, a bundle of Whisper.

    Models of other families, such as Moonshine and Speech2Text, take short clips, and have no times or languages.

    A file that can't be read gives a message on stderr; the others are transcribed all the same, and the exit status
    is 1. After Ctrl-C what was found is written.
    """
    from ..runtime.session import load
    from ..runtime.speech import picture as drawing
    from ..runtime.speech.formats import WRITERS, Lines

    lines = Lines(max_line_width, max_line_count, max_words_per_line, highlight_words)
    form = "json" if as_json else form
    wanted = _options(options, batch_size)
    if lines.need_words and wanted.setdefault("timestamps", "word") != "word":
        raise UsageError("the line options need the times of words; use --timestamps word")
    if picture is not None:
        drawing.check_path(picture)
        if len(audio) != 1 or wanted.setdefault("timestamps", "word") != "word":
            raise UsageError("--picture is of one audio and needs the times of words; use --timestamps word")
    if stream and (form != "text" or output_dir):
        raise UsageError("--stream prints text; leave out --format and --output-dir")
    session = load(bundle, backend, target, threads, search=search)
    if not session.transcribes:
        raise UsageError(f"{bundle}: its model reads '{session.kind.name}' and no sound; expected a model of speech")
    tell_choice(session, backend, quiet)
    failed = False
    for name in audio:
        try:
            source: Any = sys.stdin.buffer.read() if name == "-" else name
            samples = session.check_source(source)
            found, is_whole = _transcribe(session, name, samples, wanted, stream, quiet)
        except BaseException as error:
            if not is_failure(error):
                raise
            failed = True
            tell(f"s2s: {name}: {explain(error)}" if name not in explain(error) else f"s2s: {explain(error)}", False)
            continue
        if picture is not None:
            drawing.draw(picture, samples, found)
        if not stream:
            _write(WRITERS[form](found, lines), name, form, output_dir, quiet, named=len(audio) > 1)
        if not is_whole:
            raise Interrupted(f"what was found of {name} is written")
    if failed:
        raise SystemExit(1)


def _options(options: dict[str, Any], batch_size: int | None) -> dict[str, Any]:
    """What was given, by the names of `Session.transcribe`."""
    wanted = {name: value for name, value in given(options).items() if value != ()}
    wanted = {name: None if value == NONE and name.endswith("_threshold") else value for name, value in wanted.items()}
    return wanted if batch_size is None else {**wanted, "batch_size": batch_size}


def _transcribe(
    session: Session, name: str, samples: Any, options: dict[str, Any], stream: bool, quiet: bool
) -> tuple[Transcript, bool]:
    """The transcript, and whether it is whole: after Ctrl-C it is what was found so far."""
    found = session.transcribe(samples, **options)
    if found.language_probability is not None:
        tell(f"language: {found.language} ({found.language_probability:.0%})", quiet)
    with _progress(name, found.duration, quiet) as advance:
        try:
            for segment in found:
                advance(found.seconds_done)
                if stream:
                    click.echo(segment.text.strip())
            advance(found.duration)
        except KeyboardInterrupt:
            return found.so_far(), False
    return found.so_far(), True


@contextmanager
def _progress(name: str, duration: float, quiet: bool) -> Iterator[Callable[[float], None]]:
    """A bar in seconds of audio, with how many times faster than it is spoken; on a terminal only."""
    if quiet or not sys.stderr.isatty():
        yield lambda seconds: None
        return
    begin = time.perf_counter()
    with click.progressbar(length=max(1, round(duration)), label=Path(name).name, file=sys.stderr, width=30) as bar:
        done = 0

        def advance(seconds: float) -> None:
            nonlocal done
            bar.label = f"{Path(name).name} {seconds / max(time.perf_counter() - begin, 1e-9):.1f}x"
            bar.update(round(seconds) - done)
            done = round(seconds)

        yield advance


def _write(text: str, name: str, form: str, folder: str | None, quiet: bool, *, named: bool) -> None:
    from .. import replacing
    from ..runtime.speech.formats import SUFFIXES

    if folder is None:
        if named and form == "text":
            click.echo(f"{name}:")
        click.echo(text, nl=False)
        return
    stem = "stdin" if name == "-" else Path(name).stem
    path = Path(folder) / f"{stem}.{SUFFIXES.get(form, form)}"
    path.parent.mkdir(parents=True, exist_ok=True)
    replacing.write_text(path, text)
    tell(str(path), quiet)
