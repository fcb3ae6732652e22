"""The parts. Each gets `save`, for results so far, and returns the reason for which it failed, or None."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import plugin_sources, recipes
from ...building import build as builds
from ...errors import BackendUnavailable, BuildError, InvalidOption
from ...runtime import backends
from ...runtime.session import Session, load
from . import targets as targets_module
from .families import families as families  # parts that have files of their own
from .native import native as native
from .products import products as products

if TYPE_CHECKING:
    from ...runtime.device_search.loop import Mode

Save = Callable[[dict[str, Any]], None]
SEARCHES: dict[str, dict[str, Any]] = {"greedy": {"num_beams": 1}, "beam 4": {"num_beams": 4}}
N_SOURCES, N_TOKENS, ROUNDS = 8, 32, 10
BATCH_SIZES, BEAMS = (1, 8, 64), (1, 4, 8)
MOST_IMPORTANT = (1, 4)  # batch size and beams
PEERS = ("transformers", "ctranslate2")
# The ways in which the search on the GPU repeats a step, and the search on the host for comparison.
LOOPS = ("device-while", "device-replay", "device-queue", "host")


def search(save: Save, quick: bool, modes: Sequence[Mode] = ("replay", "queue", "while")) -> str | None:
    """Compares random searches on the GPU with their emulation in each mode, and measures the memory bandwidth."""
    from ...runtime.cuda.device import CudaDevice
    from . import search_check as check
    from . import times

    device = CudaDevice()
    save({"while_graphs": device.while_graphs, "bytes_per_second": times.bandwidth(device)})
    try:
        plugin_sources.module("build").find_compiler("c++", "g++", "clang++")
    except BuildError as error:
        raise BackendUnavailable(f"there is no emulation to compare with: {error}") from error
    agreement = check.agree(device, 10 if quick else 60, modes=modes)
    save({"agreement": agreement})
    n = len({entry["seed"] for entry in agreement["different"]})
    return f"{n} of {agreement['cases']} searches differ from their emulation" if n else None


def rules(save: Save, quick: bool) -> str | None:
    """Compares every decoding rule on random scores with its definition in numpy."""
    from ...runtime.cuda.device import CudaDevice
    from . import rules_check

    found = rules_check.agree(CudaDevice(), 3 if quick else 30)
    save(found)
    return f"{', '.join(found['wrong'])} differ from their definition" if found["wrong"] else None


def kernels(save: Save, quick: bool) -> None:
    """Microseconds of each kernel of the search, and of a step without a decoder."""
    from ...runtime.cuda.device import CudaDevice
    from . import times

    times.measure(CudaDevice(), save, quick=quick)


def torch_steps(save: Save, bundle: str, checkpoint: str | None, quick: bool) -> str | None:
    """Whole decodes with decoder steps by PyTorch: compares tokens with the CPU's, and times steps."""
    from ...runtime.cuda import device as cuda
    from . import decodes

    save({"while_graphs": cuda.shared().while_graphs})
    return decodes.run(decodes.TORCH, save, bundle, checkpoint, quick)


def onnxruntime_steps(save: Save, bundle: str, quick: bool) -> str | None:
    """The same with ONNX Runtime's CUDA provider, whose steps are started by the host."""
    from ...runtime.backends import onnxruntime_cuda
    from . import decodes

    if (reason := onnxruntime_cuda.BACKEND.unavailable()) is not None:
        raise BackendUnavailable(reason)
    return decodes.run(decodes.ONNXRUNTIME, save, bundle, None, quick)


def attention(save: Save, quick: bool) -> str | None:
    """Compares the attention kernels with their references, and times launches at OPUS-MT's sizes."""
    from . import attention as kernels_of_attention

    agreement = kernels_of_attention.agree(kernels_of_attention.on_gpu, 20 if quick else 300)
    save({"agreement": agreement})
    batches, beams = (BATCH_SIZES[:1], BEAMS[1:2]) if quick else (BATCH_SIZES, BEAMS)
    save({"times": kernels_of_attention.times(kernels_of_attention.on_gpu, batches, beams)})
    n = len(agreement["wrong"])
    return f"{n} of {agreement['cases']} cases are outside their tolerance" if n else None


def sanitizers(save: Save, folder: str) -> str | None:
    """Runs the kernels of search and attention under the tools of compute-sanitizer."""
    from . import sanitizers as tools

    return tools.run(Path(folder), save)


def export(save: Save, name: str, checkpoint: str, bundle: str, quick: bool) -> None:
    """A model with random weights, and its bundle."""
    from ...exporting.export import export as make_bundle
    from ..bench.random_models import MAKERS

    begin = time.perf_counter()
    MAKERS[name](Path(checkpoint), quick)
    make_bundle(checkpoint, bundle)
    save({"export_seconds": round(time.perf_counter() - begin, 1)})


def build(save: Save, bundle: str, target: str, capability: str) -> None:
    recipe = targets_module.narrowed(recipes.load(target), capability, Path(bundle).parent)
    engine = builds.build(bundle, str(recipe)).engine
    save({"build_seconds": engine["seconds"], "bytes": engine["bytes"], "agreement_on_cpu": engine["agreement"]})


def tokens(save: Save, bundle: str, target: str, quick: bool) -> str | None:
    """Compares tokens and scores with ONNX Runtime on the CPU, for the search on the GPU and on the host."""
    from ...building import samples

    runs_it = backends.of_flavour(recipes.load(target).flavour)
    reason = f"no backend runs the target {target}" if runs_it is None else runs_it.unavailable()
    if runs_it is None or reason is not None:
        raise BackendUnavailable(reason)
    backend = runs_it.name
    reference = load(bundle, backend="onnxruntime")
    sources, _ = samples.sources(reference.bundle, N_SOURCES)
    limit = min(N_TOKENS, (reference.bundle.max_target_length or N_TOKENS) - 1)
    works = {name: {**options, "max_new_tokens": limit} for name, options in SEARCHES.items()}
    expected = {name: reference.generate(sources, **options) for name, options in works.items()}
    wrong = []
    for where in ("device", "host"):
        try:
            begin = time.perf_counter()
            session = load(bundle, backend=backend, target=target, search=where)
            load_seconds = round(time.perf_counter() - begin, 2)
            rounds = 2 if quick else ROUNDS
            found = {name: _compared(session, sources, works[name], expected[name], rounds) for name in works}
            save({where: {"load_seconds": load_seconds, "searches": found}})
            wrong += [f"{where}, {name}: not finite" for name, entry in found.items() if not entry["finite"]]
        except InvalidOption as error:  # the search does not support the model, which is not a failure
            save({where: {"reason": str(error)}})
        except Exception as error:  # any error of a driver or library is a result; the other search still runs
            save({where: {"reason": f"{type(error).__name__}: {error}"}})
            wrong.append(f"{where}: {type(error).__name__}: {error}")
    return "; ".join(wrong) or None


def _compared(
    session: Session, sources: list[list[int]], options: dict[str, Any], expected: Any, rounds: int
) -> dict[str, Any]:
    taken = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        found = session.generate(sources, **options)
        taken.append(1e3 * (time.perf_counter() - begin))
    pairs = [(a[0], b[0]) for a, b in zip(found, expected, strict=True)]
    differences = [abs(a.score - b.score) for a, b in pairs]
    return {
        "equal_sources": sum(a.token_ids == b.token_ids for a, b in pairs),
        "sources": len(pairs),
        "largest_score_difference": max(differences),
        "finite": all(map(math.isfinite, differences)),
        "first_call_ms": round(taken[0], 3),  # includes capture and instantiation of graphs
        "later_calls_ms": round(statistics.median(taken[1:]), 3),
        "tokens": len(pairs[0][0].token_ids),
    }


def steps(save: Save, bundle: str, targets: list[str], quick: bool, device: str = "cuda") -> str | None:
    """One source, four beams: times a step in a WHILE graph, replayed, queued, and with the search on the host."""
    from ..bench.contestants import Choice
    from ..bench.run import Options

    choice = Choice(targets=tuple(targets), device=device, searches=LOOPS)
    beams = (MOST_IMPORTANT[1],)
    return _race(save, bundle, Options(choice=choice, peers=(), batch_sizes=(1,), num_beams=beams, **_rounds(quick)))


def speed(
    save: Save, bundle: str, checkpoint: str | None, targets: list[str], quick: bool, device: str = "cuda",
    beams: Sequence[int] = BEAMS, peers: Sequence[str] | None = None,
) -> str | None:  # fmt: skip
    """Tokens per second of every target with the search on the GPU, beside transformers and CTranslate2."""
    from ..bench.contestants import Choice
    from ..bench.run import Options

    sizes = (BATCH_SIZES[:1], BEAMS[1:2]) if quick else (BATCH_SIZES, tuple(beams))
    options = Options(
        checkpoint=checkpoint, choice=Choice(targets=tuple(targets), device=device, searches=("device",)),
        peers=PEERS if peers is None else tuple(peers),
        batch_sizes=sizes[0], num_beams=sizes[1], first=MOST_IMPORTANT, **_rounds(quick),
    )  # fmt: skip
    return _race(save, bundle, options)


def _rounds(quick: bool) -> dict[str, Any]:
    # Not more tokens than the source has: after its end, the output of the copying model depends on rounding.
    if quick:
        return {"source_lengths": (10,), "new_tokens": 8, "repeats": 1}
    return {"source_lengths": (32,), "new_tokens": 31, "repeats": 3}


def _race(save: Save, bundle: str, options: Any) -> str | None:
    """Fails if none of our entries was measured. The table has the reasons of all others that could not run."""
    from ..bench.contestants import OURS
    from ..bench.run import bench

    found = bench(bundle, options, "scripts/gpu_check", save=save)
    save(found)
    # A backend without an engine has no precision.
    ours = [entry for entry in found["contestants"] if entry["contestant"] == OURS and entry["precision"]]
    if all(entry["reason"] for entry in ours):
        return "; ".join(f"{entry['label']}: {entry['reason']}" for entry in ours) or "no target of ours takes part"
    return None
