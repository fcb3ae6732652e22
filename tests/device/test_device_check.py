"""What measures the loop on a GPU, run on the emulation: it must not fail when its one chance comes."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import pytest
from device_helpers import missing_compiler, resolved

from s2s_export.device import check, times
from s2s_export.device.host import HostDevice
from s2s_export.errors import BackendError, BackendUnavailable

if missing_compiler():
    pytest.skip(str(missing_compiler()), allow_module_level=True)


def test_agreement_finds_a_difference() -> None:
    assert check.agree(HostDevice(), 3, (40,))["different"] == []

    class Wrong(HostDevice):
        def run(self, launch, given, stream):  # type: ignore[no-untyped-def]
            if launch.kernel != "merge_top_lists":
                super().run(launch, given, stream)

    assert check.agree(Wrong(), 3, (40,))["different"]


def test_a_run_and_its_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(times, "N_TOKENS", 3)
    monkeypatch.setattr(times, "VOCABULARIES", {"tiny": 90})
    monkeypatch.setattr(times, "BEAMS", (1, 2))
    monkeypatch.setattr(check, "agree", lambda device, n: {"cases": n, "different": []})
    monkeypatch.setattr(times, "bandwidth", functools.partial(times.bandwidth, n_bytes=1 << 16))
    result = check.run(HostDevice(), quick=True)
    json.dumps(result)
    assert len(result["times"]) == 4 and all(entry["while_step_us"] > 0 for entry in result["times"])
    assert all(set(entry["capture_ms"]) == {"step", "while"} for entry in result["times"])
    text = check.table(result)
    assert text.count("\n| 90 |") == 4 and "apply_decoding_rules" in text


def test_bandwidth_takes_what_room_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    device = HostDevice(memory_limit=5 << 20)
    monkeypatch.setattr(times, "LEAST_BANDWIDTH_BYTES", 1 << 20)
    assert times.bandwidth(device, 16 << 20) > 0
    assert device.allocated == 0
    monkeypatch.setattr(times, "LEAST_BANDWIDTH_BYTES", 16 << 20)
    with pytest.raises(BackendError, match="measuring bandwidth"):
        times.bandwidth(device, 16 << 20)
    assert device.allocated == 0


def test_sanitizers_run_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "compute-sanitizer"
    program.write_text('#!/bin/sh\n[ "$2" = racecheck ] && { echo "a race"; exit 9; }\nexit 0\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    saved: list[dict[str, Any]] = []
    found = check.sanitize(tmp_path, lambda so_far: saved.append(dict(so_far)))
    assert {tool: entry["status"] for tool, entry in found.items()} == {
        "memcheck": 0, "racecheck": 9, "synccheck": 0, "initcheck": 0,
    }  # fmt: skip
    assert found["racecheck"]["output"] == "a race\n"
    assert [len(so_far) for so_far in saved] == [1, 2, 3, 4]


def test_without_sanitizers_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendUnavailable, match="no compute-sanitizer on the path; expected"):
        check.sanitize(tmp_path)


def test_memory_is_planned_without_a_device() -> None:
    options = resolved({"num_beams": 4, "max_length": 64, "decoder_start_token_id": 1, "eos_token_id": 0}, 58101)
    plain = sum(size for _, _, size in check.plan_report(1, 4, 58101, options))
    ruled = check.plan_report(1, 4, 58101, dataclasses.replace(options, bad_words_ids=((5,),)))
    assert plain < 100_000
    assert ruled[0] == ("distribution", "1x4x58101", 4 * 58101 * 4)


def test_without_a_gpu_it_says_so(tmp_path, capsys, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    from s2s_export.tensorrt import memory

    monkeypatch.setattr(memory, "LIBRARY", "libnothing.so.1")
    memory._load.cache_clear()
    assert check.main([str(tmp_path)]) == 1
    assert "no CUDA driver on this machine" in capsys.readouterr().err
    memory._load.cache_clear()
