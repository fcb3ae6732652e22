"""The command `s2s` as a user runs it: a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

S2S = Path(sys.executable).with_name("s2s")


def s2s(*arguments: object, stdin: str | None = None, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run it and expect this exit status, and no traceback."""
    done = subprocess.run([S2S, *map(str, arguments)], input=stdin, capture_output=True, text=True, timeout=300)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done
