"""What a record shows in a few sentences: where this project is faster than the others, where slower, and whose tokens
differ although they compute in fp32.

At each precision our fastest engine is compared with the fastest other system of that precision, for every piece of
work. Engines with a shortlist do less work and are left out; so is everything that ran at another precision only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .contestants import OURS, modules
from .work import Work

EVEN = 0.05  # times that differ by less than this share are called even: rounds differ by about as much
MIB = 2**20


def sentences(record: dict[str, Any]) -> list[str]:
    """The verdict on speed for each precision, on memory, and on tokens; empty where nobody else was measured."""
    if not record["results"]:
        return _of_file(record)
    found = [_speed(record, precision) for precision in _precisions(record, record["results"])]
    return [*filter(None, found), *_memory(record), *_tokens(record, record["results"]), *_forced(record)]


def _forced(record: dict[str, Any]) -> list[str]:
    """What the fixed length of outputs costs us, where it costs more than translating does."""
    if not record["model"].get("renormalizes"):
        return []
    return [
        "This checkpoint renormalises (renormalize_logits). Outputs of a fixed length ban the end token where it is "
        "all but certain, and then s2s works out the whole distribution, which it does not when outputs end by "
        "themselves: --file measures that."
    ]


def _of_file(record: dict[str, Any]) -> list[str]:
    file = record["file"]
    if not file or not file["results"]:
        return []
    found = []
    for precision in _precisions(record, file["results"]):
        pair = _best(record, file["results"], precision, lambda result: result["seconds"]["p50"])
        if pair is not None:
            ours, other = pair
            ratio = other["seconds"]["p50"] / ours["seconds"]["p50"]
            found.append(f"In {precision}, {ours['label']} translated the file {_at_speed(ratio)} {other['label']}.")
    return [*found, *_tokens(record, file["results"])]


def _speed(record: dict[str, Any], precision: str) -> str | None:
    """One sentence over all pieces of work at a precision, or None where nobody of the two ran."""
    ratios: list[tuple[float, str]] = []
    others = []
    for title, results in _by_work(record):
        pair = _best(record, results, precision, lambda result: result["sentence"]["p50"])
        if pair is not None:
            ours, other = pair
            ratios.append((other["sentence"]["p50"] / ours["sentence"]["p50"], title))
            others.append(other["label"])
    if not ratios:
        return None
    than = " or ".join(dict.fromkeys(others))
    n = f"{len(ratios)} piece{'s' * (len(ratios) > 1)} of work"
    parts: list[str] = []
    for word, found in (
        ("faster than", [pair for pair in ratios if pair[0] > 1 + EVEN]),
        ("slower than", [pair for pair in ratios if pair[0] < 1 - EVEN]),
        ("as fast as", [pair for pair in ratios if 1 - EVEN <= pair[0] <= 1 + EVEN]),
    ):
        if found and not parts:
            parts.append(f"{word} {than}, the fastest other system, in {len(found)} of {n}{_detail(found, word)}")
        elif found:
            parts.append(f"{word} it in {len(found)}{_detail(found, word)}")
    return f"In {precision}, s2s is {' and '.join(parts)}."


def _detail(found: Sequence[tuple[float, str]], word: str) -> str:
    """How much faster or slower; where slower, each piece of work by name."""
    if word == "as fast as":
        return ""
    low, high = f"{min(found)[0]:.2f}", f"{max(found)[0]:.2f}"
    speeds = f", at {low if low == high else f'{low} to {high}'} times its speed"
    if word == "faster than":
        return speeds
    return f"{speeds} ({'; '.join(f'{title}: {ratio:.2f}' for ratio, title in found)})"


def _memory(record: dict[str, Any]) -> list[str]:
    """Who needs the least memory at its peak, over all work."""
    peaks: dict[str, float] = {}
    for result in record["results"]:
        if not _has_shortlist(result["label"]):
            peaks[result["label"]] = max(peaks.get(result["label"], 0.0), result["peak_memory"] / MIB)
    who = {entry["label"]: entry["contestant"] for entry in record["contestants"]}
    ours = [(peak, label) for label, peak in peaks.items() if who[label] == OURS]
    others = [(peak, label) for label, peak in peaks.items() if who[label] != OURS]
    if not ours or not others:
        return []
    (mine, label), (theirs, other) = min(ours), min(others)
    word = "less" if mine < theirs else "more"
    return [f"Memory: {label} peaks at {mine:.0f} MiB, {word} than {other} with {theirs:.0f} MiB."]


def _tokens(record: dict[str, Any], results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Other systems in fp32 whose tokens are not all the reference's, and what is known of why."""
    reference = record["settings"].get("reference")
    entries = {entry["label"]: entry for entry in record["contestants"]}
    unequal: dict[str, float] = {}
    for result in results:
        entry = entries[result["label"]]
        equal = result["equal_sentences"]
        if entry["contestant"] != OURS and entry["precision"] == "fp32" and equal is not None and equal < 1:
            unequal[result["label"]] = min(equal, unequal.get(result["label"], 1.0))
    known = modules()
    found = []
    for label, equal in unequal.items():
        why = getattr(known[entries[label]["contestant"]], "WHY_TOKENS_DIFFER", "rounding, where candidates nearly tie")
        found.append(
            f"Tokens: {label} computes in fp32 and yet wrote other tokens than {reference}, in the worst case for "
            f"{1 - equal:.0%} of the sentences. Known reasons: {why}."
        )
    return found


def _precisions(record: dict[str, Any], results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Those at which somebody ran, as the contestants are listed."""
    measured = {result["label"] for result in results}
    return list(dict.fromkeys(entry["precision"] for entry in record["contestants"] if entry["label"] in measured))


def _by_work(record: dict[str, Any]) -> Iterable[tuple[str, list[dict[str, Any]]]]:
    keys = ("batch_size", "num_beams", "source_length", "new_tokens")
    several = len({result["threads"] for result in record["results"]}) > 1
    groups: dict[tuple[int, ...], list[dict[str, Any]]] = {}
    for result in record["results"]:
        groups.setdefault((result["threads"], *(result[key] for key in keys)), []).append(result)
    for (threads, *values), results in groups.items():
        title = Work(**dict(zip(keys, values, strict=True))).label
        yield f"{title}, {threads} threads" if several else title, results


def _best(
    record: dict[str, Any],
    results: Sequence[dict[str, Any]],
    precision: str,
    seconds: Callable[[dict[str, Any]], float],
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Our fastest result and the others' fastest, or None where either is missing."""
    entries = {entry["label"]: entry for entry in record["contestants"]}
    fitting = [r for r in results if entries[r["label"]]["precision"] == precision and not _has_shortlist(r["label"])]
    ours = [r for r in fitting if entries[r["label"]]["contestant"] == OURS]
    others = [r for r in fitting if entries[r["label"]]["contestant"] != OURS]
    return (min(ours, key=seconds), min(others, key=seconds)) if ours and others else None


def _has_shortlist(label: str) -> bool:
    return label.endswith(" shortlist")


def _at_speed(ratio: float) -> str:
    word = "" if abs(ratio - 1) <= EVEN else "faster: " if ratio > 1 else "slower: "
    return f"{word}at {ratio:.2f} times the speed of"
