"""The parent's side of a worker process: starts it, sends requests, waits for answers, ends it."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from .contestants import Absent

WORKER = "s2s_export.measuring.bench.worker"
PATIENCE = 1800.0  # seconds for one answer: even a compilation does not take this long
LOG_TAIL = 300  # characters from the end of its log that are shown if a worker dies
# Numeric libraries read their number of threads from these variables when they are loaded.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class Worker:
    """A process that holds one contestant. Use as a context manager, or call `close`.

    threads: of numeric libraries, 0 to leave that to them. module: what the process runs.
    """

    def __init__(
        self,
        threads: int,
        python: str | None = None,
        environment: Mapping[str, str] | None = None,
        module: str = WORKER,
    ) -> None:
        package = Path(__file__).resolve().parents[3]
        path = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
        variables = {name: str(threads) for name in THREAD_VARIABLES} if threads else {}
        offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": os.pathsep.join(path)}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                [python or sys.executable, "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env={**os.environ, **variables, **offline, **(environment or {})},
            )
        except OSError as error:
            self._log.close()
            raise Absent(f"{python}: can't be started ({error.strerror})") from error

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """The answer. Raises Absent if the contestant can't run or failed, or if its process died."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **request}).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise Absent(self._last_words()) from None
        answer = json.loads(self._read_line())
        if "ok" in answer:
            result: dict[str, Any] = answer["ok"]
            return result
        raise Absent(answer.get("absent") or f"failed ({answer['failed']})")

    def _read_line(self) -> bytes:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(PATIENCE):
                raise Absent(f"gave no answer for {PATIENCE / 60:.0f} minutes")
        line = self._process.stdout.readline()
        if not line:
            raise Absent(self._last_words())
        return line

    def _last_words(self) -> str:
        status = self._process.wait()
        self._log.seek(0)
        text = self._log.read().decode(errors="replace").strip()
        words = text.splitlines()[-1][-LOG_TAIL:] if text else "and said nothing"
        return f"its process ended with status {status} ({words})"

    def close(self) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
        self._log.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None:
            self._process.kill()
        self.close()
