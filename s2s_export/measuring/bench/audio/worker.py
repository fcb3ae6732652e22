"""One system in a process of its own: `python -m s2s_export.measuring.bench.audio.worker`.

Requests and answers are as in `bench.worker`, of which this has `prepare` and `open`, and

    {"do": "transcribe", "samples": FILE.npy, "setting": {...}}    one timed call and its text
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np

from .. import worker
from .plan import Setting
from .transcribers import modules


class Held(worker.Held):
    """The system that this process has opened, and the requests that it answers."""

    def modules(self) -> dict[str, Any]:
        return modules()

    def transcribe(self, samples: str, setting: dict[str, Any]) -> dict[str, Any]:
        sound = np.load(samples)
        worker.reset_peak()
        cpu, started = time.process_time(), time.perf_counter()
        text = self._system.transcribe(sound, Setting(**setting))
        wall = time.perf_counter() - started
        cpu = time.process_time() - cpu
        return {"wall": wall, "cpu": cpu, "memory": worker.memory(), "text": text}


if __name__ == "__main__":
    worker.serve(sys.stdin, worker.answers(), Held())
