"""Alignments on the device: the kernel against its numpy definition, and what searches return against `decoding`."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from device_helpers import (
    DTYPES,
    KernelState,
    ScriptedExecutor,
    fill,
    missing_compiler,
    random_options,
    random_script,
    random_sources,
    resolved,
    schedule,
    structures,
)
from tiny_names import in_the_long_run

from s2s_export import plugin_sources
from s2s_export.errors import BuildError
from s2s_export.runtime.cuda.emulation import HostDevice
from s2s_export.runtime.decoding import StepQuery, StepResult, decode
from s2s_export.runtime.device_search import DeviceSearch
from s2s_export.runtime.device_search.rules import serialise
from s2s_export.runtime.device_search.step_executor import Attention

if missing_compiler():
    pytest.skip(str(missing_compiler()), allow_module_level=True)

alignment = plugin_sources.module("beam_search.alignment")
V, LAYERS, HEADS, WIDTH = 23, 2, 3, 8


@pytest.mark.parametrize("element", DTYPES)
@pytest.mark.parametrize("seed", range(6))
def test_the_kernel_takes_the_mean_over_the_last_layers_heads(element: str, seed: int) -> None:
    """At the step that the position says, and nowhere else; bit for bit."""
    rng = np.random.default_rng(seed)
    B, K, L, H, S, T, P = (int(rng.integers(1, n)) for n in (4, 5, 4, 9, 300, 6, 4))
    given = rng.random((B, K, L, H, S)).astype(DTYPES[element])
    for step in range(-1, T + 1):
        arrays = {
            "attention": given,
            "position": np.array([step + P - 1], np.int64),
            "stop": np.array([0], np.int32),
            "alignment": np.full((T, B, K, S), -1, np.float32),
        }
        run(element, arrays, rows=B * K, layers=L, heads=H, width=S, prompt=P, limit=T)
        expected = np.full((T, B, K, S), -1, np.float32)
        if 0 <= step < T:
            expected[step] = alignment.reference(given)
        np.testing.assert_array_equal(arrays["alignment"], expected)
    arrays |= {"position": np.array([P - 1], np.int64), "stop": np.array([1], np.int32)}
    run(element, arrays, rows=B * K, layers=L, heads=H, width=S, prompt=P, limit=T)
    assert (arrays["alignment"] == -1).all()  # a step after the end


@pytest.mark.parametrize("element", DTYPES)
def test_the_kernel_keeps_all_heads(element: str) -> None:
    rng = np.random.default_rng(1)
    for B, K, L, H, S in ((1, 1, 1, 1, 1), (2, 3, 2, 3, 200)):
        given = rng.random((B, K, L, H, S)).astype(DTYPES[element])
        arrays = {
            "attention": given,
            "position": np.array([3], np.int64),
            "stop": np.array([0], np.int32),
            "alignment": np.full((3, B, K, L, H, S), -1, np.float32),
        }
        run(element, arrays, rows=B * K, layers=L, heads=H, width=S, prompt=3, limit=3, keeps_heads=1)
        np.testing.assert_array_equal(arrays["alignment"][1], given.astype(np.float32))
        assert (arrays["alignment"][[0, 2]] == -1).all()


def run(element: str, arrays: dict[str, np.ndarray], **numbers: int) -> None:
    launched = fill(structures.AlignmentParameters, arrays, **numbers)
    HostDevice().run(alignment.record(element, launched), launched, 0)


def test_an_element_that_there_is_not() -> None:
    with pytest.raises(BuildError, match="no kernel for attention in 'int8'; expected one of fp32, fp16, bf16"):
        alignment.record("int8", structures.AlignmentParameters())


class Looking:
    """Attention that depends on the source and the text, as a decoder's does."""

    def __init__(self, seed: int) -> None:
        self.script = random_script(seed, LAYERS * HEADS * WIDTH, (), "plain")

    def __call__(self, source: int, text: tuple[int, ...]) -> np.ndarray:
        return self.script(source, text).reshape(LAYERS, HEADS, WIDTH)


class LookingExecutor(ScriptedExecutor):
    """Writes attention too."""

    def __init__(self, looking: Looking, *given: Any) -> None:
        super().__init__(*given)
        self._looking = looking
        shape = (self.n_sources, self.n_beams, LAYERS, HEADS, WIDTH)
        address = self.device.allocate(int(np.prod(shape)) * 4)
        self.attention = Attention(address, LAYERS, HEADS, WIDTH, "fp32")
        self._written = self._view(address, shape, np.float32)

    def _step(self) -> None:
        super()._step()
        position = int(self._view(self.position, (1,), np.int64)[0])
        shape = (self.n_sources, self.n_beams, self.capacity)
        ancestors = self._view(self.ancestors, shape, np.int64)
        for b in range(self.n_sources):
            for k in range(self.n_beams):
                text = tuple(int(self._cache[t, b, ancestors[b, k, t]]) for t in range(position + 1))
                self._written[b, k] = self._looking(b, text)


class LookingState(KernelState):
    """The definition's half of the same."""

    def __init__(self, looking: Looking, *given: Any) -> None:
        super().__init__(*given)
        self._looking = looking

    def step(self, tokens: np.ndarray, parents: np.ndarray, query: StepQuery) -> StepResult:
        result = super().step(tokens, parents, query)
        result.attention = np.stack(
            [
                [self._looking(int(source), tuple(row.tolist())) for row in rows]
                for source, rows in zip(self._numbers, self._text, strict=True)
            ]
        )
        return result


@pytest.mark.parametrize("seed", in_the_long_run(range(12), range(2, 8)))
def test_alignments_equal_the_definitions(seed: int) -> None:
    chance = random.Random(seed)
    options = resolved(random_options(chance, V, do_sample=seed % 4 == 3, seed=seed), V)
    sources = random_sources(chance, chance.randint(1, 3), V)
    script, looking = random_script(seed, V, options.eos_token_id, "plain"), Looking(seed)
    shape, dense = (len(sources), options.n_rows, V), serialise(options, V).n_rules > 0 or bool(options.do_sample)
    schedule(seed)
    state = LookingState(looking, script, shape, "fp32", dense)
    wanted_of_all: bool | str = "heads" if seed % 2 else True
    expected = decode(state, sources, options, alignments=wanted_of_all)
    executor = LookingExecutor(looking, HostDevice(), script, shape, options.max_length - 1)
    search = DeviceSearch(executor.device, executor)
    for mode in ("while", "replay", "queue"):
        found = search.run(sources, options, mode=mode, alignments=wanted_of_all)
        for source, ours, theirs in zip(sources, found, expected, strict=True):
            for mine, wanted in zip(ours, theirs, strict=True):
                assert mine.token_ids == wanted.token_ids
                if wanted.alignment is None:
                    assert mine.alignment is None
                else:
                    assert wanted.alignment.shape == (len(wanted.token_scores), len(source))
                    np.testing.assert_array_equal(mine.alignment, wanted.alignment)
                    np.testing.assert_array_equal(mine.alignment_heads, wanted.alignment_heads)
    assert search.run(sources, options)[0][0].alignment is None
