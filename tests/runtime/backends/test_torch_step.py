"""The decoder's step through PyTorch under the search on the device: on the CPU's memory, with emulated kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from device_helpers import missing_compiler
from tiny_names import FAMILIES, in_the_long_run

import s2s_export
from s2s_export import bundle
from s2s_export.runtime.backends._torch_step import TorchDeviceBackend
from s2s_export.runtime.cuda.emulation import HostDevice
from s2s_export.runtime.session import Session

if reason := missing_compiler():
    pytest.skip(reason, allow_module_level=True)

SOURCES = [[5, 9, 3], [7, 8, 9, 10, 11, 12, 4, 6, 3], [30], [9] * 12, [3, 5, 7, 9]]
SEARCHES: tuple[dict[str, Any], ...] = (
    {"num_beams": 1},
    {"num_beams": 3, "num_return_sequences": 2, "no_repeat_ngram_size": 2},
)


def session(path: Path, search: str, element: Any = None) -> Session:
    opened = bundle.read(path)
    return Session(opened, TorchDeviceBackend(opened, HostDevice(), "cpu", element), search=search)


@pytest.mark.parametrize("name", in_the_long_run(FAMILIES, ["marian"]))
def test_tokens_equal_onnx_runtimes(bundled: Any, name: str) -> None:
    reference = s2s_export.load(bundled(name), backend="onnxruntime", threads=1)
    for mode in ("device-while", "device-replay", "device-queue"):
        ours = session(bundled(name), mode)
        assert ours.searcher.where == "device"
        for search in SEARCHES:
            found = ours.generate(SOURCES, max_new_tokens=12, batch_size=3, **search)
            expected = reference.generate(SOURCES, max_new_tokens=12, batch_size=3, **search)
            assert [[h.token_ids for h in of] for of in found] == [[h.token_ids for h in of] for of in expected]
            np.testing.assert_allclose(
                [h.score for of in found for h in of], [h.score for of in expected for h in of], atol=1e-4
            )


def test_alignments(bundled: Any) -> None:
    settings = {"num_beams": 2, "max_new_tokens": 8, "alignments": True}
    found = session(bundled("marian"), "device").generate(SOURCES, **settings)
    expected = s2s_export.load(bundled("marian"), backend="onnxruntime", threads=1).generate(SOURCES, **settings)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours[0].alignment, theirs[0].alignment, atol=1e-5)


def test_a_batch_of_the_last_ones_shape_takes_its_executor_over(bundled: Any) -> None:
    ours = session(bundled("marian"), "device-while")
    first = ours.generate(SOURCES[:1], max_new_tokens=6)
    (slot,) = ours.searcher._idle  # type: ignore[attr-defined]
    executor, graphs = slot.slot._last[1], dict(next(iter(slot.search._kept.values()))._graphs)
    assert ours.generate([[6, 2, 8]], max_new_tokens=6) != first
    assert slot.slot._last[1] is executor and next(iter(slot.search._kept.values()))._graphs == graphs
    assert ours.generate(SOURCES[:1], max_new_tokens=6) == first


def test_a_smaller_element(bundled: Any) -> None:
    """bf16 has 8 bits; what is asked is that all is computed in it and comes out finite."""
    ours = session(bundled("marian"), "device", torch.bfloat16)
    found = ours.generate(SOURCES, num_beams=2, max_new_tokens=6)
    assert all(np.isfinite(of[0].score) for of in found)
    (slot,) = ours.searcher._idle  # type: ignore[attr-defined]
    assert slot.slot._last[1].element == "bf16"


def test_recurrent_models_stay_with_the_host(bundled: Any) -> None:
    ours = session(bundled("gru"), "auto")
    assert ours.searcher.where == "host" and "takes transformers" in ours.searcher.why
