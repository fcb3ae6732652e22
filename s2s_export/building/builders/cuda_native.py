"""Targets cuda-native-*: a model's weights packed for kernels of our own. Nothing is compiled, and nothing runs.

The kernels come with the package or are compiled where the engine runs; the engine is data, the same for every GPU. So
it can be built on a machine without one. What is checked here: the structure that was read from the graphs is computed
in numpy with the packed weights and compared with the bundle's graphs under ONNX Runtime, step by step and in whole
decodes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...bundle import GRAPHS, Bundle
from ...errors import BuildError, InvalidOption, MissingExtra
from ...recipes import Recipe

if TYPE_CHECKING:
    from ...runtime.backends._cuda_native.model import AnyModel

FLAVOURS = ("cuda-native",)
PRECISIONS = ("fp16", "bf16", "int8")
N_SOURCES = 8
N_TOKENS = 24  # of each decode that is compared
# Largest difference of logits, as a share of their standard deviation. fp16 has 11 bits and weights are rounded once:
# over the models of the tests it is below 0.01, of bf16 with 8 bits below 0.08. A structure that was read wrongly gives
# 1 and more. int8 keeps each weight to half a 127th of its output's largest.
TOLERANCE = {"fp16": 0.05, "bf16": 0.4, "int8": 0.4}
STAGES = ("read the graphs", "pack weights", "compare in numpy")
NOT_RUN = "not run: the engine is data for a GPU, and was computed in numpy only"


def check(bundle: Bundle, recipe: Recipe) -> None:
    """Raises InvalidOption or MissingExtra before any work is done."""
    for package in ("onnx", "onnxruntime"):
        try:
            __import__(package)
        except ImportError:
            raise MissingExtra(package, "build", "packing weights for a GPU") from None
    wrong = []
    if recipe.precision not in PRECISIONS:
        wrong.append(f"precision is {recipe.precision}, expected {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}")
    if recipe.plugins:
        wrong.append("plugins is true, but all kernels are ours; remove it")
    if recipe.ranges or recipe.buckets:
        wrong.append("has ranges or buckets, but the kernels take any shape; remove them")
    if recipe.options:
        wrong.append(f"has the option '{next(iter(recipe.options))}', expected none; remove it")
    if wrong:
        raise InvalidOption(f"target '{recipe.name}': {'; '.join(wrong)}")


def version(recipe: Recipe) -> str:
    """Of the layout of packed weights. The kernels' own version is the package's."""
    from ...runtime.backends._cuda_native.model import VERSION

    return f"packed weights {VERSION}"


def build(bundle: Bundle, recipe: Recipe, folder: Path, progress: Callable[[str], None]) -> dict[str, Any]:
    from ...runtime.backends._cuda_native.model import WEIGHTS, Weights
    from ..native import pack, parse
    from ..native.recurrent import pack as recurrent_pack
    from ..native.recurrent import parse as recurrent_parse

    is_recurrent = bundle.manifest["decoder"] == "recurrent"
    reading, writing = (recurrent_parse, recurrent_pack) if is_recurrent else (parse, pack)
    progress(STAGES[0])
    structure = reading.parse(bundle)
    progress(STAGES[1])
    model: AnyModel = writing.write(structure, recipe.precision, bundle.vocabulary_size, folder)
    progress(STAGES[2])
    found = compare(bundle, Weights(folder, "build it again"), TOLERANCE[recipe.precision])
    step = model.step_bytes / 2**20
    return {
        "graphs": {name: _described(bundle, name, WEIGHTS, model) for name in GRAPHS},
        "made_from": bundle.hashes(),
        "layout": model.version,
        "has_run": False,
        "agreement": found,
        "summary": [
            f"{model.n_layers[0]} encoder and {model.n_layers[1]} decoder layers, a step reads {step:.1f} MiB of "
            "weights",
            f"packed weights in numpy against the portable graphs: logits differ by at most "
            f"{found['largest_share']:.2%} of their spread, tokens equal for {found['equal']} of {found['sources']} "
            f"sources with {found['num_beams']} beams ({found['samples']})",
            NOT_RUN,
        ],
    }


def compare(bundle: Bundle, weights: Any, tolerance: float) -> dict[str, Any]:
    """The engine in numpy beside the portable graphs. Raises BuildError where logits differ by more than rounding."""
    from ...runtime import decoding
    from ...runtime.backends.onnxruntime import OnnxRuntimeBackend
    from ...runtime.searching import quiet
    from ...runtime.session import Session
    from ...runtime.sources import kind_of
    from .. import samples
    from ..native.numpy_model import NumpyModel
    from ..native.recurrent.numpy_model import NumpyRecurrent

    portable, kind = OnnxRuntimeBackend(bundle, 1), kind_of(bundle)
    sources, origin = samples.sources(bundle, N_SOURCES)
    limit = max(1, min(N_TOKENS, (bundle.max_target_length or N_TOKENS + 1) - 1))
    options = Session(bundle, portable).options(num_beams=2, do_sample=False, max_new_tokens=limit)
    ids = [kind.ids(source) for source in sources]
    is_recurrent = bundle.manifest["decoder"] == "recurrent"
    ours: Any = NumpyRecurrent(weights) if is_recurrent else NumpyModel(weights)
    with quiet():
        share = 0.0
        for source in sources[:2]:
            share = max(
                share, _logits_apart(portable.begin([source], 1), ours.begin(kind.prepare([source]), 1), options)
            )
        if not share <= tolerance:
            raise BuildError(
                f"{bundle.path}: the packed weights give logits that differ from the portable graphs' by {share:.1%} "
                f"of their spread; expected at most {tolerance:.0%}; the structure was not understood or the precision "
                "is too low; build cuda-native-bf16, or a target of onnxruntime-cuda or TensorRT"
            )
        found, expected = (
            decoding.decode(state, ids, options, sparse_sums=False)
            for state in (ours.begin(kind.prepare(sources), options.n_rows), portable.begin(sources, options.n_rows))
        )
    equal = [a[0].token_ids == b[0].token_ids for a, b in zip(found, expected, strict=True)]
    return {
        "samples": origin,
        "sources": len(sources),
        "num_beams": options.num_beams,
        "equal": sum(equal),
        "largest_share": share,
    }


def _logits_apart(portable: Any, ours: Any, options: Any) -> float:
    """The largest difference of logits over some greedy steps, as a share of their standard deviation."""
    from ...runtime.decoding import StepQuery

    worst, token = 0.0, np.array([[options.prompt[0]]], np.int64)
    for _ in range(4):
        query, first = StepQuery(n_candidates=1, dense=True), np.zeros((1, 1), np.int64)
        theirs, mine = portable.step(token, first, query), ours.step(token, first, query)
        seen = np.isfinite(theirs.log_probs)
        apart = np.abs(theirs.log_probs[seen] - mine.log_probs[seen]).max(initial=0.0)
        worst = max(worst, float(apart / max(theirs.log_probs[seen].std(), 1e-6)))
        token = theirs.candidate_ids[..., 0].astype(np.int64)
    return worst


def _described(bundle: Bundle, name: str, file: str, model: Any) -> dict[str, Any]:
    """A graph as the manifest describes it, with the types and head sizes that the engine has."""
    graph = bundle.manifest["graphs"][name]
    is_recurrent = bundle.manifest["decoder"] == "recurrent"

    def typed(entry: dict[str, Any]) -> dict[str, Any]:
        is_cache = entry["name"].startswith(("cross_", "self_"))
        if not is_cache or is_recurrent:
            return entry
        size = model.decoder.head_size
        return {"name": entry["name"], "dtype": "float16", "shape": [*entry["shape"][:-1], size]}

    outputs = [entry for entry in graph["outputs"] if entry["name"] != "attention"]
    return {"file": file, "inputs": [typed(e) for e in graph["inputs"]], "outputs": [typed(e) for e in outputs]}
