"""Targets cpu-fp32 and cpu-int8: the bundle's graphs, rewritten for ONNX Runtime on a CPU.

Recipe options, all for int8:

    encoder       "channel" or "block": the kernel of the products of encoder and cross-attention (cpu/products.py)
    step          the same for a decoder step of more rows than narrow_rows
    narrow_rows   a step of at most so many rows has a graph of its own, whose kernel is "block"; 0 for none
    head_bits     8 or 4, of the output projection in the graphs whose kernel is "block"
    embedding     whether the embedding is int8 too
    samples       a file of sources, or of sources and targets with a tab between them, on which to measure what int8
                  costs; without it, sentences of several kinds are used, or random ids where there is no tokenizer

engine.json gets `graphs` as in the manifest (a graph with `max_rows` serves steps of at most so many rows), `weights`
("bundle" or "engine": whose weights.bin the graphs read), `made_from` (the bundle's files by sha256), `onnxruntime`
(the version that may run it), `passes` with their counts and `accuracy`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bundle import GRAPHS, Bundle
from ..errors import InvalidOption, MissingExtra, UnknownOption
from ..recipes import Recipe

if TYPE_CHECKING:
    from ..cpu import Applied
    from ..lowering.graph import Graph

FLAVOURS = ("cpu",)
PRECISIONS = ("fp32", "int8")
SCHEMES = ("channel", "block")
DEFAULTS: dict[str, Any] = {
    "encoder": "channel",
    "step": "channel",
    "narrow_rows": 0,
    "head_bits": 8,
    "embedding": True,
    "samples": "",
}
STAGES = ("rewrite graphs", "write engine", "measure accuracy")
STEP = "decoder_step"
NARROW = "decoder_step_narrow"


def check(bundle: Bundle, recipe: Recipe) -> None:
    for package in ("onnx", "onnxruntime"):
        try:
            __import__(package)
        except ImportError:
            raise MissingExtra(package, "export", "building for a CPU") from None
    if recipe.precision not in PRECISIONS:
        raise InvalidOption(
            f"target '{recipe.name}': precision is {recipe.precision}; a CPU has {' and '.join(PRECISIONS)}"
        )
    if recipe.precision == "fp32" and recipe.options:
        raise InvalidOption(f"target '{recipe.name}': has options, but fp32 has none; remove [options]")
    for name in recipe.options:
        if name not in DEFAULTS:
            raise UnknownOption(name, DEFAULTS, f"option of target '{recipe.name}':")
    if wrong := _wrong(_options(recipe)):
        raise InvalidOption(f"target '{recipe.name}': {'; '.join(wrong)}")


def _options(recipe: Recipe) -> dict[str, Any]:
    return {**DEFAULTS, **recipe.options}


def _wrong(options: dict[str, Any]) -> list[str]:
    wrong = []
    for name in ("encoder", "step"):
        if options[name] not in SCHEMES:
            wrong.append(f"{name} is {options[name]!r}, expected {' or '.join(SCHEMES)}")
    rows = options["narrow_rows"]
    if not isinstance(rows, int) or isinstance(rows, bool) or rows < 0:
        wrong.append(f"narrow_rows is {rows!r}, expected a number of rows, or 0")
    if options["head_bits"] not in (4, 8):
        wrong.append(f"head_bits is {options['head_bits']!r}, expected 8 or 4")
    if not isinstance(options["embedding"], bool):
        wrong.append(f"embedding is {options['embedding']!r}, expected true or false")
    if options["samples"] and not Path(options["samples"]).is_file():
        wrong.append(f"samples is {options['samples']!r}, but there is no such file")
    return wrong


def version(recipe: Recipe) -> str:
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__}"


def build(bundle: Bundle, recipe: Recipe, folder: Path, progress: Callable[[str], None]) -> dict[str, Any]:
    import onnxruntime

    from ..cpu import accuracy, save

    progress(STAGES[0])
    graphs, passes = rewrite(bundle, recipe)
    progress(STAGES[1])
    weights = save.save(graphs, folder)
    described = {name: {"file": f"{name}.onnx", **graph.describe()} for name, graph in graphs.items()}
    options = _options(recipe)
    if NARROW in described:
        described[NARROW]["max_rows"] = options["narrow_rows"]
    facts: dict[str, Any] = {
        "graphs": described,
        "weights": weights,
        "made_from": {name: entry["sha256"] for name, entry in bundle.manifest["files"].items()},
        "onnxruntime": onnxruntime.__version__,
        "passes": {name: [applied.record() for applied in done] for name, done in passes.items()},
    }
    progress(STAGES[2])
    facts["accuracy"] = accuracy.measure(bundle, folder, facts, options["samples"])
    lines = [f"{name}: {applied.line()}" for name, done in passes.items() for applied in done]
    facts["summary"] = [*lines, accuracy.line(recipe.precision, facts["accuracy"])]
    return facts


def rewrite(bundle: Bundle, recipe: Recipe) -> tuple[dict[str, Graph], dict[str, list[Applied]]]:
    """The engine's graphs by name, and what each pass did to each of them."""
    from ..cpu import candidates, ondemand, products, slots
    from ..lowering import graph as graphs

    found = {name: graphs.load(bundle.graph_path(name), name) for name in GRAPHS}
    passes: dict[str, list[Applied]] = {name: [] for name in GRAPHS}
    # First what prunes, as pruning knows no branches.
    passes[STEP] += [apply(found[STEP]) for apply in (slots.apply, ondemand.apply, candidates.apply)]
    if recipe.precision == "int8":
        options, store = _options(recipe), products.Quantised()
        schemes = {"encoder": options["encoder"], "cross_kv_init": options["encoder"], STEP: options["step"]}
        if options["narrow_rows"]:
            found[NARROW] = found[STEP].copy()
            passes[NARROW] = list(passes[STEP])
            schemes[NARROW] = "block"
        for name, scheme in schemes.items():
            passes[name] += _to_int8(found[name], scheme, store, options)
    return found, passes


def _to_int8(graph: Graph, scheme: str, store: Any, options: dict[str, Any]) -> list[Applied]:
    from ..cpu import embedding, ondemand, products

    bits = options["head_bits"] if scheme == "block" else 8
    done = [products.apply(graph, scheme, store, head_bits=bits)]
    if options["embedding"]:
        done.append(embedding.apply(graph, store))
    products.drop_unused_weights(graph, ondemand.read_values(graph))
    return done
