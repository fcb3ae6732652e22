"""Compiles the operators: kernels once for each instruction set, and a library that takes the best of them at run time.

The library needs nothing but the C library of the machine it runs on. It lies in the cache that `plugins/build.py`
describes, and an engine takes a copy of it.
"""

from __future__ import annotations

import ctypes
import platform
import tempfile
from pathlib import Path

from .. import build

FOLDER = "cpu"
NAME = "operators.so"
FLAGS = (
    "-std=c++17",
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
)
# Vectors of 64 bytes are passed by inlined functions only; GCC 12 warns of its own intrinsics.
QUIET = ("-Wno-psabi", "-Wno-ignored-attributes", "-Wno-uninitialized", "-Wno-maybe-uninitialized")
LINK = ("-shared", "-static-libstdc++", "-static-libgcc", "-Wl,--exclude-libs,ALL")
AVX512 = ("f", "bw", "vl", "dq", "vnni")
INSTRUCTION_SETS = {
    "avx512": (*(f"-mavx512{part}" for part in AVX512), "-mfma", "-mprefer-vector-width=512"),
    "avxvnni": ("-mavx2", "-mfma", "-mavxvnni"),
    "avx2": ("-mavx2", "-mfma"),
    "plain": (),
}
COMPILERS = ("g++", "c++", "clang++")


def library(*without: str, sanitize: bool = False) -> Path:
    """The operators for this machine's kind of processor. Raises BuildError without a C++ compiler.

    For tests: without, instruction sets to leave out ("plain" is always there); sanitize, with address and undefined
    checks.
    """
    compiler = build.find_compiler(*COMPILERS)
    flags = (*FLAGS, *QUIET, *(build.SANITIZE_FLAGS if sanitize else ()))
    sets = INSTRUCTION_SETS if platform.machine() in ("x86_64", "AMD64") else {"plain": ()}
    sets = {name: chosen for name, chosen in sets.items() if name not in without}
    with_sets = tuple(f"-DWITH_{name.upper()}" for name in sets)
    sources = build.ROOT / FOLDER

    def compile_to(output: Path) -> str:
        with tempfile.TemporaryDirectory() as scratch:
            objects = []
            report = ""
            for name, chosen in sets.items():
                objects.append(f"{scratch}/{name}.o")
                kernels = [f"-DKERNELS={name}", *chosen, "-c", str(sources / "kernels.cpp"), "-o", objects[-1]]
                report += build.run([compiler, *flags, *kernels])
            linked = [*with_sets, str(sources / "operators.cpp"), *objects, *LINK, "-o", str(output)]
            return report + build.run([compiler, *flags, *linked])

    recipe = (compiler, *flags, *LINK, *(word for name, chosen in sets.items() for word in (name, *chosen)))
    return build.cached(FOLDER, NAME, recipe, compile_to)


def instruction_set(path: Path) -> str:
    """Which of a library's instruction sets this processor runs."""
    name = ctypes.CDLL(str(path)).s2s_instruction_set
    name.restype = ctypes.c_char_p
    return str(name().decode())
