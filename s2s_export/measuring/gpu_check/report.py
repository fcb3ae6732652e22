"""Writes the results as JSON and as tables, again after each part."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...runtime import backends
from . import families, native, products

TABLE, RESULT, ARCHIVE = "gpu_check.md", "gpu_check.json", "gpu_check.tar.gz"


def write(folder: Path, result: dict[str, Any]) -> None:
    for name, text in ((RESULT, json.dumps(result, indent=1) + "\n"), (TABLE, "\n".join(lines(result)) + "\n")):
        beside = folder / f".{name}"
        beside.write_text(text)
        os.replace(beside, folder / name)


def pack(folder: Path) -> None:
    """Pack all results and logs so far into one archive, which is easier to copy than many files."""
    beside = folder / f".{ARCHIVE}"
    with tarfile.open(beside, "w:gz") as archive:
        for path in sorted([folder / TABLE, folder / RESULT, *(folder / "parts").iterdir()]):
            archive.add(path, path.relative_to(folder))
    os.replace(beside, folder / ARCHIVE)


def lines(result: dict[str, Any]) -> Iterator[str]:
    gpu, machine = result["gpu"], result["machine"]
    yield f"{gpu['name']}, compute capability {gpu['compute_capability']}, CUDA {gpu['cuda']}; "
    yield f"{machine['processor']}, {machine['cores']} cores; {result['started']}; "
    yield f"s2s-export {machine['s2s-export']}, Python {machine['python']}"
    yield ""
    yield ", ".join(f"{name} {version}" for name, version in result["packages"].items() if version)
    yield ""
    yield f"`{result['command']}`"
    on_gpus = [backend.name for backend in backends.by_preference() if not backend.computes_on_cores]
    if absent := {name: result["backends"].get(name) for name in on_gpus if result["backends"].get(name)}:
        yield from ("", *(f"- no {name}: {reason}" for name, reason in absent.items()))
    yield from _states(result["parts"])
    for part in result["parts"]:
        found = part.get("result") or {}
        shown = TABLES.get(part["name"].rpartition(": ")[2].partition(" ")[0])
        if shown is not None and found:
            yield from ("", f"## {part['name']}", "")
            yield from shown(found)


def _states(parts: list[dict[str, Any]]) -> Iterator[str]:
    yield from ("", "| part | | seconds | |", "|---|---|---|---|")
    for part in parts:
        yield f"| {part['name']} | {part['state']} | {part['seconds']} | {_cell(part.get('reason', ''))} |"


def _search(found: dict[str, Any]) -> Iterator[str]:
    yield f"{found['bytes_per_second'] / 1e9:.0f} GB/s copied; {'' if found['while_graphs'] else 'no '}WHILE graphs."
    if (agreement := found.get("agreement")) is not None:
        n = agreement["cases"] - len({entry["seed"] for entry in agreement["different"]})
        yield f"{n} of {agreement['cases']} random searches equal their emulation."


def _rules(found: dict[str, Any]) -> Iterator[str]:
    unequal = {name: counts for name, counts in found["rules"].items() if counts["unequal"]}
    yield f"{len(found['rules'])} rules against their definition; unequal rows:"
    yield ", ".join(f"{name} {counts['unequal']} of {counts['rows']}" for name, counts in unequal.items()) or "none"


def _tokens(found: dict[str, Any]) -> Iterator[str]:
    yield "8 sources against ONNX Runtime on the CPU in fp32:"
    yield from ("", "| search by | | equal | score differs by | first call ms | later ones |")
    yield "|---|---|---|---|---|---|"
    for where, entry in found.items():
        if "reason" in entry:
            yield f"| {where} | {_cell(entry['reason'])} | | | | |"
        for name, one in entry.get("searches", {}).items():
            yield (
                f"| {where} | {name} | {one['equal_sources']} of {one['sources']} | "
                f"{one['largest_score_difference']:.1e} | {one['first_call_ms']} | {one['later_calls_ms']} |"
            )


def _speed(found: dict[str, Any]) -> Iterator[str]:
    """The tables for a record of `s2s bench`."""
    for floor in found["bandwidth"]["floors"]:
        yield (
            f"Floor of a step: {floor['step_seconds'] * 1e6:.1f} us, {floor['bytes'] / 1e6:.0f} MB of weights of "
            f"{floor['weight_bytes']:g} bytes at {floor['bytes_per_second'] / 1e9:.0f} GB/s."
        )
    if "reason" in found["bandwidth"]:
        yield f"Floor of a step: none, {found['bandwidth']['reason']}."
    if found["results"]:
        yield ""
        yield "First: encoder, cross-attention's keys and values, and one step. Floor: its share of a step."
        yield ""
        yield "| batch | beams | system | tokens/s | step us | encoder ms | first ms | floor | speed | equal tokens |"
        yield "|---|---|---|---|---|---|---|---|---|---|"
    for one in found["results"]:
        speed = "-" if one["speed"] is None else f"{one['speed']:.2f}x {one['speed_against']}"
        encoder = "-" if one["encoder"] is None else f"{one['encoder']['p50'] * 1e3:.2f}"
        yield (
            f"| {one['batch_size']} | {one['num_beams']} | {one['label']} | {one['tokens_per_second']:.0f} | "
            f"{one['step']['p50'] * 1e6:.1f} | {encoder} | {one['first_token']['p50'] * 1e3:.2f} | "
            f"{_share(one['floor_share'])} | {speed} | {_share(one['equal_tokens'])} |"
        )
    if absent := [entry for entry in found["contestants"] if entry["reason"]]:
        yield ""
        yield from (f"- {entry['label']}: {entry['reason']}" for entry in absent)


def _decodes(found: dict[str, Any]) -> Iterator[str]:
    yield "Steps by another library, everything else on the device. Tokens against ONNX Runtime on the CPU in fp32:"
    yield ""
    for name, entry in found.get("agreement", {}).items():
        if "reason" in entry:
            yield f"- {name}: {_cell(entry['reason'])}"
        else:
            differs = f"scores differ by {entry['largest_score_difference']:.1e}"
            yield f"- {name}: {entry['equal']} of {entry['outputs']} outputs equal; {differs}"
    if times := found.get("times"):
        yield from (
            "",
            "| batch | beams | system | step us | call ms | tokens/s | spread |",
            "|---|---|---|---|---|---|---|",
        )
    for one in times or []:
        yield (
            f"| {one['batch']} | {one['beams']} | {one['system']} | {one['step_us']:.0f} | {one['call_ms']:.2f} | "
            f"{one['tokens_per_second']:.0f} | {one['spread']:.0%} |"
        )
    if absent := found.get("absent"):
        yield from ("", *(f"- {name}: {_cell(reason)}" for name, reason in absent.items()))


def _kernels(found: dict[str, Any]) -> Iterator[str]:
    from . import times

    yield "Logits that stand still: what the search takes, without a decoder."
    yield ""
    yield from times.table(found["times"])


def _attention(found: dict[str, Any]) -> Iterator[str]:
    agreement = found["agreement"]
    n = agreement["cases"] - len(agreement["wrong"])
    yield f"{n} of {agreement['cases']} random cases are within their tolerance; the worst took {agreement['worst']}."
    if times := found.get("times"):
        yield from ("", "| kernel | batch | beams | us | read |", "|---|---|---|---|---|")
        for one in times:
            speed = one["bytes"] / one["us"] / 1e3
            yield f"| {one['kernel']} | {one['batch']} | {one['beams']} | {one['us']:.1f} | {speed:.0f} GB/s |"


def _sanitizers(found: dict[str, Any]) -> Iterator[str]:
    for name, entry in found.items():
        yield f"- {name}: {'clean' if entry['status'] == 0 else 'status ' + str(entry['status'])}"


# By the last word of a part's name, without targets.
TABLES = {
    "search": _search, "rules": _rules, "torch": _decodes, "onnxruntime": _decodes, "tokens": _tokens, "steps": _speed,
    "speed": _speed, "kernels": _kernels, "attention": _attention, "sanitizers": _sanitizers,
    "native": native.table, "products": products.table, "families": families.table, "compiled": _speed,
}  # fmt: skip


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")
