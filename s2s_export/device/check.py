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
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..decoding.options import GenerationOptions, resolve
from ..errors import S2SError
from .host import HostDevice
from .interface import Device
from .loop import DeviceSearch, Mode
from .tables import Arena, make_plan

VOCABULARIES = {"OPUS-MT": 58101, "T5-small": 32128}
BATCHES, BEAMS = (1, 8, 64), (1, 4, 8)
N_TOKENS = 64
MEASURED = ("queue", "replay", "while")
BANDWIDTH_BYTES = 1 << 30
# Log-probabilities sum to scores in the same order, but expf and logf of a GPU differ from a CPU's in the last place.
TOLERANCE = 2e-5


class StillExecutor:
    """Logits that never change. What it enqueues is nothing."""

    def __init__(self, device: Device, logits: NDArray[np.float32], capacity: int) -> None:
        self.n_sources, self.n_beams, self.vocabulary_size = logits.shape
        self.capacity, self.element = capacity, "fp32"
        self._device = device
        self.signature: object = id(self)
        self.stream = device.create_stream()
        self.token = device.allocate(self.n_sources * self.n_beams * 8, "tokens")
        self.position = device.allocate(8, "the position")
        self.ancestors = device.allocate(self.n_sources * self.n_beams * capacity * 8, "ancestors")
        self.logits = device.allocate(logits.nbytes, "logits")
        device.to_device(self.logits, np.ascontiguousarray(logits), self.stream)
        device.synchronize(self.stream)

    def enqueue(self, stream: int) -> None:
        pass

    def close(self) -> None:
        for address in (self.token, self.position, self.ancestors, self.logits):
            self._device.free(address)
        self._device.destroy_stream(self.stream)


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
    executor = StillExecutor(device, logits, options.max_length)
    search = DeviceSearch(device, executor)
    try:
        return [(h.token_ids, h.score) for of in search.run(sources, options, mode=mode) for h in of]
    finally:
        search.close()
        executor.close()


def bandwidth(device: Device, n_bytes: int = BANDWIDTH_BYTES) -> float:
    """Bytes a second that a copy reads and writes, the best of five: what the floors are reckoned with."""
    stream = device.create_stream()
    source, target = (device.allocate(n_bytes, "measuring bandwidth") for _ in range(2))
    best = min(device.seconds(stream, lambda: device.move(target, source, n_bytes, stream)) for _ in range(5))
    device.free(source)
    device.free(target)
    device.destroy_stream(stream)
    return 2 * n_bytes / best


def times(device: Device, vocabulary_size: int, batch: int, beams: int, rules: bool, n: int) -> dict[str, Any]:
    """Microseconds of each kernel, and of a step by each mode, with the decoder's own step taking no time."""
    given: dict[str, Any] = {"num_beams": beams, "max_new_tokens": N_TOKENS, "min_new_tokens": N_TOKENS}
    given |= {"eos_token_id": 2, "decoder_start_token_id": 1}
    if rules:
        given["bad_words_ids"] = [[vocabulary_size - 1]]
    else:
        del given["min_new_tokens"]
    options = resolve({}, given, vocabulary_size=vocabulary_size)
    logits = np.random.default_rng(0).standard_normal((batch, beams, vocabulary_size)).astype(np.float32)
    logits[..., 2] = -30.0  # nothing ends early
    executor = StillExecutor(device, logits, options.max_length)
    search = DeviceSearch(device, executor)
    sources = [[3]] * batch
    found: dict[str, Any] = {"batch": batch, "beams": beams, "vocabulary": vocabulary_size, "rules": rules}
    modes: list[Mode] = ["queue", "replay", *(["while"] if device.while_graphs else [])]  # type: ignore[list-item]
    try:
        for mode in modes:
            begin = time.perf_counter()
            search.run(sources, options, mode=mode)
            found[f"{mode}_first_call_ms"] = 1e3 * (time.perf_counter() - begin)  # allocation, loading, instantiation
            taken = []
            for _ in range(n):
                begin = time.perf_counter()
                search.run(sources, options, mode=mode)
                taken.append(time.perf_counter() - begin)
            found[f"{mode}_step_us"] = 1e6 * float(np.median(taken)) / N_TOKENS
        held = search._held
        assert held is not None
        found["memory_mib"] = held._arena.n_bytes / 2**20
        held.begin(options, *_first(options, executor))
        kernels: dict[str, float] = {}
        for launch, structure in held._launches.queue():

            def many(launch: Any = launch, structure: Any = structure) -> None:
                for _ in range(n):
                    device.run(launch, structure, executor.stream)

            kernels[launch.kernel] = 1e6 * device.seconds(executor.stream, many) / n
        found["kernels_us"] = kernels
    finally:
        search.close()
        executor.close()
    return found


def _first(options: GenerationOptions, executor: StillExecutor) -> tuple[Any, NDArray[np.int64], range]:
    from .rules import serialise

    rules = serialise(options, executor.vocabulary_size)
    return rules, np.full((executor.n_sources, 1), 3, np.int64), range(executor.n_sources)


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
    result["bytes_per_second"] = bandwidth(device)
    result["times"] = []
    for vocabulary_size in VOCABULARIES.values():
        for batch in BATCHES[:1] if quick else BATCHES:
            for beams in BEAMS:
                for rules in (False, True):
                    entry = times(device, vocabulary_size, batch, beams, rules, 5 if quick else 20)
                    # What must be read at least: the logits, in fp32 here.
                    entry["floor_us"] = 1e6 * batch * beams * vocabulary_size * 4 / result["bytes_per_second"]
                    result["times"].append(entry)
    return result


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    agreement = result["agreement"]
    lines = [
        f"{result['device']}: {agreement['cases'] - len({d['seed'] for d in agreement['different']})} of "
        f"{agreement['cases']} random searches equal their emulation; "
        f"{result['bytes_per_second'] / 1e9:.0f} GB/s copied",
        "",
        "| vocabulary | batch | beams | rules | us a step: queued | replay | WHILE | logits' floor | kernels |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in result["times"]:
        steps = [f"{entry[f'{mode}_step_us']:.1f}" if f"{mode}_step_us" in entry else "-" for mode in MEASURED]
        kernels = ", ".join(f"{name} {us:.1f}" for name, us in entry["kernels_us"].items())
        lines.append(
            f"| {entry['vocabulary']} | {entry['batch']} | {entry['beams']} | {'yes' if entry['rules'] else 'no'} | "
            f"{' | '.join(steps)} | {entry['floor_us']:.1f} | {kernels} |"
        )
    return "\n".join(lines) + "\n"


def sanitize(folder: Path) -> dict[str, Any]:
    """The agreement again under compute-sanitizer's tools, where it is installed."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        return {"skipped": "compute-sanitizer is not on the path; install the CUDA toolkit"}
    found = {}
    for tool in ("memcheck", "racecheck", "synccheck", "initcheck"):
        command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", __spec__.name]
        command += [str(folder / tool), "--agree-only", "--quick"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        found[tool] = {"status": result.returncode, "output": result.stdout[-2000:]}
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
    result["sanitizer"] = sanitize(given.folder)
    (given.folder / "device_check.json").write_text(json.dumps(result, indent=2) + "\n")
    (given.folder / "device_check.md").write_text(table(result))
    print(table(result))
    return 1 if result["agreement"]["different"] else 0


if __name__ == "__main__":
    sys.exit(main())
