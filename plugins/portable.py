"""Compiles for a wheel: clang from the package `ziglang`, for any machine and any version of the C library.

What it makes runs on every Linux of its kind of processor since 2018: JetPack 5, Debian 10, Ubuntu 18.04, Amazon Linux
2023 and newer.
"""

from __future__ import annotations

import importlib.util
import platform
import sys

from s2s_export.errors import BuildError

KINDS = ("x86_64", "aarch64")
ALIASES = {"AMD64": "x86_64", "arm64": "aarch64"}
C_LIBRARY = "2.27"
# Zig links no crtbegin.o, which would run a library's handlers of exit when it is unloaded; so it stays loaded.
LINK = ("-shared", "-Wl,-s", "-Wl,-z,nodelete")


def machine() -> str:
    """This machine's kind of processor, as this package calls it."""
    name = platform.machine()
    return ALIASES.get(name, name)


def compiler(kind: str) -> tuple[str, ...]:
    """The command that compiles C++ for one of KINDS. Raises BuildError where the package is not installed."""
    if kind not in KINDS:
        raise BuildError(f"no kernels for '{kind}'; expected {' or '.join(KINDS)}")
    if importlib.util.find_spec("ziglang") is None:
        raise BuildError("no package ziglang, which compiles for other machines; pip install ziglang")
    return (sys.executable, "-m", "ziglang", "c++", "-target", f"{kind}-linux-gnu.{C_LIBRARY}")


def release() -> str:
    """Of the compiler: its command doesn't say it when asked."""
    import importlib.metadata  # which takes a megabyte, and decoding needs `machine` alone

    return f"ziglang {importlib.metadata.version('ziglang')}"
