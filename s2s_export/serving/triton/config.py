"""config.pbtxt: what Triton is told of a model (its protobuf `ModelConfig`, as text)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...bundle import Bundle
from ...runtime.sources import kind_of

# Of each input: its type, and the shape of one row.
TYPES = {"text": ("TYPE_STRING", 1), "input_ids": ("TYPE_INT64", -1), "audio": ("TYPE_FP32", -1)}


@dataclass(frozen=True)
class Batching:
    """How Triton gathers requests. max_batch_size: rows in a batch. delay: microseconds that a request may wait for
    others. max_queue: requests that may wait, 0 for any number. timeout: seconds after which one that waits is
    refused, 0 for never. instances: processes that decode side by side, each with the bundle open.
    """

    max_batch_size: int = 16
    delay: int = 0
    max_queue: int = 0
    timeout: float = 0.0
    instances: int = 1


def input_name(bundle: Bundle) -> str:
    """`text` where the bundle has a tokenizer for its sources, else the field of its kind of source."""
    kind = kind_of(bundle)
    return "text" if kind.has_ids and bundle.manifest.get("tokenizer") else kind.field


def can_stream(bundle: Bundle) -> bool:
    """Whether there is text to stream."""
    return bool(bundle.manifest.get("tokenizer"))


def text(
    bundle: Bundle,
    name: str,
    batching: Batching,
    stream: bool,
    parameters: Mapping[str, Any],
    on_gpu: bool = False,
    environment: str | None = None,
) -> str:
    """config.pbtxt of a model.

    stream: whether it answers piece by piece. parameters: for model.py. on_gpu: whether it uses a GPU. environment: the
    Python environment in which Triton runs it, a folder or an archive; by default Triton's own.
    """
    source = input_name(bundle)
    kind, size = TYPES[source]
    ragged = " allow_ragged_batch: true" if size == -1 and not stream else ""
    outputs = ["text: TYPE_STRING [ 1 ]"] if stream else ["text: TYPE_STRING [ -1 ]", "score: TYPE_FP32 [ -1 ]"]
    outputs += ["result: TYPE_STRING [ 1 ]"]
    lines = [
        "# Written by `s2s triton`.",
        f"name: {_quoted(name)}",
        'backend: "python"',
        f"max_batch_size: {0 if stream else batching.max_batch_size}",
        "input [",
        f'  {{ name: "{source}" data_type: {kind} dims: [ {size} ]{ragged} }},',
        # A JSON object of generation options; they may also be the request's parameters.
        '  { name: "options" data_type: TYPE_STRING dims: [ 1 ] optional: true }',
        "]",
        "output [",
        ",\n".join(_output(output) for output in outputs),
        "]",
        f"instance_group [ {{ count: {batching.instances} kind: {'KIND_GPU' if on_gpu else 'KIND_CPU'} }} ]",
    ]
    lines += ["model_transaction_policy { decoupled: true }"] if stream else _dynamic(batching)
    for key, value in parameters.items():
        lines.append(_parameter(key, json.dumps(value) if key != "bundle" else value))
    if environment is not None:
        lines.append(_parameter("EXECUTION_ENV_PATH", environment))
    return "\n".join(lines) + "\n"


def _output(described: str) -> str:
    name, kind, *dims = described.replace(":", "").split()
    return f'  {{ name: "{name}" data_type: {kind} dims: {" ".join(dims)} }}'


def _dynamic(batching: Batching) -> list[str]:
    policy = []
    if batching.max_queue:
        policy.append(f"max_queue_size: {batching.max_queue}")
    if batching.timeout:
        microseconds = round(batching.timeout * 1e6)
        policy.append(
            f"timeout_action: REJECT default_timeout_microseconds: {microseconds} allow_timeout_override: true"
        )
    lines = ["dynamic_batching {", f"  max_queue_delay_microseconds: {batching.delay}"]
    if policy:
        lines.append(f"  default_queue_policy {{ {' '.join(policy)} }}")
    return [*lines, "}"]


def _parameter(key: str, value: str) -> str:
    return f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}"


def _quoted(value: str) -> str:
    """A string of protobuf's text format, whose escapes for these characters are those of JSON."""
    return json.dumps(value, ensure_ascii=False)
