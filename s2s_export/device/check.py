"""The device loop on whatever GPU this machine has: the kernels against their emulation, then times.

    python -m s2s_export.device.check FOLDER [--quick] [--agree-only]

Logits stand still here, so that what is measured is the search and not a decoder: `scripts/gpu_check` measures whole
models. FOLDER gets `device_check.json` and `device_check.md`. Where compute-sanitizer is installed its four tools look
for wrong accesses and races in `--agree-only`.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..decoding.options import GenerationOptions, resolve
from ..errors import BackendUnavailable, S2SError
from . import times
from .host import HostDevice
from .interface import Device
from .loop import DeviceSearch, Mode
from .tables import Arena, make_plan

# Log-probabilities sum to scores in the same order, but expf and logf of a GPU differ from a CPU's in the last place.
TOLERANCE = 2e-5


def options_for(chance: random.Random, vocabulary_size: int) -> GenerationOptions:
    """A search at random, most with rules, some that draw."""
    given: dict[str, Any] = {
        "num_beams": chance.choice([1, 1, 2, 4, 5, 8, 16]),
        "max_new_tokens": chance.randint(1, 12),
        "eos_token_id": [2] if chance.random() < 0.7 else [2, 3, 4],
        "decoder_start_token_id": 1,
        "length_penalty": chance.choice([1.0, 0.0, 0.6, 2.0]),
        "early_stopping": chance.choice([False, True, "never"]),
    }
    may: dict[str, Any] = {
        "no_repeat_ngram_size": chance.randint(1, 3),
        "repetition_penalty": 1.3,
        "bad_words_ids": [[5], [6, 7]],
        "min_new_tokens": 3,
        "suppress_tokens": [8, 9],
        "forced_eos_token_id": 2,
        "encoder_no_repeat_ngram_size": 2,
        "sequence_bias": {(10,): 1.5},
        "exponential_decay_length_penalty": (2, 1.2),
    }
    for name in chance.sample(sorted(may), chance.choice([0, 0, 1, 2, 3])):
        given[name] = may[name]
    if chance.random() < 0.3:
        given |= {"do_sample": True, "seed": chance.randrange(2**64), "top_k": chance.choice([0, 5, 50])}
        filters = {
            "top_p": 0.9,
            "top_h": 0.7,
            "min_p": 0.05,
            "typical_p": 0.9,
            "epsilon_cutoff": 0.01,
            "eta_cutoff": 0.01,
        }
        name = chance.choice(sorted(filters))
        given[name] = filters[name]
    return resolve({}, given, vocabulary_size=vocabulary_size)


def agree(device: Device, n_cases: int, vocabulary_sizes: Sequence[int] = (40, 1000, 5000)) -> dict[str, Any]:
    """Random searches on the device and on the emulation: same tokens, scores within TOLERANCE."""
    different = []
    for seed in range(n_cases):
        chance, rng = random.Random(seed), np.random.default_rng(seed)
        vocabulary_size = chance.choice(vocabulary_sizes)
        options = options_for(chance, vocabulary_size)
        sources = [[chance.randrange(vocabulary_size) for _ in range(6)] for _ in range(chance.randint(1, 3))]
        shape = (len(sources), options.n_rows, vocabulary_size)
        logits = (3 * rng.standard_normal(shape)).astype(np.float32)
        modes: list[Mode] = ["replay", "queue", *(["while"] if device.while_graphs else [])]  # type: ignore[list-item]
        expected = _outputs(HostDevice(), logits, sources, options, "queue")
        for mode in modes:
            found = _outputs(device, logits, sources, options, mode)
            same = [a[0] for a in found] == [b[0] for b in expected]
            near = np.allclose([a[1] for a in found], [b[1] for b in expected], TOLERANCE, TOLERANCE)
            if not (same and near):
                different.append({"seed": seed, "mode": mode, "found": found[:1], "expected": expected[:1]})
    return {"cases": n_cases, "different": different}


def _outputs(
    device: Device,
    logits: NDArray[np.float32],
    sources: list[list[int]],
    options: GenerationOptions,
    mode: Mode,
) -> list[tuple[list[int], float]]:
    executor = times.StillExecutor(device, logits, options.max_length)
    search = DeviceSearch(device, executor)
    try:
        return [(h.token_ids, h.score) for of in search.run(sources, options, mode=mode) for h in of]
    finally:
        search.close()
        executor.close()


def plan_report(batch: int, beams: int, vocabulary_size: int, options: GenerationOptions) -> list[tuple[str, str, int]]:
    """The memory that a search takes: (table, shape, bytes). Needs no device."""
    from .rules import serialise

    class Sizes:
        n_sources, n_beams, capacity, element = batch, beams, options.max_length, "fp16"
        token = position = ancestors = logits = stream = signature = 0

        def enqueue(self, stream: int) -> None: ...

    sizes = Sizes()
    sizes.vocabulary_size = vocabulary_size  # type: ignore[attr-defined]
    plan = make_plan(sizes, options, serialise(options, vocabulary_size), 1, streams=False)  # type: ignore[arg-type]
    return Arena(plan).report()


def run(device: Device, *, quick: bool = False) -> dict[str, Any]:
    """Everything but the sanitizer."""
    result: dict[str, Any] = {"device": device.name, "while_graphs": device.while_graphs}
    result["agreement"] = agree(device, 20 if quick else 300)
    times.measure(device, result.update, quick=quick)
    return result


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    agreement = result["agreement"]
    lines = [
        f"{result['device']}: {agreement['cases'] - len({d['seed'] for d in agreement['different']})} of "
        f"{agreement['cases']} random searches equal their emulation; "
        f"{result['bytes_per_second'] / 1e9:.0f} GB/s copied",
        "",
        *times.table(result["times"]),
    ]
    return "\n".join(lines) + "\n"


def sanitize(folder: Path, save: Callable[[dict[str, Any]], None] = lambda found: None) -> dict[str, Any]:
    """The agreement again under compute-sanitizer's tools: status and output of each. save: is given all so far.

    Raises BackendUnavailable where it is not installed.
    """
    program = shutil.which("compute-sanitizer")
    if program is None:
        raise BackendUnavailable(
            "there is no compute-sanitizer on the path; expected that of the CUDA toolkit; install it"
        )
    found: dict[str, Any] = {}
    for tool in ("memcheck", "racecheck", "synccheck", "initcheck"):
        command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", "s2s_export.device.check"]
        command += [str(folder / tool), "--agree-only", "--quick"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        found[tool] = {"status": result.returncode, "output": result.stdout[-2000:]}
        save(found)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="s2s_export.device.check", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folder", type=Path, help="where results go")
    parser.add_argument("--quick", action="store_true", help="fewer cases and sizes")
    parser.add_argument("--agree-only", action="store_true", help="no times")
    given = parser.parse_args(arguments)
    from .cuda import CudaDevice

    try:
        device = CudaDevice()
    except S2SError as error:
        print(f"device check: {error}; nothing was checked", file=sys.stderr)
        return 1
    given.folder.mkdir(parents=True, exist_ok=True)
    if given.agree_only:
        agreement = agree(device, 10 if given.quick else 300)
        print(json.dumps(agreement))
        return 1 if agreement["different"] else 0
    result = run(device, quick=given.quick)
    try:
        result["sanitizer"] = sanitize(given.folder)
    except BackendUnavailable as error:
        result["sanitizer"] = {"skipped": str(error)}
    (given.folder / "device_check.json").write_text(json.dumps(result, indent=2) + "\n")
    (given.folder / "device_check.md").write_text(table(result))
    print(table(result))
    return 1 if result["agreement"]["different"] else 0


if __name__ == "__main__":
    sys.exit(main())
