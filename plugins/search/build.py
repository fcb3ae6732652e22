"""Compiles the search: one library of plain C++, which needs nothing but the C library of the machine it runs on.

It comes with the package (a wheel for this platform), or is compiled from the package's own sources into the cache that
`plugins/build.py` describes, in some seconds, once.
"""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path

from .. import build

FOLDER = "search"
NAME = "search.so"
# What is included from other folders.
SHARED = ("beam_search/named.cuh", "beam_search/loop_parameters.h", "beam_search/parameters.h", "cpu/ort_abi.h")
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


def packaged_name() -> str:
    """What the package calls the library for this kind of processor: by its sources, so that no other is taken."""
    return f"{FOLDER}-{sources()}-{platform.machine()}.so"


def library(*, sanitize: bool = False) -> Path:
    """The library for this machine: the package's own, else compiled. Raises BuildError where there is neither it nor a
    C++ compiler. sanitize: with address and undefined checks, for tests.
    """
    packaged: Path = build.ROOT.parent / build.PACKAGED / packaged_name()
    if packaged.is_file() and not sanitize:
        return packaged
    compiler = build.find_compiler(*COMPILERS)
    flags = (*FLAGS, *(build.SANITIZE_FLAGS if sanitize else ()))
    source = str(build.ROOT / FOLDER / "exports.cpp")

    def compile_to(output: Path) -> str:
        return str(build.run([compiler, *flags, source, *LINK, "-o", str(output)]))

    return build.cached(FOLDER, NAME, (compiler, *flags, *LINK, sources()), compile_to)
