"""nvcc takes the kernels for every architecture, without spilling. Nothing runs here."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from plugin_helpers import build

from s2s_export import plugin_sources
from s2s_export.errors import BuildError

FOLDERS = build.folders()
QUICK = (75,)  # the oldest; the others are among the slow tests
LARGE = ("transformer", "transformer_int8", "cross_attention")  # which take nvcc a minute together


@pytest.fixture(autouse=True, scope="module")
def _nvcc() -> None:
    try:
        build.find_nvcc()
    except BuildError as missing:
        pytest.skip(str(missing))


def check(folder: str, architecture: int) -> None:
    binary = build.cubin(folder, architecture)
    usages = build.usage(binary)
    registers = [usage.registers for usage in usages]
    shared = max(usage.shared_bytes for usage in usages)
    print(
        f"{folder} sm_{architecture}: {len(usages)} kernels, {min(registers)}-{max(registers)} registers, "
        f"{shared} bytes shared, {binary.stat().st_size // 1024} KiB"
    )
    assert usages
    assert [usage.kernel for usage in usages if usage.spill_bytes] == []
    assert max(registers) <= 255
    assert shared <= 48 * 1024


@pytest.mark.parametrize("folder", [pytest.param(f, marks=[pytest.mark.slow] * (f in LARGE)) for f in FOLDERS])
@pytest.mark.parametrize("architecture", QUICK)
def test_compiles(folder: str, architecture: int) -> None:
    check(folder, architecture)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [a for a in build.ARCHITECTURES if a not in QUICK])
@pytest.mark.parametrize("folder", FOLDERS)
def test_compiles_for_all(folder: str, architecture: int) -> None:
    check(folder, architecture)


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS)
def test_fatbin_of_all_architectures(folder: str) -> None:
    binary = build.fatbin(folder)
    raw = sum(build.cubin(folder, architecture).stat().st_size for architecture in build.ARCHITECTURES)
    print(f"{folder}: {binary.stat().st_size // 1024} KiB compressed, {raw // 1024} KiB of cubins")
    assert binary.stat().st_size < raw / 2
    expected = {("elf", architecture) for architecture in build.ARCHITECTURES} | {("ptx", build.PTX_ARCHITECTURE)}
    assert set(entries(binary.read_bytes())) == expected


def entries(fatbin: bytes) -> list[tuple[str, int]]:
    """(kind, architecture) of a fatbin's parts. Its header is 16 bytes; a part's begins with its kind, its own size at
    byte 4, its content's at byte 8 and the architecture at byte 28."""
    magic, _, header, _ = struct.unpack_from("<IHHQ", fatbin)
    assert magic == 0xBA55ED50
    found, at = [], header
    while at < len(fatbin):
        kind, _, own, content = struct.unpack_from("<HHIQ", fatbin, at)
        (architecture,) = struct.unpack_from("<I", fatbin, at + 28)
        found.append(({1: "ptx", 2: "elf"}[kind], architecture))
        at += own + content
    return found


OLD_NVCC = """#!/bin/sh
echo "$*" >>"$0.calls"
case "$*" in
  *--version*) echo "Cuda compilation tools, release 12.6, V12.6.85" ;;
  *--list-gpu-arch*) echo compute_75; echo compute_87; echo compute_90 ;;
  *--dryrun*) echo "#\\$ _HERE_=$(dirname "$0")" ;;
esac
while [ $# -gt 0 ]; do
  if [ "$1" = -o ] && [ "$2" != /dev/null ]; then echo code >"$2"; fi
  case "$1" in --create=*) echo all >"${1#--create=}" ;; esac
  shift
done
"""


def test_an_older_toolkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA 12.6, as on a Jetson: no --compress-mode, no architecture that its ptxas lacks, PTX for newer GPUs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("nvcc", "fatbinary"):
        (folder / name).write_text(OLD_NVCC)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    build.toolkit.cache_clear()
    try:
        assert build.fatbin("cross_attention").read_text() == "all\n"
        (call,) = [line for line in (folder / "fatbinary.calls").read_text().splitlines() if "--create" in line]
        assert "--compress-mode" not in call
        assert [part for part in call.split() if "kind=elf" in part and "sm=100" in part] == []
        assert [f"sm={a}," in call for a in (75, 87, 90, 120)] == [True, True, True, False]
        assert build.compiled_for("cross_attention", "8.7").name == "cross_attention.sm_87.cubin"
        assert build.compiled_for("cross_attention", "12.0").name == "cross_attention.compute_75.ptx"
    finally:
        build.toolkit.cache_clear()


OLD_PTXAS = """#!/bin/sh
case "$*" in
  *--version*) echo "Cuda compilation tools, release RELEASE, V1" ;;
  *--help*) echo "Allowed values: 'compute_75','sm_75','sm_87'." ;;
  *) echo "$*" >>"$0.calls"; while [ "$1" != -o ]; do shift; done; echo code >"$2" ;;
esac
"""


def test_kernels_for_an_older_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older assembler gets nvcc's PTX in the version that it reads, and makes what architectures it has."""
    older = plugin_sources.module("older_cuda")
    ptxas = tmp_path / "ptxas"
    ptxas.write_text(OLD_PTXAS.replace("RELEASE", "12.6"))
    ptxas.chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    newer = tmp_path / "newer.ptx"
    newer.write_text("// by nvcc\n.version 9.0\n.target sm_75\n")
    monkeypatch.setattr(build, "ptx", lambda folder, architecture: newer)
    tool = tmp_path / "fatbinary"
    tool.write_text('#!/bin/sh\nfor one; do case "$one" in --create=*) echo "$*" >"${one#--create=}" ;; esac; done\n')
    tool.chmod(0o755)
    monkeypatch.setattr(build, "fatbinary", lambda: str(tool))
    call = older.fatbin("cross_attention", ptxas).read_text()
    assert "--compress=false" in call
    assert [part.split(",file")[0] for part in call.split() if "--image3" in part] == [
        f"--image3=kind={kind}" for kind in ("elf,sm=75", "elf,sm=87", "ptx,sm=75")
    ]
    calls = (tmp_path / "ptxas.calls").read_text().splitlines()
    assert [call.split()[2] for call in calls] == ["-arch=sm_75", "-arch=sm_87"]
    assert Path(calls[0].split()[3]).read_text() == "// by nvcc\n.version 8.5\n.target sm_75\n"
    another = tmp_path / "newest"
    another.write_text(OLD_PTXAS.replace("RELEASE", "13.0"))
    another.chmod(0o755)
    with pytest.raises(BuildError, match=r"is of CUDA 13\.0; expected one of 12\.4, .*; newer drivers load"):
        older.fatbin("cross_attention", another)
    with pytest.raises(BuildError, match=r"no assembler .*missing; expected the ptxas of an older CUDA"):
        older.fatbin("cross_attention", tmp_path / "missing")


def test_no_binary_of_a_newer_cuda_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the package's binaries the newest that the driver loads; where all are too new, nvcc's, and one of them only
    where there is no nvcc, since loading it says why it fails."""
    monkeypatch.setattr(build, "ROOT", tmp_path / "plugins")
    monkeypatch.setattr(build, "source_hash", lambda folder: "0" * 64)
    kernels = tmp_path / build.PACKAGED
    kernels.mkdir()
    for release in ((12, 6), (13, 0)):
        (kernels / build.packaged_name("beam_search", release)).write_text(str(release))
    monkeypatch.setattr(build, "compiled_for", lambda folder, capability: tmp_path / "by nvcc")
    for driver, expected in (((13, 1), "(13, 0)"), ((12, 8), "(12, 6)"), ((12, 6), "(12, 6)"), (None, "(13, 0)")):
        assert build.binary_for("beam_search", "8.7", driver).read_text() == expected
        assert build.fatbin("beam_search", (87,), driver).read_text() == expected
    assert build.binary_for("beam_search", "8.7", (12, 4)).name == "by nvcc"

    def no_nvcc(folder: str, capability: str) -> Path:
        raise BuildError("no nvcc")

    monkeypatch.setattr(build, "compiled_for", no_nvcc)
    assert build.binary_for("beam_search", "8.7", (12, 4)).read_text() == "(13, 0)"
    with pytest.raises(BuildError, match="no nvcc"):
        build.binary_for("cross_attention", "8.7", (12, 4))


class TestCache:
    """The rules of the cache, with a compiler that only notes that it ran."""

    @pytest.fixture
    def compiler(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        script = tmp_path / "c++"
        script.write_text(
            f"#!{sys.executable}\nimport sys, time\nif '--version' in sys.argv: sys.exit(print('fake 1'))\n"
            f"time.sleep(0.2)\nopen({str(tmp_path / 'runs')!r}, 'a').write('x')\n"
            "open(sys.argv[sys.argv.index('-o') + 1], 'w').write('built')\n"
        )
        script.chmod(0o755)
        monkeypatch.setenv("CXX", str(script))
        return script

    def runs(self, compiler: Path) -> int:
        return len((compiler.parent / "runs").read_text())

    def test_builds_once(self, compiler: Path) -> None:
        first = build.host_library("cross_attention")
        assert first.read_text() == "built"
        assert build.host_library("cross_attention") == first
        assert self.runs(compiler) == 1
        assert Path(os.environ["XDG_CACHE_HOME"]) in first.parents

    def test_flags_and_sources_make_another(self, compiler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first = build.host_library("cross_attention")
        second = build.host_library("cross_attention", sanitize=True)
        monkeypatch.setattr(build, "source_hash", lambda folder: "changed")
        third = build.host_library("cross_attention")
        assert len({first, second, third}) == 3

    def test_two_processes_build_once(self, compiler: Path) -> None:
        code = "from s2s_export import plugin_sources as p; p.module('build').host_library('cross_attention')"
        both = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
        assert [process.wait() for process in both] == [0, 0]
        assert self.runs(compiler) == 1

    def test_failure_leaves_nothing(self, compiler: Path) -> None:
        compiler.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('no such flag' if '-o' in sys.argv else 0)\n")
        with pytest.raises(BuildError, match=r"c\+\+ exited with 1; expected 0; it said:\nno such flag"):
            build.host_library("cross_attention")
        left = [path.name for path in build.cache_folder().iterdir() if not path.name.endswith(".lock")]
        assert left == []

    def test_folder_that_can_not_be_written(self, compiler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        blocked = compiler.parent / "file"
        blocked.write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
        with pytest.raises(BuildError, match=r"can't write to .*; make it writable, or set XDG_CACHE_HOME"):
            build.host_library("cross_attention")

    def test_unknown_plugin(self) -> None:
        with pytest.raises(BuildError, match="no kernels in 'attention'; expected one of .*beam_self_attention"):
            build.launcher("attention")
