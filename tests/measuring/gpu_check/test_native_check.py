"""The GPU check's part for the backend `cuda`, on the emulation: it must not fail when its one chance comes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx")

from device_helpers import missing_compiler

from s2s_export.measuring.gpu_check import native
from s2s_export.measuring.gpu_check.times import launch_us
from s2s_export.runtime.cuda import device as cuda
from s2s_export.runtime.cuda.emulation import HostDevice

if missing_compiler():
    pytest.skip(str(missing_compiler()), allow_module_level=True)


def test_cases_and_times_of_a_step(bundled: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shutil.copytree(bundled("marian"), tmp_path / "marian.bundle", ignore=shutil.ignore_patterns("engines"))
    monkeypatch.setattr(cuda, "shared", HostDevice)
    for name, number in (("FEW_CASES", 1), ("SOURCE_LENGTH", 16), ("CAPACITY", 16), ("POSITION", 3)):
        monkeypatch.setattr(native, name, number)
    monkeypatch.setattr(native, "launch_us", lambda device, stream, body, n: launch_us(device, stream, body, 1))
    result: dict[str, Any] = {}
    assert native.native(result.update, str(path), quick=True) is None
    json.dumps(result)
    assert result["agreement"]["wrong"] == [] and result["agreement"]["cases"] >= 20
    (entry,) = result["times"]
    assert (entry["batch"], entry["beams"]) == native.POINTS[1]
    times = ("step_us", "own_step_us", "apart_us", "candidates_us", "encoder_us", "weight_bytes")
    assert all(entry[name] > 0 for name in times)
    assert entry["launches"] == 5 * 2 + 2
    assert list(native.table(result))[-1].startswith("| 1 | 4 | 12 | ")
