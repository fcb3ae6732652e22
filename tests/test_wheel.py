"""The wheel: with kernels for GPUs where it was built beside an nvcc, and what becomes of them on a machine without.

nvcc here is a script that writes a name, so that nothing is compiled.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("hatchling", reason="hatchling builds the wheel; pip install 's2s-export[dev]'")

ROOT = Path(__file__).parents[1]
FOLDERS = ("beam_search", "beam_self_attention", "cross_attention", "transformer", "transformer_int8")
NVCC = """#!/bin/sh
case "$*" in *--dryrun*) echo "#\\$ _HERE_=$(dirname "$0")" ;; esac
while [ $# -gt 0 ]; do
  if [ "$1" = -o ] && [ "$2" != /dev/null ]; then echo code >"$2"; fi
  shift
done
"""
FATBINARY = """#!/bin/sh
for argument; do
  case "$argument" in --create=*) echo all of them >"${argument#--create=}" ;; esac
done
"""
FIND = "from s2s_export import plugin_sources; print(plugin_sources.module('build').fatbin({!r}, {}))"


@pytest.fixture
def toolkit(tmp_path: Path) -> Path:
    """A folder bin/ with nvcc and fatbinary."""
    folder = tmp_path / "toolkit" / "bin"
    folder.mkdir(parents=True)
    for name, text in (("nvcc", NVCC), ("fatbinary", FATBINARY)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def run(arguments: list[str], tmp_path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("CUDA_HOME", "PYTHONPATH", "S2S_EXPORT_KERNELS")}
    environment |= {"PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(tmp_path / "cache"), **variables}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def wheel(tmp_path: Path, **variables: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """What building says, and the names in the wheel."""
    result = run(["-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")], tmp_path, **variables)
    files = list((tmp_path / "dist").glob("*.whl"))
    return result, zipfile.ZipFile(files[0]).namelist() if files else []


def kernels(names: list[str]) -> list[str]:
    return [name for name in names if name.startswith("s2s_export/_data/kernels/")]


def test_nothing_is_compiled_unless_it_is_asked_for(tmp_path: Path, toolkit: Path) -> None:
    result, names = wheel(tmp_path, CUDA_HOME=str(toolkit.parent))
    assert result.returncode == 0, result.stderr
    assert kernels(names) == []
    assert "s2s_export/_data/plugins/beam_search/filters.cuh" in names


def test_required_and_missing_is_an_error(tmp_path: Path) -> None:
    result, names = wheel(tmp_path, S2S_EXPORT_KERNELS="require")
    assert (result.returncode, names) == (1, [])
    assert "S2S_EXPORT_KERNELS is 'require', and there is no nvcc" in result.stderr


def test_an_unknown_wish_is_an_error(tmp_path: Path) -> None:
    result, _ = wheel(tmp_path, S2S_EXPORT_KERNELS="yes")
    assert "S2S_EXPORT_KERNELS is 'yes'; expected one of require, none" in result.stderr


def test_an_unknown_processor_is_an_error(tmp_path: Path) -> None:
    result, _ = wheel(tmp_path, S2S_EXPORT_CPU_KERNELS="mips")
    assert "S2S_EXPORT_CPU_KERNELS is 'mips'; expected x86_64 or aarch64" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["x86_64", "aarch64"])
def test_operators_for_a_kind_of_processor(tmp_path: Path, kind: str) -> None:
    """The library is one for that machine, and wants no newer C library than the wheel's name says."""
    pytest.importorskip("ziglang", reason="ziglang compiles for other machines; pip install 's2s-export[wheel]'")
    result, names = wheel(tmp_path, S2S_EXPORT_CPU_KERNELS=kind)
    assert result.returncode == 0, result.stderr
    (name,) = kernels(names)
    assert name.endswith(f"-{kind}.so")
    file = next((tmp_path / "dist").glob("*.whl"))
    assert file.name.endswith(f"-py3-none-manylinux_2_27_{kind}.whl")
    library = zipfile.ZipFile(file).read(name)
    assert int.from_bytes(library[18:20], "little") == {"x86_64": 62, "aarch64": 183}[kind]  # e_machine
    wanted = {tuple(map(int, version.split(b"."))) for version in re.findall(rb"GLIBC_([0-9.]+)\0", library)}
    assert wanted and max(wanted) <= (2, 27)


def test_kernels_are_found_where_there_is_no_nvcc(tmp_path: Path, toolkit: Path) -> None:
    result, names = wheel(tmp_path, S2S_EXPORT_KERNELS="require", CUDA_HOME=str(toolkit.parent))
    assert result.returncode == 0, result.stderr
    assert [Path(name).name.partition("-")[0] for name in kernels(names)] == sorted(FOLDERS)
    file = next((tmp_path / "dist").glob("*.whl"))
    assert file.name.endswith("-py3-none-any.whl")
    installed = tmp_path / "installed"
    zipfile.ZipFile(file).extractall(installed)

    def found(architectures: str) -> subprocess.CompletedProcess[str]:
        code = FIND.format("beam_search", architectures)
        return run(["-c", f"import sys; sys.path[0] = {str(installed)!r}; {code}"], tmp_path)

    path = Path(found("(75, 80, 86, 87, 89, 90, 100, 110, 120)").stdout.strip())
    assert path.parent == installed / "s2s_export" / "_data" / "kernels"
    assert path.read_text() == "all of them\n"
    assert Path(found("(90,)").stdout.strip()) == path  # a superset does as well
    assert "no nvcc to compile GPU kernels with" in found("(103,)").stderr
    with (installed / "s2s_export" / "_data" / "plugins" / "beam_search" / "top.cuh").open("a") as source:
        source.write("// changed\n")
    changed = found("(90,)")
    assert changed.returncode != 0 and "no nvcc to compile GPU kernels with" in changed.stderr
