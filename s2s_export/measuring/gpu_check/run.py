"""Runs each part in a process of its own, so that a driver that aborts or hangs affects one part only.

The results so far are saved after every part. FOLDER/parts/ has a file for each part, also while it runs.
"""

from __future__ import annotations

import contextlib
import json
import os
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
LAST_WORDS = 300  # characters from the end of its log that are shown if a part's process dies


def run(parts: Sequence[Part], result: dict[str, Any], folder: Path, minutes: float, call: Call) -> None:
    """Run the parts, and add each to result["parts"]: name, state, seconds, `reason` unless it is ok, `result`."""
    (folder / "parts").mkdir(exist_ok=True)
    started = time.monotonic()
    for part in parts:
        print(f"{part.name} ...", file=sys.stderr, flush=True)
        reason = _why_not(part, result["parts"], (time.monotonic() - started) / 60, minutes)
        begun = time.monotonic()
        found = {"state": SKIPPED, "reason": reason} if reason else call(part, folder / "parts" / _file(part))
        result["parts"].append({"name": part.name, **found, "seconds": round(time.monotonic() - begun, 1)})
        if found["state"] != OK:
            print(f"{part.name}: {found['state']}: {found['reason']}", file=sys.stderr, flush=True)
        report.write(folder, result)


def _why_not(part: Part, before: Sequence[dict[str, Any]], passed: float, minutes: float) -> str | None:
    if part.needs is not None and not any(b["name"] == part.needs and b["state"] == OK for b in before):
        return f"needs '{part.needs}', which has no result"
    if passed > minutes:
        return f"{passed:.0f} minutes had passed; give it more with --minutes"
    return None


def _file(part: Part) -> str:
    return "".join(c if c.isalnum() or c in "-." else "_" for c in part.name) + ".json"


def in_child(part: Part, file: Path) -> dict[str, Any]:
    """The result in the file of the part's process, or how the process ended."""
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
        words = log.read_text(errors="replace").strip()[-LAST_WORDS:].replace("\n", " / ")
        how = (
            f"took more than {part.minutes:g} minutes" if status is None else f"its process ended with status {status}"
        )
        found |= {"state": FAILED, "reason": f"{how} ({words or 'and said nothing'})"}
    return found
