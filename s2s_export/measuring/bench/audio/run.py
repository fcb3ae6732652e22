"""All of `s2s bench --audio`: opens every system, runs the rounds, returns the record.

The record has `audio`, beside what every record of `bench.record` has:

    settings    language, threads, num_beams, batched, batch_size
    sounds      each file: name, seconds, words of its reference or null
    results     each entry, thread count, setting and file:
        seconds           of a call over the whole file: p50, p90, p99, min, max; seconds_cpu the same
        real_time_factor  median seconds of a call / seconds of sound
        peak_memory       peak of resident memory during these calls, in bytes
        word_errors       edits over the words of the reference; null without one
        speed             times as fast as `speed_against`: the fastest peer of its precision, else the fastest peer
        text              of the first call
        flags             reasons why the measurement may be wrong
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .... import bundle as bundles
from .... import engines, recipes
from ....errors import InvalidOption, UnknownOption
from ....runtime.cores import available_cores
from ....runtime.sources.audio_features import FIELD
from ... import word_errors
from .. import noise, record
from ..contestants import Choice, Entry
from ..rounds import Progress, Racer, Settings, prepared_folder
from .plan import Setting, Sound, settings, sounds
from .transcribers import OURS, modules, peers

WORKER = "s2s_export.measuring.bench.audio.worker"
DEFAULT_PEERS = ("faster-whisper", "openvino-genai", "transformers")
DEFAULT_BEAMS = (1, 5)


@dataclass(frozen=True)
class Options:
    """files: of sound. pythons, folders: of peers, by name. batched: whether the batched mode is measured as well."""

    files: tuple[str, ...]
    checkpoint: str | None = None
    choice: Choice = field(default_factory=Choice)
    peers: tuple[str, ...] = DEFAULT_PEERS
    num_beams: tuple[int, ...] = DEFAULT_BEAMS
    threads: tuple[int, ...] = (1,)
    repeats: int = 5
    language: str | None = None
    batched: bool = False
    pythons: Mapping[str, str] = field(default_factory=dict)
    folders: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def bench(path: str, options: Options, command: str, progress: Progress = lambda text: None) -> dict[str, Any]:
    """Measure, and return the record. Raises BundleError, InputError, InvalidOption, UnknownOption."""
    bundle = bundles.read(path)
    _check(bundle, options)
    plan = sounds(options.files)
    works = settings(options.num_beams, options.batched, options.language)
    about = {
        "repeats": options.repeats, "language": options.language, "threads": list(options.threads),
        "num_beams": list(options.num_beams), "batched": options.batched, "batch_size": works[0].batch_size,
    }  # fmt: skip
    done = record.run_record(bundle, command, about)
    how = Settings(bundle, options.checkpoint, options.repeats, dict(options.pythons))
    known = modules()
    entries = [
        entry
        for name in (OURS, *options.peers)
        for entry in known[name].entries(bundle, options.choice, options.folders.get(name, ()))
    ]
    done["audio"] = {"settings": about, "sounds": [_about(sound) for sound in plan], "results": []}
    for threads in options.threads:
        racers = [Racer(entry, how, threads, known, WORKER) for entry in entries]
        done["audio"]["results"] += _race(racers, plan, works, options.repeats, progress)
        done["contestants"] += [racer.record() for racer in racers]
    return done


def _check(bundle: bundles.Bundle, options: Options) -> None:
    if bundle.manifest.get("speech") is None:
        kind = bundle.manifest.get("source", {}).get("kind")
        raise InvalidOption(
            f"{bundle.path}: its model reads '{kind}' and is no Whisper; --audio measures bundles of Whisper"
            if kind != FIELD
            else f"{bundle.path}: has no special tokens of speech; --audio measures bundles of Whisper"
        )
    built = [engines.PORTABLE, *engines.names(bundle), *recipes.names()]
    for name in options.choice.targets or ():
        if name not in built:
            raise UnknownOption(name, built, "target")
    for name in (*options.peers, *options.pythons, *options.folders):
        if name not in peers():
            raise UnknownOption(name, peers(), "peer")
    wrong = [
        f"{flag} is {', '.join(map(str, values)) or 'empty'}, expected whole numbers of at least 1"
        for flag, values in (("--num-beams", options.num_beams), ("--threads", options.threads))
        if not values or min(values) < 1
    ]
    for folder in [options.checkpoint, *(folder for some in options.folders.values() for folder in some)]:
        if folder is not None and not Path(folder).is_dir():
            wrong.append(f"{folder}: no such folder; expected the model of a peer")
    if wrong:
        raise InvalidOption("; ".join(wrong))


def _about(sound: Sound) -> dict[str, Any]:
    n_words = None if sound.reference is None else len(word_errors.words_of(sound.reference))
    return {"name": sound.name, "seconds": sound.seconds, "n_words": n_words}


def _race(
    racers: Sequence[Racer], plan: Sequence[Sound], works: Sequence[Setting], repeats: int, progress: Progress
) -> list[dict[str, Any]]:
    found = []
    with ExitStack() as stack:
        sound_folder = prepared_folder(stack, len(racers))
        for number, racer in enumerate(racers):
            folder = prepared_folder(stack, number)
            progress(f"{racer.entry.label}: load")
            racer.prepare(folder)
            stack.callback(racer.close)
            racer.open(folder)
        paths = []
        for i, sound in enumerate(plan):
            paths.append(str(sound_folder / f"{i}.npy"))
            np.save(paths[-1], sound.samples)
        shortest = min(range(len(plan)), key=lambda i: len(plan[i].samples))
        open_ = [racer for racer in racers if racer.worker is not None]
        for work in works:
            takers = [racer for racer in open_ if modules()[racer.entry.contestant].BATCHED or not work.batched]
            for racer in takers:
                progress(f"{work.label}: warm up {racer.entry.label}")
                _ask(racer, paths[shortest], work)
            for sound, path in zip(plan, paths, strict=True):
                found += _over(takers, sound, path, work, repeats, progress)
    return found


def _ask(racer: Racer, path: str, work: Setting) -> dict[str, Any] | None:
    return racer.ask("transcribe", samples=path, setting=dataclasses.asdict(work))


def _over(
    racers: Sequence[Racer], sound: Sound, path: str, work: Setting, repeats: int, progress: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Every system transcribes a file, then all do it again."""
    if not racers:
        return []
    calls: list[list[dict[str, Any]]] = [[] for _ in racers]
    start = noise.Moment.now()
    for repeat in range(repeats):
        progress(f"{sound.name}, {work.label}: round {repeat + 1} of {repeats}")
        for made, racer in zip(calls, racers, strict=True):
            if answer := _ask(racer, path, work):
                made.append(answer)
    around = noise.since(start, sum(call["cpu"] for made in calls for call in made), available_cores())
    pairs = [(racer, made) for racer, made in zip(racers, calls, strict=True) if len(made) == repeats]
    results = [_result(racer, made, sound, work, around) for racer, made in pairs]
    _add_speed(results, [racer.entry for racer, _ in pairs])
    return results


def _result(
    racer: Racer, calls: Sequence[dict[str, Any]], sound: Sound, work: Setting, around: dict[str, float] | None
) -> dict[str, Any]:
    seconds = noise.quantiles([call["wall"] for call in calls])
    text = calls[0]["text"].strip()
    errors = None if sound.reference is None else word_errors.word_errors(text, sound.reference)
    return {
        "label": racer.entry.label,
        "precision": racer.entry.precision,
        "threads": racer.threads,
        "sound": sound.name,
        "num_beams": work.num_beams,
        "batched": work.batched,
        "seconds": seconds,
        "seconds_cpu": noise.quantiles([call["cpu"] for call in calls]),
        "real_time_factor": seconds["p50"] / sound.seconds,
        "peak_memory": max(call["memory"].get("peak", 0) for call in calls),
        "word_errors": None if errors is None else errors.rate,
        "text": text,
        "speed": None,
        "speed_against": None,
        "around": around,
        "flags": noise.flags(calls, around),
    }


def _add_speed(results: Sequence[dict[str, Any]], entries: Sequence[Entry]) -> None:
    """How many times as fast as the fastest peer: of the same precision, else of any."""
    others = [result for result, entry in zip(results, entries, strict=True) if entry.contestant != OURS]
    for result in results:
        rivals = [other for other in others if other["precision"] == result["precision"]] or others
        if rivals:
            best = min(rivals, key=lambda other: other["seconds"]["p50"])
            result["speed"] = best["seconds"]["p50"] / result["seconds"]["p50"]
            result["speed_against"] = best["label"]
