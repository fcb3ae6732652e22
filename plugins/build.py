"""Compiles the plugins: kernels for GPUs (nvcc) and the same kernels for this CPU (a C++ compiler).

A wheel has binaries for GPUs (hatch_build.py), which are used if they were made from exactly these sources. Everything
else lies in the user's cache folder, `$XDG_CACHE_HOME/s2s_export/plugins` or `~/.cache/...`, in a folder
named by a hash of sources, flags, architecture and compiler. A lock keeps two processes from building the same thing,
and a result is moved into place whole. Nothing is ever written beside the sources.

    for folder in build.folders():
        build.fatbin(folder)            for all architectures; build.fatbin(folder, (89,)) for one
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from s2s_export.errors import BuildError

ROOT = Path(__file__).resolve().parent
ARCHITECTURES = (75, 80, 86, 87, 89, 90, 100, 110, 120)
PACKAGED = "kernels"  # beside this folder, in an installed wheel
PTX_ARCHITECTURE = 75  # the lowest, so that the driver can compile for any that the list lacks
FIRST_WITH_COMPRESS_MODE = (12, 8)  # the CUDA whose fatbinary knows --compress-mode
DEVICE_FLAGS = ("-std=c++17", "-O3", "--threads", "1", "-Xptxas", "-v")
HOST_FLAGS = (
    *("-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-fPIC", "-shared"),
    *("-fvisibility=hidden", "-fno-gnu-unique"),  # each library keeps its own emulated machine
    "-fno-strict-aliasing",  # vectors are read as their elements, which CUDA allows
)
SANITIZE_FLAGS = (
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=undefined",
    "-g",
    "-O1",
    "-Wno-maybe-uninitialized",
)

Release = tuple[int, int]  # of CUDA, such as (12, 6)


@dataclass(frozen=True)
class Usage:
    """What ptxas reports of one kernel."""

    kernel: str
    registers: int
    spill_bytes: int
    shared_bytes: int


def host_library(folder: str, sanitize: bool = False) -> Path:
    """The folder's kernels and launcher as a library for this CPU. `sanitize`: with address and undefined checks."""
    compiler = find_compiler("c++", "g++", "clang++")
    flags = (*HOST_FLAGS, *(SANITIZE_FLAGS if sanitize else ()))

    def compile_to(output: Path) -> str:
        return run([compiler, *flags, "-x", "c++", str(launcher(folder)), "-o", str(output)])

    return cached(folder, f"{folder}.so", (compiler, *flags), compile_to)


def cubin(folder: str, architecture: int) -> Path:
    """The folder's kernels for one compute capability, say 90. Beside it, `.log` holds the compiler's report."""
    nvcc = find_nvcc()
    flags = (*DEVICE_FLAGS, "-cubin", f"-arch=sm_{architecture}")
    name = f"{folder}.sm_{architecture}.cubin"
    return cached(folder, name, (nvcc, *flags), lambda output: run([nvcc, *flags, str(launcher(folder)), "-o", output]))


def ptx(folder: str, architecture: int = PTX_ARCHITECTURE) -> Path:
    """The folder's kernels as PTX, of the lowest architecture unless another is named."""
    nvcc = find_nvcc()
    flags = (*DEVICE_FLAGS, "-ptx", f"-arch=compute_{architecture}")
    name = f"{folder}.compute_{architecture}.ptx"
    return cached(folder, name, (nvcc, *flags), lambda output: run([nvcc, *flags, str(launcher(folder)), "-o", output]))


def fatbin(folder: str, architectures: Sequence[int] = ARCHITECTURES, driver: Release | None = None) -> Path:
    """One compressed binary for all `architectures`, with PTX for others: the package's own where it has them.

    driver: the CUDA of the driver that will load it, where that is known. Architectures that this nvcc does not know
    are left out: the driver compiles the PTX for them when it is loaded.
    """
    ours = packaged(folder, driver)
    if set(architectures) <= set(ARCHITECTURES) and ours is not None:
        return ours
    nvcc = find_nvcc()
    architectures = [a for a in architectures if compiles_for(nvcc, a)]
    tool = fatbinary()
    modes = ("--compress-mode=size",) if cuda_release(nvcc) >= FIRST_WITH_COMPRESS_MODE else ()
    flags = ("-64", *modes)

    def combine(output: Path) -> str:
        images = [f"--image3=kind=elf,sm={a},file={cubin(folder, a)}" for a in architectures]
        images.append(f"--image3=kind=ptx,sm={PTX_ARCHITECTURE},file={ptx(folder)}")
        return run([tool, *flags, f"--create={output}", *images])

    return cached(folder, f"{folder}.fatbin", (tool, version(nvcc), *flags, *map(str, architectures)), combine)


def binary_for(folder: str, capability: str, driver: Release | None = None) -> Path:
    """The folder's kernels for the GPU of a compute capability, say "9.0", and a driver of this CUDA: the package's own
    binary where one suits them, else what nvcc makes for this architecture alone, in a ninth of the time of all.
    """
    ours = packaged(folder, driver)
    if ours is not None:
        return ours
    try:
        return compiled_for(folder, capability)
    except BuildError:
        newer = packaged(folder)
        if newer is None:
            raise
        return newer  # loading it says that the driver is too old


def lacks_binary(folder: str) -> str | None:
    """Why there are no kernels of a folder for a GPU and none can be made, or None. Compiles nothing."""
    if packaged(folder) is not None:
        return None
    try:
        find_nvcc()
    except BuildError as error:
        return str(error)
    return None


def compiled_for(folder: str, capability: str) -> Path:
    """The folder's kernels for the GPU of a compute capability, by this machine's nvcc: a cubin, or PTX where this nvcc
    is older than the GPU."""
    architecture = int(capability.replace(".", ""))
    return cubin(folder, architecture) if compiles_for(find_nvcc(), architecture) else ptx(folder)


def packaged(folder: str, driver: Release | None = None) -> Path | None:
    """The package's own binary of a folder, made from exactly these sources; None where there is none. Of several, made
    with several CUDA releases: the newest that a driver of CUDA `driver` loads, or the newest of all."""
    found: list[tuple[Release, Path]] = []
    for path in (ROOT.parent / PACKAGED).glob(packaged_name(folder, "*")):
        match = re.search(r"-cuda(\d+)\.(\d+)\.fatbin$", path.name)
        release = (int(match.group(1)), int(match.group(2))) if match else (0, 0)
        if driver is None or release <= driver:
            found.append((release, path))
    return max(found)[1] if found else None


def packaged_name(folder: str, release: Release | str) -> str:
    """The file name of the folder's binary in the package. It has the sources' hash, so that no other is taken, and the
    CUDA release that made it, since an older driver can't load it."""
    made = release if isinstance(release, str) else f"{release[0]}.{release[1]}"
    return f"{folder}-{source_hash(folder)[:20]}-cuda{made}.fatbin"


def usage(binary: Path) -> list[Usage]:
    """Registers, spills and shared memory of every kernel of a cubin, from the report beside it."""
    report = binary.with_suffix(binary.suffix + ".log").read_text()
    found = []
    for part in report.split("Compiling entry function '")[1:]:
        numbers = {
            name: int(match.group(1)) if (match := re.search(pattern, part)) else 0
            for name, pattern in (
                ("registers", r"Used (\d+) registers"),
                ("stores", r"(\d+) bytes spill stores"),
                ("loads", r"(\d+) bytes spill loads"),
                ("shared", r"(\d+) bytes smem"),
            )
        }
        spills = numbers["stores"] + numbers["loads"]
        found.append(Usage(part.split("'", 1)[0], numbers["registers"], spills, numbers["shared"]))
    return found


def folders() -> list[str]:
    """Every folder with kernels, sorted."""
    return sorted(path.parent.name for path in ROOT.glob("*/launcher.cu"))


def launcher(folder: str) -> Path:
    """The one translation unit of a folder."""
    source = ROOT / folder / "launcher.cu"
    if not source.is_file():
        raise BuildError(f"no kernels in '{folder}'; expected one of {', '.join(folders())}; name one of these")
    return source


def find_nvcc() -> str:
    """nvcc, from the path or from $CUDA_HOME. Raises BuildError when there is none."""
    home = os.environ.get("CUDA_HOME")
    found = shutil.which("nvcc") or (shutil.which("nvcc", path=str(Path(home) / "bin")) if home else None)
    if found is None:
        raise BuildError(
            "no nvcc to compile GPU kernels with; expected the CUDA toolkit on the path or in $CUDA_HOME; install it, "
            "set CUDA_HOME, or install a wheel of this version that has compiled kernels"
        )
    return found


def fatbinary() -> str:
    """The tool of the CUDA toolkit that joins binaries. Raises BuildError where it is missing."""
    tool = toolkit() / "bin" / "fatbinary"
    if not tool.is_file():
        raise BuildError(f"no {tool}; expected it in the CUDA toolkit; reinstall the toolkit")
    return str(tool)


@functools.cache
def compiles_for(nvcc: str, architecture: int) -> bool:
    """Whether an nvcc has this architecture, by its own account. CUDA 12.6 has none from 100 on."""
    listed = re.findall(r"compute_(\d+)", run([nvcc, "--list-gpu-arch"]))
    return not listed or str(architecture) in listed


@functools.cache
def cuda_release(compiler: str) -> Release:
    """The CUDA version of an nvcc or ptxas, such as (12, 6); (0, 0) where it doesn't say."""
    match = re.search(r"release (\d+)\.(\d+)", version(compiler))
    return (int(match.group(1)), int(match.group(2))) if match else (0, 0)


@functools.cache
def toolkit() -> Path:
    """The CUDA toolkit's folder, by nvcc's own account: the nvcc on the path may be a script that calls another."""
    plan = run([find_nvcc(), "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull])
    match = re.search(r"^#\$ _HERE_=(.+)$", plan, re.MULTILINE)
    if match is None:
        raise BuildError(f"{find_nvcc()} --dryrun names no folder; expected a line with _HERE_; reinstall the toolkit")
    return Path(match.group(1).strip()).parent


def find_compiler(*names: str) -> str:
    """The first C++ compiler of `names` that is installed; `$CXX` goes before all."""
    for name in (os.environ.get("CXX"), *names):
        if name and (found := shutil.which(name)):
            return found
    raise BuildError(f"no C++ compiler; expected one of {', '.join(names)}; install one, or set CXX")


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "s2s_export" / "plugins"


def source_hash(folder: str) -> str:
    """Of every C++ or CUDA file that a build of the folder may read."""
    digest = hashlib.sha256()
    found, unread = {"common"}, [folder]
    while unread:
        name = unread.pop()
        found.add(name)
        texts = [path.read_text(encoding="utf-8") for path in _sources(name)]
        others = {other for text in texts for other in re.findall(r'#include "\.\./(\w+)/', text)}
        unread += sorted(others - found - set(unread))
    for path in sorted(path for name in found for path in _sources(name)):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _sources(folder: str) -> list[Path]:
    return [path for path in (ROOT / folder).iterdir() if path.suffix in {".cu", ".cuh", ".h", ".cpp"}]


def cached(folder: str, name: str, recipe: Sequence[str], make: Callable[[Path], str]) -> Path:
    """The file `name` made by `make` (which returns the compiler's report), from the cache where it is there."""
    here = place(folder, recipe)
    if (here / name).is_file():
        return here / name
    with _locked(here):
        if not (here / name).is_file():
            with tempfile.TemporaryDirectory(dir=here.parent, prefix=f".{here.name}-") as scratch:
                work = Path(scratch) / "result"
                work.mkdir()
                (work / f"{name}.log").write_text(make(work / name))
                shutil.rmtree(here, ignore_errors=True)
                work.rename(here)
    return here / name


def place(folder: str, recipe: Sequence[str]) -> Path:
    """The folder of the cache in which `cached` keeps what it makes with a recipe, whether it is there or not."""
    key = hashlib.sha256("\0".join((source_hash(folder), version(recipe[0]), *recipe)).encode()).hexdigest()[:20]
    return cache_folder() / f"{folder}-{key}"


@contextlib.contextmanager
def _locked(place: Path) -> Iterator[None]:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = open(place.parent / f".{place.name}.lock", "w")  # noqa: SIM115 (closed below)
    except OSError as problem:
        raise BuildError(
            f"can't write to {place.parent} ({problem.strerror}); compiled plugins are kept there; "
            "make it writable, or set XDG_CACHE_HOME"
        ) from problem
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@functools.cache
def version(compiler: str) -> str:
    """What the compiler says of itself: part of the key."""
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout


def run(command: Sequence[str | Path]) -> str:
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if result.returncode:
        errors = "\n".join((result.stderr or result.stdout).strip().splitlines()[-20:])
        raise BuildError(f"{Path(command[0]).name} exited with {result.returncode}; expected 0; it said:\n{errors}")
    return result.stdout + result.stderr
