"""What the loop says when it can't go on, how often it launches what, and what it keeps."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest
from device_helpers import ScriptedExecutor, by_definition, missing_compiler, random_script, resolved

from s2s_export.errors import BackendError, InvalidOption, UnknownOption
from s2s_export.measuring.gpu_check.times import StillExecutor
from s2s_export.runtime.cuda.emulation import HostDevice
from s2s_export.runtime.decoding.options import GenerationOptions
from s2s_export.runtime.device_search import DeviceLost, DeviceSearch
from s2s_export.runtime.device_search.loop import MOST_KEPT
from s2s_export.runtime.device_search.rules import serialise
from s2s_export.runtime.device_search.tables import Arena, make_plan

if missing_compiler():
    pytest.skip(str(missing_compiler()), allow_module_level=True)

V = 23


def options_of(**given: Any) -> GenerationOptions:
    return resolved({"max_new_tokens": 6, "eos_token_id": [2], "decoder_start_token_id": 1, **given}, V)


def search_of(
    device: HostDevice, options: GenerationOptions, capacity: int = 8, beams: int | None = None
) -> DeviceSearch:
    script = random_script(1, V, (), "plain")
    executor = ScriptedExecutor(device, script, (1, beams or options.n_rows, V), capacity=8)
    return DeviceSearch(device, executor)


def test_a_sentence_longer_than_the_bucket() -> None:
    """Eight positions: a text that gets beyond them is an error, whatever max_length allows; a shorter one is not."""
    endless = options_of(max_new_tokens=30, min_new_tokens=30, num_beams=2)
    with pytest.raises(
        BackendError, match=r"no position 8: it was built for 8 tokens; raise ranges.T .* max_new_tokens"
    ):
        search_of(HostDevice(), endless).run([[3]], endless)
    for given in ({}, {"num_beams": 2}, {"num_beams": 3, "early_stopping": "never"}):
        options = options_of(
            max_new_tokens=30, forced_bos_token_id=5, exponential_decay_length_penalty=(1, 9.0), **given
        )
        script = random_script(1, V, (), "plain")
        found = search_of(HostDevice(), options).run([[3]], options)
        expected = by_definition(script, [[3]], options, V)
        assert [h.token_ids for h in found[0]] == [h.token_ids for h in expected[0]]
        assert len(found[0][0].token_ids) < 8
    long_prompt = options_of(decoder_input_ids=[1] * 9)
    with pytest.raises(BackendError, match="prompt has 9 tokens, but the engine was built for 8; shorten"):
        search_of(HostDevice(), long_prompt).run([[3]], long_prompt)


def test_out_of_memory() -> None:
    options = options_of(num_beams=4)
    device = HostDevice()
    search = search_of(device, options)
    device.memory_limit = device.allocated + 1000
    with pytest.raises(BackendError, match=r"no room for the tables of 1 sources with 4 beams and 23 tokens: .* asked"):
        search.run([[3]], options)
    device.memory_limit = None
    assert search.run([[3]], options)[0]


def test_a_lost_device() -> None:
    options = options_of(num_beams=2, min_new_tokens=6)
    search = search_of(HostDevice(fail_after=20), options)
    for _ in range(2):
        with pytest.raises(DeviceLost, match="these sentences have no result and this process can't use the GPU again"):
            search.run([[3]], options)


def test_refusals() -> None:
    options = options_of(num_beams=4)
    with pytest.raises(BackendError, match="the executor runs 2 beams and the search wants 4"):
        search_of(HostDevice(), options, beams=2).run([[3]], options)
    with pytest.raises(InvalidOption, match="2 sources, but the executor was made for 1"):
        search_of(HostDevice(), options).run([[3], [4]], options)
    with pytest.raises(UnknownOption, match="loop mode 'whle'.*while"):
        search_of(HostDevice(), options).run([[3]], options, mode="whle")  # type: ignore[arg-type]
    with pytest.raises(BackendError, match="no WHILE graphs"):
        search_of(HostDevice(while_graphs=False), options).run([[3]], options, mode="while")
    assert search_of(HostDevice(while_graphs=False), options).run([[3]], options)[0]
    with pytest.raises(InvalidOption, match="num_beams is 17 .* up to 16 beams"):
        search_of(HostDevice(), options_of(num_beams=17)).run([[3]], options_of(num_beams=17))


def test_launches_of_a_step() -> None:
    """Two launches behind the decoder's step; with rules three more, which write the distribution."""
    plain = options_of(num_beams=3, min_new_tokens=None)
    device = HostDevice()
    search_of(device, plain).run([[3]], plain, mode="queue")
    assert device.launched[:4] == ["top_of_slices_fp32", "finish_beam_step"] * 2
    with_rules = options_of(num_beams=3, suppress_tokens=[4])
    device = HostDevice()
    search_of(device, with_rules).run([[3]], with_rules, mode="queue")
    assert device.launched[:3] == ["row_statistics_fp32", "write_scores_fp32", "apply_decoding_rules"]
    assert device.launched[3:5] == ["top_of_slices_fp32", "finish_beam_step"]


def test_graphs_and_memory_are_kept() -> None:
    """The second call of a plan runs on the first one's memory; few plans are kept; closing gives all back."""
    options = options_of(num_beams=2)
    device = HostDevice()
    search = search_of(device, options)
    before = device.allocated
    first = search.run([[3]], options)
    held = device.allocated
    assert held > before
    assert [h.token_ids for h in search.run([[5]], options)[0]] == [h.token_ids for h in first[0]]
    assert device.allocated == held
    for n in range(1, 6):
        for on_prefix in (None, lambda source, tokens: None):
            search.run([[3]], options_of(num_beams=2, max_new_tokens=n), on_prefix=on_prefix)
    assert device.allocated - before <= MOST_KEPT * (held - before)
    assert search.n_kept == MOST_KEPT
    search.close()
    assert device.allocated == before


def test_the_arena_is_reported() -> None:
    options = options_of(num_beams=4, suppress_tokens=[3])
    search = search_of(HostDevice(), options)
    arena = Arena(make_plan(search.executor, options, serialise(options, V), 1, streams=False))
    report = arena.report()
    assert ("distribution", "1x4x23", 4 * 23 * 4) in report
    assert sum(size for _, _, size in report) <= arena.n_bytes


def test_several_threads() -> None:
    """A search each; the device is shared."""
    options, device, found = options_of(num_beams=3), HostDevice(), []
    searches = [search_of(device, options) for _ in range(3)]
    threads = [
        threading.Thread(target=lambda s=search: found.append(s.run([[3]], options, mode="queue")))
        for search in searches
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({str(outputs) for outputs in found}) == 1 and len(found) == 3


def test_imports_neither_torch_nor_cuda_packages() -> None:
    code = (
        "import sys, s2s_export.runtime.device_search;"
        "import s2s_export.runtime.cuda.device, s2s_export.runtime.cuda.emulation;"
        "bad = {'torch', 'transformers', 'onnx', 'cuda', 'tensorrt', 'onnxruntime'} & set(sys.modules);"
        "sys.exit(str(bad) if bad else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


class NeverStops(HostDevice):
    """The emulation; once broken, a step's end leaves position and stop flag as they are, and no search ends."""

    is_broken = False
    is_set = np.ones(1, np.int32)

    def _run(self, launch: Any, given: Any) -> None:
        if self.is_broken and launch.kernel == "finish_beam_step":
            given.stop.stop = self.is_set.ctypes.data  # as if the search had stopped before
        super()._run(launch, given)


def test_a_while_graph_ends_by_itself_when_nothing_ever_stops() -> None:
    options = options_of(num_beams=2)
    device = NeverStops()
    logits = np.random.default_rng(3).standard_normal((1, 2, V)).astype(np.float32)
    search = DeviceSearch(device, StillExecutor(device, logits, options.max_length))
    search.run([[3]], options, mode="while")
    device.is_broken, device.launched = True, []
    with pytest.raises(BackendError, match="nothing left to do after 0 steps"):
        search.run([[3]], options, mode="while")  # one launch, of the graph that the first call captured
    assert device.launched.count("finish_beam_step") == options.max_length - len(options.prompt)


@pytest.mark.parametrize("mode", ["while", "replay", "queue"])
def test_a_stream_that_another_thread_goes_on_with(mode: Any) -> None:
    """A GPU is current for a thread, so whoever asks for the next tokens has to choose it first."""

    class Counting(HostDevice):
        def activate(self) -> None:
            threads.append(threading.get_ident())

    threads: list[int] = []
    options = options_of(num_beams=1, max_new_tokens=5, min_new_tokens=5)
    running = search_of(Counting(), options).start([[3]], options, mode=mode)
    next(running)
    found: list[int] = []

    def go_on() -> None:
        found.append(threading.get_ident())
        list(running)

    thread = threading.Thread(target=go_on)
    thread.start()
    thread.join()
    assert threads[0] == threading.get_ident() and found[0] in threads
