"""The record of `s2s bench --audio` as text and as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

from ..charts import Bar, bars, legend
from ..page import absent, colours_of, document, machine_lines
from ..page import table as html_table
from ..table import MIB, absent_text, align, head, loading, threads_text
from ..verdict import EVEN

HEADER = ("system", "prec", "seconds", "least", "CPU", "real-time factor", "speed", "peak MiB", "word errors", "notes")
NOTES = (
    "seconds: the whole file, median over the rounds; least: the fastest round; CPU: least CPU seconds of a round",
    "real-time factor: seconds for a second of sound",
    "speed: against the fastest peer of the same precision, else of any",
    "peak: resident memory of the process, files it maps included",
    "word errors: edits over the words of the reference text, without case and punctuation",
    "notes: spread of the rounds over 15 %, time spent waiting for a core, and what other processes took meanwhile",
)


def render(record: dict[str, Any]) -> str:
    """The machine, sentences, a block for each file and setting, loading times, and which systems could not run."""
    parts = [head(record), *verdict(record)]
    for title, results in _groups(record):
        parts.append(f"{title}\n{align([HEADER, *map(_row, results)], {0, 1, len(HEADER) - 1})}")
    parts += [loading(record), absent_text(record), "\n".join(NOTES) if record["audio"]["results"] else ""]
    return "\n\n".join(part for part in parts if part)


def verdict(record: dict[str, Any]) -> list[str]:
    """For each precision how our fastest system compares with the fastest peer, over all files and settings."""
    who = {entry["label"]: entry["contestant"] for entry in record["contestants"]}
    ratios: dict[str, list[tuple[float, str]]] = {}
    for title, results in _groups(record):
        for precision in dict.fromkeys(result["precision"] for result in results):
            fitting = [result for result in results if result["precision"] == precision]
            ours = [r["seconds"]["p50"] for r in fitting if who[r["label"]] == "s2s"]
            others = [r["seconds"]["p50"] for r in fitting if who[r["label"]] != "s2s"]
            if ours and others:
                ratios.setdefault(precision, []).append((min(others) / min(ours), title))
    found = []
    for precision, pairs in ratios.items():
        (low, slowest), (high, _) = min(pairs), max(pairs)
        n_faster = sum(ratio > 1 + EVEN for ratio, _ in pairs)
        least = f"; least in {slowest}" if len(pairs) > 1 else ""
        found.append(
            f"In {precision}, s2s runs at {low:.2f}{f' to {high:.2f}' * (len(pairs) > 1)} times the speed of the "
            f"fastest peer, and is faster in {n_faster} of {len(pairs)} cells{least}."
        )
    return found


def _groups(record: dict[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The results of each file, setting and number of threads, fastest first, with their title."""
    seconds = {sound["name"]: sound["seconds"] for sound in record["audio"]["sounds"]}
    found: dict[str, list[dict[str, Any]]] = {}
    for result in record["audio"]["results"]:
        beams = f"{result['num_beams']} beam{'s' * (result['num_beams'] > 1)}{', batched' * result['batched']}"
        title = f"{result['sound']} ({seconds[result['sound']]:.1f} s), {beams}, {threads_text(result['threads'])}"
        found.setdefault(title, []).append(result)
    for title, results in found.items():
        yield title, sorted(results, key=lambda result: result["seconds"]["p50"])


def _row(result: dict[str, Any]) -> tuple[str, ...]:
    speed, errors = result["speed"], result["word_errors"]
    return (
        result["label"], result["precision"], f"{result['seconds']['p50']:.3f}", f"{result['seconds']['min']:.3f}",
        f"{result['seconds_cpu']['min']:.3f}",
        f"{result['real_time_factor']:.4f}", "-" if speed is None else f"{speed:.2f}",
        f"{result['peak_memory'] / MIB:.0f}", "-" if errors is None else f"{errors:.1%}", ", ".join(result["flags"]),
    )  # fmt: skip


def render_page(record: dict[str, Any]) -> str:
    """The page's text."""
    colours = colours_of(record, {result["label"] for result in record["audio"]["results"]})
    name = f"{record['model']['name']}: speed of transcription"
    sentences = "".join(f"<p>{escape(text)}</p>" for text in verdict(record))
    figures, tables = [], []
    for title, results in _groups(record):
        rows = [
            Bar(r["label"], colours[r["label"]], r["seconds"]["p50"], f"{r['seconds']['p50']:.2f} s" + _mark(r))
            for r in results
        ]
        figures.append(f"<figure><figcaption>{escape(title)}</figcaption>{bars(rows, 's')}</figure>")
        tables.append(f"<h3>{escape(title)}</h3>{html_table(HEADER, [_row(result) for result in results])}")
    parts = [
        f"<h1>{escape(name)}</h1>",
        f'<div class="verdict">{sentences}</div>' if sentences else "",
        machine_lines(record),
        legend(list(colours.items())),
        "<h2>Seconds for a file</h2><p class='quiet'>All systems transcribe the same sound, one after the other; "
        f"medians of {record['settings']['repeats']} rounds after a warm-up. * marks a measurement with a note.</p>"
        f"<div class='row'>{''.join(figures)}</div>",
        f"<h2>Numbers</h2>{''.join(tables)}",
        "".join(f'<p class="quiet">{escape(note)}</p>' for note in NOTES),
        _texts(record),
        absent(record),
        f"<h2>All numbers</h2><details><summary>as the command prints them</summary><pre>{escape(render(record))}</pre>"
        "</details>",
    ]
    return document(name, parts)


def _mark(result: dict[str, Any]) -> str:
    return " *" * bool(result["flags"])


def _texts(record: dict[str, Any]) -> str:
    """What each system wrote, equal texts together."""
    parts = []
    for title, results in _groups(record):
        labels: dict[str, list[str]] = {}
        for result in results:
            labels.setdefault(result["text"], []).append(result["label"])
        rows = "".join(f"<p><b>{escape(', '.join(who))}</b>: {escape(text)}</p>" for text, who in labels.items())
        parts.append(f"<h3>{escape(title)}</h3>{rows}")
    return f"<h2>Texts</h2><details><summary>what was written</summary>{''.join(parts)}</details>"
