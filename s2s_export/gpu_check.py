"""On whatever GPU this machine has: build, run, compare with ONNX Runtime on the CPU, measure. One go, one folder.

    python -m s2s_export.gpu_check FOLDER [BUNDLE...] [--targets rtx-fp16,...] [--quick]

Without bundles it exports small random models of its own (needs the [export] extra). Without a GPU it says so and exits
1. FOLDER gets `gpu_check.json` and `gpu_check.md`, both also when something failed on the way: a failure is a result.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import __version__, backends, build, bundle, machine, recipes
from .errors import BackendUnavailable, S2SError
from .recipes import Recipe
from .runtime import Session, load
from .tensorrt import memory

BACKENDS = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt-rtx", "cuda": "onnxruntime-cuda"}  # by flavour
SEARCHES = {"greedy": {"num_beams": 1}, "beam 4": {"num_beams": 4}}
N_SOURCES, N_TOKENS, ROUNDS = 8, 32, 10


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/gpu_check", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folder", type=Path, help="where results go")
    parser.add_argument("bundles", type=Path, nargs="*", help="bundles to check; small random models by default")
    parser.add_argument("--targets", help="targets to build, by comma; by default all that suit this GPU")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    given = parser.parse_args(arguments)
    if (reason := memory.unavailable()) is not None:
        print(f"gpu_check: {reason}; nothing was checked", file=sys.stderr)
        return 1
    device = memory.device()
    if not (chosen := given.targets.split(",") if given.targets else suiting(device.capability)):
        print(
            f"gpu_check: no target serves {device.name} (compute capability {device.capability}) with the libraries "
            "that are installed; install one of the extras rtx, tensorrt, cuda, or name --targets",
            file=sys.stderr,
        )
        return 1
    given.folder.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {
        "s2s_export": __version__,
        "machine": machine.machine(),
        "packages": machine.describe()["packages"],
        "gpu": {"name": device.name, "compute_capability": device.capability, "cuda": device.cuda_version},
        "python": platform.python_version(),
        "runs": [],
    }
    with tempfile.TemporaryDirectory(prefix="s2s-gpu-check-") as scratch:
        paths = [_copy(path, Path(scratch)) for path in given.bundles] or export_small(Path(scratch))
        for path in paths:
            for target in chosen:
                print(f"{path.name} {target}", file=sys.stderr)
                result["runs"].append(check(path, target, device.capability, 2 if given.quick else ROUNDS))
                write(given.folder, result)
    result["device_loop"] = check_loop(given.quick)
    write(given.folder, result)
    print((given.folder / "gpu_check.md").read_text())
    return 0 if all(run["ok"] for run in result["runs"]) and "error" not in result["device_loop"] else 1


def check_loop(quick: bool) -> dict[str, Any]:
    """The search on the GPU (docs/gpu.md): its kernels against their emulation, and their times."""
    from .device import check as device_check
    from .device.cuda import CudaDevice

    try:
        found = device_check.run(CudaDevice(), quick=quick)
    except BackendUnavailable as error:
        return {"skipped": str(error)}
    except Exception as error:  # as in `check`
        return {"error": f"{type(error).__name__}: {error}"}
    if different := found["agreement"]["different"]:
        found["error"] = f"{len(different)} searches differ from their emulation"
    return found


def suiting(capability: str) -> list[str]:
    """Targets whose library is here and whose GPUs include this one."""
    known = backends.modules()
    found = []
    for name in recipes.names():
        recipe = recipes.load(name)
        backend = known.get(BACKENDS.get(recipe.flavour, ""))
        serves = not recipe.compute_capabilities or capability in recipe.compute_capabilities
        if backend is not None and serves and backend.unavailable() is None:
            found.append(name)
    return found


def check(path: Path, target: str, capability: str, rounds: int) -> dict[str, Any]:
    """One bundle and target: what happened at each stage. A failure is recorded with its reason."""
    run: dict[str, Any] = {"bundle": path.name, "target": target, "ok": False, "stage": "build"}
    try:
        recipe = recipes.load(target)
        report = build.build(path, str(_narrowed(recipe, capability, path.parent)))
        run |= {"build_seconds": report.engine["seconds"], "bytes": report.engine["bytes"]}
        run |= {"agreement_on_cpu": report.engine["agreement"], "stage": "load"}
        name = BACKENDS[recipe.flavour]
        begin = time.perf_counter()
        session = load(path, backend=name, target=recipe.name)
        run |= {"load_seconds": round(time.perf_counter() - begin, 3), "stage": "run"}
        reference = load(path, backend="onnxruntime")
        run["searches"] = compare(session, reference, rounds)
        run |= {"ok": all(entry["finite"] for entry in run["searches"].values()), "stage": "done"}
    except S2SError as error:
        run["error"] = str(error)
    except Exception as error:  # whatever a driver or library raises is a finding, and the other targets still run
        run["error"] = f"{type(error).__name__}: {error}"
    return run


def _narrowed(recipe: Recipe, capability: str, folder: Path) -> Path:
    """The recipe for this GPU alone, so that a build takes as long as it must."""
    lines = [f'flavour = "{recipe.flavour}"', f'precision = "{recipe.precision}"']
    if recipe.compute_capabilities:
        lines.append(f'compute_capabilities = ["{capability}"]')
    lines += [f"plugins = {str(recipe.plugins).lower()}", f"workspace_mib = {recipe.workspace_mib}"]
    lines += [f"buckets = {list(recipe.buckets)}", "[ranges]"]
    lines += [f"{letter} = {{ min = {r.min}, opt = {r.opt}, max = {r.max} }}" for letter, r in recipe.ranges.items()]
    lines += ["[options]", *(f"{name} = {json.dumps(value)}" for name, value in recipe.options.items())]
    file = folder / f"{recipe.name}.toml"
    file.write_text("\n".join(lines) + "\n")
    return file


def compare(session: Session, reference: Session, rounds: int) -> dict[str, Any]:
    """Tokens and scores against the CPU, and both their times, interleaved."""
    from .lowering import samples

    sources, _ = samples.sources(session.bundle, N_SOURCES)
    limit = min(N_TOKENS, (session.bundle.max_target_length or N_TOKENS) - 1)
    found = {}
    for name, options in SEARCHES.items():
        settings = {**options, "max_new_tokens": limit}
        ours, theirs = session.generate(sources, **settings), reference.generate(sources, **settings)
        pairs = [(a[0], b[0]) for a, b in zip(ours, theirs, strict=True)]
        differences = [abs(a.score - b.score) for a, b in pairs]
        times = _times([lambda s=settings: session.generate(sources[:1], **s),
                        lambda s=settings: reference.generate(sources[:1], **s)], rounds)  # fmt: skip
        found[name] = {
            "equal_sources": sum(a.token_ids == b.token_ids for a, b in pairs),
            "sources": len(pairs),
            "largest_score_difference": max(differences),
            "finite": all(difference == difference and difference != float("inf") for difference in differences),
            "gpu_ms": times[0],
            "cpu_ms": times[1],
            "tokens": len(pairs[0][0].token_ids),
        }
    return found


def _times(works: list[Callable[[], Any]], rounds: int) -> list[float]:
    """Median milliseconds of each, in turns, after one round that does not count."""
    taken: list[list[float]] = [[] for _ in works]
    for number in range(rounds + 1):
        for times, work in zip(taken, works, strict=True):
            begin = time.perf_counter()
            work()
            if number:
                times.append((time.perf_counter() - begin) * 1000)
    return [round(statistics.median(times), 3) for times in taken]


def write(folder: Path, result: dict[str, Any]) -> None:
    """JSON and a table, whole after each run."""
    (folder / "gpu_check.json").write_text(json.dumps(result, indent=2, default=dataclasses.asdict) + "\n")
    gpu = result["gpu"]
    lines = [
        f"{gpu['name']}, compute capability {gpu['compute_capability']}, CUDA {gpu['cuda']}, "
        f"s2s-export {result['s2s_export']}",
        "",
        "| bundle | target | result | search | equal | score differs by | GPU ms | CPU ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run in result["runs"]:
        head = f"| {run['bundle']} | {run['target']} |"
        if "error" in run:
            lines.append(f"{head} failed in {run['stage']}: {run['error'].replace('|', '/')} | | | | | |")
        for name, entry in run.get("searches", {}).items():
            lines.append(
                f"{head} {'ok' if entry['finite'] else 'not finite'} | {name} | {entry['equal_sources']} of "
                f"{entry['sources']} | {entry['largest_score_difference']:.1e} | {entry['gpu_ms']} | "
                f"{entry['cpu_ms']} |"
            )
    if (loop := result.get("device_loop")) is not None:
        lines += ["", "The search on the GPU, logits standing still:", ""]
        lines += [f"{what}: {loop[what]}" for what in ("skipped", "error") if what in loop]
        if "times" in loop:
            from .device.check import table

            lines.append(table(loop))
    (folder / "gpu_check.md").write_text("\n".join(lines) + "\n")


def _copy(path: Path, folder: Path) -> Path:
    """A copy to build in: a check changes nothing of the user's."""
    bundle.read(path)
    shutil.copytree(path, folder / path.name, ignore=shutil.ignore_patterns("engines"))
    return folder / path.name


def export_small(folder: Path) -> list[Path]:
    """A Marian and a T5 of two layers with heads of 64 numbers, and random weights."""
    import torch
    import transformers

    from .exporting import export

    torch.manual_seed(0)
    marian = transformers.MarianConfig(
        vocab_size=2000, d_model=256, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=512, decoder_ffn_dim=512, max_position_embeddings=256,
        pad_token_id=1999, eos_token_id=0, decoder_start_token_id=1999, scale_embedding=True, init_std=0.1,
    )  # fmt: skip
    t5 = transformers.T5Config(
        vocab_size=2000, d_model=256, d_kv=64, num_heads=4, num_layers=2, num_decoder_layers=2, d_ff=512,
        decoder_start_token_id=0,
    )  # fmt: skip
    made = []
    for name, config in (("marian", marian), ("t5", t5)):
        transformers.AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder / f"{name}.checkpoint")
        export(folder / f"{name}.checkpoint", folder / name)
        made.append(folder / name)
    return made


if __name__ == "__main__":
    sys.exit(main())
