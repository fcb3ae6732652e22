"""Compiles libs2s without CMake: for this machine, or with the package `ziglang` for any Linux."""

from __future__ import annotations

from pathlib import Path

from .. import build, portable
from ..cpu import build as cpu
from ..search import build as search

FOLDER = "library"
NAME = "libs2s.so"


def library() -> Path:
    """libs2s for this machine, compiled once. Raises BuildError where there is no C++ compiler."""
    compiler = (build.find_compiler(*cpu.COMPILERS),)
    return _compiled(compiler, (*cpu.FLAGS, *cpu.QUIET), cpu.sets_of(portable.machine()), cpu.LINK)


def portable_library(kind: str) -> Path:
    """libs2s for any Linux of a kind of processor. Raises BuildError as `portable.compiler` does."""
    sets = {name: cpu.ZIG_FLAGS.get(name, chosen) for name, chosen in cpu.sets_of(kind).items()}
    flags = (*cpu.FLAGS, "-Wno-psabi")
    return _compiled(portable.compiler(kind), flags, sets, portable.LINK, portable.release())


def _compiled(
    compiler: tuple[str, ...],
    flags: tuple[str, ...],
    sets: dict[str, tuple[str, ...]],
    link: tuple[str, ...],
    release: str = "",
) -> Path:
    hashes = ",".join((cpu.sources(), *cpu.EARLIER))
    folder = build.ROOT / FOLDER

    def compile_to(output: Path) -> str:
        known = sets if release else cpu.known_to(compiler, sets)
        kernels = [str(cpu._kernels(compiler, flags, name, chosen, release)) for name, chosen in known.items()]
        objects = [str(output.with_name(name)) for name in ("operators.o", "library.o")]
        with_sets = [f"-DWITH_{name.upper()}" for name in known]
        build.run(
            [*compiler, *flags, *with_sets, "-c", str(build.ROOT / cpu.FOLDER / "operators.cpp"), "-o", objects[0]]
        )
        own = [*search.FLAGS, f'-DS2S_OPERATORS="{hashes}"', "-c", str(folder / "library.cpp"), "-o", objects[1]]
        report = build.run([*compiler, *own])
        shared = [*link, "-ldl", "-Wl,-soname,libs2s.so", "-o", str(output)]
        return str(report + build.run([*compiler, *objects, *kernels, *shared]))

    sets_as_words = (word for name, chosen in sets.items() for word in (name, *chosen))
    recipe = (*compiler, release, *flags, *link, hashes, search.sources(), *sets_as_words)
    return build.cached(FOLDER, NAME, recipe, compile_to)
