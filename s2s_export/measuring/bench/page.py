"""A record as one self-contained HTML page, with style, charts and numbers."""

from __future__ import annotations

from collections.abc import Container, Sequence
from html import escape
from typing import Any

from . import verdict
from .bandwidth import floor_of
from .charts import Bar, Series, bars, legend, lines
from .record import notes
from .table import MIB, of_work, render, threads_text
from .work import Work

# Blues and greens for ours, warm colours for peers.
OURS = ("#0b5fa5", "#74a9cf", "#1b7f4b", "#7bc8a4", "#5b3fa0", "#a897d8")
PEERS = ("#d9480f", "#f0a202", "#a61e4d", "#8d6e63", "#5f6368")
STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, "Segoe UI", "Helvetica Neue", "DejaVu Sans", sans-serif; color: #1f2328;
  max-width: 1360px; margin: 32px auto; padding: 0 24px; background: #fff; overflow-wrap: anywhere; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 36px 0 6px; }
h3 { font-size: 15px; margin: 14px 0 6px; }
p { margin: 4px 0 10px; max-width: 62em; } .quiet { color: #59636e; }
.verdict { background: #f6f8fa; border-left: 4px solid #0b5fa5; padding: 8px 14px; margin: 12px 0; }
.verdict p { margin: 4px 0; }
.row { display: flex; flex-wrap: wrap; gap: 12px 40px; } figure { margin: 0; width: 620px; max-width: 100%; }
figcaption { font-weight: 600; margin: 8px 0; }
svg { max-width: 100%; height: auto; display: block; font: 12.5px system-ui, "DejaVu Sans", sans-serif; }
.on-narrow { display: none; }
.grid { stroke: #e4e8ec; } .tick, .value { fill: #59636e; color: #59636e; } .axis, .name { fill: #1f2328; }
line.floor { stroke: #c2185b; stroke-width: 2; stroke-dasharray: 5 3; } .floorname { fill: #c2185b; }
polyline { fill: none; stroke-width: 2; }
.bar { display: grid; grid-template-columns: 13em 1fr 7em; gap: 0 8px; align-items: center; font-size: 12.5px;
  margin: 0 0 6px; line-height: 1.35; }
.bar .name { text-align: right; }
.track { position: relative; height: 20px; } .fill { position: absolute; inset: 0 auto 0 0; border-radius: 2px;
  min-width: 1px; }
i.floor { position: absolute; top: -2px; bottom: -2px; border-left: 2px dashed #c2185b; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 2px 20px; padding: 6px 0; margin: 10px 0;
  position: sticky; top: 0; background: #fff; border-bottom: 1px solid #e4e8ec; z-index: 1; }
.dot { display: inline-block; width: 11px; height: 11px; border-radius: 50%; margin-right: 6px; }
table { border-collapse: collapse; margin: 8px 0; font-variant-numeric: tabular-nums; font-size: 13.5px; }
th, td { padding: 3px 8px; text-align: right; border-bottom: 1px solid #e4e8ec; overflow-wrap: normal; }
th { font-weight: 600; border-bottom: 2px solid #c5ccd3; vertical-align: bottom; }
td:first-child, th:first-child { text-align: left; } td:last-child, th:last-child { text-align: left; }
td.note { color: #a61e4d; } .wide { overflow-x: auto; }
pre { background: #f6f8fa; padding: 14px; overflow-x: auto; font-size: 12px; line-height: 1.4; overflow-wrap: normal; }
summary { cursor: pointer; }
@media (max-width: 1000px) { table { font-size: 12.5px; } th, td { padding: 3px 5px; } }
@media (max-width: 760px) {
  body { margin: 16px auto; padding: 0 12px; } h1 { font-size: 22px; }
  .on-wide { display: none; } .on-narrow { display: block; } .legend { font-size: 12.5px; gap: 0 12px; }
  .bar { grid-template-columns: 1fr 6.5em; } .bar .name { grid-column: 1 / 3; text-align: left; }
  table, tbody { display: block; } tr:has(th) { display: none; }
  tr { display: grid; grid-template-columns: repeat(3, 1fr); gap: 0 10px; border-bottom: 1px solid #c5ccd3;
    padding: 6px 0; }
  td { display: block; border: 0; text-align: left; padding: 2px 0; }
  td:first-child, td:last-child { grid-column: 1 / 4; } td:first-child { font-weight: 600; }
  td[data-name]::before { content: attr(data-name); display: block; font-size: 11px; color: #59636e; }
  td:empty { display: none; }
}
"""


def render_page(record: dict[str, Any]) -> str:
    """The page's text."""
    measured = {result["label"] for result in record["results"]}
    measured |= {result["label"] for result in (record["file"] or {}).get("results", [])}
    colours = colours_of(record, measured)
    name = f"{record['model']['name']}: decoding speed"
    parts = [
        f"<h1>{escape(name)}</h1>",
        _verdict(record),
        _intro(record),
        legend([(label, colour) for label, colour in colours.items()]) if record["results"] else "",
        *(_step_bars(record, colours, threads) for threads in _threads(record)),
        *(_curves(record, colours, threads) for threads in _threads(record)),
        _file(record, colours),
        _numbers(record),
        _memory(record, colours),
        absent(record),
        "<h2>All numbers</h2><details><summary>as the command prints them</summary>"
        f"<pre>{escape(render(record))}</pre></details>",
    ]
    return document(name, parts)


def document(title: str, parts: Sequence[str]) -> str:
    """A whole page, with its style."""
    style = STYLE + "".join(
        f".c{i} {{ fill: {c}; }} .l{i} {{ stroke: {c}; }} .b{i} {{ background: {c}; }}\n"
        for i, c in enumerate((*OURS, *PEERS))
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _verdict(record: dict[str, Any]) -> str:
    """What is seen below, in sentences."""
    found = verdict.sentences(record)
    return f'<div class="verdict">{"".join(f"<p>{escape(text)}</p>" for text in found)}</div>' if found else ""


def colours_of(record: dict[str, Any], measured: Container[str]) -> dict[str, int]:
    """The number of the colour of each system that was measured: ours have theirs, and peers theirs."""
    found: dict[str, int] = {}
    n_ours = n_peers = 0
    for entry in record["contestants"]:
        label = entry["label"]
        if label not in measured or label in found:
            continue
        if entry["contestant"] == "s2s":
            found[label] = n_ours % len(OURS)
            n_ours += 1
        else:
            found[label] = len(OURS) + n_peers % len(PEERS)
            n_peers += 1
    return found


def _threads(record: dict[str, Any]) -> list[int]:
    return sorted({result["threads"] for result in record["results"]})


def _intro(record: dict[str, Any]) -> str:
    settings, text = record["settings"], ""
    if record["results"]:
        text = (
            f"Every system decodes the same sources to exactly {settings['new_tokens']} tokens, one after the other, "
            f"{settings['repeats']} rounds after a warm-up; medians are shown."
        )
    return machine_lines(record, text)


def machine_lines(record: dict[str, Any], text: str = "") -> str:
    """Where and how it was measured."""
    machine = record["machine"]
    lines_ = [
        f"{escape(machine['processor'])}, {machine['cores']} cores, {machine['memory']}. {escape(record['started'])}.",
        *filter(None, [escape(text)]),
        f"<code>{escape(record['command'])}</code>",
    ]
    return "".join(f'<p class="quiet">{line}</p>' for line in lines_)


def _works(record: dict[str, Any], threads: int) -> list[dict[str, int]]:
    keys = ("batch_size", "num_beams", "source_length", "new_tokens")
    found: dict[tuple[int, ...], dict[str, int]] = {}
    for result in record["results"]:
        if result["threads"] == threads:
            found.setdefault(tuple(result[key] for key in keys), {key: result[key] for key in keys})
    return list(found.values())


def _title(work: dict[str, int]) -> str:
    return Work(**work).label


def _step_bars(record: dict[str, Any], colours: dict[str, int], threads: int) -> str:
    by_label = {entry["label"]: entry for entry in record["contestants"]}
    figures = []
    for work in _works(record, threads):
        rows = []
        for result in sorted(of_work(record, threads, work), key=lambda r: r["step"]["p50"]):
            floor = floor_of(record["bandwidth"], threads, by_label[result["label"]]["weight_bytes"])
            value = result["step"]["p50"] * 1e3
            note = f"{value:.2f} ms" + (" *" if result["flags"] else "")
            rows.append(Bar(result["label"], colours[result["label"]], value, note, floor * 1e3 if floor else None))
        figures.append(f"<figure><figcaption>{_title(work)}</figcaption>{bars(rows, 'ms')}</figure>")
    text = (
        "Milliseconds for one token of every hypothesis. The dashed mark is the floor: reading the weights once, in "
        "the precision that the system stores them in. * marks a measurement with a note below."
    )
    return (
        f"<h2>A decoder step, {threads_text(threads)}</h2><p class='quiet'>{text}</p>"
        f"<div class='row'>{''.join(figures)}</div>"
    )


def _curves(record: dict[str, Any], colours: dict[str, int], threads: int) -> str:
    """Latency against batch, and throughput against latency, for each number of beams and source length."""
    works = _works(record, threads)
    floors = [f for f in record["bandwidth"]["floors"] if f["threads"] == threads]
    figures = []
    for beams, length in sorted({(work["num_beams"], work["source_length"]) for work in works}):
        chosen = [
            r for r in record["results"]
            if (r["threads"], r["num_beams"], r["source_length"]) == (threads, beams, length)
        ]  # fmt: skip
        if len({r["batch_size"] for r in chosen}) < 2:
            continue
        title = f"{beams} beam{'s' * (beams > 1)}, source {length}"
        new_tokens = chosen[0]["new_tokens"]
        marks = [(f"floor of {f['weight_bytes']:g}-byte weights", f["step_seconds"] * new_tokens * 1e3) for f in floors]
        latency, throughput = [], []
        for label, colour in colours.items():
            mine = sorted((r for r in chosen if r["label"] == label), key=lambda r: r["batch_size"])
            names = [f"batch {r['batch_size']}" for r in mine]
            milliseconds = [r["sentence"]["p50"] * 1e3 for r in mine]
            latency.append(
                Series(label, colour, [(r["batch_size"], t) for r, t in zip(mine, milliseconds, strict=True)], names)
            )
            points = [(t, r["tokens_per_second"]) for r, t in zip(mine, milliseconds, strict=True)]
            throughput.append(Series(label, colour, points, names))
        first = lines(latency, "batch size", "latency of the batch, ms", floors=marks)
        second = lines(throughput, "latency of the batch, ms", "tokens a second")
        figures.append(f"<figure><figcaption>Latency against batch, {title}</figcaption>{first}</figure>")
        figures.append(f"<figure><figcaption>Throughput against latency, {title}</figcaption>{second}</figure>")
    if not figures:
        return ""
    text = "A floor is the time to read the weights once for every token of a sentence."
    return (
        f"<h2>Batches, {threads_text(threads)}</h2><p class='quiet'>{text}</p><div class='row'>{''.join(figures)}</div>"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], last: str = "note") -> str:
    """A table; on a narrow screen each row is a block, whose cells have their column's name (data-name) above them.

    last: the class of the last column's cells.
    """
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = ""
    for row in rows:
        cells = f"<td>{escape(row[0])}</td>"
        for name, cell in zip(header[1:-1], row[1:-1], strict=True):
            cells += f'<td data-name="{escape(name)}">{escape(cell)}</td>'
        body += f'<tr>{cells}<td class="{last}">{escape(row[-1])}</td></tr>'
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _numbers(record: dict[str, Any]) -> str:
    parts = []
    header = ("system", "encoder ms", "first ms", "step ms", "sentence ms", "p90", "p99", "tokens/s", "speed", "floor",
              "equal", "notes")  # fmt: skip
    for threads in _threads(record):
        for work in _works(record, threads):
            rows = [_number_row(result) for result in of_work(record, threads, work)]
            parts.append(f"<h3>{_title(work)}, {threads_text(threads)}</h3>{table(header, rows)}")
    if not parts:
        return ""
    reference = record["settings"].get("reference")
    equal = f"hypotheses equal to those of {reference}" if reference else "no fp32 reference ran to compare with"
    about = (
        "Sentence: a whole call, median, p90 and p99. Speed: against CTranslate2 at the same precision, or "
        f"transformers where it did not run. Floor: its share of the step. Equal: {equal}."
    )
    return f"<h2>Latency</h2><p class='quiet'>{escape(about)}</p>" + "".join(parts)


def _number_row(result: dict[str, Any]) -> tuple[str, ...]:
    def ms(quantiles: dict[str, float] | None, name: str = "p50") -> str:
        return "-" if not quantiles else f"{quantiles[name] * 1e3:.2f}"

    floor, equal = result["floor_share"], result["equal_sentences"]
    return (
        result["label"], ms(result["encoder"]), ms(result["first_token"]), ms(result["step"]), ms(result["sentence"]),
        ms(result["sentence"], "p90"), ms(result["sentence"], "p99"), f"{result['tokens_per_second']:.0f}",
        "-" if result["speed"] is None else f"{result['speed']:.2f}x",
        "-" if floor is None else f"{floor:.0%}", "-" if equal is None else f"{equal:.0%}", ", ".join(notes(result)),
    )  # fmt: skip


def _memory(record: dict[str, Any], colours: dict[str, int]) -> str:
    if not record["results"]:
        return ""
    peaks: dict[str, float] = {}
    for result in record["results"]:
        peaks[result["label"]] = max(peaks.get(result["label"], 0.0), result["peak_memory"] / MIB)
    load = {e["label"]: e["load_seconds"] for e in record["contestants"] if e["load_seconds"] is not None}
    memory = [Bar(n, colours[n], v, f"{v:.0f} MiB") for n, v in sorted(peaks.items(), key=lambda p: p[1])]
    loading = [Bar(n, colours[n], v, f"{v:.2f} s") for n, v in sorted(load.items(), key=lambda p: p[1]) if n in colours]
    return (
        "<h2>Memory and loading</h2><div class='row'>"
        f"<figure><figcaption>Peak resident memory of the process</figcaption>{bars(memory, 'MiB')}</figure>"
        f"<figure><figcaption>Time to load</figcaption>{bars(loading, 's')}</figure></div>"
    )


def _file(record: dict[str, Any], colours: dict[str, int]) -> str:
    file = record["file"]
    if not file or not file["results"]:
        return ""
    rows = [
        Bar(r["label"], colours[r["label"]], file["n_sentences"] / r["seconds"]["p50"],
            f"{file['n_sentences'] / r['seconds']['p50']:.1f}/s" + (" *" if r["flags"] else ""))
        for r in sorted(file["results"], key=lambda r: r["seconds"]["p50"])
    ]  # fmt: skip
    text = (
        f"{file['n_sentences']} sentences of {file['shortest']} to {file['longest']} tokens, "
        f"{file['num_beams']} beams. Every system at the setting that was fastest on the first {file['n_tuning']}."
    )
    settings = table(
        ("system", "seconds", "peak MiB", "equal sentences", "setting", "notes"),
        [
            (r["label"], f"{r['seconds']['p50']:.2f}", f"{r['peak_memory'] / MIB:.0f}",
             "-" if r["equal_sentences"] is None else f"{r['equal_sentences']:.0%}",
             ", ".join(f"{k} {v}" for k, v in r["setting"].items()), ", ".join(r["flags"]))
            for r in file["results"]
        ],
    )  # fmt: skip
    return (
        f"<h2>A file of mixed lengths</h2><p class='quiet'>{escape(text)}</p>"
        f"<figure><figcaption>Sentences a second</figcaption>{bars(rows, 'sentences/s')}</figure>{settings}"
    )


def absent(record: dict[str, Any]) -> str:
    """The systems that could not run, and why."""
    seen = {entry["label"]: entry["reason"] for entry in record["contestants"] if entry["reason"]}
    if not seen:
        return ""
    items = "".join(f"<li><b>{escape(label)}</b>: {escape(reason)}</li>" for label, reason in seen.items())
    return f"<h2>Not measured</h2><ul>{items}</ul>"
