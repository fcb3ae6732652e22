"""The memory of a decode on a GPU, computed from the records of a bundle's engines. Needs no GPU.

For a batch of a given shape: the tensors of the three graphs (caches, cross-attention K/V, logits, others), and the
tables of the search. What a library itself takes (weights, activations, kernels) is not known; the size of the engine's
files is a lower bound. Letters: B sources, K beams, S source length, C positions, N = C*K slots.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..bundle import GRAPHS, Bundle, output_of
from ..engines import beams_for, bucket
from ..errors import S2SError
from ..runtime import backends
from ..runtime.cuda.driver import n_bytes
from ..runtime.decoding import resolve
from ..runtime.decoding.options import GenerationOptions
from ..runtime.device_search.rules import serialise
from ..runtime.device_search.step_executor import ELEMENTS, Attention, attention_at, capacity, incompatible_reason
from ..runtime.device_search.tables import Arena, make_plan

USUAL_LENGTH, USUAL_BATCH = 64, 16  # for a target without ranges
GROUPS = {"self_key": "caches", "self_value": "caches", "cross_key": "cross K/V", "cross_value": "cross K/V"}


@dataclass
class Sizes:
    """The attributes of an executor that `make_plan` reads."""

    n_sources: int
    n_beams: int
    vocabulary_size: int
    capacity: int
    positions: int
    element: str
    attention: Attention | None
    capturable: bool = True
    token: int = 0
    position: int = 0
    ancestors: int = 0
    logits: int = 0
    stream: int = 0
    signature: object = None

    def enqueue(self, stream: int) -> None:
        raise NotImplementedError("sizes run nothing")


def of_bundle(bundle: Bundle, engines: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each target: where the search runs and why, the buckets, and the memory for batches of some shapes."""
    return {name: of_engine(bundle, engine) for name, engine in engines.items() if _is_for_gpus(engine)}


def _is_for_gpus(engine: Mapping[str, Any]) -> bool:
    backend = backends.of_flavour(engine["flavour"])
    return backend is not None and not backend.computes_on_cores


def of_engine(bundle: Bundle, engine: Mapping[str, Any]) -> dict[str, Any]:
    graphs = engine["graphs"]
    why = incompatible_reason(graphs["decoder_step"])
    recipe = engine.get("recipe", {})
    return {
        "search": "device" if why is None else "host",
        "why": why or "",
        "buckets": list(recipe.get("buckets", ())),
        "engine_bytes": engine.get("bytes"),
        "shapes": [of_shape(bundle, engine, *shape) for shape in shapes(bundle, engine)],
    }


def shapes(bundle: Bundle, engine: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    """(B, K, S): those for which the engine was tuned, and its largest; or one and many sources without ranges."""
    ranges = engine.get("ranges")
    if ranges is None:
        beams = int(bundle.manifest["generation"].get("num_beams") or 1)
        length = min(USUAL_LENGTH, bundle.max_source_length or USUAL_LENGTH)
        return [(1, beams, length), (USUAL_BATCH, beams, length)]
    found = [tuple(int(ranges[letter][size]) for letter in "BKS") for size in ("opt", "max")]
    return list(dict.fromkeys(found))  # type: ignore[arg-type]


def of_shape(bundle: Bundle, engine: Mapping[str, Any], B: int, K: int, S: int) -> dict[str, Any]:
    """Bytes by group, and of each of the search's tables. `refused`: why a GPU can't search this shape."""
    options = resolve(
        bundle.manifest["generation"],
        {"num_beams": K},
        vocabulary_size=bundle.vocabulary_size,
        max_target_length=bundle.max_target_length,
    )
    letters, positions = _letters(bundle, engine, options, B, K, S)
    groups = _tensors(engine["graphs"], letters)
    found: dict[str, Any] = {"sources": B, "beams": K, "source_length": letters["S"], "positions": positions}
    if incompatible_reason(engine["graphs"]["decoder_step"]) is None:
        try:
            tables = _tables(engine, options, letters, positions)
            groups["search"] = sum(size for _, _, size in tables)
            found["tables"] = [{"name": name, "shape": shape, "bytes": size} for name, shape, size in tables]
        except S2SError as error:
            found["refused"] = str(error)
    return {**found, "bytes": groups, "total_bytes": sum(groups.values())}


def _letters(
    bundle: Bundle, engine: Mapping[str, Any], options: GenerationOptions, B: int, K: int, S: int
) -> tuple[dict[str, int], int]:
    """Sizes by letter, and the number of cache positions that are used."""
    if engine.get("ranges") is None:
        positions = capacity(options, bundle.max_target_length)
        return {"B": B, "K": K, "S": S, "C": positions, "N": positions * K, "M": 1, "Q": 1}, positions
    rows, slots = beams_for(engine, K), int(engine["slots"])
    letters = {"B": B, "K": rows, "S": bucket(engine, S), "N": slots, "C": slots // rows if slots else 1}
    return letters, int(engine["target_length"])


def _tensors(graphs: Mapping[str, Any], letters: Mapping[str, int]) -> dict[str, int]:
    """Bytes of the graphs' inputs and outputs by group. Caches and states are updated in place and count once."""
    seen: dict[str, int] = {}
    for name in GRAPHS:
        entries = [*graphs[name]["inputs"], *graphs[name]["outputs"]]
        in_place = {output_of(entry["name"]) for entry in graphs[name]["inputs"]}
        for entry in entries:
            if entry["name"] not in in_place:
                shape = [letters[size] if isinstance(size, str) else int(size) for size in entry["shape"]]
                seen[entry["name"]] = n_bytes(shape, entry["dtype"])
    groups: dict[str, int] = {"caches": 0, "cross K/V": 0, "logits": 0, "others": 0}
    for tensor, size in seen.items():
        stem = tensor.partition(".")[0]
        groups[stem if stem == "logits" else GROUPS.get(stem, "others")] += size
    return groups


def _tables(
    engine: Mapping[str, Any], options: GenerationOptions, letters: Mapping[str, int], positions: int
) -> list[tuple[str, str, int]]:
    step = engine["graphs"]["decoder_step"]
    logits = next(entry for entry in step["outputs"] if entry["name"] == "logits")
    vocabulary = int(logits["shape"][-1])
    sizes = Sizes(
        n_sources=letters["B"],
        n_beams=options.n_rows,
        vocabulary_size=vocabulary,
        capacity=letters["C"],
        positions=positions,
        element=ELEMENTS[logits["dtype"]],
        attention=attention_at(step, 0, letters["S"]),
    )
    alignments = sizes.attention is not None
    rules = serialise(options, vocabulary)
    return Arena(make_plan(sizes, options, rules, letters["S"], streams=False, alignments=alignments)).report()


def describe(plans: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Lines that describe the plans: a name and a text each."""
    lines = []
    for target, plan in plans.items():
        buckets = ", ".join(map(str, plan["buckets"])) or "none: any source length is run as it is"
        where = f"on the {plan['search']}" + (f" ({plan['why']})" if plan["why"] else "")
        files = "" if plan["engine_bytes"] is None else f"; files {_readable(plan['engine_bytes'])}"
        lines.append((target, f"search {where}; buckets {buckets}{files}"))
        for shape in plan["shapes"]:
            name = f"  {shape['sources']} x {shape['beams']} beams, S {shape['source_length']}, T {shape['positions']}"
            parts = ", ".join(f"{group} {_readable(size)}" for group, size in shape["bytes"].items() if size)
            refused = f"; {shape['refused']}" if "refused" in shape else ""
            lines.append((name, f"{_readable(shape['total_bytes'])}: {parts}{refused}"))
    return lines


def _readable(n: int) -> str:
    return f"{n / 2**20:.1f} MiB" if n >= 2**20 else f"{n / 2**10:.1f} KiB"
