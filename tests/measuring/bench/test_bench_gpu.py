"""`s2s bench --device cuda` without a GPU: who would take part, and that each says why it can't."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import s2s

from s2s_export import bundle
from s2s_export.measuring.bench import bandwidth
from s2s_export.measuring.bench.contestants import Choice, _cublas, ctranslate2, hf_generate, optimum_onnx, ours
from s2s_export.measuring.bench.run import Options, bench
from s2s_export.runtime.cuda import driver as memory

GPU = Choice(device="cuda")


@pytest.fixture(scope="module")
def folders(exported) -> tuple[Path, Path]:
    return exported("t5")


def test_each_target_takes_part_with_each_search(folders, monkeypatch) -> None:
    engine = {"flavour": "tensorrt-rtx", "precision": "fp16", "seconds": 3.0}
    monkeypatch.setattr(ours, "engines", lambda opened: {"rtx-fp16": engine})
    found = ours.entries(bundle.read(folders[1]), Choice(targets=("rtx-fp16",), device="cuda"))
    assert [entry.label for entry in found if entry.options] == ["s2s rtx-fp16 device", "s2s rtx-fp16 host"]
    assert {entry.options["search"] for entry in found if entry.options} == {"device", "host"}
    some = ours.entries(bundle.read(folders[1]), Choice(("tensorrt-rtx",), ("rtx-fp16",), "cuda", ("device-queue",)))
    assert [entry.label for entry in some] == ["s2s rtx-fp16 device-queue"]


def test_peers_run_in_half_precision_or_say_why_not(folders) -> None:
    opened = bundle.read(folders[1])
    assert [(e.label, e.weight_bytes) for e in hf_generate.entries(opened, GPU)] == [("transformers generate fp16", 2)]
    (theirs,) = ctranslate2.entries(opened, GPU)
    assert theirs.options == {"compute_type": "float16", "device": "cuda"}
    assert optimum_onnx.entries(opened, GPU)[0].reason == "measured on CPUs only"
    assert optimum_onnx.entries(opened, Choice())[0].reason is None


@pytest.mark.skipif(memory.unavailable() is None, reason="this machine has a GPU")
def test_without_a_gpu_everyone_says_why(folders) -> None:
    done = s2s(
        "bench", folders[1], "--checkpoint", folders[0], "--device", "cuda", "--batch-sizes", "1", "--num-beams", "1",
        "--source-lengths", "6", "--new-tokens", "5", "--repeats", "1", "--peers", "transformers",
        "--json", "-", "-q", status=1,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["results"] == []
    reasons = {entry["label"]: entry["reason"] for entry in found["contestants"]}
    assert all(reasons.values())
    assert "no CUDA driver" in reasons["s2s tensorrt-rtx"] or "install" in reasons["s2s tensorrt-rtx"]
    assert "finds no GPU" in reasons["transformers generate fp16"]
    assert "no CUDA driver" in found["bandwidth"]["reason"]
    assert "s2s onnxruntime" not in reasons


def test_the_floor_is_that_of_the_gpu(folders, monkeypatch) -> None:
    monkeypatch.setattr(bandwidth, "gpu_read_speed", lambda: 2e12)
    found = bandwidth.floors(bundle.read(folders[1]), {2.0}, [1], "cuda")
    (floor,) = found["floors"]
    assert floor["step_seconds"] == found["parameters"] * 2 / 2e12


def test_newer_cublas_is_found_by_its_older_name(tmp_path, monkeypatch) -> None:
    """Libraries with NVIDIA's names in a folder of packages; a process that is started with the path loads them."""
    place = tmp_path / "packages" / "nvidia" / "cu13" / "lib"
    place.mkdir(parents=True)
    for name in _cublas.WANTED.values():
        (place / name).symlink_to(_libm())
    monkeypatch.setattr(_cublas, "_loads", lambda name: False)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "packages")])
    folder = tmp_path / "libraries"
    assert _cublas.environment(folder) == {}
    _cublas.link(folder)
    variables = _cublas.environment(folder)
    code = "import ctypes; ctypes.CDLL('libcublas.so.12'); ctypes.CDLL('libcublasLt.so.12')"
    assert subprocess.run([sys.executable, "-c", code], env=variables, check=False).returncode == 0
    assert subprocess.run([sys.executable, "-c", code], env={}, capture_output=True, check=False).returncode == 1


def _libm() -> str:
    """The path of a library that loads anywhere."""
    ctypes.CDLL("libm.so.6")
    maps = Path("/proc/self/maps").read_text().splitlines()
    return next(line.split()[-1] for line in maps if "libm.so" in line or "libm-" in line)


def test_nothing_is_linked_where_nothing_is_wanted_or_found(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(_cublas, "_loads", lambda name: False)
    _cublas.link(tmp_path / "a")
    monkeypatch.setattr(_cublas, "_loads", lambda name: True)
    _cublas.link(tmp_path / "b")
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


def test_work_is_on_record_as_it_is_done(folders) -> None:
    """The most important piece first, and the record whole after each."""
    saved: list[list[tuple[int, int]]] = []

    def save(done: dict) -> None:
        json.dumps(done)
        saved.append([(one["batch_size"], one["num_beams"]) for one in done["results"]])

    options = Options(
        choice=Choice(("onnxruntime",)), peers=(), batch_sizes=(1, 2), num_beams=(1, 2), source_lengths=(5,),
        new_tokens=3, repeats=1, first=(1, 2),
    )  # fmt: skip
    done = bench(str(folders[1]), options, "a test", save=save)
    order = [(1, 2), (1, 1), (2, 1), (2, 2)]
    assert saved == [order[:n] for n in range(1, 5)]
    assert [(one["batch_size"], one["num_beams"]) for one in done["results"]] == order
    assert [entry["label"] for entry in done["contestants"]] == ["s2s portable"]
