"""The record of an evaluation as a table and as one self-contained HTML page."""

from __future__ import annotations

from html import escape
from typing import Any

from ..bench.page import STYLE, table

HEADER = ("", "exact match", "chrF", "BLEU", "equal to the first", "tokens/s", "peak MiB", "backend")
MIB = 2**20


def rows(record: dict[str, Any]) -> list[tuple[str, ...]]:
    return [_row(result) for result in record["results"]]


def _row(result: dict[str, Any]) -> tuple[str, ...]:
    if result["reason"] is not None:
        return (result["name"], "-", "-", "-", "-", "-", "-", result["reason"])
    return (
        result["name"],
        f"{result['exact_match']:.1%}",
        f"{result['chrf']:.1f}",
        f"{result['bleu']:.1f}",
        f"{result['equal_to_first']:.1%}",
        f"{result['tokens_per_second']:.0f}",
        f"{result['peak_bytes'] / MIB:.0f}",
        result["backend"],
    )


def render(record: dict[str, Any]) -> str:
    """Lines of text."""
    table = [HEADER, *rows(record)]
    widths = [max(len(row[i]) for row in table) for i in range(len(HEADER))]
    lines = []
    for row in table:
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1], strict=True)),
        ]
        lines.append("  ".join([*cells, row[-1]]).rstrip())
    return "\n".join([*lines, "", *sentences(record)])


def sentences(record: dict[str, Any]) -> list[str]:
    """What the numbers mean, in words."""
    ran = [result for result in record["results"] if result["reason"] is None]
    found = []
    for result in ran[1:]:
        first = ran[0]
        if result["equal_to_first"] == 1.0:
            found.append(f"{result['name']} wrote the same texts as {first['name']}.")
        else:
            found.append(
                f"{result['name']} wrote another text than {first['name']} for {1 - result['equal_to_first']:.1%} of "
                f"the sources; chrF changed by {result['chrf'] - first['chrf']:+.2f}, exact matches by "
                f"{100 * (result['exact_match'] - first['exact_match']):+.1f} points."
            )
    for result in ran:
        if result["n_failed"]:
            number, text = result["failures"][0]
            found.append(f"{result['name']}: {result['n_failed']} sources failed; line {number + 1}: {text}")
    return found


def render_page(record: dict[str, Any]) -> str:
    """The page's text."""
    name, data = escape(record["model"]["name"]), record["data"]
    machine = record["machine"]
    about = (
        f"{data['pairs']} pairs of {escape(data['file'])}. {escape(str(machine['processor']))}, "
        f"{machine['cores']} cores, Python {escape(record['python'])}; "
        f"threads: {record['settings']['threads'] or 'all cores'}, batches of "
        f"{record['settings']['batch_size']}."
    )
    parts = [
        f"<h1>{name}: quality and speed</h1>",
        f'<p class="quiet">{about}</p>',
        *(f"<p>{escape(sentence)}</p>" for sentence in sentences(record)),
        table(HEADER, rows(record), last=""),
    ]
    if record["examples"]:
        parts.append("<h2>Where they differ</h2>")
        for example in record["examples"]:
            texts = [("reference", example["reference"]), *example["texts"].items()]
            parts.append(f"<h3>{escape(example['source'])}</h3>" + table(("", "text"), texts, last=""))
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name}: quality and speed</title><style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )
