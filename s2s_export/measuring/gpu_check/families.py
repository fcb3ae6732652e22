"""Tiny random models of every family by the backend `cuda`: the GPU's tokens beside the emulation's and the CPU's.

The kernels are the same on both, but a GPU adds up in another order, so that near ties of random models may go the
other way: scores tell a mistake from that. The models are those of the tests, whose folder must be beside the package.
"""

from __future__ import annotations

import importlib
import multiprocessing
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from ... import bundle as bundles
from ...errors import BackendUnavailable, S2SError
from ...runtime.backends._cuda_native.backend import NativeBackend
from ...runtime.cores import available_cores
from ...runtime.cuda.emulation import HostDevice
from ...runtime.cuda.interface import Device
from ...runtime.session import Session, load

HELPERS = Path(__file__).parents[3] / "tests" / "helpers"
FP16, LOWER = "cuda-native-fp16", ("cuda-native-int8", "cuda-native-bf16")
WHISPER = "whisper"
SOURCES = [[5, 9, 3], [7, 8, 9, 10, 11, 12, 4, 6, 3], [30], [9] * 12, [3, 5, 7, 9]]
SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {"num_beams": 1},
    "beams": {"num_beams": 3, "num_return_sequences": 2, "no_repeat_ngram_size": 2},
}
MOST_WORKERS = 8
# A score, the mean of log-probabilities, is off by the rounding of activations, and by more where a near tie goes the
# other way.
SCORE = {FP16: 0.1, LOWER[0]: 0.3, LOWER[1]: 0.5}

Save = Callable[[dict[str, Any]], None]
Made = tuple[str, str, str | None]  # family, target, why there is no engine


def made(name: str, targets: Sequence[str], folder: str) -> list[Made]:
    """A family's checkpoint, bundle and engines in `folder`. In a process of its own, as it takes seconds."""
    sys.path.insert(0, str(HELPERS))
    from ...building.build import build
    from ...exporting.export import export

    checkpoint, path = Path(folder) / name, Path(folder) / f"{name}.bundle"
    if name == WHISPER:
        importlib.import_module("tiny_whisper").save(checkpoint, 3)
    else:
        importlib.import_module("tiny_models").save(name, checkpoint)
    export(str(checkpoint), str(path))
    found: list[Made] = []
    for target in targets:
        try:
            build(path, target)
            found.append((name, target, None))
        except S2SError as error:
            found.append((name, target, str(error)))
    return found


def compared(path: Path, name: str, target: str, device: Device) -> dict[str, Any]:
    """How many outputs have the emulation's and the CPU's tokens, and the largest difference of best scores."""
    opened = bundles.read(path)

    def session(on: Any) -> Session:
        return Session(opened, NativeBackend(opened, opened.path / "engines" / target, on), search="device")

    gpu, emulation, cpu = session(device), session(HostDevice()), load(path, backend="onnxruntime", threads=1)
    found: dict[str, Any] = {"outputs": 0, "as_emulated": 0, "as_on_cpu": 0, "score": 0.0}
    sources, works = _work(name)
    for options in works:
        ours, emulated, wanted = (one.generate(sources, batch_size=3, **options) for one in (gpu, emulation, cpu))
        for mine, same, theirs in zip(ours, emulated, wanted, strict=True):
            found["score"] = max(found["score"], abs(mine[0].score - same[0].score))
            for a, b, c in zip(mine, same, theirs, strict=True):
                found["outputs"] += 1
                found["as_emulated"] += a.token_ids == b.token_ids
                found["as_on_cpu"] += a.token_ids == c.token_ids
    return found


def _work(name: str) -> tuple[list[Any], list[dict[str, Any]]]:
    if name != WHISPER:
        return SOURCES, [{**options, "max_new_tokens": 8} for options in SEARCHES.values()]
    clip = importlib.import_module("tiny_whisper").clip
    given = {"language": "en", "return_timestamps": True, "max_new_tokens": 10}
    return [clip(i, 0.4 + 0.5 * i) for i in range(3)], [{**given, "num_beams": beams} for beams in (1, 3)]


def families(save: Save, folder: str, quick: bool) -> str | None:
    """The part. folder: where models are made."""
    from ...runtime.cuda import device as cuda

    if not (HELPERS / "tiny_models.py").is_file():
        raise BackendUnavailable(f"the models of the tests are not here (no {HELPERS}); run it in the repository")
    device = cuda.shared()
    Path(folder).mkdir(exist_ok=True)
    sys.path.insert(0, str(HELPERS))
    names = importlib.import_module("tiny_names")
    chosen = [*names.STRUCTURES[:1]] if quick else [*names.FAMILIES, WHISPER]
    few = [] if quick else [*names.STRUCTURES, WHISPER]
    result: dict[str, Any] = {}
    wrong: list[str] = []
    for name, target, reason in _all_made(chosen, few, folder):
        label = f"{name}, {target}"
        if reason is None:
            result[label] = compared(Path(folder) / f"{name}.bundle", name, target, device)
            if not result[label]["score"] <= SCORE[target]:
                wrong.append(f"{label}: scores differ by {result[label]['score']:.2g}")
        else:
            result[label] = {"reason": reason}
            wrong.append(f"{label}: {reason}")
        save({"families": result})
    return "; ".join(wrong) or None


def _all_made(names: Sequence[str], few: Collection[str], folder: str) -> Iterator[Made]:
    """`made` of each, several at a time. few: those in lower precision as well."""
    targets = {name: (FP16, *(LOWER if name in few else ())) for name in names}
    if len(names) == 1:
        yield from made(names[0], targets[names[0]], folder)
        return
    spawned = multiprocessing.get_context("spawn")  # a GPU's context can't be forked
    with ProcessPoolExecutor(max(1, min(MOST_WORKERS, available_cores())), mp_context=spawned) as pool:
        for job in as_completed([pool.submit(made, name, targets[name], folder) for name in names]):
            yield from job.result()


def table(found: dict[str, Any]) -> Iterator[str]:
    """The part's result as text."""
    yield "| family, target | outputs | as emulated | as on the CPU in fp32 | best scores differ by |"
    yield "|---|---|---|---|---|"
    for label, one in sorted(found.get("families", {}).items()):
        if "reason" in one:
            yield f"| {label} | {one['reason']} | | | |"
        else:
            yield f"| {label} | {one['outputs']} | {one['as_emulated']} | {one['as_on_cpu']} | {one['score']:.1e} |"
