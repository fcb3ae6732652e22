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


def run_here(*arguments: object, status: int = 0) -> tuple[str, str]:
    """Run it in this process, which is faster: what it prints to stdout and stderr."""
    import io
    from contextlib import redirect_stderr, redirect_stdout

    from s2s_export.cli import main

    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments])
            code: object = 0
        except SystemExit as stop:
            code = stop.code
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode("utf-8"))  # type: ignore[attr-defined]
    assert code == status, texts[1]
    return texts[0], texts[1]
