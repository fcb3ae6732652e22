"""The kernels as a binary for drivers of an older CUDA than nvcc's, such as JetPack 6's, whose driver is of CUDA 12.6.

    binary = older_cuda.fatbin("beam_search", "nvidia/cuda_nvcc/bin/ptxas")     # the assembler of the older CUDA

A driver loads machine code and PTX of its own CUDA version and of older ones. The older compiler need not be there:
nvcc writes PTX, which is text; its line with the version is set to one that the older CUDA reads, and the older
assembler makes machine code of it. An instruction that it does not know would be an error there. PyPI has the
assembler of CUDA 12.6 in nvidia-cuda-nvcc-cu12, which has no compiler. `scripts/wheel --cuda12` does all of it.
"""

from __future__ import annotations

import re
from pathlib import Path

from s2s_export.errors import BuildError

from . import build

# The PTX version of each CUDA release (PTX ISA, "Release Notes").
PTX_VERSIONS = {(12, 4): "8.4", (12, 5): "8.5", (12, 6): "8.5", (12, 8): "8.7", (12, 9): "8.8"}
# No compression: what newer tools compress with, older drivers can't read.
FATBINARY_FLAGS = ("-64", "--compress=false")


def fatbin(folder: str, ptxas: str | Path) -> Path:
    """One binary for all architectures that `ptxas` knows, with PTX for others. Raises BuildError without nvcc, or for
    an assembler of a CUDA that is not among PTX_VERSIONS."""
    assembler = str(ptxas)
    release = release_of(assembler)
    tool = build.fatbinary()
    served = architectures(assembler)

    def combine(output: Path) -> str:
        images = [f"--image3=kind=elf,sm={a},file={cubin(folder, assembler, a)}" for a in served]
        portable = older_ptx(folder, assembler, build.PTX_ARCHITECTURE)
        images.append(f"--image3=kind=ptx,sm={build.PTX_ARCHITECTURE},file={portable}")
        return build.run([tool, *FATBINARY_FLAGS, f"--create={output}", *images])

    recipe = (tool, build.version(build.find_nvcc()), build.version(assembler), *map(str, served))
    return build.cached(folder, f"{folder}.cuda{release[0]}.{release[1]}.fatbin", recipe, combine)


def cubin(folder: str, ptxas: str, architecture: int) -> Path:
    """Machine code for one compute capability, say 87. Beside it, `.log` holds the assembler's report."""
    text = older_ptx(folder, ptxas, architecture)
    flags = ("-O3", "-v", f"-arch=sm_{architecture}")
    name = f"{folder}.sm_{architecture}.cubin"
    recipe = (ptxas, build.version(build.find_nvcc()), *flags)
    return build.cached(folder, name, recipe, lambda output: build.run([ptxas, *flags, text, "-o", output]))


def older_ptx(folder: str, ptxas: str, architecture: int) -> Path:
    """nvcc's PTX for one architecture, in the version that the CUDA of `ptxas` reads."""
    release = release_of(ptxas)
    version = PTX_VERSIONS[release]

    def rewrite(output: Path) -> str:
        text = build.ptx(folder, architecture).read_text()
        output.write_text(re.sub(r"^\.version .*$", f".version {version}", text, count=1, flags=re.MULTILINE))
        return ""

    name = f"{folder}.compute_{architecture}.cuda{release[0]}.{release[1]}.ptx"
    return build.cached(folder, name, (build.find_nvcc(), f"PTX {version}", str(architecture)), rewrite)


def release_of(ptxas: str | Path) -> build.Release:
    """The CUDA release of an assembler, such as (12, 6)."""
    if not Path(ptxas).is_file():
        raise BuildError(f"no assembler {ptxas}; expected the ptxas of an older CUDA; see scripts/wheel --cuda12")
    release = build.cuda_release(str(ptxas))
    if release not in PTX_VERSIONS:
        known = ", ".join(f"{major}.{minor}" for major, minor in PTX_VERSIONS)
        raise BuildError(
            f"{ptxas} is of CUDA {release[0]}.{release[1]}; expected one of {known}; newer drivers load what nvcc makes"
        )
    return release


def architectures(ptxas: str) -> list[int]:
    """Those of `build.ARCHITECTURES` that an assembler has, by its own account."""
    known = set(re.findall(r"'sm_(\d+)'", build.run([ptxas, "--help"])))
    return [architecture for architecture in build.ARCHITECTURES if str(architecture) in known]
