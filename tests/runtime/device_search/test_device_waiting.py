"""How the host waits for a device: it polls before it yields, queues a few steps ahead, and reads one word.

The clock is simulated: every look at it takes LOOK seconds, and the device needs a given time for each step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from device_helpers import ScriptedExecutor, by_definition, missing_compiler, random_script, resolved

from s2s_export.errors import BackendError
from s2s_export.runtime.cuda.emulation import HostDevice, HostGraph
from s2s_export.runtime.device_search import DeviceSearch, search_buffers
from s2s_export.runtime.device_search.search_buffers import ASK_SECONDS, SPIN_SECONDS, STEPS_AHEAD, STOPPED

if missing_compiler():
    pytest.skip(str(missing_compiler()), allow_module_level=True)

V = 23
LOOK = 0.00002  # seconds: what a poll of the host takes here


class LateDevice(HostDevice):
    """Works through the graphs that are queued, one each `step_seconds` of the simulated clock."""

    def __init__(self, step_seconds: float) -> None:
        super().__init__()
        self.step_seconds = step_seconds
        self.now = 0.0
        self.busy_since = 0.0
        self.backlog: list[HostGraph] = []
        self.n_slept = self.most_queued = self.n_asked = 0

    # In place of the module `time`.

    def monotonic(self) -> float:
        self.now += LOOK
        while self.backlog and self.now - self.busy_since >= self.step_seconds:
            self.busy_since += self.step_seconds
            self.backlog.pop(0).launch(1)
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds == 0
        self.n_slept += 1
        self.monotonic()

    # The device

    def capture(self, stream: int, body: Callable[[], None]) -> Any:
        graph, device = super().capture(stream, body), self

        class Late:
            def launch(self, stream: int) -> None:
                if not device.backlog:
                    device.busy_since = device.now
                device.backlog.append(graph)
                device.most_queued = max(device.most_queued, len(device.backlog))

            def close(self) -> None:
                graph.close()

        return Late()

    def is_idle(self, stream: int) -> bool:
        self.n_asked += 1
        return not self.backlog

    def synchronize(self, stream: int) -> None:
        while self.backlog:
            self.backlog.pop(0).launch(1)


def run(step_seconds: float, monkeypatch: pytest.MonkeyPatch, n_tokens: int = 14) -> LateDevice:
    options = resolved(
        {"num_beams": 2, "max_new_tokens": n_tokens, "min_new_tokens": n_tokens, "eos_token_id": [2]}
        | {"decoder_start_token_id": 1},
        V,
    )
    script = random_script(1, V, (), "plain")
    device = LateDevice(step_seconds)
    search = DeviceSearch(device, ScriptedExecutor(device, script, (1, 2, V), options.max_length - 1))
    expected = by_definition(script, [[3]], options, V)
    monkeypatch.setattr(search_buffers, "time", device)
    for _ in range(2):  # the second time, all steps are the captured graph
        found = search.run([[3]], options, mode="replay")
        assert [h.token_ids for h in found[0]] == [h.token_ids for h in expected[0]]
    search.close()
    return device


def test_short_steps_are_polled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Yielding costs some 50 us, so a wait of less than SPIN_SECONDS never yields, nor asks the driver each time."""
    device = run(SPIN_SECONDS / 3, monkeypatch)
    assert device.n_slept == 0
    assert device.n_asked <= device.now / ASK_SECONDS + 4


def test_long_steps_yield_and_ask_whether_the_device_works(monkeypatch: pytest.MonkeyPatch) -> None:
    device = run(5 * ASK_SECONDS, monkeypatch)
    assert device.n_slept > 100
    assert 10 < device.n_asked <= device.now / ASK_SECONDS + 4


@pytest.mark.parametrize("step_seconds", [SPIN_SECONDS / 3, 5 * ASK_SECONDS])
def test_steps_ahead(monkeypatch: pytest.MonkeyPatch, step_seconds: float) -> None:
    assert 4 <= STEPS_AHEAD <= 8
    assert run(step_seconds, monkeypatch).most_queued == STEPS_AHEAD + 1  # those ahead, and the one that runs


def test_a_device_that_stops_without_saying_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HostGraph, "launch", lambda graph, stream: None)  # steps that do nothing
    with pytest.raises(BackendError, match="has nothing left to do after 1 steps and the search has not ended"):
        run(SPIN_SECONDS / 3, monkeypatch)


class Watched(HostDevice):
    """Notes the word that steps publish, whenever it changes."""

    def __init__(self) -> None:
        super().__init__()
        self.progress: np.ndarray | None = None
        self.words: list[int] = []

    def mapped(self, shape: tuple[int, ...], dtype: Any) -> tuple[np.ndarray, int]:
        array, address = super().mapped(shape, dtype)
        if dtype is np.uint64:
            self.progress = array
        return array, address

    def _run(self, launch: Any, given: Any, folder: str = "beam_search") -> None:
        super()._run(launch, given, folder)
        if self.progress is not None and (word := int(self.progress[0])) != (self.words or [0])[-1]:
            self.words.append(word)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("mode", ["queue", "while"])
def test_the_count_and_the_end_are_one_word(beams: int, mode: Any) -> None:
    """No reader can see the end of a search beside the count of an earlier step, or twice."""
    options = resolved(
        {"num_beams": beams, "max_new_tokens": 7, "eos_token_id": [2], "decoder_start_token_id": 1}
        | {"suppress_tokens": [2]},
        V,
    )
    device = Watched()
    executor = ScriptedExecutor(device, random_script(4, V, (), "plain"), (1, beams, V), options.max_length - 1)
    DeviceSearch(device, executor).run([[3]], options, mode=mode)
    assert device.words == [1, 2, 3, 4, 5, 6, 7 + STOPPED]
