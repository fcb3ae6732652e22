"""The lower bound ("floor") of a decoder step at batch 1: the time in which this machine can read all weights once.

The weights of a step are the matrices in decoder_step.onnx that are multiplied with something (of a table, a step reads
one row only). The read speed is measured over as many bytes as these weights have, because a model that fits into a
cache is read faster than memory: it is the fastest of several passes of numpy's kernels, with as many threads as the
contestants use. K/V caches, activations and the search are left out, so that no real system reaches the floor.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from typing import Any

from ...bundle import Bundle
from .remote import THREAD_VARIABLES

LOOKUPS = {"Gather"}
LARGE = 1 << 16  # elements; a smaller tensor is a norm, a bias or a shape
PASSES = 12
KERNEL = """
import json, sys, threading, time
import numpy as np
n_bytes, threads, passes = (int(a) for a in sys.argv[1:4])
parts = [np.ones(max(1, n_bytes // 4 // threads), dtype=np.float32) for _ in range(threads)]
def read(part, kind):
    np.dot(part, part) if kind == 0 else part.max()
def run(kind):
    started = time.perf_counter()
    others = [threading.Thread(target=read, args=(part, kind)) for part in parts[1:]]
    for thread in others: thread.start()
    read(parts[0], kind)
    for thread in others: thread.join()
    return time.perf_counter() - started
print(json.dumps(min(run(kind) for _ in range(passes) for kind in (0, 1))))
"""


def step_parameters(bundle: Bundle) -> int | str:
    """The number of weights in the matrix products of a decoder step, or the reason why it is not known."""
    try:
        import onnx
    except ImportError:
        return "counting a step's weights needs the package 'onnx': pip install 's2s-export[export]'"
    graph = onnx.load(bundle.graph_path("decoder_step"), load_external_data=False).graph
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
    read: set[tuple[str, ...]] = set()
    places = {tensor.name: tuple(entry.value for entry in tensor.external_data) for tensor in graph.initializer}
    total = 0
    for node in graph.node:
        for name in node.input:
            # Two names with the same place in the weight file are a tied weight.
            place = places.get(name) or (name,)
            if sizes.get(name, 0) >= LARGE and node.op_type not in LOOKUPS and place not in read:
                read.add(place)
                total += sizes[name]
    if total == 0:
        total = sum(size for name, size in sizes.items() if places[name])
    return total


def read_speed(n_bytes: int, threads: int) -> float:
    """Bytes read per second from n_bytes, the best of several passes, measured in a separate process."""
    n_bytes = max(n_bytes, 1 << 20)
    env = {**os.environ, **{name: "1" for name in THREAD_VARIABLES}}
    arguments = [sys.executable, "-c", KERNEL, str(n_bytes), str(threads), str(PASSES)]
    done = subprocess.run(arguments, env=env, capture_output=True, check=True, timeout=300)
    return n_bytes / float(json.loads(done.stdout))


def gpu_read_speed() -> float:
    """Bytes that a GPU reads and writes per second in a copy, in a separate process. Raises CalledProcessError."""
    code = (
        "from s2s_export.measuring.gpu_check import times; from s2s_export.runtime.cuda.device import CudaDevice; "
        "print(times.bandwidth(CudaDevice()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=300)
    return float(done.stdout)


def floors(bundle: Bundle, weight_bytes: set[float], threads: list[int], device: str = "cpu") -> dict[str, Any]:
    """The read speed and the floor of a step in seconds, for each number of threads and of bytes in a weight."""
    parameters = step_parameters(bundle)
    if isinstance(parameters, str):
        return {"reason": parameters, "floors": []}
    found = []
    if device == "cuda":
        try:
            of_gpu = gpu_read_speed()
        except subprocess.CalledProcessError as error:
            words = error.stderr.decode(errors="replace").strip().splitlines()
            return {"reason": f"the GPU's bandwidth can't be measured ({words[-1] if words else 'no reason given'})",
                    "floors": []}  # fmt: skip
    for n_threads in threads:
        for size in sorted(weight_bytes):
            n_bytes = int(parameters * size)
            # Several threads may read no faster than one; they never lower the floor.
            speed = of_gpu if device == "cuda" else max(read_speed(n_bytes, n) for n in {1, n_threads})
            found.append({
                "threads": n_threads, "weight_bytes": size, "bytes": n_bytes, "bytes_per_second": speed,
                "step_seconds": n_bytes / speed,
            })  # fmt: skip
    return {"parameters": parameters, "floors": found}


def floor_of(bandwidth: dict[str, Any], threads: int, weight_bytes: float) -> float | None:
    for entry in bandwidth["floors"]:
        if entry["threads"] == threads and entry["weight_bytes"] == weight_bytes:
            return float(entry["step_seconds"])
    return None
