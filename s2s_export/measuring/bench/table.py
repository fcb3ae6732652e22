"""A record as text, with one block for each piece of work."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

from . import verdict
from .record import notes

MIB = 2**20
HEADER = (
    "system", "prec", "encoder", "first", "step", "p90", "p99", "sentence", "p90", "p99", "tok/s", "speed", "floor",
    "peak", "equal", "notes",
)  # fmt: skip
UNITS = ("", "", "ms", "ms", "ms", "ms", "ms", "ms", "ms", "ms", "", "x", "%", "MiB", "%", "")
LEFT_ALIGNED = frozenset({0, 1, len(HEADER) - 1})


def render(record: dict[str, Any]) -> str:
    """The machine, the floor, a block for each piece of work, loading times, and which systems could not run."""
    parts = [head(record), "\n".join(verdict.sentences(record))]
    for threads, work in _works(record):
        parts.append(_block(record, threads, work))
    parts.append(loading(record))
    if record["file"]:
        parts.append(_file(record["file"]))
    parts.append(absent_text(record))
    parts.append(_legend(record))
    return "\n\n".join(part for part in parts if part)


def head(record: dict[str, Any]) -> str:
    machine, model, settings = record["machine"], record["model"], record["settings"]
    lines = [
        f"model      {model['name']} ({model['family']}), {', '.join(f'{k} {v}' for k, v in model['sizes'].items())}",
        f"machine    {machine['processor']}, {machine['cores']} cores, {machine['memory']}, {machine['system']}",
        f"packages   {', '.join(f'{name} {version}' for name, version in record['packages'].items() if version)}",
    ]
    if record["results"]:
        lines.append(
            f"work       {settings['new_tokens']} new tokens each, {settings['repeats']} rounds after a warm-up"
        )
    bandwidth = record["bandwidth"]
    for floor in bandwidth["floors"]:
        lines.append(
            f"floor      {floor['step_seconds'] * 1e3:.2f} ms a step: {floor['bytes'] / 1e6:.0f} MB of "
            f"{floor['weight_bytes']:g}-byte weights at {floor['bytes_per_second'] / 1e9:.1f} GB/s, "
            f"{threads_text(floor['threads'])}"
        )
    if "reason" in bandwidth and record["results"]:
        lines.append(f"floor      none: {bandwidth['reason']}")
    return "\n".join(lines)


def threads_text(n: int) -> str:
    return f"{n} thread{'s' * (n > 1)}"


def _works(record: dict[str, Any]) -> list[tuple[int, dict[str, int]]]:
    """Thread counts and pieces of work that have results, in the order they were done."""
    seen: dict[tuple[Any, ...], tuple[int, dict[str, int]]] = {}
    for result in record["results"]:
        work = {key: result[key] for key in ("batch_size", "num_beams", "source_length", "new_tokens")}
        seen.setdefault((result["threads"], *work.values()), (result["threads"], work))
    return list(seen.values())


def _block(record: dict[str, Any], threads: int, work: dict[str, int]) -> str:
    chosen = of_work(record, threads, work)
    title = (
        f"batch {work['batch_size']}, {work['num_beams']} beam{'s' * (work['num_beams'] > 1)}, source "
        f"{work['source_length']}, {work['new_tokens']} new tokens, {threads_text(threads)}"
    )
    by_label = {entry["label"]: entry for entry in record["contestants"]}
    rows = [_row(result, by_label[result["label"]]) for result in chosen]
    return f"{title}\n{align([HEADER, UNITS, *rows])}"


def of_work(record: dict[str, Any], threads: int, work: dict[str, int]) -> list[dict[str, Any]]:
    return [r for r in record["results"] if r["threads"] == threads and all(r[key] == work[key] for key in work)]


def _row(result: dict[str, Any], entry: dict[str, Any]) -> tuple[str, ...]:
    steps = result["steps"] or {}
    equal = result["equal_sentences"]
    equal_tokens = result["equal_tokens"]
    return (
        result["label"],
        entry["precision"],
        _ms(result["encoder"], "p50"),
        _ms(result["first_token"], "p50"),
        _ms(result["step"], "p50"),
        _ms(steps, "p90"),
        _ms(steps, "p99"),
        _ms(result["sentence"], "p50"),
        _ms(result["sentence"], "p90"),
        _ms(result["sentence"], "p99"),
        f"{result['tokens_per_second']:.0f}",
        "-" if result["speed"] is None else f"{result['speed']:.2f}",
        "-" if result["floor_share"] is None else f"{result['floor_share']:.0%}".rstrip("%"),
        f"{result['peak_memory'] / MIB:.0f}",
        "-" if equal is None else f"{equal:.0%}".rstrip("%") + f"/{equal_tokens:.0%}".rstrip("%"),
        ", ".join(notes(result)),
    )


def _ms(quantiles: dict[str, float] | None, name: str) -> str:
    if not quantiles or name not in quantiles:
        return "-"
    value = quantiles[name] * 1e3
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def align(rows: Sequence[Sequence[str]], left_aligned: Container[int] = LEFT_ALIGNED) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if i in left_aligned else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)


def loading(record: dict[str, Any]) -> str:
    rows = [("system", "threads", "load s", "build s", "after load MiB", "versions")]
    for entry in record["contestants"]:
        if entry["load_seconds"] is None:
            continue
        build = "-" if entry["build_seconds"] is None else f"{entry['build_seconds']:.1f}"
        memory = (entry["load_memory"] or {}).get("resident", 0) / MIB
        versions = ", ".join(f"{name} {version}" for name, version in (entry["versions"] or {}).items())
        rows.append(
            (entry["label"], str(entry["threads"]), f"{entry['load_seconds']:.2f}", build, f"{memory:.0f}", versions)
        )
    return "loading\n" + _plain(rows) if len(rows) > 1 else ""


def _plain(rows: Sequence[Sequence[str]]) -> str:
    return align(rows, {0, len(rows[0]) - 1})


def _file(file: dict[str, Any]) -> str:
    rows = [
        (
            "system",
            "prec",
            "seconds",
            "least",
            "most",
            "sentences/s",
            "tok/s",
            "speed",
            "peak MiB",
            "equal",
            "best setting",
        )
    ]
    for result in file["results"]:
        equal = result["equal_sentences"]
        rows.append(
            (
                result["label"],
                result["precision"],
                f"{result['seconds']['p50']:.2f}",
                f"{result['seconds']['min']:.2f}",
                f"{result['seconds']['max']:.2f}",
                f"{file['n_sentences'] / result['seconds']['p50']:.1f}",
                f"{result['n_tokens'] / result['seconds']['p50']:.0f}",
                "-" if result["speed"] is None else f"{result['speed']:.2f}",
                f"{result['peak_memory'] / MIB:.0f}",
                "-" if equal is None else f"{equal:.0%}",
                ", ".join([*(f"{k} {v}" for k, v in result["setting"].items()), *result["flags"]]),
            )
        )
    title = (
        f"file       {file['name']}: {file['n_sentences']} sentences of {file['shortest']} to {file['longest']} "
        f"tokens, {file['num_beams']} beams, at most {file['max_new_tokens']} new tokens, {file['cores']} cores"
    )
    return f"{title}\n{_plain(rows)}"


def absent_text(record: dict[str, Any]) -> str:
    seen = {entry["label"]: entry["reason"] for entry in record["contestants"] if entry["reason"]}
    if not seen:
        return ""
    return "not measured\n" + "\n".join(f"  {label}: {reason}" for label, reason in seen.items())


def _legend(record: dict[str, Any]) -> str:
    if not record["results"]:
        return ""
    reference = record["settings"].get("reference") or "nothing: no fp32 reference ran"
    lines = [
        "encoder, first, step and sentence are medians over the rounds; '-' where a system can't be looked into",
        "step: (sentence - first) / (new tokens - 1); its p90 and p99 are of single steps, first to last",
        "speed: against CTranslate2 at the same precision, or transformers where it did not run",
        "floor: the share of a step that it must take to read all weights once; a shortlist and a screen read fewer",
        "peak: resident memory of the process, files it maps included",
        f"equal: sentences/tokens equal to those of {reference}",
        "notes: blocks of 16 tokens that were multiplied to find the best, where the output projection is screened;"
        " spread of the rounds over 15 %, time spent waiting for a core, and what other processes took meanwhile",
    ]
    return "\n".join(lines)
