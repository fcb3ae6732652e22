"""Targets cpu-fp32, cpu-fp16, cpu-bf16 and cpu-int8: the bundle's graphs, rewritten for ONNX Runtime on a CPU.

Recipe options:

    kernels       "own": operators compiled here (plugins/cpu); "onnxruntime": those of ONNX Runtime; "auto": own if
                  there is a C++ compiler, the processor has instructions with which they are fast, and no option below
                  is given
    samples       a file of sources, or of sources and targets with a tab between them, on which the loss of int8 is
                  measured; without it, built-in sentences, or random ids if there is no tokenizer
    processor     the kind of processor that the engine is for, "x86_64" or "aarch64"; without it, this machine's
    sixteen_bits  for fp32 with our own kernels: whether weights that 16 bits hold exactly are stored so, which changes
                  no result; true without it

and for int8 with ONNX Runtime's kernels:

    encoder       "channel" or "block": the kernel for the matrix products of encoder and cross-attention, see
                  cpu/onnxruntime/products.py
    step          the same for decoder steps of more rows than narrow_rows
    narrow_rows   decoder steps of at most this many rows get a graph of their own with the kernel "block"; 0: none do
    head_bits     8 or 4: bits of the output projection in graphs with the kernel "block"
    embedding     whether the embedding is int8 as well

What engine.json gets is explained in engines.py.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import plugin_sources
from ...bundle import DECODER, ENCODER, ENCODER_DECODER, GRAPHS, PREFILL, Bundle
from ...engines import weights_line
from ...errors import BuildError, InvalidOption, MissingExtra, UnknownOption
from ...recipes import Recipe
from .. import samples

if TYPE_CHECKING:
    from ..graphs.graph import Graph
    from ..graphs.passes import Applied

FLAVOURS = ("cpu",)
KINDS = (ENCODER_DECODER, ENCODER, DECODER)
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
IN_16_BITS = ("fp16", "bf16")  # with our own kernels only
SCHEMES = ("channel", "block")
KERNELS = ("auto", "own", "onnxruntime")
# Instruction sets for which "auto" chooses our kernels. Without a dot product of bytes, int8 has to widen them,
# which is slow for many rows.
TAKEN_WITH = {
    **dict.fromkeys(("fp32", *IN_16_BITS), ("amx", "avx512", "avxvnni", "avx2", "i8mm", "dotprod", "neon")),
    "int8": ("amx", "avx512", "avxvnni", "i8mm", "dotprod"),
}
DEFAULTS: dict[str, Any] = {
    "kernels": "auto",
    "encoder": "channel",
    "step": "channel",
    "narrow_rows": 4,
    "head_bits": 8,
    "embedding": True,
    "samples": "",
    "processor": "",
    "sixteen_bits": True,
}
FOR_FP32 = (
    "kernels",
    "samples",
    "processor",
    "sixteen_bits",
)  # also with our own kernels: the other options are for ONNX Runtime's int8 kernels
STAGES = ("rewrite graphs", "write engine", "measure accuracy")
STEP = "decoder_step"
NARROW = "decoder_step_narrow"


def check(bundle: Bundle, recipe: Recipe) -> None:
    for package in ("onnx", "onnxruntime"):
        try:
            __import__(package)
        except ImportError:
            raise MissingExtra(package, "build", "building for a CPU") from None
    if recipe.precision not in PRECISIONS:
        raise InvalidOption(
            f"target '{recipe.name}': precision is {recipe.precision}; expected {' or '.join(PRECISIONS)} for a CPU"
        )
    if recipe.precision != "int8" and (wrong := [name for name in recipe.options if name not in FOR_FP32]):
        raise InvalidOption(
            f"target '{recipe.name}': has the option '{wrong[0]}'; {recipe.precision} has {', '.join(FOR_FP32)}; "
            "remove it"
        )
    if recipe.precision != "fp32" and "sixteen_bits" in recipe.options:
        raise InvalidOption(
            f"target '{recipe.name}': has the option 'sixteen_bits', which is for fp32, and precision "
            f"{recipe.precision}; remove one of the two"
        )
    for name in recipe.options:
        if name not in DEFAULTS:
            raise UnknownOption(name, DEFAULTS, f"option of target '{recipe.name}':")
    if wrong := _wrong(_options(recipe), recipe.options):
        raise InvalidOption(f"target '{recipe.name}': {'; '.join(wrong)}")


def _options(recipe: Recipe) -> dict[str, Any]:
    return {**DEFAULTS, **recipe.options}


def _of_onnxruntime(given: Mapping[str, Any]) -> list[str]:
    """The given options that apply to ONNX Runtime's kernels only."""
    return [name for name in given if name not in FOR_FP32]


def _wrong(options: dict[str, Any], given: Mapping[str, Any]) -> list[str]:
    wrong = []
    if options["kernels"] not in KERNELS:
        wrong.append(f"kernels is {options['kernels']!r}, expected {', '.join(KERNELS)}")
    if options["kernels"] == "own" and (others := _of_onnxruntime(given)):
        wrong.append(f"kernels is 'own', but {others[0]} is an option of ONNX Runtime's kernels; remove one of the two")
    for name in ("encoder", "step"):
        if options[name] not in SCHEMES:
            wrong.append(f"{name} is {options[name]!r}, expected {' or '.join(SCHEMES)}")
    rows = options["narrow_rows"]
    if not isinstance(rows, int) or isinstance(rows, bool) or rows < 0:
        wrong.append(f"narrow_rows is {rows!r}, expected a number of rows, or 0")
    if options["head_bits"] not in (4, 8):
        wrong.append(f"head_bits is {options['head_bits']!r}, expected 8 or 4")
    for name in ("embedding", "sixteen_bits"):
        if not isinstance(options[name], bool):
            wrong.append(f"{name} is {options[name]!r}, expected true or false")
    known = plugin_sources.module("portable").KINDS
    if options["processor"] and options["processor"] not in known:
        wrong.append(f"processor is {options['processor']!r}, expected {' or '.join(known)}")
    if options["samples"] and not Path(options["samples"]).is_file():
        wrong.append(f"samples is {options['samples']!r}, but there is no such file")
    elif options["samples"]:
        try:
            samples.columns_of(Path(options["samples"]))  # wrong lines are told before anything is built
        except InvalidOption as error:
            wrong.append(str(error))
    return wrong


def version(recipe: Recipe) -> str:
    """Versions of what determines an engine's results: ONNX Runtime, and the sources of our operators."""
    import onnxruntime

    sources = plugin_sources.module("build").source_hash("cpu")
    return f"onnxruntime {onnxruntime.__version__}, operators {sources[:12]}"


def build(bundle: Bundle, recipe: Recipe, folder: Path, progress: Callable[[str], None]) -> dict[str, Any]:
    import onnxruntime

    from .. import accuracy, encoder_accuracy
    from ..cpu.onnxruntime import save

    progress(STAGES[0])
    options = _options(recipe)
    own, why_not = _takes_own_operators(recipe)
    if recipe.precision in IN_16_BITS and not own:
        raise BuildError(
            f"target '{recipe.name}': {recipe.precision} on a CPU needs our own kernels, which are left out here "
            f"({why_not}); build cpu-fp32, or set kernels = 'own' in a copy of the recipe"
        )
    graphs, passes, stored = rewrite(bundle, recipe, own=own)
    progress(STAGES[1])
    weights, shared = save.save(graphs, folder)
    described = {name: {"file": f"{name}.onnx", **graph.describe()} for name, graph in graphs.items()}
    if NARROW in described:
        described[NARROW]["max_rows"] = options["narrow_rows"]
    facts: dict[str, Any] = {
        "graphs": described,
        "weights": weights,
        "shared": shared if own else {},
        "stored": stored,
        "operators": {"sources": plugin_sources.module("cpu.build").sources()} if own else None,
        "processor": options["processor"] or platform.machine(),
        "made_from": bundle.hashes(),
        "onnxruntime": onnxruntime.__version__,
        "passes": {name: [applied.record() for applied in done] for name, done in passes.items()},
    }
    progress(STAGES[2])
    measured = encoder_accuracy if bundle.kind == ENCODER else accuracy
    facts["accuracy"] = measured.measure(bundle, folder, facts, options["samples"])
    kernels = "kernels: our own" if own else f"kernels: ONNX Runtime's ({why_not})"
    lines = [kernels, *(f"weights: {line}" for line in [weights_line(facts)] if line)]
    lines += [f"{name}: {applied.line()}" for name, done in passes.items() for applied in done]
    facts["summary"] = [*lines, measured.line(recipe.precision, facts["accuracy"])]
    return facts


def _takes_own_operators(recipe: Recipe) -> tuple[bool, str]:
    """Whether the engine has our operators, and if not, the reason for using ONNX Runtime's kernels."""
    options = _options(recipe)
    kernels, processor = options["kernels"], options["processor"]
    if kernels == "onnxruntime" or _of_onnxruntime(recipe.options):
        return False, "as the recipe says"
    maker = plugin_sources.module("cpu.build")
    try:
        library: Path = maker.library()
    except BuildError as error:
        if kernels == "own":
            raise
        return False, str(error).splitlines()[0]
    if (
        processor and processor != plugin_sources.module("portable").machine()
    ):  # packed alike for all of them; what it has is not known here
        return True, ""
    instructions, wanted = maker.instruction_set(library), TAKEN_WITH[recipe.precision]
    if kernels == "auto" and instructions not in wanted:
        fast = f"ours are fast with {' or '.join(wanted)}, and this processor has {instructions}"
        return False, f"{fast}; kernels = 'own' uses them anyway"
    return True, ""


def rewrite(
    bundle: Bundle, recipe: Recipe, *, own: bool = False
) -> tuple[dict[str, Graph], dict[str, list[Applied]], dict[str, dict[str, Any]]]:
    """The engine's graphs by name, what each pass changed in them, and `stored` of engines.py.

    own: for our operators.
    """
    from ..graphs import graph as graphs

    names = [name for name in (*GRAPHS, PREFILL) if name in bundle.manifest["graphs"]]
    found = {name: graphs.load(bundle.graph_path(name), name) for name in names}
    if own:
        from ..cpu.own import packing
        from ..cpu.own.rewrite import rewrite as rewrite_for_own

        packed = packing.Store(recipe.precision, narrows=bool(_options(recipe)["sixteen_bits"]))
        passes = {name: rewrite_for_own(graph, packed) for name, graph in found.items()}
        return found, passes, packed.stored()
    return found, _rewrite_for_onnxruntime(found, recipe), {}


def _rewrite_for_onnxruntime(found: dict[str, Graph], recipe: Recipe) -> dict[str, list[Applied]]:
    from ..cpu.onnxruntime import candidates, ondemand, products, slots

    passes: dict[str, list[Applied]] = {name: [] for name in found}
    # Passes that prune come first: pruning does not look into branches.
    if STEP in found:
        passes[STEP] += [apply(found[STEP]) for apply in (slots.apply, ondemand.apply, candidates.apply)]
    if recipe.precision == "int8":
        options, store = _options(recipe), products.Quantised()
        schemes = {name: options["step" if name == STEP else "encoder"] for name in found}
        if STEP in found and options["narrow_rows"]:
            found[NARROW] = found[STEP].copy()
            passes[NARROW] = list(passes[STEP])
            schemes[NARROW] = "block"
        for name, scheme in schemes.items():
            passes[name] += _to_int8(found[name], scheme, store, options)
    return passes


def _to_int8(graph: Graph, scheme: str, store: Any, options: dict[str, Any]) -> list[Applied]:
    from ..cpu.onnxruntime import embedding, ondemand, products

    bits = options["head_bits"] if scheme == "block" else 8
    done = [products.apply(graph, scheme, store, head_bits=bits)]
    if options["embedding"]:
        done.append(embedding.apply(graph, store))
    products.drop_unused_weights(graph, ondemand.read_values(graph))
    return done
