"""Compiles libs2s without CMake: for this machine, or with the package `ziglang` for any Linux."""

from __future__ import annotations

import tempfile
from pathlib import Path

from s2s_export.errors import BuildError

from .. import build, portable
from ..cpu import build as cpu
from ..search import build as search

FOLDER = "library"
NAME = "libs2s.so"


def library(sentencepiece: Path | None = None, *, sanitize: bool = False) -> Path:
    """libs2s for this machine, compiled once. Raises BuildError where there is no C++ compiler.

    sentencepiece: where its C++ library is installed, with `include` and `lib`; by default where the compiler finds it.
    Without it the library reads token ids alone. sanitize: with address and undefined checks.
    """
    compiler = (build.find_compiler(*cpu.COMPILERS),)
    checks = build.SANITIZE_FLAGS if sanitize else ()
    text: tuple[str, ...] = ()
    link: tuple[str, ...] = cpu.LINK
    if sentencepiece is not None or reads_text():
        text = ("-DS2S_SENTENCEPIECE",)
        place: tuple[str, ...] = ()
        if sentencepiece is not None:
            text = (*text, "-isystem", f"{sentencepiece}/include")
            place = (f"-L{sentencepiece}/lib", f"-Wl,-rpath,{sentencepiece}/lib")
        link = ("-shared", *place, "-lsentencepiece")  # which brings the C++ library as a shared one
    flags = (*cpu.FLAGS, *cpu.QUIET, *checks)
    return _compiled(compiler, flags, cpu.sets_of(portable.machine()), (*checks, *link), own=(*checks, *text))


def reads_text() -> bool:
    """Whether the compiler finds sentencepiece's C++ library."""
    program = "#include <sentencepiece_processor.h>\nint main() { sentencepiece::SentencePieceProcessor p; }\n"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "try.cpp"
        source.write_text(program)
        try:
            build.run([build.find_compiler(*cpu.COMPILERS), str(source), "-lsentencepiece", "-o", f"{folder}/try"])
        except BuildError:
            return False
    return True


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
    own: tuple[str, ...] = (),
) -> Path:
    """own: flags of what is not the operators'."""
    hashes = ",".join((cpu.sources(), *cpu.EARLIER))
    folder = build.ROOT / FOLDER

    def compile_to(output: Path) -> str:
        known = sets if release else cpu.known_to(compiler, sets)
        objects = [str(output.with_name("library.o")), *map(str, cpu.objects(compiler, flags, known, release))]
        named = f'-DS2S_OPERATORS="{hashes}"'
        source = ["-c", str(folder / "library.cpp"), "-o", objects[0]]
        report = build.run([*compiler, *search.FLAGS, *own, named, *source])
        shared = [*link, "-ldl", "-Wl,-soname,libs2s.so", "-o", str(output)]
        return str(report + build.run([*compiler, *objects, *shared]))

    sets_as_words = (word for name, chosen in sets.items() for word in (name, *chosen))
    recipe = (*compiler, release, *flags, *own, *link, hashes, search.sources(), *sets_as_words)
    return build.cached(FOLDER, NAME, recipe, compile_to)
