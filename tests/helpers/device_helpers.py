"""Scripted logits for the device loop and for the definition: both are asked what follows the same texts."""

from __future__ import annotations

import ctypes
import functools
import random
import zlib
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from s2s_export import plugin_sources
from s2s_export.errors import BuildError
from s2s_export.measuring.gpu_check import rules_check
from s2s_export.runtime.cuda.emulation import HostDevice, _library
from s2s_export.runtime.decoding import GenerationOptions, Hypothesis, StepQuery, StepResult, decode, resolve
from s2s_export.runtime.device_search import DeviceSearch
from s2s_export.runtime.device_search.rules import serialise
from s2s_export.runtime.device_search.step_executor import Attention

DTYPES: dict[str, Any] = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}
Script = Callable[[int, tuple[int, ...]], np.ndarray]
structures = plugin_sources.module("beam_search.structures")
launches = plugin_sources.module("beam_search.launches")
loop_launches = plugin_sources.module("beam_search.loop_launches")


def missing_compiler() -> str | None:
    try:
        plugin_sources.module("build").find_compiler("c++", "g++", "clang++")
    except BuildError as error:
        return str(error)
    return None


def schedule(number: int) -> None:
    """The order in which the emulation runs blocks and threads."""
    _library().s2s_host_schedule.argtypes = [ctypes.c_uint64]
    _library().s2s_host_schedule(number)


def random_script(seed: int, vocabulary_size: int, eos: tuple[int, ...], kind: str, element: str = "fp32") -> Script:
    """Logits that depend on the source and the text. kind: "plain", "ties", "eager" (ends early), "masked"."""

    @functools.cache
    def script(source: int, text: tuple[int, ...]) -> np.ndarray:
        rng = np.random.default_rng([seed, source, zlib.crc32(repr(text).encode())])
        logits = rng.standard_normal(vocabulary_size) * 3
        if kind == "ties":
            logits = np.round(logits)
        elif kind == "eager" and eos:
            logits[list(eos)] += 3
        elif kind == "masked":
            logits[rng.random(vocabulary_size) < 0.6] = -np.inf
            logits[0] = 1.0
        return logits.astype(DTYPES[element]).astype(np.float32)

    return script


class ScriptedExecutor:
    """A decoder step whose cache holds tokens: a beam's text is what its ancestors wrote, as with keys and values."""

    def __init__(
        self,
        device: HostDevice,
        script: Script,
        shape: tuple[int, int, int],
        capacity: int,
        element: str = "fp32",
    ) -> None:
        self.n_sources, self.n_beams, self.vocabulary_size = B, K, V = shape
        self.device, self.capacity, self.positions, self.element = device, capacity, capacity, element
        self.attention: Attention | None = None
        self.capturable = True
        self.script = script
        self.signature = id(self)
        self.stream = device.create_stream()
        self.token = device.allocate(B * K * 8)
        self.position = device.allocate(8)
        self.ancestors = device.allocate(B * K * capacity * 8)
        self.logits = device.allocate(B * K * V * np.dtype(DTYPES[element]).itemsize)
        self._cache = np.full((capacity, B, K), -1, np.int64)
        self.n_steps = 0

    def _view(self, address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return np.frombuffer((ctypes.c_ubyte * size).from_address(address), dtype).reshape(shape)

    def enqueue(self, stream: int) -> None:
        self.device.call(self._step)

    def _step(self) -> None:
        B, K, V, C = self.n_sources, self.n_beams, self.vocabulary_size, self.capacity
        self.n_steps += 1
        position = int(self._view(self.position, (1,), np.int64)[0])
        assert 0 <= position < C, "a position outside the cache"
        self._cache[position] = self._view(self.token, (B, K), np.int64)
        ancestors = self._view(self.ancestors, (B, K, C), np.int64)
        logits = self._view(self.logits, (B, K, V), DTYPES[self.element])
        for b in range(B):
            for k in range(K):
                assert ancestors[b, k, position] == k
                text = tuple(int(self._cache[t, b, ancestors[b, k, t]]) for t in range(position + 1))
                logits[b, k] = self.script(b, text)


class KernelState:
    """A decode state whose log-softmax is the kernels' own, so that the definition sees the very same numbers.

    dense: as the kernels that write all log-probabilities; else as those that find the best tokens.
    """

    def __init__(self, script: Script, shape: tuple[int, int, int], element: str, dense: bool) -> None:
        self.n_sources, self.n_beams, self.vocabulary_size = shape
        self._script, self._element, self._dense = script, element, dense
        self._numbers = np.arange(self.n_sources)
        self._text = np.zeros((*shape[:2], 0), np.int64)

    def step(self, tokens: np.ndarray, parents: np.ndarray, query: StepQuery) -> StepResult:
        text = np.take_along_axis(self._text, parents[:, :, None], axis=1)
        self._text = np.concatenate([text, tokens[:, :, None]], axis=2)
        logits = np.stack(
            [
                [self._script(int(source), tuple(row.tolist())) for row in rows]
                for source, rows in zip(self._numbers, self._text, strict=True)
            ]
        )
        log_probs, normalizer = kernel_log_probs(logits, self._element, self._dense)
        ids = np.argsort(-log_probs, axis=-1, kind="stable")[..., : query.n_candidates]
        probe = None if query.probe_ids is None else np.take_along_axis(log_probs, query.probe_ids, -1)
        values = np.take_along_axis(log_probs, ids, -1)
        return StepResult(ids, values, normalizer, probe, log_probs if query.dense else None)

    def keep(self, sources: np.ndarray) -> None:
        self._text, self._numbers = self._text[sources], self._numbers[sources]
        self.n_sources = len(sources)


def kernel_log_probs(logits: np.ndarray, element: str, dense: bool) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities [B, K, V] and normalisers [B, K] as the kernels compute them."""
    V, R = logits.shape[-1], int(np.prod(logits.shape[:-1]))
    rows = np.ascontiguousarray(logits.reshape(R, V).astype(DTYPES[element]))
    lists, device = launches.top_lists(V), HostDevice()
    arrays = {
        "logits": rows,
        "list_maximum": np.zeros((R, lists), np.float32),
        "list_sum": np.zeros((R, lists), np.float32),
        "scores": np.zeros((R, V), np.float32),
        "list_values": np.zeros((R, lists, V), np.float32),
        "list_ids": np.zeros((R, lists, V), np.int32),
        "log_normalizer": np.zeros(R, np.float32),
        "candidate_log_probs": np.zeros((R, V), np.float32),
        "candidate_ids": np.zeros((R, V), np.int64),
        "stop": np.zeros(1, np.int32),
    }
    top = fill(structures.LogSoftmaxTopParameters, arrays, rows=R, vocabulary=V, candidates=V, lists=lists)
    for launch in launches.log_softmax_top(element, top):
        device.run(launch, top, 0)
    if dense:
        given = fill(structures.NormalizeParameters, arrays, rows=R, vocabulary=V, lists=lists)
        for launch in loop_launches.log_probs(element, given):
            device.run(launch, given, 0)
    else:
        np.put_along_axis(arrays["scores"], arrays["candidate_ids"], arrays["candidate_log_probs"], axis=1)
    return arrays["scores"].reshape(logits.shape), arrays["log_normalizer"].reshape(logits.shape[:-1])


def fill(structure: Any, arrays: dict[str, np.ndarray], **numbers: int) -> Any:
    """A kernel's arguments, from arrays by their fields' names. The arrays must outlive it."""
    given = structure(**numbers)
    for name, kind in structure._fields_:
        if kind is ctypes.c_void_p and name in arrays:
            assert arrays[name].flags.c_contiguous
            setattr(given, name, arrays[name].ctypes.data)
    return given


def random_options(chance: random.Random, vocabulary_size: int, **fixed: Any) -> dict[str, Any]:
    """Options at random, every rule that has a device form among them."""
    tokens = range(vocabulary_size)

    def some(most: int) -> list[int]:
        return chance.sample(tokens, chance.randint(1, most))

    options: dict[str, Any] = {
        "num_beams": chance.choice([1, 1, 2, 3, 4, 5, 8]),
        "max_new_tokens": chance.randint(1, 9),
        "eos_token_id": some(3) if chance.random() < 0.3 else [2],
        "decoder_start_token_id": 1,
        "do_sample": False,
    }
    options.update(fixed)
    if options["num_beams"] > 1:
        options["num_return_sequences"] = chance.randint(1, options["num_beams"])
        options["length_penalty"] = chance.choice([1.0, 0.0, 0.6, 2.0, -1.0])
        options["early_stopping"] = chance.choice([False, True, "never"])
    elif options["do_sample"]:
        options["num_return_sequences"] = chance.randint(1, 4)
    may: dict[str, Callable[[], Any]] = {
        "min_length": lambda: chance.randint(1, 8),
        "min_new_tokens": lambda: chance.randint(1, 6),
        "no_repeat_ngram_size": lambda: chance.randint(1, 3),
        "encoder_no_repeat_ngram_size": lambda: chance.randint(1, 3),
        "repetition_penalty": lambda: chance.choice([0.7, 1.2, 2.0]),
        "encoder_repetition_penalty": lambda: chance.choice([0.8, 1.5]),
        "bad_words_ids": lambda: [some(1) if chance.random() < 0.5 else some(3) for _ in range(chance.randint(1, 4))],
        "sequence_bias": lambda: {tuple(some(2)): chance.uniform(-3, 3) for _ in range(chance.randint(1, 4))},
        "suppress_tokens": lambda: some(4),
        "begin_suppress_tokens": lambda: some(4),
        "forced_bos_token_id": lambda: chance.choice(tokens),
        "forced_eos_token_id": lambda: some(2),
        "exponential_decay_length_penalty": lambda: (chance.randint(0, 4), chance.choice([1.2, 1.6, 0.8])),
        "renormalize_logits": lambda: True,
        "remove_invalid_values": lambda: True,
        "decoder_input_ids": lambda: some(3),
        "timestamp_begin": lambda: chance.randint(3, vocabulary_size - 1),
    }
    for name in chance.sample(sorted(may), chance.choice([0, 1, 1, 2, 3, 4, 6])):
        options[name] = may[name]()
    forced = {options.get("forced_bos_token_id"), *options.get("forced_eos_token_id", [])}
    if "suppress_tokens" in options:
        options["suppress_tokens"] = [t for t in options["suppress_tokens"] if t not in forced] or None
    return options


def resolved(options: dict[str, Any], vocabulary_size: int) -> GenerationOptions:
    return resolve({}, options, vocabulary_size=vocabulary_size)


def random_sources(chance: random.Random, n_sources: int, vocabulary_size: int) -> list[list[int]]:
    return [[chance.randrange(vocabulary_size + 2) for _ in range(chance.randint(1, 7))] for _ in range(n_sources)]


def on_device(
    script: Script,
    sources: list[list[int]],
    options: GenerationOptions,
    vocabulary_size: int,
    element: str = "fp32",
    device: HostDevice | None = None,
    **given: Any,
) -> list[list[Hypothesis]]:
    device = device or HostDevice()
    shape = (len(sources), options.n_rows, vocabulary_size)
    executor = ScriptedExecutor(device, script, shape, options.max_length - 1, element)
    search = DeviceSearch(device, executor)
    found = search.run(sources, options, **given)
    search.close()
    return found


def by_definition(
    script: Script,
    sources: list[list[int]],
    options: GenerationOptions,
    vocabulary_size: int,
    element: str = "fp32",
    **given: Any,
) -> list[list[Hypothesis]]:
    dense = serialise(options, vocabulary_size).n_rules > 0 or bool(options.do_sample)
    state = KernelState(script, (len(sources), options.n_rows, vocabulary_size), element, dense)
    return decode(state, sources, options, **given)


def rules_applied(chosen: dict[str, Any], scores: np.ndarray, history: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """scores [B, K, V] after the kernel of the rules, for texts [B, K, length] and sources [B, S]."""
    return rules_check.applied(HostDevice(), resolved(chosen, scores.shape[-1]), scores, history, sources)


def rules_defined(chosen: dict[str, Any], scores: np.ndarray, history: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """The same by decoding/rules."""
    return rules_check.defined(resolved(chosen, scores.shape[-1]), scores, history, sources)
