"""One contestant in a process of its own: `python -m s2s_export.measuring.bench.worker`.

A request is a JSON object on one line of standard input, an answer one on a line of standard output: {"ok": ...},
{"absent": "why it can't run here"} or {"failed": "what went wrong"}. Whatever the contestant itself prints goes to
standard error. `remote.py` is the parent's side.

    {"do": "prepare", "job": {...}, "folder": "..."}      seconds
    {"do": "open", "job": {...}, "folder": "..."}         seconds, versions, memory
    {"do": "work", "sources", "num_beams", "new_tokens", "with_tokens"}    one timed call
    {"do": "translate", "sources", "num_beams", "max_new_tokens", "setting"}
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import Any, TextIO

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # value for /proc/self/clear_refs that resets the peak of resident memory, see proc(5)


def serve(requests: TextIO, answers: TextIO, held: Held) -> None:
    """Answer requests until the input ends."""
    from .contestants import Absent

    for line in requests:
        request = json.loads(line)
        try:
            answer = {"ok": getattr(held, request.pop("do"))(**request)}
        except Absent as reason:
            answer = {"absent": str(reason)}
        except Exception as error:
            traceback.print_exc()
            answer = {"failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


class Held:
    """The system that this process has opened, and the requests that it answers."""

    def __init__(self) -> None:
        self._system: Any = None

    def modules(self) -> dict[str, Any]:
        """The systems that there are."""
        from .contestants import modules

        return modules()

    def prepare(self, job: dict[str, Any], folder: str) -> dict[str, Any]:
        started = time.perf_counter()
        self.modules()[job["contestant"]].prepare(_job(job), folder)
        return {"seconds": time.perf_counter() - started}

    def open(self, job: dict[str, Any], folder: str) -> dict[str, Any]:
        started = time.perf_counter()
        self._system = self.modules()[job["contestant"]].open(_job(job), folder)
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "versions": self._system.versions, "memory": memory()}

    def work(self, sources: list[list[int]], num_beams: int, new_tokens: int, with_tokens: bool) -> dict[str, Any]:
        """Time one call, and one that stops at the first token."""
        reset_peak()
        # The first token is measured with a separate call, because not every system has hooks.
        first = self._call(sources, num_beams, 1)
        whole = self._call(sources, num_beams, new_tokens)
        tokens = whole.pop("tokens")
        return {"first": first["wall"], **whole, "memory": memory(), **({"tokens": tokens} if with_tokens else {})}

    def _call(self, sources: list[list[int]], num_beams: int, new_tokens: int) -> dict[str, Any]:
        marks = self._system.marks
        marks.clear()
        screened = getattr(self._system, "screened", lambda: None)
        before, before_screen = resource.getrusage(resource.RUSAGE_SELF), screened()
        cpu, started = time.process_time(), time.perf_counter()
        tokens = self._system.decode(sources, num_beams, new_tokens)
        ended, cpu = time.perf_counter(), time.process_time() - cpu
        lengths = {len(ids) for ids in tokens}
        if lengths != {new_tokens}:
            raise ValueError(f"outputs have {sorted(lengths)} tokens, expected {new_tokens} in each: not the same work")
        after = resource.getrusage(resource.RUSAGE_SELF)
        moments = [*marks.steps, ended]
        return {
            "wall": ended - started,
            "cpu": cpu,
            "preemptions": after.ru_nivcsw - before.ru_nivcsw,
            "encoder": marks.encoder_seconds,
            # From the beginning of one step to the next, which includes graph, search and bookkeeping.
            "steps": [b - a for a, b in itertools.pairwise(moments)],
            "screened": [now - then for now, then in zip(screened() or (), before_screen or (), strict=True)],
            "tokens": tokens,
        }

    def translate(
        self, sources: list[list[int]], num_beams: int, max_new_tokens: int, setting: dict[str, Any], with_tokens: bool
    ) -> dict[str, Any]:
        reset_peak()
        cpu, started = time.process_time(), time.perf_counter()
        tokens = self._system.translate(sources, num_beams, max_new_tokens, setting)
        wall = time.perf_counter() - started
        result: dict[str, Any] = {"wall": wall, "cpu": time.process_time() - cpu, "memory": memory()}
        result["n_tokens"] = sum(map(len, tokens))
        return result | ({"tokens": tokens} if with_tokens else {})


def _job(fields: dict[str, Any]) -> Any:
    from .contestants import Job

    return Job(**fields)


def reset_peak() -> None:
    try:
        CLEAR_REFS.write_text(RESET_PEAK)
    except OSError:
        return  # Without it, the peak is that of the whole process so far.


def memory() -> dict[str, int]:
    """Resident memory in bytes: the peak since `reset_peak`, and the present part that is mapped files."""
    fields = {"VmHWM": "peak", "VmRSS": "resident", "RssFile": "files"}
    found = {}
    try:
        for line in STATUS.read_text().splitlines():
            name, _, value = line.partition(":")
            if name in fields:
                found[fields[name]] = int(value.split()[0]) * 1024
    except OSError:
        found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return found


def answers() -> TextIO:
    """Where answers go. What a library prints must not mix with them: it goes to standard error."""
    stream = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return stream


if __name__ == "__main__":
    serve(sys.stdin, answers(), Held())
