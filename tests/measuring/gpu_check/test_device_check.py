"""What measures the loop on a GPU, run on the emulation: it must not fail when its one chance comes."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest
from device_helpers import missing_compiler

from s2s_export.errors import BackendError
from s2s_export.measuring.gpu_check import search_check as check
from s2s_export.measuring.gpu_check import times
from s2s_export.runtime.cuda.emulation import HostDevice

if missing_compiler():
    pytest.skip(str(missing_compiler()), allow_module_level=True)


def test_agreement_finds_a_difference() -> None:
    assert check.agree(HostDevice(), 3, (40,))["different"] == []

    class Wrong(HostDevice):
        def run(self, launch, given, stream):  # type: ignore[no-untyped-def]
            if launch.kernel.startswith("top_of_slices"):
                given.candidates -= 1  # the lists of the next launch lie elsewhere
            super().run(launch, given, stream)

    assert check.agree(Wrong(), 3, (40,))["different"]


def test_times_and_their_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(times, "N_TOKENS", 3)
    monkeypatch.setattr(times, "VOCABULARIES", {"tiny": 90})
    monkeypatch.setattr(times, "BEAMS", (1, 2))
    monkeypatch.setattr(times, "bandwidth", functools.partial(times.bandwidth, n_bytes=1 << 16))
    result: dict[str, Any] = {}
    times.measure(HostDevice(), result.update, quick=True)
    json.dumps(result)
    assert len(result["times"]) == 4 and all(entry["while_step_us"] > 0 for entry in result["times"])
    assert all(set(entry["capture_ms"]) == {"step", "while"} for entry in result["times"])
    assert len(times.table(result["times"])) == 6
    assert times.table(result["times"])[-1].startswith("| 90 | 1 | 2 | yes |")
    assert "apply_decoding_rules" in times.table(result["times"])[-1]


def test_bandwidth_takes_what_room_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    device = HostDevice(memory_limit=5 << 20)
    monkeypatch.setattr(times, "LEAST_BANDWIDTH_BYTES", 1 << 20)
    assert times.bandwidth(device, 16 << 20) > 0
    assert device.allocated == 0
    monkeypatch.setattr(times, "LEAST_BANDWIDTH_BYTES", 16 << 20)
    with pytest.raises(BackendError, match="measuring bandwidth"):
        times.bandwidth(device, 16 << 20)
    assert device.allocated == 0
