"""scripts/gpu_check: without a GPU one sentence; with one (here: the CPU in its place) JSON and a table."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from fake_tensorrt import FakeDevice

from s2s_export import gpu_check
from s2s_export.backends import onnxruntime_cuda as cuda
from s2s_export.tensorrt import memory

SCRIPT = Path(gpu_check.__file__).parent.parent / "scripts" / "gpu_check"


@pytest.mark.skipif(memory.unavailable() is None, reason="this machine has a GPU")
def test_without_a_gpu_it_says_so(tmp_path):
    out = subprocess.run([SCRIPT, tmp_path / "out"], capture_output=True, text=True, check=False)
    assert out.returncode == 1
    assert out.stdout == ""
    assert out.stderr.strip().endswith("nothing was checked")
    assert len(out.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.fixture
def pretended(monkeypatch):
    """The CPU in the place of a GPU that ONNX Runtime serves."""
    monkeypatch.setattr(memory, "unavailable", lambda: None)
    monkeypatch.setattr(memory, "device", FakeDevice)
    monkeypatch.setattr(cuda, "unavailable", lambda: None)
    monkeypatch.setattr(
        cuda,
        "open",
        lambda b, target, threads=None: cuda.OnnxRuntimeCudaBackend(b, *cuda._choose(b, target), device="cpu"),
    )


def test_with_one_it_compares_measures_and_writes(pretended, bundled, tmp_path, capsys):
    out = tmp_path / "out"
    assert gpu_check.main([str(out), str(bundled("marian")), "--targets", "cuda-fp16", "--quick"]) == 0
    result = json.loads((out / "gpu_check.json").read_text())
    run = result["runs"][0]
    assert run["ok"]
    assert run["stage"] == "done"
    assert set(run["searches"]) == {"greedy", "beam 4"}
    for entry in run["searches"].values():
        assert entry["sources"] == 8
        assert entry["gpu_ms"] > 0
        assert entry["cpu_ms"] > 0
    table = (out / "gpu_check.md").read_text()
    assert "| cuda-fp16 | ok | beam 4 |" in table
    assert table in capsys.readouterr().out
    assert not (bundled("marian") / "engines" / "cuda-fp16").exists()  # built in a copy


def test_a_failure_is_a_result(pretended, bundled, tmp_path, monkeypatch):
    def breaks(*args):
        raise RuntimeError("the driver fell over")

    monkeypatch.setattr(cuda, "open", breaks)
    out = tmp_path / "out"
    assert gpu_check.main([str(out), str(bundled("gru")), "--targets", "cuda-fp16", "--quick"]) == 1
    run = json.loads((out / "gpu_check.json").read_text())["runs"][0]
    assert run["stage"] == "load"
    assert run["error"] == "RuntimeError: the driver fell over"
    assert "failed in load: RuntimeError" in (out / "gpu_check.md").read_text()


def test_a_gpu_that_no_target_serves(pretended, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "suiting", lambda capability: [])
    assert gpu_check.main([str(tmp_path / "out")]) == 1
    assert "no target serves a GPU of host memory (compute capability 8.9)" in capsys.readouterr().err
