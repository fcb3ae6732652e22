"""What `s2s doctor` and records of measurements say of this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from s2s_export import plugin_sources
from s2s_export.measuring import machine

BUILD = plugin_sources.module("cpu.build")


@pytest.mark.parametrize(("chosen", "why_not_amx", "said"), [
    ("amx", None, "amx"),
    ("dotprod", None, "dotprod"),
    ("avx512", "this processor doesn't have it", "avx512; not amx: this processor doesn't have it"),
])  # fmt: skip
def test_the_instruction_set_and_why_it_is_not_that_of_amx(monkeypatch, chosen, why_not_amx, said):
    monkeypatch.setattr(BUILD, "made", lambda: Path("operators.so"))
    monkeypatch.setattr(BUILD, "instruction_set", lambda path: chosen)
    monkeypatch.setattr(BUILD, "why_not_amx", lambda path: why_not_amx)
    assert machine.machine()["kernels"] == said


def test_kernels_are_not_compiled_to_describe_a_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(BUILD, "packaged_name", lambda kind=None: "none.so")
    assert machine.machine()["kernels"].startswith("not compiled yet")
    assert not list(tmp_path.iterdir())


def test_a_library_that_is_none_is_told(monkeypatch, tmp_path):
    path = tmp_path / "operators.so"
    path.write_text("no library")
    monkeypatch.setattr(BUILD, "made", lambda: path)
    assert machine.machine()["kernels"].startswith("can't be loaded")
