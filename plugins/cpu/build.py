"""Compiles the operators: kernels once for each instruction set, and a library that takes the best of them at run time.

The library needs nothing but the C library of the machine it runs on. It comes with the package (a wheel for this
platform), or is compiled from the package's own sources into the cache that `plugins/build.py` describes. An engine
never brings it: engine.json names the sources that its graphs were made for (`sources`), and the package has them or
not.
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


def sources() -> str:
    """A hash of the operators' sources."""
    return str(build.source_hash(FOLDER))[:20]


def packaged_name() -> str:
    """What the package calls the library for this kind of processor: by its sources, so that no other is taken."""
    return f"{FOLDER}-{sources()}-{platform.machine()}.so"


def library(*without: str, sanitize: bool = False) -> Path:
    """The operators for this machine's kind of processor: the package's own where it has them, else compiled, which
    takes half a minute once. Raises BuildError where there is neither them nor a C++ compiler.

    For tests: without, instruction sets to leave out ("plain" is always there); sanitize, with address and undefined
    checks.
    """
    packaged: Path = build.ROOT.parent / build.PACKAGED / packaged_name()
    if packaged.is_file() and not without and not sanitize:
        return packaged
    compiler = build.find_compiler(*COMPILERS)
    flags = (*FLAGS, *QUIET, *(build.SANITIZE_FLAGS if sanitize else ()))
    sets = INSTRUCTION_SETS if platform.machine() in ("x86_64", "AMD64") else {"plain": ()}
    sets = {name: chosen for name, chosen in sets.items() if name not in without}
    with_sets = tuple(f"-DWITH_{name.upper()}" for name in sets)
    folder = build.ROOT / FOLDER

    def compile_to(output: Path) -> str:
        with tempfile.TemporaryDirectory() as scratch:
            objects = []
            report = ""
            for name, chosen in sets.items():
                objects.append(f"{scratch}/{name}.o")
                kernels = [f"-DKERNELS={name}", *chosen, "-c", str(folder / "kernels.cpp"), "-o", objects[-1]]
                report += build.run([compiler, *flags, *kernels])
            linked = [*with_sets, str(folder / "operators.cpp"), *objects, *LINK, "-o", str(output)]
            return report + build.run([compiler, *flags, *linked])

    recipe = (compiler, *flags, *LINK, *(word for name, chosen in sets.items() for word in (name, *chosen)))
    return build.cached(FOLDER, NAME, recipe, compile_to)


def instruction_set(path: Path) -> str:
    """Which of a library's instruction sets this processor runs."""
    name = ctypes.CDLL(str(path)).s2s_instruction_set
    name.restype = ctypes.c_char_p
    return str(name().decode())
