"""A real decoder under the device loop: TensorRT's executor on a stand-in, its step captured, the search in kernels.

Nothing of the runtime for GPUs is left out here but the GPU: engines are executed by ONNX Runtime, kernels by their
emulation, on the same host memory.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx")
sys.path.insert(0, str(Path(__file__).parents[1] / "tensorrt"))

from device_helpers import missing_compiler
from fake_tensorrt import FakeDevice, build, fake_library
from small import recipe

import s2s_export
from s2s_export import bundle
from s2s_export.device import DeviceSearch
from s2s_export.device.engine import EngineExecutor, EngineSearch, decode
from s2s_export.device.host import HostDevice
from s2s_export.runtime import Session
from s2s_export.tensorrt.backend import TensorRTBackend

if missing_compiler():
    pytest.skip(str(missing_compiler()), allow_module_level=True)

SOURCES = [[5, 9, 3], [7, 8, 9, 10, 11, 12, 4, 6, 3], [30]]
SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {"num_beams": 1},
    "beam": {"num_beams": 4, "num_return_sequences": 2},
    "rules": {"num_beams": 2, "no_repeat_ngram_size": 2, "repetition_penalty": 1.3},
}
PRECISE = 1e-5  # of a score: fp32, sums in another order


@pytest.fixture
def make(exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """make(model, precision) -> a session whose backend runs engines on host memory, and the bundle's path."""
    compiled = s2s_export.device.host._library()  # before the cache moves
    assert compiled
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def made(name: str, precision: str = "fp32") -> tuple[Session, Path]:
        path = tmp_path / f"{name}.bundle"
        shutil.copytree(exported(name)[1], path, ignore=shutil.ignore_patterns("engines"))
        folder = build(bundle.read(path), recipe(precision, options={"attention": True}), tmp_path)
        backend = TensorRTBackend("tensorrt-rtx", bundle.read(path), folder, fake_library(), FakeDevice())
        return Session(bundle.read(path), backend), path

    return made


class Captured(EngineExecutor):
    """Its step is queued on the emulated device, so that graphs hold it."""

    def __init__(self, state: Any, device: HostDevice) -> None:
        super().__init__(state)
        self._device = device

    def enqueue(self, stream: int) -> None:
        self._device.call(lambda: EngineExecutor.enqueue(self, stream))


@pytest.mark.parametrize("name", ["marian", "t5"])
def test_equals_the_portable_graphs(make: Any, name: str) -> None:
    session, path = make(name)
    reference = s2s_export.load(path, backend="onnxruntime", threads=1)
    for number, settings in enumerate(SEARCHES.values()):
        options = session.options(max_new_tokens=8, **settings)
        device = HostDevice(while_graphs=number % 2 == 0)
        executor = Captured(session.backend.begin(SOURCES, options.n_rows), device)
        found = DeviceSearch(device, executor).run(SOURCES, options)
        expected = reference.generate(SOURCES, max_new_tokens=8, **settings)
        assert [[h.token_ids for h in of] for of in found] == [[h.token_ids for h in of] for of in expected]
        for ours, theirs in zip(found, expected, strict=True):
            assert all(abs(a.score - b.score) < PRECISE for a, b in zip(ours, theirs, strict=True))


def test_a_decode_in_one_call(make: Any) -> None:
    session, _ = make("marian", "fp16")
    options = session.options(max_new_tokens=6, num_beams=2)
    found = decode(HostDevice(), session.backend.begin, SOURCES, options, mode="queue")
    expected = session.decode(SOURCES, options)
    assert [of[0].token_ids for of in found] == [of[0].token_ids for of in expected]


def test_batches_share_memory_where_their_steps_are_one(make: Any) -> None:
    session, _ = make("marian")
    options = session.options(max_new_tokens=5, num_beams=2)
    device = HostDevice()
    search = EngineSearch(device, session.backend.begin)
    held = []
    for sources in (SOURCES[:2], [SOURCES[1], [4, 3]], SOURCES[:1]):
        found = search.decode(sources, options, mode="queue")
        expected = session.decode(sources, options)
        assert [of[0].token_ids for of in found] == [of[0].token_ids for of in expected]
        assert search._search is not None
        held.append(search._search._held)
    assert held[0] is held[1] and held[1] is not held[2]
    search.close()
    assert device.allocated == 0
