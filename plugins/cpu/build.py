"""Compiles the operators: kernels once for each instruction set, and a library that takes the best of them at run time.

The library needs nothing but the C library of the machine it runs on. It comes with the package (a wheel for this
platform), or is compiled from the package's own sources into the cache that `plugins/build.py` describes. An engine
never brings it: engine.json names the sources that its graphs were made for (`sources`), and the package has them or
not.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from s2s_export.errors import BuildError

from .. import build, portable

FOLDER = "cpu"
# `sources` of earlier versions whose graphs these operators run as those did.
EARLIER = (
    "850bd4f1e936252edf25",
    "66c4961b5ea5828da8d5",
    "548b6cdcec616dcdbf67",
    "601d351f9c3e47c45f1f",
    "93ff9c2b969b4230953b",
)
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
AVX512 = (*(f"-mavx512{part}" for part in ("f", "bw", "vl", "dq", "vnni")), "-mfma", "-mprefer-vector-width=512")
# By the kind of processor, the best first; the last one needs nothing beyond what every such processor has.
INSTRUCTION_SETS = {
    "x86_64": {
        "amx": (*AVX512, "-mamx-tile", "-mamx-int8"),
        "avx512": AVX512,
        "avxvnni": ("-mavx2", "-mfma", "-mf16c", "-mavxvnni"),
        "avx2": ("-mavx2", "-mfma", "-mf16c"),
        "plain": (),
    },
    "aarch64": {
        "i8mm": ("-march=armv8.2-a+dotprod+i8mm",),
        "dotprod": ("-march=armv8.2-a+dotprod",),
        "neon": (),
    },
}
NEEDS = {"amx": "avx512"}  # the set that does what another has no code of its own for
# For tests: the tile instructions of AMX in plain C++ (tiles.h), on a processor that has but AVX-512.
EMULATED_TILES = "-DS2S_EMULATED_TILES"
COMPILERS = ("g++", "c++", "clang++")
# What clang's driver in Zig calls them; it knows no -march of Arm's extensions.
ZIG_FLAGS = {"i8mm": ("-mcpu=generic+dotprod+i8mm",), "dotprod": ("-mcpu=generic+dotprod",), "neon": ("-mcpu=generic",)}


def sources() -> str:
    """A hash of the operators' sources."""
    return str(build.source_hash(FOLDER))[:20]


def sets_of(kind: str) -> dict[str, tuple[str, ...]]:
    """The instruction sets of a kind of processor, with their flags for GCC and clang."""
    return INSTRUCTION_SETS.get(kind, {"plain": ()})


def packaged_name(kind: str | None = None) -> str:
    """What the package calls the library for a kind of processor: by its sources, so that no other is taken."""
    return f"{FOLDER}-{sources()}-{kind or portable.machine()}.so"


def library(*without: str, sanitize: bool = False, emulated: bool = False) -> Path:
    """The operators for this machine's kind of processor: the package's own where it has them, else compiled, which
    takes half a minute once. Raises BuildError where there is neither them nor a C++ compiler.

    For tests: without, instruction sets to leave out (the last one is always there); sanitize, with address and
    undefined checks; emulated, with the tile instructions of AMX in plain C++.
    """
    if not without and not sanitize and not emulated and (path := made()):
        return path
    compiler = (build.find_compiler(*COMPILERS),)
    flags = (*FLAGS, *QUIET, *(build.SANITIZE_FLAGS if sanitize else ()))
    sets = {
        name: chosen
        for name, chosen in sets_of(portable.machine()).items()
        if not {name, NEEDS.get(name, name)} & set(without)
    }
    if emulated:
        sets = {**sets, "amx": (*AVX512, EMULATED_TILES, "-O2")}  # compiled in half the time of -O3
        return _compiled(compiler, flags, sets, LINK, own=(EMULATED_TILES,))
    return _compiled(compiler, flags, sets, LINK)


def made() -> Path | None:
    """The operators for this machine if they need not be compiled first, else None."""
    packaged: Path = build.ROOT.parent / build.PACKAGED / packaged_name()
    if packaged.is_file():
        return packaged
    try:
        compiler = (build.find_compiler(*COMPILERS),)
    except BuildError:
        return None
    recipe = _recipe(compiler, (*FLAGS, *QUIET), sets_of(portable.machine()), LINK)
    path: Path = build.place(FOLDER, recipe) / NAME
    return path if path.is_file() else None


def portable_library(kind: str) -> Path:
    """The operators for any Linux of a kind of processor, "x86_64" or "aarch64", compiled by the package `ziglang`.

    Raises BuildError where there is none.
    """
    compiler = portable.compiler(kind)
    sets = {name: ZIG_FLAGS.get(name, chosen) for name, chosen in sets_of(kind).items()}
    return _compiled(compiler, (*FLAGS, "-Wno-psabi"), sets, portable.LINK, portable.release())


def _compiled(
    compiler: tuple[str, ...],
    flags: tuple[str, ...],
    sets: dict[str, tuple[str, ...]],
    link: tuple[str, ...],
    release: str = "",
    own: tuple[str, ...] = (),
) -> Path:
    """release: of the compiler, where the first word of its command doesn't say it when asked; own: flags of the
    operators alone.
    """

    def compile_to(output: Path) -> str:
        known = sets if release else known_to(compiler, sets)
        parts = objects(compiler, flags, known, release, own)
        return str(build.run([*compiler, *flags, *map(str, parts), *link, "-o", str(output)]))

    return build.cached(FOLDER, NAME, _recipe(compiler, (*flags, *own), sets, link, release), compile_to)


def _recipe(
    compiler: tuple[str, ...],
    flags: tuple[str, ...],
    sets: dict[str, tuple[str, ...]],
    link: tuple[str, ...],
    release: str = "",
) -> tuple[str, ...]:
    """All that determines a library, beside the sources."""
    return (*compiler, release, *flags, *link, *(word for name, chosen in sets.items() for word in (name, *chosen)))


def known_to(compiler: Sequence[str], sets: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Those of the sets whose flags a compiler of this machine knows: GCC has AMX's since version 11."""
    found = {}
    for name, chosen in sets.items():
        command = [*compiler, *chosen, "-x", "c++", "-fsyntax-only", os.devnull]
        if not chosen or not subprocess.run(command, capture_output=True, check=False).returncode:
            found[name] = chosen
    return {name: chosen for name, chosen in found.items() if NEEDS.get(name, name) in found}


def objects(
    compiler: Sequence[str],
    flags: Sequence[str],
    sets: dict[str, tuple[str, ...]],
    release: str,
    own: Sequence[str] = (),
) -> list[Path]:
    """The object files of a library, which libraries share: the operators with flags of their `own`, and the kernels
    once for each set.
    """
    wanted = {"operators": ("operators.cpp", *own)}
    wanted.update((name, ("kernels.cpp", f"-DKERNELS={name}", *chosen)) for name, chosen in sets.items())

    def compiled(name: str) -> Path:
        source, *more = wanted[name]
        command = [*compiler, *flags, *more, "-c"]

        def compile_to(output: Path) -> str:
            return str(build.run([*command, str(build.ROOT / FOLDER / source), "-o", str(output)]))

        return build.cached(FOLDER, f"{name}.o", (*command, release), compile_to)

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:  # each waits for a compiler of its own
        return list(pool.map(compiled, wanted))


def instruction_set(path: Path) -> str:
    """Which of a library's instruction sets this processor runs."""
    return str(_said(path, "s2s_instruction_set"))


def why_not_amx(path: Path) -> str | None:
    """Why a library doesn't run the set of AMX on this machine: None where it does, or where there is no such set."""
    return _said(path, "s2s_why_not_amx")


def _said(path: Path, function: str) -> str | None:
    call = getattr(ctypes.CDLL(str(path)), function)
    call.restype = ctypes.c_char_p
    text = call()
    return None if text is None else str(text.decode())
