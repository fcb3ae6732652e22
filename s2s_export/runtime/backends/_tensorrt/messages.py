"""What TensorRT says while it parses and builds.

TensorRT logs problems instead of raising them. Some of its warnings mean wrong results later: an "Unused Input" is an
input of a node that the parser dropped, so the graph computes something else. Such warnings are errors here.
"""

from __future__ import annotations

from typing import Any

from .library import Library

DROPPED = ("Unused Input", "is unused or used only at compile-time", "will be ignored", "is ignored")
# Logged for correct graphs, too.
EXPECTED = ("Int64 binding", "already exists, the output tensors", "will not be queryable")
KEPT = 400  # messages; a verbose build has hundreds of thousands


class Messages:
    """Warnings and errors in order. `logger` is what TensorRT is given."""

    def __init__(self, library: Library) -> None:
        self.warnings: list[str] = []
        self.errors: list[str] = []
        self.logger = _make_logger(library.trt, self)

    def add(self, level: str, text: str) -> None:
        target = self.errors if level in {"ERROR", "INTERNAL_ERROR"} else self.warnings
        if len(target) < KEPT:
            target.append(text)

    def clear(self) -> None:
        self.warnings.clear()
        self.errors.clear()

    @property
    def dropped_inputs(self) -> list[str]:
        return [text for text in self.warnings if any(mark in text for mark in DROPPED)]

    @property
    def remarkable(self) -> list[str]:
        """Warnings that a user should read."""
        return sorted({text for text in self.warnings if not any(mark in text for mark in EXPECTED)})

    def last_error(self) -> str:
        return shortened(self.errors[-1]) if self.errors else "it gave no reason"


def shortened(text: str, limit: int = 400) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[:limit] + "..."


def _make_logger(trt: Any, messages: Messages) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            if severity <= trt.ILogger.Severity.WARNING:
                messages.add(str(severity).rpartition(".")[2], text)

    return Logger()
