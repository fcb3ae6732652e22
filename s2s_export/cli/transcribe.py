"""`s2s transcribe`: flags and printing."""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError, explain, is_failure
from ..progress import Progress
from . import _live
from ._common import Interrupted, output_options, search_option, session_options, tell, tell_choice
from ._help import USE, Command
from ._options import Name, generation_options, given
from ._shards import ShardType

if TYPE_CHECKING:
    from ..runtime.sharding import Shard
    from ..runtime.speech.transcribe import Transcription

FORMATS = ("text", "srt", "vtt", "tsv", "json", "lrc")
STREAMED = ("text", "json")
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


@click.command("transcribe", cls=Command, section=USE, short_help="Transcribe speech.")
@click.argument("bundle", type=click.Path())
@click.argument("audio", nargs=-1, required=True)
@click.option("--language", help="The language spoken, a code or a name. [default: found from the sound]")
@click.option("--task", type=Name(["transcribe", "translate"]), help="What is said, or its translation into "
              "English. [default: the checkpoint's]")  # fmt: skip
@click.option("--timestamps", type=Name(["none", "segment", "word"]), help="Times of segments, of each word, or none. "
              "[default: segment]")  # fmt: skip
@click.option("--format", "form", type=Name(FORMATS), default="text", show_default=True,
              help="Plain text, subtitles (srt, vtt, lrc), a table, or everything as JSON.")  # fmt: skip
@click.option("--output-dir", type=click.Path(file_okay=False), help="Write a file for each audio here.")
@click.option("--temperature", type=Temperatures(), help="Tried one after the other. [default: 0,0.2,0.4,0.6,0.8,1]")
@click.option(
    "--compression-ratio-threshold", type=Threshold(), help="Text that zlib makes smaller is repeated. [default: 2.4]"
)
@click.option(
    "--logprob-threshold", type=Threshold(), help="Text less likely than this is decoded again. [default: -1]"
)
@click.option("--no-speech-threshold", type=Threshold(), help="From this probability on, nobody speaks. [default: 0.6]")
@click.option("--condition-on-previous-text/--no-condition-on-previous-text", default=None,
              help="Give each window the text so far, which keeps names alike and may repeat mistakes. "
              "[default: no]")  # fmt: skip
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
@click.option("--stream", is_flag=True, help="Print text as soon as it is known: each segment of a file; of a pipe (-) "
              "and a microphone (microphone:) the words that are certain, while they are spoken. With --format json "
              "a line of JSON for each segment.")  # fmt: skip
@click.option("--step", type=click.FloatRange(0, 5, min_open=True), help="With --stream, seconds of new sound after "
              "which a pipe or microphone is listened to again. [default: 1]")  # fmt: skip
@click.option("--resume", is_flag=True, help="Leave out each audio whose file is in --output-dir already.")
@click.option("--shard", type=ShardType(), help="Do only part I (from 0) of N of the audio files.")
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
    step: float | None,
    resume: bool,
    shard: Shard | None,
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

    With --stream, standard input may be sound that is still coming, as WAV or as bare 16-bit samples at 16 kHz, and
    "microphone:" (or "microphone:NAME") is what a microphone hears. On a terminal the words that may still change are
    faint; elsewhere each line is printed when it is whole. With --format json each segment is a line of JSON: of a file
    as in "segments" of the whole, with the file's name in "audio"; of a pipe or microphone its times, text and words.

    Models of other families, such as Moonshine and Speech2Text, take short clips, and have no times or languages.

    A file that can't be read gives a message on stderr; the others are transcribed all the same, and the exit status
    is 1. After Ctrl-C what was found is written, with --batched of all files that were begun, and what is not whole is
    told; with --output-dir that goes to NAME.unfinished.SUFFIX, so that --resume does it again.
    """
    from ..runtime.session import load
    from ..runtime.speech import picture as drawing
    from ..runtime.speech.formats import WRITERS, Lines

    lines = Lines(max_line_width, max_line_count, max_words_per_line, highlight_words)
    form = "json" if as_json else form
    wanted = _options(options, batch_size)
    needs = "the line options need" if lines.need_words else None
    if wanted.get("hallucination_silence_threshold") is not None:
        needs = "--hallucination-silence-threshold needs"
    if needs is not None and wanted.setdefault("timestamps", "word") != "word":
        raise UsageError(f"{needs} the times of words; use --timestamps word")
    if picture is not None:
        drawing.check_path(picture)
        if len(audio) != 1 or wanted.setdefault("timestamps", "word") != "word":
            raise UsageError("--picture is of one audio and needs the times of words; use --timestamps word")
    live = _live.is_live(audio, stream)
    if step is not None and not live:
        raise UsageError("--step is for sound that is still coming; use it with --stream and - or microphone:")
    if live and picture is not None:
        raise UsageError("--picture is of sound that has ended; leave it out with --stream")
    if stream and (form not in STREAMED or output_dir):
        raise UsageError("--stream prints text or lines of JSON; leave out other values of --format, and --output-dir")
    if (resume or shard is not None) and output_dir is None:
        raise UsageError(f"{'--resume' if resume else '--shard'} needs a file for each audio; give --output-dir")
    if output_dir is not None:
        _refuse_equal_names(audio)
    n_given = len(audio)
    if shard is not None:
        audio = tuple(audio[i] for i in shard.of_items(len(audio)))
    if resume:
        audio = tuple(name for name in audio if not _path(name, form, str(output_dir)).exists())
        tell(f"{len(audio)} of {n_given} left", quiet)
    session = load(bundle, backend, target, threads, search=search)
    if not session.transcribes:
        raise UsageError(f"{bundle}: its model reads '{session.kind.name}' and no sound; expected a model of speech")
    tell_choice(session, backend, quiet, target)
    if live:
        listener = session.listener(**{**wanted, **({} if step is None else {"step": step})})
        if not _live.transcribe(listener, audio[0], as_json=form == "json") and audio[0] == "-":
            raise Interrupted("what was heard is written")
        return
    failed = False
    sources: list[Any] = [sys.stdin.buffer.read() if name == "-" else name for name in audio]
    speed = _Speed()
    unfinished: list[str] = []
    left = list(zip(audio, sources, strict=True))
    for found in session.transcribe_many(sources, **wanted):
        name, source = left.pop(0)
        try:
            _transcribe(found, name, speed, form if stream else None, quiet)
        except BaseException as error:
            if not is_failure(error):
                raise
            failed = True
            tell(f"s2s: {name}: {explain(error)}" if name not in explain(error) else f"s2s: {explain(error)}", False)
            continue
        if picture is not None:
            drawing.draw(picture, session.check_source(source), found.so_far())
        if not stream:
            text = WRITERS[form](found.so_far(), lines)
            _write(text, name, form, output_dir, quiet, named=n_given > 1, is_whole=found.is_whole)
        if not found.is_whole:
            unfinished.append(name)
    if unfinished or left:
        parts = [("not whole", unfinished), ("not begun", [name for name, _ in left])]
        told = (f"; {what}: {', '.join(names)}" for what, names in parts if names)
        raise Interrupted("what was found is written" + "".join(told))
    if failed:
        raise SystemExit(1)


def _options(options: dict[str, Any], batch_size: int | None) -> dict[str, Any]:
    """What was given, by the names of `Session.transcribe`."""
    wanted = {name: value for name, value in given(options).items() if value != ()}
    wanted = {name: None if value == NONE and name.endswith("_threshold") else value for name, value in wanted.items()}
    return wanted if batch_size is None else {**wanted, "batch_size": batch_size}


class _Speed:
    """Seconds of audio a second, over all files: with --batched the windows of several are decoded together."""

    def __init__(self) -> None:
        self._begun = time.perf_counter()
        self._seconds = 0.0

    def add(self, seconds: float) -> str:
        self._seconds += seconds
        speed = self._seconds / max(time.perf_counter() - self._begun, 1e-9)
        return f"seconds of audio, {speed:.1f} times real time"


def _transcribe(found: Transcription, name: str, speed: _Speed, streamed: str | None, quiet: bool) -> None:
    """To its end, or until Ctrl-C: then it has what was found so far. streamed: the format of what is printed."""
    if found.language_probability is not None:
        tell(f"language: {found.language} ({found.language_probability:.0%})", quiet)
    hidden = quiet or found.is_stopped or (streamed is not None and sys.stdout.isatty())
    with Progress(Path(name).name, max(1, round(found.duration)), quiet=hidden) as progress:
        try:
            _each(found, name, speed, streamed, progress)
        except KeyboardInterrupt:
            found.stop()
            _each(found, name, speed, streamed, progress)


def _each(found: Transcription, name: str, speed: _Speed, streamed: str | None, progress: Progress) -> None:
    """Segment by segment."""
    from ..runtime.speech.formats import describe

    n_known, done = len(found.so_far().segments), found.seconds_done
    for number, segment in enumerate(found, n_known):
        progress.advance(round(found.seconds_done) - round(done), speed.add(found.seconds_done - done))
        done = found.seconds_done
        if streamed == "json":
            click.echo(json.dumps({"audio": name, **describe(segment, number)}, ensure_ascii=False))
        elif streamed is not None:
            click.echo(segment.text.strip())
    if found.is_whole:
        speed.add(found.duration - done)


def _path(name: str, form: str, folder: str) -> Path:
    """The file for the transcript of an audio."""
    from ..runtime.speech.formats import SUFFIXES

    return Path(folder) / f"{'stdin' if name == '-' else Path(name).stem}.{SUFFIXES.get(form, form)}"


def _refuse_equal_names(audio: tuple[str, ...]) -> None:
    """Raises UsageError where two transcripts would be written to one file."""
    by_stem: dict[str, str] = {}
    for name in audio:
        other = by_stem.setdefault(Path(name).stem, name)
        if other != name:
            raise UsageError(f"{other} and {name} would be written to the same file of --output-dir; rename one")


def _write(
    text: str, name: str, form: str, folder: str | None, quiet: bool, *, named: bool, is_whole: bool
) -> None:  # fmt: skip
    """To stdout, or to the file in `folder`. What is not whole goes to another file, so that --resume does it again."""
    from .. import replacing

    if folder is None:
        if named and form == "text":
            click.echo(f"{name}:")
        click.echo(text, nl=False)
        return
    path = _path(name, form, folder)
    part = path.with_name(f"{path.stem}.unfinished{path.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    replacing.write_text(path if is_whole else part, text)
    if is_whole:
        part.unlink(missing_ok=True)
    tell(str(path if is_whole else part), quiet)
