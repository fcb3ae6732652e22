"""Sessions that decode on a device: engines and search on the same emulated GPU, captured into its graphs.

Nothing of the runtime for GPUs is left out here but the GPU: engines are executed by ONNX Runtime, kernels by their
emulation, on the same host memory.
"""

from __future__ import annotations

import ctypes
import gc
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

from command_line import run_here
from device_helpers import missing_compiler
from fake_tensorrt import EmulatedGpu, FakeContext, FakeEngine, build, fake_library
from small import recipe
from tiny_names import EACH_FAMILY

import s2s_export
from s2s_export import bundle
from s2s_export.engines import engines
from s2s_export.errors import BackendError, InvalidOption
from s2s_export.measuring import gpu_memory
from s2s_export.runtime import cases
from s2s_export.runtime.backends._tensorrt.backend import TensorRTBackend
from s2s_export.runtime.device_search import DeviceLost, searcher
from s2s_export.runtime.device_search.loop import DeviceSearch
from s2s_export.runtime.session import Session

if missing_compiler():
    pytest.skip(str(missing_compiler()), allow_module_level=True)

SOURCES = [[5, 9, 3], [7, 8, 9, 10, 11, 12, 4, 6, 3], [30], [9] * 12, [3, 5, 7, 9, 11, 13, 15]]
SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {"num_beams": 1},
    "beam": {"num_beams": 4, "num_return_sequences": 2},
    "beams that the engine runs as more": {"num_beams": 7},
    "rules": {"num_beams": 2, "no_repeat_ngram_size": 2, "repetition_penalty": 1.3},
    "draws": {"num_beams": 1, "do_sample": True, "num_return_sequences": 2, "top_k": 5, "seed": 7},
}
PRECISE = 1e-5  # of a score: fp32, sums in another order
Make = Callable[..., tuple[Session, EmulatedGpu, Path]]


@pytest.fixture
def make(exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """make(model, search, ...) -> a session on an emulated GPU, the GPU, and the bundle's path."""
    compiled = s2s_export.runtime.cuda.emulation._library()  # before the cache moves
    assert compiled
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def made(
        name: str,
        search: str = "auto",
        gpu: EmulatedGpu | None = None,
        attention: bool = True,
        precision: str = "fp32",
    ) -> tuple[Session, EmulatedGpu, Path]:
        path, gpu = tmp_path / f"{name}.bundle", gpu or EmulatedGpu()
        folder = path / "engines" / f"small-{precision}"
        if not path.exists():
            shutil.copytree(exported(name)[1], path, ignore=shutil.ignore_patterns("engines"))
            build(bundle.read(path), recipe(precision, options={"attention": attention}), tmp_path)
        library = fake_library(queue=gpu.call)
        backend = TensorRTBackend("tensorrt-rtx", bundle.read(path), folder, library, gpu, lambda: gpu)
        return Session(bundle.read(path), backend, search=search), gpu, path

    return made


@pytest.fixture
def queued(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The engines' launches that the host queued itself or captured, as opposed to those that a graph repeats."""
    found: list[int] = []
    original = FakeContext.execute_async_v3

    def counting(self: FakeContext, stream: int) -> bool:
        found.append(stream)
        return original(self, stream)

    monkeypatch.setattr(FakeContext, "execute_async_v3", counting)
    return found


def tokens(found: list[list[Any]]) -> list[list[list[int]]]:
    return [[h.token_ids for h in of] for of in found]


@pytest.mark.parametrize(
    ("name", "search"),
    [("marian", "device-while"), ("t5", "device-replay"), pytest.param("t5", "auto", marks=pytest.mark.slow)],
)
def test_sessions_equal_the_portable_graphs(make: Make, name: str, search: str) -> None:
    """Five sources on an engine for three, in batches of four: in parts, and in two buckets."""
    session, gpu, path = make(name, search)
    assert session.searcher.where == "device"
    reference = s2s_export.load(path, backend="onnxruntime", threads=1)
    for settings in SEARCHES.values():
        found = session.generate(SOURCES, batch_size=4, max_new_tokens=8, **settings)
        expected = reference.generate(SOURCES, batch_size=4, max_new_tokens=8, **settings)
        assert tokens(found) == tokens(expected)
        for ours, theirs in zip(found, expected, strict=True):
            assert all(abs(a.score - b.score) < PRECISE for a, b in zip(ours, theirs, strict=True))
    assert gpu.n_launches > 0
    before = gpu.allocated
    session.searcher.release()
    assert gpu.allocated < before


@pytest.mark.parametrize("name", EACH_FAMILY)
def test_every_family(make: Make, name: str) -> None:
    session, _, path = make(name)
    reference = s2s_export.load(path, backend="onnxruntime", threads=1)
    for settings in ({"num_beams": 1}, {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True}):
        found = session.generate(SOURCES[:3], max_new_tokens=10, **settings)
        assert tokens(found) == tokens(reference.generate(SOURCES[:3], max_new_tokens=10, **settings))


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_lower_precisions(make: Make, precision: str) -> None:
    """Of one engine both searches find the same: they see the same logits."""
    outputs = []
    for search in ("device", "host"):
        session, _, _ = make("t5", search, precision=precision)
        found = session.generate(SOURCES, num_beams=3, max_new_tokens=8, alignments=True)
        outputs.append(found)
    assert tokens(outputs[0]) == tokens(outputs[1])
    for ours, theirs in zip(*outputs, strict=True):
        np.testing.assert_allclose(ours[0].alignment, theirs[0].alignment, atol=1e-6)


def test_the_hosts_search_launches_no_kernel_of_ours(make: Make) -> None:
    session, gpu, _ = make("marian", "host")
    assert session.searcher.where == "host"
    found = session.generate(SOURCES, num_beams=3, max_new_tokens=6)
    assert gpu.n_launches == 0
    on_device, _, _ = make("marian", "device")
    assert tokens(on_device.generate(SOURCES, num_beams=3, max_new_tokens=6)) == tokens(found)


@pytest.mark.parametrize(
    "settings", [{"num_beams": 3}, {"num_beams": 1}, {"num_beams": 1, "do_sample": True, "seed": 3}]
)
def test_alignments(make: Make, settings: dict[str, Any]) -> None:
    session, _, path = make("marian")
    reference = s2s_export.load(path, backend="onnxruntime", threads=1)
    found = session.generate(SOURCES, max_new_tokens=8, alignments=True, **settings)
    expected = reference.generate(SOURCES, max_new_tokens=8, alignments=True, **settings)
    for source, ours, theirs in zip(SOURCES, found, expected, strict=True):
        assert ours[0].token_ids == theirs[0].token_ids
        assert ours[0].alignment.shape == (len(ours[0].token_scores), len(source))
        np.testing.assert_allclose(ours[0].alignment, theirs[0].alignment, atol=1e-5)
    assert session.generate(SOURCES[:1], max_new_tokens=4)[0][0].alignment is None


def test_alignments_of_beams_that_run_as_more(make: Make) -> None:
    session, _, path = make("marian")
    reference = s2s_export.load(path, backend="onnxruntime", threads=1)
    found = session.generate(SOURCES[:2], max_new_tokens=6, alignments=True, num_beams=7)
    expected = reference.generate(SOURCES[:2], max_new_tokens=6, alignments=True, num_beams=7)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours[0].alignment, theirs[0].alignment, atol=1e-5)


def test_alignments_that_are_refused(make: Make) -> None:
    session, _, _ = make("marian", attention=False)
    with pytest.raises(BackendError, match="returns no cross-attention weights.*set attention = true"):
        session.generate(SOURCES[:1], max_new_tokens=4, alignments=True)


def test_alignments_of_all_heads(make: Make) -> None:
    session, _, path = make("marian")
    reference = s2s_export.load(path, backend="onnxruntime", threads=1)
    given = {"max_new_tokens": 6, "alignments": "heads", "num_beams": 2}
    for ours, theirs in zip(
        session.generate(SOURCES[:2], **given), reference.generate(SOURCES[:2], **given), strict=True
    ):
        np.testing.assert_allclose(ours[0].alignment_heads, theirs[0].alignment_heads, atol=1e-5)


def test_batches_of_one_shape_share_memory_and_graphs(make: Make, queued: list[int]) -> None:
    """A batch's first call queues and captures encoder, cross-KV-init and step; the next one launches two graphs."""
    session, gpu, _ = make("marian", "device-while")
    settings = {"num_beams": 2, "max_new_tokens": 6, "min_new_tokens": 6}
    first = session.generate(SOURCES[:2], **settings)
    assert len(queued) == 2 + 2 + 1 + 1  # encoder and cross-KV-init queued, then captured; a step likewise
    held = gpu.allocated
    assert tokens(session.generate(SOURCES[:2], **settings)) == tokens(first)
    assert len(queued) == 6 and gpu.allocated == held
    other = session.generate(SOURCES[:2], **{**settings, "max_new_tokens": 7})  # another plan in the same slot
    assert len(queued) == 6 + 2 and gpu.allocated > held
    assert [len(of[0].token_ids) for of in other] >= [len(of[0].token_ids) for of in first]
    session.generate(SOURCES[:1], **settings)  # another shape: a slot of its own
    assert len(queued) == 8 + 6


@pytest.mark.parametrize("search", ["device-while", "device-replay"])
def test_a_warm_start_captures_nothing(make: Make, queued: list[int], search: str) -> None:
    """After a warm-up the first call of that shape launches graphs only, and takes no memory."""
    session, gpu, path = make("marian", search)
    session.warm_up([5, 12], n_sources=2, num_beams=2, max_new_tokens=6)
    n_queued, held = len(queued), gpu.allocated
    assert n_queued == 2 * 6
    found = session.generate(SOURCES[:2], num_beams=2, max_new_tokens=6)  # nine tokens: the bucket of twelve
    assert (len(queued), gpu.allocated) == (n_queued, held)
    reference = s2s_export.load(path, backend="onnxruntime", threads=1)
    assert tokens(found) == tokens(reference.generate(SOURCES[:2], num_beams=2, max_new_tokens=6))
    reference.warm_up([4], num_beams=2)
    options = session.options(num_beams=2, max_new_tokens=6)
    session.warm_up([5], num_beams=2, max_new_tokens=6, streams=True)
    n_queued = len(queued)
    assert list(session.searcher.stream(SOURCES[0], options))
    assert len(queued) == n_queued


def test_batches_before_leave_nothing_behind(make: Make) -> None:
    """Slots and states are used again, with what an overflow may have left in the caches."""
    session, _, path = make("marian", "device-replay")
    reference = s2s_export.load(path, backend="onnxruntime", threads=1)
    for settings in ({"num_beams": 3}, {"num_beams": 7}, {"num_beams": 1}):
        for sources in ([[9] * 7, [5, 6]], [[4], [3]], [[7, 8, 9, 10], [11] * 6], [[6], [6, 6]]):
            found = session.generate(sources, max_new_tokens=8, alignments=True, **settings)
            expected = reference.generate(sources, max_new_tokens=8, alignments=True, **settings)
            assert tokens(found) == tokens(expected)
            for ours, theirs in zip(found, expected, strict=True):
                np.testing.assert_allclose(ours[0].alignment, theirs[0].alignment, atol=1e-5)
            context = session.searcher._idle[-1].slot._context
            for address, size in (place for name, place in context.buffers._blocks.items() if name[:4] == "self"):
                ctypes.memset(address, 0xFF, size)  # NaN


def test_without_graphs_all_is_queued(make: Make, queued: list[int]) -> None:
    session, _, _ = make("marian", "device-queue")
    for _ in range(2):
        session.generate(SOURCES[:2], num_beams=2, max_new_tokens=6, min_new_tokens=6)
    assert len(queued) == 2 * (2 + 6)


def test_addresses_that_move_make_new_graphs(make: Make, queued: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """One slot for all shapes: its buffers grow, and what was captured before is not replayed."""
    monkeypatch.setattr(searcher, "MOST_KEPT", 1)
    session, gpu, path = make("marian", "device-replay")
    reference = s2s_export.load(path, backend="onnxruntime", threads=1)
    n_allocated = []
    for sources in (SOURCES[:1], SOURCES[:2], SOURCES[:1], SOURCES[2:3], SOURCES[3:4]):
        found = session.generate(sources, num_beams=2, max_new_tokens=5, min_new_tokens=5)
        assert tokens(found) == tokens(reference.generate(sources, num_beams=2, max_new_tokens=5, min_new_tokens=5))
        n_allocated.append(gpu.allocated)
    assert len(queued) == 6 * 4  # SOURCES[2:3] has the shape of the batch before it
    assert n_allocated[1] > n_allocated[0]


@pytest.mark.parametrize("search", ["device-while", "device-replay", "host"])
@pytest.mark.parametrize("beams", [1, 4])
def test_streams(make: Make, search: str, beams: int) -> None:
    session, _, _ = make("marian", search)
    options = session.options(num_beams=beams, max_new_tokens=8)
    for source in SOURCES[:2]:
        parts = list(session.searcher.stream(source, options))
        assert [t for part in parts for t in part] == session.decode([source], options)[0][0].token_ids
        assert len(parts) > 1
    given_up = session.searcher.stream(SOURCES[0], options)
    next(given_up)
    given_up.close()
    assert list(session.searcher.stream(SOURCES[0], options))  # its slot is free again


def test_several_threads_and_streams_at_once(make: Make) -> None:
    session, _, _ = make("t5")
    options = session.options(num_beams=3, max_new_tokens=10)
    expected = [session.decode([source], options)[0][0].token_ids for source in SOURCES]
    found: dict[int, list[int]] = {}

    def work(i: int) -> None:
        if i % 2:
            found[i] = [t for part in session.searcher.stream(SOURCES[i], options) for t in part]
        else:
            found[i] = session.decode([SOURCES[i]], options)[0][0].token_ids

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(SOURCES))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(len(SOURCES))] == expected


def test_two_streams_in_turns(make: Make) -> None:
    session, _, _ = make("t5", "device-replay")
    options = session.options(num_beams=2, max_new_tokens=8, min_new_tokens=8)
    expected = session.decode(SOURCES[:2], options)
    streams = [session.searcher.stream(source, options) for source in SOURCES[:2]]
    found: list[list[int]] = [[], []]
    for _ in range(20):
        for told, stream in zip(found, streams, strict=True):
            told += next(stream, [])
    assert found == [of[0].token_ids for of in expected]


# Memory


@pytest.mark.parametrize("name", ["marian", "t5"])
def test_the_plan_says_what_a_decode_takes(make: Make, name: str) -> None:
    """Of the shape that an engine was tuned for, and of the largest: to the byte, but for the gaps between tables."""
    session, gpu, _ = make(name)
    plan = gpu_memory.of_bundle(session.bundle, engines(session.bundle))["small-fp32"]
    assert plan["search"] == "device" and plan["buckets"] == [8, 16]
    assert [(s["sources"], s["beams"], s["source_length"]) for s in plan["shapes"]] == [(1, 4, 8), (3, 8, 16)]
    for shape in plan["shapes"]:
        options = {"num_beams": shape["beams"], "n_sources": shape["sources"], "alignments": True}
        session.warm_up([shape["source_length"]], **options)
        assert 0 <= gpu.allocated - shape["total_bytes"] < 256 * len(shape["tables"])
        session.searcher.release()
    lines = gpu_memory.describe({"small-fp32": plan})
    assert lines[0] == ("small-fp32", "search on the device; buckets 8, 16")
    assert "caches" in lines[1][1] and "search" in lines[1][1]


def test_inspect_and_doctor_show_the_plan(make: Make) -> None:
    _, _, path = make("marian")
    assert "memory on a GPU\n  small-fp32 " in run_here("inspect", path)[0]
    shown = run_here("doctor", path)[0]
    assert "small-fp32" in shown
    lines = shown.partition("where the search runs\n")[2].splitlines()
    assert [line.split(maxsplit=1) for line in lines[:4]] == [
        ["cuda", "on the device"],
        ["onnxruntime", "on the host"],
        ["onnxruntime-cuda", "on the device, of recurrent models on the host"],
        ["tensorrt", "on the device, of recurrent models on the host"],
    ]
    found = json.loads(run_here("doctor", path, "--json")[0])
    assert found["memory_on_gpu"]["small-fp32"]["shapes"][0]["tables"]
    assert json.loads(run_here("inspect", path, "--json")[0])["memory_on_gpu"] == found["memory_on_gpu"]


# Faults


def test_what_the_engine_was_not_built_for(make: Make) -> None:
    session, _, _ = make("t5")
    with pytest.raises(InvalidOption, match="9 beams wanted, but the engine was built for at most 8"):
        session.generate(SOURCES[:1], num_beams=9)
    with pytest.raises(
        BackendError,
        match=r"has 17 tokens, .* at most 16; build it again with --max-source-length 17",
    ):
        session.generate([[5] * 17])
    with pytest.raises(BackendError, match=r"no position 24: it was built for 24 tokens; raise ranges\.T"):
        session.generate(SOURCES[:1], min_new_tokens=40, max_new_tokens=50)
    # A text that ends in time is decoded, whatever max_new_tokens allows.
    found = session.generate(SOURCES[:1], max_new_tokens=50, exponential_decay_length_penalty=(1, 9.0))
    assert len(found[0][0].token_ids) < 24


def test_out_of_memory_is_an_error_and_no_end(make: Make) -> None:
    session, gpu, _ = make("marian")
    first = session.generate(SOURCES[:1], num_beams=2, max_new_tokens=4)
    gpu.memory_limit = gpu.allocated + 1000
    with pytest.raises(
        BackendError, match=r"no room for .* MiB asked for, .* free; lower the batch size, the number of"
    ):
        session.generate(SOURCES[:3], num_beams=8, max_new_tokens=20)
    assert tokens(session.generate(SOURCES[:1], num_beams=2, max_new_tokens=4)) == tokens(first)


def test_memory_that_is_kept_makes_room(make: Make) -> None:
    """What idle slots hold is given back before a batch is refused."""
    session, gpu, _ = make("marian")
    session.generate(SOURCES[:3], num_beams=8, max_new_tokens=10)
    gpu.memory_limit = gpu.allocated
    assert session.generate(SOURCES[:2], num_beams=4, max_new_tokens=10)
    session.searcher.release()
    gc.collect()
    assert gpu.allocated == 0


@pytest.mark.parametrize("search", ["device-while", "device-replay"])
def test_a_device_lost_in_mid_decode(make: Make, search: str) -> None:
    session, gpu, _ = make("marian", search, EmulatedGpu(fail_after=20))
    for _ in range(2):
        with pytest.raises(DeviceLost, match="these sentences have no result and this process can't use the GPU again"):
            session.generate(SOURCES[:1], num_beams=2, max_new_tokens=8, min_new_tokens=8)
    launched = gpu.n_launches
    with pytest.raises(DeviceLost):
        list(session.searcher.stream(SOURCES[0], session.options()))
    assert gpu.n_launches == launched  # the driver is not asked again


@pytest.mark.parametrize(("search", "other"), [("device-while", "device-replay"), ("device-replay", "device-queue")])
def test_a_step_that_can_not_be_captured(make: Make, monkeypatch: pytest.MonkeyPatch, search: str, other: str) -> None:
    """An error that says which search does without the graph, which then does; nothing is slower in silence."""

    def refuse(self: Any, stream: int, body: Any) -> Any:
        raise BackendError("capturing a step failed with CUDA error 901 (operation failed); expected success")

    session, _, _ = make("marian", search)
    expected = make("marian", "host")[0].generate(SOURCES[:2], num_beams=2, max_new_tokens=6)
    monkeypatch.setattr(EmulatedGpu, "capture_while" if search == "device-while" else "capture", refuse)
    with pytest.raises(BackendError, match=f"no graph of the decoder could be made: .*901.*search='{other}'"):
        session.generate(SOURCES[:2], num_beams=2, max_new_tokens=6, min_new_tokens=6)
    without, _, _ = make("marian", other)
    assert tokens(without.generate(SOURCES[:2], num_beams=2, max_new_tokens=6)) == tokens(expected)


def test_a_library_that_says_that_it_can_not_be_captured(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked before anything is captured; without graphs it isn't asked."""
    captures: list[int] = []
    monkeypatch.setattr(EmulatedGpu, "capture_while", lambda self, stream, body: captures.append(stream))
    monkeypatch.setattr(EmulatedGpu, "capture", lambda self, stream, body: captures.append(stream))
    monkeypatch.setattr(FakeContext, "is_stream_capturable", lambda self, stream: False)
    session, _, _ = make("marian", "device")
    with pytest.raises(BackendError, match=r"no graph .*encoder can't be captured.* again.*device-queue"):
        session.generate(SOURCES[:2], num_beams=2, max_new_tokens=6)
    assert not captures
    without, _, _ = make("marian", "device-queue")
    assert without.generate(SOURCES[:2], num_beams=2, max_new_tokens=6)


def test_engines_are_given_the_memory_of_their_activations(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """One block for the three graphs, which run one after another; it goes back with the slot."""
    monkeypatch.setattr(FakeEngine, "device_memory_size_v2", 5000)
    session, gpu, _ = make("marian", "device")
    session.generate(SOURCES[:2], num_beams=2, max_new_tokens=6)
    contexts = session.searcher._idle[-1].slot._context._contexts
    addresses = {context.memory for context in contexts.values()}
    assert len(contexts) == 3 and len(addresses) == 1
    ((address, size),) = addresses
    assert size == 5000 and address in gpu._blocks
    session.searcher.release()
    assert gpu.allocated == 0


def test_a_library_that_fails_because_the_device_is_lost(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    session, gpu, _ = make("marian")
    monkeypatch.setattr(FakeContext, "execute_async_v3", lambda self, stream: False)
    with pytest.raises(BackendError, match="encoder: the launch failed"):
        session.generate(SOURCES[:1], max_new_tokens=4)
    gpu._is_lost = True
    for _ in range(2):
        with pytest.raises(DeviceLost, match="start a new one"):
            session.generate(SOURCES[:1], max_new_tokens=4)


def test_lines_of_generate_get_the_error_of_their_own(make: Make) -> None:
    """A text that goes on beyond the engine takes no other with it; a lost device is an error for each line left."""
    session, gpu, _ = make("t5")
    lines = [{"id": i, "input_ids": [5, 9, 3 + i]} for i in range(3)]
    lines[1] |= {"min_new_tokens": 40, "max_new_tokens": 50}

    def decode() -> list[dict[str, Any]]:
        given = [cases.read_case(session, json.dumps(line).encode(), number) for number, line in enumerate(lines)]
        return list(cases.decode_cases(session, given))

    found = decode()
    assert ["error" in line for line in found] == [False, True, False]
    assert "no position 24" in found[1]["error"]
    gpu._is_lost = True
    assert all("start a new one" in line["error"] for line in decode())


def test_a_failure_leaves_the_slot_usable(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    session, _, _ = make("marian")
    options = session.options(num_beams=2, max_new_tokens=5)
    expected = tokens(session.decode(SOURCES[:2], options))
    original = DeviceSearch._go_on

    def breaks(*_: Any) -> Any:
        raise BackendError("a launch failed")

    monkeypatch.setattr(DeviceSearch, "_go_on", breaks)
    with pytest.raises(BackendError, match="a launch failed"):
        session.decode(SOURCES[:2], options)
    monkeypatch.setattr(DeviceSearch, "_go_on", original)
    assert tokens(session.decode(SOURCES[:2], options)) == expected
