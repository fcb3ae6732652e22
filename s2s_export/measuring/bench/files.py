"""Translating a file: sentences of mixed lengths, outputs that end with their end token, all cores, best settings.

Every system tries all settings that its module offers on the first sentences of the file, and takes part with the
fastest. Then all systems translate the whole file in rounds. Loading is not counted.

Each line of the file holds a text, or a JSON object with a source in the field that `s2s generate` has for it, such as
{"input_ids": [...]}.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...bundle import Bundle
from ...errors import InputError, InvalidOption
from ...runtime import text
from ...runtime.cores import available_cores
from ...runtime.sources import Source, SourceKind, kind_of
from . import noise
from .contestants import Entry, modules
from .record import agreement
from .rounds import Progress, Racer, Settings, prepared_folder

N_TUNING = 48  # sentences on which settings are compared


@dataclass(frozen=True)
class Plan:
    """What is translated."""

    name: str
    sources: list[Source]
    num_beams: int
    max_new_tokens: int
    lengths: list[int]  # of the sources

    @property
    def tuning(self) -> list[Source]:
        return self.sources[:N_TUNING]


def plan(bundle: Bundle, file: str, num_beams: int, max_new_tokens: int) -> Plan:
    """Read the file and turn its lines into sources. Raises InputError, which names the line, and InvalidOption."""
    path = Path(file)
    if not path.is_file():
        raise InvalidOption(f'{file}: no such file; expected a text a line, or {{"input_ids": [...]}} a line')
    entry = bundle.manifest.get("tokenizer")
    kind = kind_of(bundle)
    tokenizer = text.load(bundle.path / "tokenizer", entry) if entry and kind.has_ids else None
    sources = []
    for number, line in enumerate(text.lines_of(path), 1):
        try:
            sources.append(kind.check(_source(text.from_utf8(line), kind, tokenizer)))
        except InputError as error:
            raise InputError(f"{file}: line {number}: {error}") from None
    if not sources:
        raise InvalidOption(f"{file}: holds no lines; expected at least one")
    if bundle.max_target_length is not None:
        max_new_tokens = min(max_new_tokens, bundle.max_target_length)
    return Plan(path.name, sources, num_beams, max_new_tokens, [kind.length(source) for source in sources])


def _source(line: str, kind: SourceKind, tokenizer: text.Tokenizer | None) -> Source:
    if line.startswith("{"):
        try:
            return kind.from_json(json.loads(line)[kind.field])
        except (ValueError, KeyError, TypeError):
            raise InputError(f'the line is no JSON object with "{kind.field}"') from None
    if tokenizer is None:
        raise InputError(
            f'the line is text, but the bundle has no tokenizer for it; give {{"{kind.field}": [...]}} a line'
        )
    return tokenizer.encode(line)


def race(
    settings: Settings, entries: Sequence[Entry], plan: Plan, progress: Progress
) -> tuple[list[Racer], dict[str, Any]]:
    """The times of each entry over the whole file at its best setting."""
    cores = available_cores()
    racers = [Racer(entry, settings, cores) for entry in entries]
    best: dict[int, dict[str, Any]] = {}
    runs: dict[int, list[dict[str, Any]]] = {}
    with ExitStack() as stack:
        for number, racer in enumerate(racers):
            folder = prepared_folder(stack, number)
            progress(f"{racer.entry.label}: prepare")
            racer.prepare(folder)
            stack.callback(racer.close)
            found = _tune(racer, folder, plan, cores, progress)
            if found is not None:
                best[number] = found
                racer.threads = found["threads"]
                racer.open(folder, **_of_opening(found))
        start = noise.Moment.now()
        for repeat in range(settings.repeats if best else 0):
            for number, racer in enumerate(racers):
                progress(f"{plan.name}: round {repeat + 1} of {settings.repeats}, {racer.entry.label}")
                if number in best and (
                    answer := _ask(racer, plan, plan.sources, best[number], with_tokens=repeat == 0)
                ):
                    runs.setdefault(number, []).append(answer)
        around = noise.since(start, sum(run["cpu"] for made in runs.values() for run in made), cores)
    results = [
        _result(racers[number].entry, made, best[number], around)
        for number, made in runs.items()
        if len(made) == settings.repeats
    ]
    lengths = plan.lengths
    about = {
        "name": plan.name, "n_sentences": len(lengths), "shortest": min(lengths), "longest": max(lengths),
        "num_beams": plan.num_beams, "max_new_tokens": plan.max_new_tokens, "cores": cores,
        "n_tuning": len(plan.tuning),
    }  # fmt: skip
    return racers, {**about, "results": results}


def _tune(racer: Racer, folder: Path, plan: Plan, cores: int, progress: Progress) -> dict[str, Any] | None:
    """The setting that translates the first sentences fastest, or None when the entry can't run."""
    times: list[tuple[float, dict[str, Any]]] = []
    opened: dict[str, Any] | None = None
    for setting in modules()[racer.entry.contestant].settings(cores):
        progress(f"{racer.entry.label}: try {', '.join(f'{k} {v}' for k, v in setting.items())}")
        if opened != _of_opening(setting):
            racer.close()
            racer.open(folder, **_of_opening(setting))
            opened = _of_opening(setting)
            _ask(racer, plan, plan.tuning[:8], setting)
        if answer := _ask(racer, plan, plan.tuning, setting):
            times.append((answer["wall"], setting))
    racer.close()
    return min(times, key=lambda pair: pair[0])[1] if times else None


def _of_opening(setting: dict[str, Any]) -> dict[str, Any]:
    """The part of a setting that is fixed when a system is opened."""
    return {name: setting[name] for name in ("threads", "inter_threads", "workers") if name in setting}


def _ask(
    racer: Racer, plan: Plan, sources: Sequence[Source], setting: dict[str, Any], *, with_tokens: bool = False
) -> dict[str, Any] | None:
    request = {"num_beams": plan.num_beams, "max_new_tokens": plan.max_new_tokens, "setting": setting}
    return racer.ask("translate", sources=list(sources), **request, with_tokens=with_tokens)


def _result(
    entry: Entry, runs: list[dict[str, Any]], setting: dict[str, Any], around: dict[str, float] | None
) -> dict[str, Any]:
    return {
        "label": entry.label,
        "precision": entry.precision,
        "setting": setting,
        "seconds": noise.quantiles([run["wall"] for run in runs]),
        "n_tokens": runs[0]["n_tokens"],
        "peak_memory": max(run["memory"].get("peak", 0) for run in runs),
        "equal_sentences": None,
        "speed": None,
        "speed_against": None,
        "around": around,
        "flags": noise.flags(runs, around),
        "tokens": runs[0]["tokens"],
    }


def add_agreement(file: dict[str, Any], references: list[str]) -> None:
    """Fill in `equal_sentences`, and remove the tokens from the record."""
    results = file["results"]
    tokens = {result["label"]: result.pop("tokens") for result in results}
    reference = next((name for name in references if name in tokens), None)
    if reference:
        for result in results:
            result["equal_sentences"] = agreement(tokens[result["label"]], tokens[reference])[0]
