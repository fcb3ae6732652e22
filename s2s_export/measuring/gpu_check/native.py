"""The kernels of the backend `cuda` on a GPU: compared with numpy case by case, and a decoder step timed.

A step is timed as one graph of many, since a launch from Python takes longer than a kernel. Whole decodes are compared
and timed by the parts `tokens` and `speed` of the targets cuda-native-*, as those of every other target.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ... import bundle as bundles
from ... import engines
from ...building.build import build
from ...runtime.backends._cuda_native.backend import NativeBackend
from ...runtime.backends._cuda_native.programs import encoder_of, step_of
from ...runtime.backends._cuda_native.step_program import StepProgram
from ...runtime.cuda.driver import Buffers
from ...runtime.cuda.interface import Device
from ...runtime.device_search.step_executor import CandidateTables
from . import native_cases, recurrent_cases
from .times import launch_us

Save = Callable[[dict[str, Any]], None]
TARGET = "cuda-native-fp16"
CASES, FEW_CASES = 100, 5  # of each kind and element
POINTS = ((1, 1), (1, 4), (1, 8), (8, 4), (64, 4))  # sources and beams
SOURCE_LENGTH, CAPACITY, POSITION = 32, 64, 31


def agree(device: Device, n: int, elements: Sequence[str]) -> dict[str, Any]:
    """n random cases of each kernel and element: their number, the worst error / tolerance, and those above 1."""
    worst, wrong, total = 0.0, [], 0
    for element in elements:
        for kind, make in (native_cases.KINDS | recurrent_cases.KINDS).items():
            for seed in range(n):
                case = make(np.random.default_rng(seed), element)
                share = case.error(case.run(device))
                worst, total = max(worst, share), total + 1
                if not share <= 1.0:
                    wrong.append({"kind": kind, "element": element, "seed": seed, "share": str(share)})
    return {"cases": total, "worst": worst if math.isfinite(worst) else str(worst), "wrong": wrong}


def step_times(backend: NativeBackend, points: Sequence[tuple[int, int]] = POINTS) -> Iterator[dict[str, Any]]:
    """Microseconds of a decoder step in the middle of a text, and of the encoder, for so many sources and beams."""
    loaded = backend.loaded
    device: Any = loaded.device
    for n_sources, n_beams in points:
        stream = device.create_stream()
        buffers = Buffers(device, stream)
        try:
            encoder = encoder_of(loaded, n_sources, SOURCE_LENGTH, buffers.get)
            own = encoder_of(loaded, n_sources, SOURCE_LENGTH, buffers.get, uses_library=False)
            decoder, own_decoder = (step_of(loaded, one, n_beams, CAPACITY, buffers.get) for one in (encoder, own))
            ids = np.full((n_sources, SOURCE_LENGTH), 3, np.int64)
            values = {"input_ids": ids, "source_mask": np.ones_like(ids)}
            encoder.upload(values, device, stream)
            for address, array in _first(decoder, n_sources):
                device.to_device(address, array, stream)
            device.synchronize(stream)
            for program in (encoder.program, own.program, decoder.program, own_decoder.program):
                program.run(stream)  # what a library would set up in its first call
            device.synchronize(stream)
            yield {
                "batch": n_sources,
                "beams": n_beams,
                "launches": decoder.program.n_launches,
                "step_us": launch_us(device, stream, lambda: decoder.program.run(stream), 20),  # noqa: B023
                "own_step_us": launch_us(device, stream, lambda: own_decoder.program.run(stream), 20),  # noqa: B023
                "apart_us": launch_us(device, stream, lambda: own_decoder.program.run_apart(stream), 20),  # noqa: B023
                "candidates_us": _candidates_us(device, stream, decoder, buffers),
                "encoder_us": launch_us(device, stream, lambda: encoder.program.run(stream), 5),  # noqa: B023
                "own_encoder_us": launch_us(device, stream, lambda: own.program.run(stream), 5),  # noqa: B023
                "weight_bytes": loaded.model.step_bytes,
            }
        finally:
            buffers.close()
            device.destroy_stream(stream)


def _candidates_us(device: Any, stream: int, decoder: StepProgram, buffers: Buffers) -> float | None:
    """Of a step that finds the candidates in place of logits; None where it can't."""
    n_rows = decoder.n_rows
    candidates = 2 * decoder.n_beams if decoder.n_beams > 1 else 1
    lists = decoder.candidate_lists(candidates)
    if not lists:
        return None
    shapes = {"list_values": candidates, "list_ids": candidates, "list_maximum": 1, "list_sum": 1}
    at = {name: buffers.get(name, (n_rows, lists, size), "float32") for name, size in shapes.items()}
    tables = CandidateTables(at, candidates, lists, None)
    return launch_us(device, stream, lambda: decoder.run_candidates(stream, tables), 20)


def _first(decoder: StepProgram, n_sources: int) -> list[tuple[int, Any]]:
    """Token, position and ancestors of a step in the middle of a text, and caches without NaN."""
    beams = np.arange(decoder.n_beams)[:, None]
    found = [
        (decoder.token, np.full((n_sources, decoder.n_beams), 3, np.int64)),
        (decoder.position, np.array([POSITION], np.int64)),
        (decoder.ancestors, np.broadcast_to(beams, (n_sources, decoder.n_beams, decoder.capacity)).astype(np.int64)),
    ]
    return found + [(one.address, np.zeros(one.shape, one.dtype)) for one in decoder.kept]


def native(save: Save, bundle: str, quick: bool) -> str | None:
    """The part: kernels against numpy, then a decoder step of the bundle's engine, which is built if it is missing."""
    from ...runtime.cuda import device as cuda

    device = cuda.shared()
    elements = ["fp16", "int8", *(["bf16"] if importlib.util.find_spec("ml_dtypes") is not None else [])]
    agreement = agree(device, FEW_CASES if quick else CASES, elements)
    save({"agreement": agreement})
    opened = bundles.read(bundle)
    if TARGET not in engines.names(opened):
        build(bundle, TARGET)
    backend = NativeBackend(opened, engines.folder_of(opened, TARGET), device)
    found: list[dict[str, Any]] = []
    for entry in step_times(backend, POINTS[1:2] if quick else POINTS):
        found.append(entry)
        save({"times": found})
    n = len(agreement["wrong"])
    return f"{n} of {agreement['cases']} cases are outside their tolerance" if n else None


def table(found: dict[str, Any]) -> Iterator[str]:
    """The part's result as text."""
    agreement = found["agreement"]
    n = agreement["cases"] - len(agreement["wrong"])
    yield f"{n} of {agreement['cases']} random cases are within their tolerance; the worst took {agreement['worst']}."
    if times := found.get("times"):
        yield from (
            "",
            "| batch | beams | launches | step us | without cuBLASLt | nor overlap | with candidates | weights read "
            "| encoder us | without cuBLASLt |",
            "|---|---|---|---|---|---|---|---|---|---|",
        )
        for one in times:
            read = one["weight_bytes"] / one["step_us"] / 1e3
            found_us = "-" if one["candidates_us"] is None else f"{one['candidates_us']:.1f}"
            yield (
                f"| {one['batch']} | {one['beams']} | {one['launches']} | {one['step_us']:.1f} | "
                f"{one['own_step_us']:.1f} | {one['apart_us']:.1f} | {found_us} | {read:.0f} GB/s | "
                f"{one['encoder_us']:.1f} | {one['own_encoder_us']:.1f} |"
            )
