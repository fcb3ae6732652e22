"""Measurements as plain data: what --json writes, and the table and the page show.

    format, format_version    "s2s-bench" and 1
    started, command          when, and the command line
    machine, packages         where it ran
    model                     of the bundle: family, sizes, precision; renormalizes: whether its generation config sets
                              renormalize_logits
    settings                  repeats, reference, what the fixed work is
    bandwidth                 weights of a step, read speed, floor of a step by threads and bytes of a weight
    contestants               each entry and thread count: load and build seconds, memory, versions; or `reason`
    results                   each entry, thread count and piece of work:
        first_token           seconds until the first token, of one call of its own: p50, p90, p99, min, max
        step                  seconds of a decoder step: (whole call - first-token call) / (new_tokens - 1)
        steps                 seconds from the beginning of one step to the next; null for a system without hooks
        encoder               seconds of the encoder; null likewise
        sentence              seconds of a call, in which all sentences are returned together
        tokens_per_second     batch_size * new_tokens / median call
        peak_memory           peak of resident memory during this work, in bytes
        floor_share           floor of a step / step; null without a floor
        speed                 times as fast as `speed_against`: CTranslate2 at the same precision, or transformers
        equal_sentences, equal_tokens    shares equal to the reference's best hypothesis; null without a reference
        screened              of all calls (library.screened): rows, kept blocks, rows that were not; null for others
        flags                 reasons why the measurement may be wrong
    file                      the same for a translated file, see files.py; null without --file
    audio                     the same for transcribed sound, see audio/run.py; null without --audio

Times are seconds, memory is bytes. All quantiles are over the rounds.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from typing import Any

from ...bundle import Bundle
from .. import machine
from . import noise
from .bandwidth import floor_of
from .contestants import Entry
from .work import Ids

# Contestants with which `speed` compares.
BASELINES = ("ctranslate2", "transformers")
FORMAT = "s2s-bench"
FORMAT_VERSION = 1


def run_record(bundle: Bundle, command: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The beginning of a record, to which contestants and results are added."""
    described = machine.describe()
    manifest = bundle.manifest
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "machine": described["machine"],
        "packages": described["packages"],
        "model": {
            "name": manifest.get("provenance", {}).get("checkpoint", bundle.path.name),
            **{key: manifest[key] for key in ("family", "precision", "decoder", "sizes")},
            "renormalizes": bool(manifest["generation"].get("renormalize_logits")),
        },
        "settings": settings,
        "bandwidth": {"reason": "not measured", "floors": []},
        "contestants": [],
        "results": [],
        "file": None,
        "audio": None,
    }


def summarize(result: dict[str, Any], bandwidth: dict[str, Any], weight_bytes: float) -> dict[str, Any]:
    """The numbers for one entry's calls over one piece of work."""
    calls = result["calls"]
    steps_after_first = result["new_tokens"] - 1
    step = noise.quantiles([(call["wall"] - call["first"]) / steps_after_first for call in calls])
    sentence = noise.quantiles([call["wall"] for call in calls])
    encoder = [call["encoder"] for call in calls if call["encoder"] is not None]
    single_steps = [seconds for call in calls for seconds in call["steps"][1:]]
    floor = floor_of(bandwidth, result["threads"], weight_bytes)
    kept = ("label", "threads", "batch_size", "num_beams", "source_length", "new_tokens", "warm_up_seconds")
    return {
        **{key: result[key] for key in kept},
        "n_calls": len(calls),
        "encoder": noise.quantiles(encoder) if encoder else None,
        "first_token": noise.quantiles([call["first"] for call in calls]),
        "step": step,
        "steps": noise.quantiles(single_steps) if single_steps else None,
        "sentence": sentence,
        "sentence_cpu": noise.quantiles([call["cpu"] for call in calls]),
        "spread": noise.spread([call["wall"] for call in calls]),
        "tokens_per_second": result["batch_size"] * result["new_tokens"] / sentence["p50"],
        "peak_memory": max(call["memory"].get("peak", 0) for call in calls),
        "screened": _screened(calls),
        "preemptions": sum(call["preemptions"] for call in calls),
        "floor_share": floor / step["p50"] if floor and step["p50"] > 0 else None,
        "equal_sentences": None,
        "equal_tokens": None,
        "speed": None,
        "speed_against": None,
        "around": result["around"],
        "flags": noise.flags(calls, result["around"]),
    }


def _screened(calls: Sequence[dict[str, Any]]) -> list[int] | None:
    counts = [call["screened"] for call in calls if call.get("screened")]
    return [sum(one) for one in zip(*counts, strict=True)] if counts else None


def notes(result: dict[str, Any]) -> list[str]:
    """What a table says beside the numbers of a result."""
    rows, kept, whole = result.get("screened") or (0, 0, 0)
    screen = [f"screen kept {kept / rows:.0f} blocks a row"] if rows else []
    return [*screen, *([f"{whole} rows not screened"] if whole else []), *result["flags"]]


def agreement(found: Sequence[Ids], reference: Sequence[Ids]) -> tuple[float, float]:
    """Shares of sentences, and of tokens at the same position, that are equal to the reference's."""
    equal_sentences = sum(a == b for a, b in zip(found, reference, strict=True))
    n_tokens = sum(max(len(a), len(b)) for a, b in zip(found, reference, strict=True))
    equal_tokens = sum(x == y for a, b in zip(found, reference, strict=True) for x, y in zip(a, b, strict=False))
    return equal_sentences / max(1, len(reference)), equal_tokens / max(1, n_tokens)


def add_agreement(
    summaries: Sequence[dict[str, Any]], results: Sequence[dict[str, Any]], references: list[str]
) -> None:
    """Fill in `equal_sentences` and `equal_tokens` against the first of `references` that took part in each work."""
    tokens_of: dict[tuple[Any, ...], dict[str, list[Ids]]] = {}
    for result in results:
        tokens_of.setdefault(_work_key(result), {})[result["label"]] = result["tokens"]
    for summary, result in zip(summaries, results, strict=True):
        present = tokens_of[_work_key(result)]
        label = next((name for name in references if name in present), None)
        if label is not None:
            found = agreement(result["tokens"], present[label])
            summary["equal_sentences"], summary["equal_tokens"] = found


def add_speed(results: Sequence[dict[str, Any]], entries: Sequence[Entry], seconds: Callable[[Any], float]) -> None:
    """Fill in `speed` and `speed_against`: how many times as fast as the first of BASELINES that ran at the same
    precision, or ran at all. results: of the same work. seconds: of a result.
    """
    by_label = {entry.label: entry for entry in entries}
    for result in results:
        precision = by_label[result["label"]].precision
        rivals = [
            other
            for name in BASELINES
            for other in sorted(results, key=lambda r: by_label[r["label"]].precision != precision)
            if by_label[other["label"]].contestant == name
        ]
        if rivals:
            result["speed"] = seconds(rivals[0]) / seconds(result)
            result["speed_against"] = rivals[0]["label"]


def _work_key(result: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(result[key] for key in ("threads", "batch_size", "num_beams", "source_length"))
