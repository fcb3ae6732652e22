"""Compares one step of the decoding rules' kernel on random scores with the definitions in `decoding.rules`."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import plugin_sources
from ...runtime.cuda.interface import Device
from ...runtime.decoding import rules
from ...runtime.decoding.chain import edit_dense
from ...runtime.decoding.options import GenerationOptions, resolve
from ...runtime.decoding.rule import DenseRule, SparseRule, View
from ...runtime.decoding.rules import active
from ...runtime.device_search.rules import serialise

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

# By the name of each option whose rule runs on a device: a value that activates it.
FILTERS: dict[str, Any] = {name: option.example for name, option in rules.options().items() if option.kind == "filter"}
EDITS: dict[str, Any] = {
    name: option.example
    for name, option in rules.options().items()
    if name not in FILTERS and option.example is not None
}
# For exponentials, logarithms and sums over the vocabulary, which differ in their last digits.
RELATIVE = ABSOLUTE = 4e-6
MOST_UNEQUAL = 0.02  # of a filter's rows, in which a token is exactly at the threshold


def applied(device: Device, options: GenerationOptions, scores: Floats, history: Ints, sources: Ints) -> Floats:
    """scores [B, K, V] after the kernel, for texts [B, K, length] and sources [B, S] padded with -1."""
    B, K, length = history.shape
    V = scores.shape[-1]
    rules = serialise(options, V)
    arrays: dict[str, NDArray[Any]] = {
        "rules": rules.records.copy(),
        "n_rules": np.array([rules.n_rules], np.int32),
        "ids": rules.ids if rules.ids.size else np.zeros(1, np.int32),
        "amounts": rules.amounts if rules.amounts.size else np.zeros(1, np.float32),
        "history": history.astype(np.int32),
        "sources": sources.astype(np.int32),
        "position": np.array([length - 1], np.int64),
        "stop": np.zeros(1, np.int32),
        "scores": scores.copy(),
    }
    structures = plugin_sources.module("beam_search.structures")
    launches = plugin_sources.module("beam_search.loop_launches")
    lists = launches.filter_lists(V)
    scratch = {
        "filter_rows": np.zeros((B * K, ctypes.sizeof(structures.FilterRow)), np.uint8),
        "filter_slices": np.zeros((B * K, lists, ctypes.sizeof(structures.FilterSlice)), np.uint8),
    }
    given = structures.ChainParameters(lists=lists)
    given.rules = structures.RulesParameters(
        n_sources=B, beams=K, vocabulary=V, history_width=length, source_width=sources.shape[1]
    )
    stream = device.create_stream()
    addresses = {name: device.allocate(array.nbytes, name) for name, array in {**arrays, **scratch}.items()}
    for name, array in {**arrays, **scratch}.items():
        device.to_device(addresses[name], array, stream)
        setattr(given if name in scratch else given.rules, name, ctypes.c_void_p(addresses[name]))
    for launch, own in launches.rules(given, rules.chain):
        device.run(launch, own, stream)
    device.to_host(arrays["scores"], addresses["scores"], stream)
    device.synchronize(stream)
    for address in addresses.values():
        device.free(address)
    device.destroy_stream(stream)
    return arrays["scores"]


def defined(options: GenerationOptions, scores: Floats, history: Ints, sources: Ints) -> Floats:
    """The same, computed by the definition."""
    view = View(history.shape[2], sources, lambda: history)
    scores = scores.copy()
    for rule in active(options, scores.shape[-1]):
        if isinstance(rule, SparseRule):
            edit = rule.edit(view)
            scores = scores if edit is None else edit_dense(scores, edit)
        else:
            assert isinstance(rule, DenseRule)
            scores = rule.apply(scores, view)
    return scores


def agree(device: Device, n_cases: int, vocabulary_sizes: Sequence[int] = (40, 5000, 58101)) -> dict[str, Any]:
    """Check each rule separately. By the name of its option: how many rows, and how many of them are unequal. wrong:
    the rules that differ by more than rounding can explain.
    """
    found: dict[str, dict[str, int]] = {}
    known = rules.options()
    for name, value in {**EDITS, **FILTERS}.items():
        chance, rng = random.Random(name), np.random.default_rng(len(name))
        found[name] = {"rows": 0, "unequal": 0}
        for _ in range(n_cases):
            V = chance.choice(list(vocabulary_sizes))
            given = {"num_beams": 1, "decoder_start_token_id": 1, "eos_token_id": [2, 6], "max_length": 9, "top_k": 0}
            samples = known[name].kind != "edit"
            options = resolve({}, {**given, "do_sample": samples, name: value}, vocabulary_size=V)
            history = rng.integers(1, 8, (2, 2, chance.choice([1, 2, 4, 8])))
            sources = rng.integers(1, 10, (2, 6))
            scores = (rng.standard_normal((2, 2, V)) * 3 - 5).astype(np.float32)
            if name == "remove_invalid_values":
                scores[..., :3] = np.nan, np.inf, -np.inf
            ours = applied(device, options, scores, history, sources)
            wanted = defined(options, scores, history, sources)
            equal = np.isclose(ours, wanted, RELATIVE, ABSOLUTE).all(axis=-1)
            found[name]["rows"] += equal.size
            found[name]["unequal"] += int((~equal).sum())
    wrong = [
        name
        for name, counts in found.items()
        if counts["unequal"] > (MOST_UNEQUAL * counts["rows"] if name in FILTERS else 0)
    ]
    return {"rules": found, "wrong": wrong}
