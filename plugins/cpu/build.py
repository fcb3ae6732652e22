"""Compiles the operators: kernels once for each instruction set, and a library that takes the best of them at run time.

The library needs nothing but the C library of the machine it runs on. It comes with the package (a wheel for this
platform), or is compiled from the package's own sources into the cache that `plugins/build.py` describes. An engine
never brings it: engine.json names the sources that its graphs were made for (`sources`), and the package has them or
not.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .. import build

FOLDER = "cpu"
EARLIER = ("850bd4f1e936252edf25",)  # `sources` of earlier versions whose graphs these operators run as those did
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

    def compile_to(output: Path) -> str:
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:  # each waits for a compiler of its own
            objects = list(pool.map(lambda name: kernels(compiler, flags, name), sets))
        linked = [*with_sets, str(build.ROOT / FOLDER / "operators.cpp"), *map(str, objects), *LINK, "-o", str(output)]
        return str(build.run([compiler, *flags, *linked]))

    recipe = (compiler, *flags, *LINK, *(word for name, chosen in sets.items() for word in (name, *chosen)))
    return build.cached(FOLDER, NAME, recipe, compile_to)


def kernels(compiler: str, flags: Sequence[str], name: str) -> Path:
    """The kernels compiled for one of INSTRUCTION_SETS: an object file, which libraries share."""
    command = [compiler, *flags, f"-DKERNELS={name}", *INSTRUCTION_SETS[name], "-c"]

    def compile_to(output: Path) -> str:
        return str(build.run([*command, str(build.ROOT / FOLDER / "kernels.cpp"), "-o", str(output)]))

    return build.cached(FOLDER, f"{name}.o", command, compile_to)


def instruction_set(path: Path) -> str:
    """Which of a library's instruction sets this processor runs."""
    name = ctypes.CDLL(str(path)).s2s_instruction_set
    name.restype = ctypes.c_char_p
    return str(name().decode())
