"""Compiles the search: one library of plain C++, which needs nothing but the C library of the machine it runs on.

It comes with the package (a wheel for this platform), or is compiled from the package's own sources into the cache that
`plugins/build.py` describes, in some seconds, once.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from .. import build, portable

FOLDER = "search"
NAME = "search.so"
# What is included from other folders.
SHARED = (
    *("beam_search/named.cuh", "beam_search/times.cuh", "beam_search/loop_parameters.h", "beam_search/parameters.h"),
    "cpu/ort_abi.h",
)
FLAGS = (
    *("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"),
    "-ffp-contract=off",  # every sum and product is rounded by itself, as in numpy
)
LINK = ("-ldl", "-shared", "-static-libstdc++", "-static-libgcc", "-Wl,--exclude-libs,ALL")
COMPILERS = ("g++", "c++", "clang++")


def sources() -> str:
    """A hash of everything that is compiled."""
    digest = hashlib.sha256(build.source_hash(FOLDER).encode())
    for name in SHARED:
        digest.update((build.ROOT / name).read_bytes())
    return digest.hexdigest()[:20]


def packaged_name(kind: str | None = None) -> str:
    """What the package calls the library for a kind of processor: by its sources, so that no other is taken."""
    return f"{FOLDER}-{sources()}-{kind or portable.machine()}.so"


def library(*, sanitize: bool = False) -> Path:
    """The library for this machine: the package's own, else compiled. Raises BuildError where there is neither it nor a
    C++ compiler. sanitize: with address and undefined checks, for tests.
    """
    packaged: Path = build.ROOT.parent / build.PACKAGED / packaged_name()
    if packaged.is_file() and not sanitize:
        return packaged
    compiler = (build.find_compiler(*COMPILERS),)
    return _compiled(compiler, (*FLAGS, *(build.SANITIZE_FLAGS if sanitize else ())), LINK)


def portable_library(kind: str) -> Path:
    """The library for any Linux of a kind of processor. Raises BuildError as `portable.compiler` does."""
    return _compiled(portable.compiler(kind), FLAGS, portable.LINK, portable.release())


def _compiled(compiler: tuple[str, ...], flags: tuple[str, ...], link: tuple[str, ...], release: str = "") -> Path:
    """release: of the compiler, where the first word of its command doesn't say it when asked."""
    source = str(build.ROOT / FOLDER / "exports.cpp")

    def compile_to(output: Path) -> str:
        return str(build.run([*compiler, *flags, source, *link, "-o", str(output)]))

    return build.cached(FOLDER, NAME, (*compiler, release, *flags, *link, sources()), compile_to)
