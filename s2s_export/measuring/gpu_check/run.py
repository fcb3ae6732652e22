"""Runs each part in a process of its own, so that a driver that aborts or hangs affects one part only.

The results so far are saved and packed after every part, so that nothing is lost where the whole check is stopped.
FOLDER/parts/ has a file for each part, also while it runs; in the end the archive has them, and few files are left.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import report
from .plan import FAILED, OK, SKIPPED, UNFINISHED, Part

Call = Callable[[Part, Path], dict[str, Any]]
CHILD = "s2s_export.measuring.gpu_check.child"
LEAST_MINUTES = 0.1  # a part with less time left is not begun: it would only load its libraries
LAST_WORDS = 300  # characters from the end of its log that are shown if a part's process dies


def run(parts: Sequence[Part], result: dict[str, Any], folder: Path, minutes: float, call: Call) -> None:
    """Run the parts, and add each to result["parts"]: name, state, seconds, `reason` unless it is ok, `result`.

    minutes: after which all of it ends. A part that is running then is stopped, and keeps what it has measured.
    """
    (folder / "parts").mkdir(exist_ok=True)
    ends = time.monotonic() + 60 * minutes
    for part in parts:
        print(f"{part.name} ...", file=sys.stderr, flush=True)
        begun = time.monotonic()
        left = (ends - begun) / 60
        reason = _why_not(part, result["parts"], left, minutes)
        if reason is not None:
            found = {"state": SKIPPED, "reason": reason}
        else:
            given = dataclasses.replace(part, minutes=min(part.minutes, left))
            found = call(given, folder / "parts" / _file(part))
            if found["state"] == UNFINISHED:
                found |= _stopped(part, left, minutes, found["reason"])
        result["parts"].append({"name": part.name, **found, "seconds": round(time.monotonic() - begun, 1)})
        if found["state"] != OK:
            print(f"{part.name}: {found['state']}: {found['reason']}", file=sys.stderr, flush=True)
        report.write(folder, result)
        report.pack(folder)
    shutil.rmtree(folder / "parts")


def _why_not(part: Part, before: Sequence[dict[str, Any]], left: float, minutes: float) -> str | None:
    if part.needs is not None and not any(b["name"] == part.needs and b["state"] == OK for b in before):
        return f"needs '{part.needs}', which has no result"
    if left < LEAST_MINUTES:
        return f"{minutes:g} minutes were over; give it more with --minutes"
    return None


def _stopped(part: Part, left: float, minutes: float, words: str) -> dict[str, Any]:
    """State and reason of a part that took too long: for itself, which is a failure, or for the whole check."""
    if left < part.minutes:
        return {"state": UNFINISHED, "reason": f"{minutes:g} minutes were over; give it more with --minutes"}
    return {"state": FAILED, "reason": f"took more than {part.minutes:g} minutes ({words})"}


def _file(part: Part) -> str:
    return "".join(c if c.isalnum() or c in "-." else "_" for c in part.name) + ".json"


def in_child(part: Part, file: Path) -> dict[str, Any]:
    """The result in the file of the part's process, or how the process ended. A part that was stopped after its minutes
    is unfinished, and its reason is the end of its log."""
    file.unlink(missing_ok=True)
    log = file.with_suffix(".log")
    command = [sys.executable, "-m", CHILD, str(file), part.function, json.dumps(part.arguments)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        try:
            status: int | None = process.wait(part.minutes * 60)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            with contextlib.suppress(ProcessLookupError):  # also its child processes
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    found = json.loads(file.read_text()) if file.is_file() else {"state": UNFINISHED, "result": {}}
    if found["state"] == UNFINISHED:
        words = log.read_text(errors="replace").strip()[-LAST_WORDS:].replace("\n", " / ") or "and said nothing"
        found["reason"] = words
        if status is not None:
            found |= {"state": FAILED, "reason": f"its process ended with status {status} ({words})"}
    return found
