"""What measures the loop on a GPU, run on the emulation: it must not fail when its one chance comes."""

from __future__ import annotations

import dataclasses
import functools
import json

import pytest
from device_helpers import missing_compiler, resolved

from s2s_export.device import check
from s2s_export.device.host import HostDevice

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
    monkeypatch.setattr(check, "N_TOKENS", 3)
    monkeypatch.setattr(check, "VOCABULARIES", {"tiny": 90})
    monkeypatch.setattr(check, "BEAMS", (1, 2))
    monkeypatch.setattr(check, "agree", lambda device, n: {"cases": n, "different": []})
    monkeypatch.setattr(check, "bandwidth", functools.partial(check.bandwidth, n_bytes=1 << 16))
    result = check.run(HostDevice(), quick=True)
    json.dumps(result)
    assert len(result["times"]) == 4 and all(entry["while_step_us"] > 0 for entry in result["times"])
    text = check.table(result)
    assert text.count("\n| 90 |") == 4 and "apply_decoding_rules" in text


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
