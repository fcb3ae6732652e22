"""Runs parts of the check again under each tool of compute-sanitizer."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...errors import BackendUnavailable
from .plan import FAILED

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
PARTS: dict[str, dict[str, Any]] = {"search": {"quick": True}, "attention": {"quick": True}}
# racecheck of CUDA 13.0 aborts in a WHILE graph (seen on an H100). The kernels are the same without one.
FIXED: dict[tuple[str, str], dict[str, Any]] = {("racecheck", "search"): {"modes": ["queue"]}}
FOUND = 9  # exit status of the tool if it found an error
CHILD = "s2s_export.measuring.gpu_check.child"


def run(folder: Path, save: Callable[[dict[str, Any]], None]) -> str | None:
    """Save each tool's status and the end of its output, by part and tool. Returns what is wrong, or None.

    folder: for the files of the tools. Raises BackendUnavailable if compute-sanitizer is not installed.
    """
    program = shutil.which("compute-sanitizer")
    if program is None:
        raise BackendUnavailable(
            "there is no compute-sanitizer on the path; expected that of the CUDA toolkit; install it"
        )
    wrong = []
    for tool in TOOLS:
        for part, arguments in PARTS.items():
            file = folder / f"{tool}_{part}.json"
            command = [program, "--tool", tool, "--error-exitcode", str(FOUND), sys.executable, "-m", CHILD]
            command += [str(file), part, json.dumps({**arguments, **FIXED.get((tool, part), {})})]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            state = json.loads(file.read_text())["state"] if file.is_file() else FAILED
            save({f"{tool}, {part}": {"status": result.returncode, "state": state, "output": result.stdout[-2000:]}})
            if result.returncode or state == FAILED:
                wrong.append(f"{tool} of {part}")
    return f"{', '.join(wrong)} found something, see parts/sanitizers.json" if wrong else None
