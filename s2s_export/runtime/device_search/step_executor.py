"""The interface of whatever runs the decoder's steps for the search on the device, and what its executors share."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from ..decoding.options import GenerationOptions

ELEMENTS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
LEAST_CAPACITY = 16  # positions; capacities are powers of two, so that few shapes exist


@dataclass(frozen=True)
class Attention:
    """The cross-attention weights of a step: [B, K, layers, heads, width] in `element`, at `address`."""

    address: int
    layers: int
    heads: int
    width: int
    element: str


@dataclass(frozen=True)
class CandidateTables:
    """Where a step writes its lists (plugins/beam_search/parameters.h), and the rules that ban tokens before.

    addresses: of list_values, list_ids, list_maximum and list_sum. rules: RulesParameters, or None for no rules.
    """

    addresses: Mapping[str, int]
    candidates: int
    lists: int
    rules: ctypes.Structure | None


class StepExecutor(Protocol):
    """Runs the decoder's step for one batch whose sources are encoded. Addresses stay as they are while it lives.

    token [B, K] int64, position [1] int64 and ancestors [B, K, C] int64 are read by the step and written by the search;
    logits [B, K, V] in `element` ("fp32", "fp16", "bf16") are written. All numbers that change lie in device memory, so
    that `enqueue` can be captured into a graph.
    """

    n_sources: int
    n_beams: int
    vocabulary_size: int
    capacity: int  # C: positions of the caches
    positions: int  # how many tokens may be fed: at most C, less where caches have more room than the decoder takes
    element: str
    token: int
    position: int
    ancestors: int
    logits: int
    stream: int
    signature: object  # equal for two executors whose steps a captured graph can't tell apart
    attention: Attention | None  # the cross-attention weights that a step writes as well
    capturable: bool  # False for a step that no graph can hold: the host runs each one, and `enqueue` waits for it

    def enqueue(self, stream: int) -> None:
        """Queues one step: it reads token and position, writes the caches at that position, and the logits."""
        ...


@runtime_checkable
class FindsCandidates(Protocol):
    """A `StepExecutor` whose steps can find each row's best tokens themselves, without logits in memory."""

    def candidate_lists(self, candidates: int) -> int:
        """How many lists of a row its steps make, of so many tokens each; 0 where they can't."""
        ...

    def enqueue_candidates(self, stream: int, tables: CandidateTables) -> None:
        """As `enqueue`, with lists of the best tokens in place of logits."""
        ...


def incompatible_reason(decoder_step: Mapping[str, Any]) -> str | None:
    """Why a model's search can't run on the device, by its decoder step's description; None where it can."""
    if any(entry["name"] == "ancestors" for entry in decoder_step["inputs"]):
        return None
    return (
        "this model's decoder has states and no caches, which change places at every step; with this backend the "
        "search on the device takes transformers"
    )


def attention_at(decoder_step: Mapping[str, Any], address: int, width: int) -> Attention | None:
    """The attention that a step writes to `address`, with sources of `width` tokens; None where it writes none."""
    for entry in decoder_step["outputs"]:
        if entry["name"] == "attention":
            *_, layers, heads, _ = entry["shape"]
            return Attention(address, int(layers), int(heads), width, ELEMENTS[entry["dtype"]])
    return None


def capacity(options: GenerationOptions, limit: int | None) -> int:
    """C for a call: the tokens that it may feed, rounded up to a power of two; at most `limit`, the model's own."""
    wanted = max(LEAST_CAPACITY, 1 << (options.max_length - 2).bit_length())
    return wanted if limit is None else min(wanted, limit)
