"""The wheel's own step: GPU kernels compiled for every architecture, so that a machine without nvcc has them.

Each folder with kernels becomes `s2s_export/_data/kernels/FOLDER-HASH-cudaRELEASE.fatbin`, where plugins/build.py looks
first. HASH is that of its sources: a binary of other sources is never found. RELEASE is the CUDA that made it, since an
older driver can't load it. The binaries are data for GPUs, the same beside every host, so the wheel stays
py3-none-any. Editable installations compile when they need to.

A wheel for one platform also has the operators for its CPUs (plugins/cpu) and the search (plugins/search), as
`_data/kernels/cpu-HASH-MACHINE.so` and `search-HASH-MACHINE.so`: `scripts/wheel` asks for it. The package ziglang
compiles them on any machine, for every Linux since 2018.

Neither is compiled unless it is asked for (`scripts/wheel` does), so that `pip install .` takes seconds:

    S2S_EXPORT_CPU_KERNELS=x86_64     the operators for these CPUs, or for those of aarch64: a wheel for one platform
    S2S_EXPORT_KERNELS=require        the kernels for GPUs; no nvcc is an error
    S2S_EXPORT_OLDER_PTXAS=PATH       with these, others for drivers of an older CUDA, whose assembler lies at PATH
"""

from __future__ import annotations

import os
import sys
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

VARIABLE, CPU_VARIABLE = "S2S_EXPORT_KERNELS", "S2S_EXPORT_CPU_KERNELS"
OLDER_VARIABLE = "S2S_EXPORT_OLDER_PTXAS"
CHOICES = ("require", "none")


class KernelsHook(BuildHookInterface):  # type: ignore[type-arg]
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        self._add_operators(build_data)
        choice = os.environ.get(VARIABLE, "none")
        if choice not in CHOICES:
            raise SystemExit(f"{VARIABLE} is '{choice}'; expected one of {', '.join(CHOICES)}; set one of these")
        if choice == "none":
            return
        sys.path.insert(0, self.root)
        from s2s_export import plugin_sources
        from s2s_export.errors import BuildError

        build = plugin_sources.module("build")
        try:
            build.find_nvcc()
        except BuildError as missing:
            raise SystemExit(f"{VARIABLE} is 'require', and there is {missing}") from None
        for folder in build.folders():
            print(f"s2s-export: compiling {folder} for {len(build.ARCHITECTURES)} architectures", file=sys.stderr)
            made = {build.cuda_release(build.find_nvcc()): build.fatbin(folder)}
            if ptxas := os.environ.get(OLDER_VARIABLE):
                older = plugin_sources.module("older_cuda")
                try:
                    made[older.release_of(ptxas)] = older.fatbin(folder, ptxas)
                except BuildError as problem:
                    raise SystemExit(f"{OLDER_VARIABLE}: {problem}") from None
            for release, binary in made.items():
                target = f"s2s_export/_data/{build.PACKAGED}/{build.packaged_name(folder, release)}"
                build_data["force_include"][str(binary)] = target

    def _add_operators(self, build_data: dict[str, Any]) -> None:
        """The compiled operators and search for the CPUs that are asked for."""
        if not (asked := os.environ.get(CPU_VARIABLE)):
            return
        sys.path.insert(0, self.root)
        from s2s_export import plugin_sources
        from s2s_export.errors import BuildError

        portable = plugin_sources.module("portable")
        if asked not in portable.KINDS:
            kinds = " or ".join(portable.KINDS)
            raise SystemExit(f"{CPU_VARIABLE} is '{asked}'; expected {kinds}; set it to one of them, or not at all")
        for name in ("cpu.build", "search.build"):
            maker = plugin_sources.module(name)
            target = f"s2s_export/_data/{plugin_sources.module('build').PACKAGED}/{maker.packaged_name(asked)}"
            try:
                build_data["force_include"][str(maker.portable_library(asked))] = target
            except BuildError as error:
                raise SystemExit(f"{CPU_VARIABLE} is '{asked}', and there is {error}") from None
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-manylinux_{portable.C_LIBRARY.replace('.', '_')}_{asked}"
