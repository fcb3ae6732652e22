"""The process of one part: `python -m s2s_export.measuring.gpu_check.child FILE FUNCTION ARGUMENTS`.

The result is written to FILE.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...errors import BackendUnavailable, MissingExtra
from ..bench.contestants import Absent
from . import parts
from .plan import FAILED, OK, SKIPPED, UNFINISHED

LACKS = (Absent, BackendUnavailable, MissingExtra, ImportError)  # raised if something is not installed here


def call(function: str, arguments: dict[str, Any], file: Path) -> dict[str, Any]:
    """Run a part. Returns its state, `reason` unless that is ok, and `result`: what it returned or saved last."""
    saved: dict[str, Any] = {}

    def save(found: dict[str, Any]) -> None:
        saved.update(found)
        _write(file, {"state": UNFINISHED, "result": saved})

    whole: dict[str, Any] = {"state": OK}
    try:
        run: Callable[..., str | None] = getattr(parts, function)
        if (wrong := run(save, **arguments)) is not None:
            whole = {"state": FAILED, "reason": wrong}
    except LACKS as error:
        whole = {"state": SKIPPED, "reason": str(error)}
    except Exception as error:  # any error of a driver or library is a result
        traceback.print_exc()
        whole = {"state": FAILED, "reason": f"{type(error).__name__}: {error}"}
    whole["result"] = saved
    _write(file, whole)
    return whole


def _write(file: Path, found: dict[str, Any]) -> None:
    """Write the file atomically."""
    beside = file.with_suffix(".new")
    beside.write_text(json.dumps(found, indent=1) + "\n")
    os.replace(beside, file)


if __name__ == "__main__":
    call(sys.argv[2], json.loads(sys.argv[3]), Path(sys.argv[1]))
