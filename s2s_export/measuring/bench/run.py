"""All of `s2s bench`: chooses the entries, measures the floor, runs the rounds, returns the record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ... import bundle as bundles
from ... import engines, recipes
from ...errors import InvalidOption, UnknownOption
from . import bandwidth, files, record
from .contestants import OURS, Choice, Entry, modules, peers
from .rounds import Progress, Racer, Settings, race
from .work import grid

# The others' tokens are compared with those of the first of these that ran.
REFERENCES = ("transformers generate", "transformers generate fp16", "s2s portable", "s2s cpu-fp32")
DEFAULT_PEERS = ("transformers", "torch-compile", "ctranslate2", "optimum")


@dataclass(frozen=True)
class Options:
    """The options of the command, checked by `bench`. pythons: interpreters of peers, by name."""

    checkpoint: str | None = None
    choice: Choice = field(default_factory=Choice)
    peers: tuple[str, ...] = DEFAULT_PEERS
    batch_sizes: tuple[int, ...] = (1, 8)
    num_beams: tuple[int, ...] = (1, 4)
    source_lengths: tuple[int, ...] = (30,)
    new_tokens: int = 64
    threads: tuple[int, ...] = (1,)
    repeats: int = 5
    pythons: dict[str, str] = field(default_factory=dict)
    first: tuple[int, int] | None = None  # batch size and beams that are measured before all others
    file: str | None = None
    max_new_tokens: int = 128


def bench(
    path: str,
    options: Options,
    command: str,
    progress: Progress = lambda text: None,
    save: Callable[[dict[str, Any]], None] = lambda done: None,
) -> dict[str, Any]:
    """Measure, and return the record (`record.py`). save: called with the record after each piece of work.

    Raises BundleError, InvalidOption, UnknownOption.
    """
    bundle = bundles.read(path)
    _check(options, [engines.PORTABLE, *engines.names(bundle), *recipes.names()])
    works = grid(bundle, options.batch_sizes, options.num_beams, options.source_lengths, options.new_tokens)
    works.sort(key=lambda work: (work.batch_size, work.num_beams) != options.first)
    settings = Settings(bundle, options.checkpoint, options.repeats, options.pythons)
    entries = _entries(bundle, options)
    about = {
        "repeats": options.repeats,
        "new_tokens": options.new_tokens,
        "threads": list(options.threads),
        "batch_sizes": list(options.batch_sizes),
        "num_beams": list(options.num_beams),
        "source_lengths": list(options.source_lengths),
    }
    done = record.run_record(bundle, command, about)
    if options.file is not None:
        _translate_file(done, settings, entries, options, progress)
        return done
    sizes = {entry.weight_bytes for entry in entries if entry.weight_bytes and entry.reason is None}
    if sizes:
        progress("read speed of this machine")
        done["bandwidth"] = bandwidth.floors(bundle, sizes, list(options.threads), options.choice.device)
    for threads in options.threads:
        others = done["contestants"]

        def add(racers: list[Racer], results: list[dict[str, Any]], others: list[dict[str, Any]] = others) -> None:
            summaries = [record.summarize(r, done["bandwidth"], _weight_bytes(entries, r["label"])) for r in results]
            record.add_agreement(summaries, results, list(REFERENCES))
            record.add_speed(summaries, entries, lambda result: result["sentence"]["p50"])
            done["contestants"] = others + [racer.record() for racer in racers]
            done["results"] += summaries
            _name_reference(about, {result["label"] for result in done["results"]})
            save(done)

        race(settings, entries, works, threads, progress, add)
    return done


def _check(options: Options, targets: Sequence[str]) -> None:
    """targets: those that are built, and those that could be."""
    known = peers()
    for name in options.choice.targets or ():
        if name not in targets:
            raise UnknownOption(name, targets, "target")
    for name in (*options.peers, *options.pythons):
        if name not in known:
            raise UnknownOption(name, known, "peer")
    wrong = [
        f"{flag} is {', '.join(map(str, values)) or 'empty'}, expected whole numbers of at least 1"
        for flag, values in (
            ("--batch-sizes", options.batch_sizes), ("--num-beams", options.num_beams),
            ("--source-lengths", options.source_lengths), ("--threads", options.threads),
            ("--repeats", (options.repeats,)), ("--max-new-tokens", (options.max_new_tokens,)),
        )
        if not values or min(values) < 1
    ]  # fmt: skip
    if options.checkpoint is not None and not Path(options.checkpoint).is_dir():
        wrong.append(f"--checkpoint is {options.checkpoint}, expected the folder that the bundle was exported from")
    if options.file is not None and not Path(options.file).is_file():
        wrong.append(f'{options.file}: no such file; expected a text a line, or {{"input_ids": [...]}} a line')
    if wrong:
        raise InvalidOption("; ".join(wrong))


def _entries(bundle: bundles.Bundle, options: Options) -> list[Entry]:
    found: list[Entry] = []
    known = modules()
    for name in (OURS, *options.peers):
        found += known[name].entries(bundle, options.choice)
    return found


def _translate_file(
    done: dict[str, Any], settings: Settings, entries: Sequence[Entry], options: Options, progress: Progress
) -> None:
    assert options.file is not None
    plan = files.plan(settings.bundle, options.file, max(options.num_beams), options.max_new_tokens)
    racers, done["file"] = files.race(settings, entries, plan, progress)
    done["contestants"] = [racer.record() for racer in racers]
    done["bandwidth"] = {"reason": "a file has no single step to compare it with", "floors": []}
    files.add_agreement(done["file"], list(REFERENCES))
    record.add_speed(done["file"]["results"], entries, lambda result: result["seconds"]["p50"])
    _name_reference(done["settings"], {result["label"] for result in done["file"]["results"]})


def _name_reference(about: dict[str, Any], measured: set[str]) -> None:
    about["reference"] = next((name for name in REFERENCES if name in measured), None)


def _weight_bytes(entries: Sequence[Entry], label: str) -> float:
    return next(entry.weight_bytes for entry in entries if entry.label == label)
