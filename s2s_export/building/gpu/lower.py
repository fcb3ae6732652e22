"""All passes in order: a bundle and a recipe -> three graph files that the target's library compiles, and a report."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...bundle import GRAPHS, Bundle
from ...errors import BuildError
from ...exporting.graphs.functions import PLUGINS
from ...recipes import Recipe
from .. import samples
from ..graphs import graph as graphs_module
from ..graphs.graph import Graph
from . import activations, agreement, expand, overflow, precision, quantize, rounding, specialize
from .activations import Activations
from .dimensions import Dimensions
from .options import LoweringOptions
from .running import Runner

LOW = {"fp32": None, "fp16": "fp16", "bf16": "bf16", "int8": "fp16", "fp8": "fp16"}  # what is not quantised
REPORTED = 20  # nodes named one by one in a report


@dataclass
class Lowered:
    """paths by graph; described: their inputs and outputs; report: what each pass did; agreement with fp32."""

    paths: dict[str, Path]
    described: dict[str, Any]
    report: dict[str, Any]
    agreement: dict[str, Any]
    summary: list[str] = field(default_factory=list)


def lower(
    bundle: Bundle,
    recipe: Recipe,
    dimensions: Dimensions | None,
    options: LoweringOptions,
    folder: Path,
    progress: Callable[[str], None],
    lacking: Collection[str] = (),
    *,
    search: bool = False,
) -> Lowered:
    """Write `<graph>.onnx` for each of the three graphs into `folder`. Raises BuildError.

    dimensions: what the library wants to be static; None for one that takes any shape. lacking: operators that it does
    not know. search: whether the decoder step finds the best tokens itself.
    """
    progress("read the graphs")
    graphs = {name: graphs_module.load(bundle.graph_path(name), name) for name in GRAPHS}
    report: dict[str, Any] = {"passes": {}}
    report["passes"]["specialize"] = {
        name: specialize.specialize(graph, attention=options.attention, search=search, plugins=recipe.plugins)
        for name, graph in graphs.items()
    }
    if lacking:
        report["passes"]["expand"] = {name: expand.expand(graph, lacking) for name, graph in graphs.items()}
    progress("measure activations on samples")
    sources, origin = samples.sources(bundle, options.n_samples, options.samples)
    seen = activations.measure(bundle, graphs, sources, options.n_steps)
    report["samples"] = {"sources": origin, "n_sources": len(sources), "n_steps": options.n_steps}
    progress(f"convert to {recipe.precision}")
    summary = _convert(recipe, options, graphs, seen, report)
    report["passes"]["merge_equal_weights"] = {name: graph.merge_equal_weights() for name, graph in graphs.items()}
    paths = {name: folder / f"{name}.onnx" for name in GRAPHS}
    for name, graph in graphs.items():
        graph.save(paths[name])
    progress("compare with fp32")
    found = _measure_agreement(bundle, graphs, seen, folder)
    found["how"] = (
        "the graphs on ONNX Runtime's CPU, every value rounded as its type says, fed the tokens that fp32 chose"
    )
    summary.append(agreement.line(recipe.precision, found))
    if not found["finite"]:
        raise BuildError(f"{recipe.precision} gives logits that are not finite on the samples; expected numbers; raise "
                         "margin under [options], or build another precision")  # fmt: skip
    if found["best_token"] < options.min_agreement:
        raise BuildError(
            f"{recipe.precision} picks fp32's best token in {found['best_token']:.1%} of the rows; expected at least "
            f"{options.min_agreement:.1%} (min_agreement); build another precision, or lower it"
        )
    # Last: a comparison with caches of the full size would take minutes, and none is possible without the bodies.
    for name, graph in graphs.items():
        n_changed = specialize.drop_functions(graph, PLUGINS) if recipe.plugins else 0
        if dimensions is not None and dimensions.slots:
            n_changed += specialize.fix_sizes(graph, {"N": dimensions.slots})
        if n_changed:
            graph.save_nodes(paths[name])
    described = {name: graph.describe() for name, graph in graphs.items()}
    return Lowered(paths, described, report, found, summary)


def _convert(
    recipe: Recipe, options: LoweringOptions, graphs: Mapping[str, Graph], seen: Activations, report: dict[str, Any]
) -> list[str]:
    low = LOW[recipe.precision]
    if low is None:
        report["passes"]["precision"] = "fp32 throughout"
        return []
    summary = []
    keep: dict[str, dict[str, int]] = {name: {} for name in graphs}
    boundary = precision.boundaries(graphs, low)
    if low == "fp16":
        keep, found = overflow.overflowing(graphs, seen, options.margin, options.overflow)
        report["overflow"] = {"nodes": len(found), "margin": options.margin, "largest_first": _largest(found)}
        boundary = {
            name: kind
            for name, kind in boundary.items()
            if max((s.largest for (_, value), s in seen.by_value.items() if value == name), default=0.0)
            * options.margin <= overflow.FP16_MAX
        }  # fmt: skip
        if found:
            worst = _largest(found)[0]
            summary.append(
                f"{len(found)} nodes compute in {options.overflow}, as their values may not fit fp16: the largest is "
                f"{worst['largest']:.3g} at {worst['node']} (limit {worst['limit']:.3g})"
            )
    if recipe.precision in quantize.FORMATS:
        report["passes"]["quantize"] = {}
        for name, graph in graphs.items():
            skip = set(keep[name]) | (set() if options.quantize_head else quantize.head_products(graph))
            report["passes"]["quantize"][name] = quantize.quantize(graph, recipe.precision, seen, skip=skip)
        n = sum(entry["products_quantized"] for entry in report["passes"]["quantize"].values())
        left = sum(sum(entry["left"].values()) for entry in report["passes"]["quantize"].values())
        summary.append(f"{n} products in {recipe.precision}, {left} left in {low}")
    report["passes"]["precision"] = {
        name: precision.convert(graph, low, keep[name], boundary) for name, graph in graphs.items()
    }
    counts = [entry["nodes"] for entry in report["passes"]["precision"].values()]
    by_type = {kind: sum(count.get(kind, 0) for count in counts) for kind in precision.TYPES}
    summary.append("nodes by type: " + ", ".join(f"{n} {kind}" for kind, n in by_type.items() if n))
    return summary


def _largest(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(found, key=lambda entry: -entry["largest"])[:REPORTED]


def _measure_agreement(bundle: Bundle, graphs: Mapping[str, Graph], seen: Activations, folder: Path) -> dict[str, Any]:
    """Compares copies that round where the graphs do, since a CPU that runs the files themselves would round less."""
    copies = {name: rounding.rounded(graph) for name, graph in graphs.items()}
    with tempfile.TemporaryDirectory(prefix=".rounded-", dir=folder) as scratch:
        paths = {name: Path(scratch) / f"{name}.onnx" for name in graphs}
        for name, copy in copies.items():
            copy.save(paths[name])
        runner = Runner(bundle, paths, {name: copy.describe() for name, copy in copies.items()})
        return agreement.compare(seen.traces, runner.follow(seen.traces))
