"""What an engine of flavour "cuda-native" holds: model.json, a model's structure, and weights.bin, its weights.

model.json, version 3:

    version      the integer 3; a reader takes no other, as the kernels know one layout
    element      fp16, bf16 or int8: of weights. Caches and what products read are of the same element, of fp16 for int8
    tensors      by name: offset in weights.bin, a multiple of 256; layout "fragments" (shape [O, I], fp16 or bf16, as
                 plugins/transformer/fragments.py packs it), "bytes" (the same of whole numbers of 8 bits, which have a
                 scale for each output beside them) or "floats" (any shape, fp32)
    encoder, decoder, cross, head, head_scale, vocabulary
                 the fields of `Model` below; a tensor is named, and two names may have one place
    kind         of a recurrent model "recurrent"; then the other fields are those of `recurrent_model.RecurrentModel`

Widths are multiples of 16: what the model has less is zeros, and `true_width` tells for norms. Letters as in
docs/architecture.md, and E for a stack's width, F for the inner width, O outputs and I inputs.
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....errors import EngineError
from ....schema import Unreadable, read_json, shown
from . import recurrent_model
from .parts import (
    BYTES,
    LAYOUT_BYTES,
    Linear,
    Tensor,
    Wanted,
    Wrong,
    layout_of,
    n_bytes,
    of_embedding,
    of_linear,
    weight_bytes,
)
from .recurrent_model import RecurrentModel

DESCRIPTION, WEIGHTS = "model.json", "weights.bin"
VERSION = 3
ALIGNMENT = 256  # bytes


@dataclass(frozen=True)
class Norm:
    """LayerNorm, or RMSNorm where there is no bias. weight, bias [E]."""

    weight: str
    bias: str | None
    epsilon: float


@dataclass(frozen=True)
class Distances:
    """Added to the scores, by head and distance key - query. table [H, n], whose first column is for `first`."""

    table: str
    first: int
    n: int


@dataclass(frozen=True)
class Attention:
    """rows: of self-attention queries, keys and values [3*H*D, E]; of cross-attention queries [H*D, E]."""

    rows: Linear
    output: Linear
    norm: Norm
    scale: float
    distances: Distances | None


@dataclass(frozen=True)
class FeedForward:
    """With `gated`, inner has a gate's outputs and its product's, 8 and 8 in turn: [2*F, E]."""

    inner: Linear
    outer: Linear
    norm: Norm
    activation: str
    gated: bool


@dataclass(frozen=True)
class Layer:
    self_attention: Attention
    cross_attention: Attention | None
    feed_forward: FeedForward


@dataclass(frozen=True)
class Positions:
    """Row position + offset of table [P, E]; a padding token's row is padding_id, and moves where padding_moves."""

    table: str
    n: int
    offset: int
    padding_id: int | None
    padding_moves: bool


@dataclass(frozen=True)
class Convolution:
    """Output s has the `size` positions from s*step - padding on, each with its channels: [O, size*channels]."""

    product: Linear
    channels: int
    size: int
    step: int
    padding: int
    activation: str


@dataclass(frozen=True)
class Stack:
    """Encoder or decoder. embedding [V, E]. embedding_row_scales [V]: of an embedding of 8 bits, else None.

    stem: of an encoder of sound, the convolutions that make the stream of its features; there is no embedding then, and
    positions are [P, E] "floats", of which row s is added to position s.
    """

    width: int
    true_width: int
    heads: int
    head_size: int
    norm_first: bool
    embedding: str | None
    embedding_row_scales: str | None
    vocabulary: int
    embedding_scale: float
    positions: Positions | None
    embedding_norm: Norm | None
    final_norm: Norm | None
    layers: tuple[Layer, ...]
    stem: tuple[Convolution, ...]


@dataclass(frozen=True)
class Model:
    """cross: keys and values of every decoder layer, one behind the other [L*2*H*D, E of the encoder]. head [V, E]."""

    version: int
    element: str
    vocabulary: int
    encoder: Stack
    decoder: Stack
    cross: Linear
    head: Linear
    head_scale: float
    tensors: Mapping[str, Tensor]

    @property
    def n_layers(self) -> tuple[int, int]:
        """Of encoder and decoder."""
        return len(self.encoder.layers), len(self.decoder.layers)

    @property
    def reads_sound(self) -> bool:
        return bool(self.encoder.stem)

    @property
    def step_bytes(self) -> int:
        """Bytes of weights that a decoder step reads."""
        parts = [self.head]
        for layer in self.decoder.layers:
            assert layer.cross_attention is not None
            parts += [layer.feed_forward.inner, layer.feed_forward.outer]
            parts += [part for a in (layer.self_attention, layer.cross_attention) for part in (a.rows, a.output)]
        return weight_bytes(parts, self.element)


AnyModel = Model | RecurrentModel


class Weights:
    """An open engine: its model, and its tensors as views of weights.bin."""

    def __init__(self, folder: Path, again: str) -> None:
        """again: the command that builds the engine. Raises EngineError for what can't be read or doesn't fit."""
        self.model = read(folder / DESCRIPTION, again)
        self.path = folder / WEIGHTS
        self.bytes: NDArray[np.uint8] = np.memmap(self.path, mode="r", dtype=np.uint8)
        for name, tensor in self.model.tensors.items():
            end = tensor.offset + n_bytes(tensor)
            if tensor.offset % ALIGNMENT or tensor.offset < 0 or end > self.bytes.size:
                raise EngineError(
                    f"{folder / DESCRIPTION}: tensor {shown(name)} ends at byte {end}, but {WEIGHTS} has "
                    f"{self.bytes.size}; the engine is damaged; {again}"
                )

    def array(self, name: str) -> NDArray[Any]:
        """A tensor: fragments [O/16, I/16, 32, 8] as uint16 bits or int8, or fp32 of its shape."""
        tensor = self.model.tensors[name]
        raw = self.bytes[tensor.offset : tensor.offset + n_bytes(tensor)]
        if tensor.layout == "floats":
            return raw.view(np.float32).reshape(tensor.shape)
        n_out, n_in = tensor.shape
        return raw.view(np.int8 if tensor.layout == "bytes" else np.uint16).reshape(n_out // 16, n_in // 16, 32, 8)


def read(file: Path, again: str) -> AnyModel:
    """The description in a file. Raises EngineError, which names what is wrong by its path in the file."""
    try:
        document = read_json(file)
    except Unreadable as error:
        raise EngineError(f"{file}: not readable as JSON ({error}); {again}") from error
    version = document.get("version") if isinstance(document, dict) else None
    if version != VERSION:
        raise EngineError(
            f"{file}: packed weights of version {shown(version)}, but this version of s2s-export has kernels for "
            f"version {VERSION}; {again}"
        )
    try:
        kind = RecurrentModel if document.get("kind") == recurrent_model.KIND else Model
        model: AnyModel = _made(kind, document, "")
        _check(model)
    except Wrong as wrong:
        raise EngineError(f"{file}: {wrong}; {again}") from None
    return model


def write(model: AnyModel, file: Path) -> None:
    file.write_text(json.dumps(_plain(model), indent=1) + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def _made(kind: Any, value: Any, where: str) -> Any:
    """`value`, a JSON value, as `kind`: a dataclass above, a tuple or mapping of one, a plain type, or None."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _made(next(k for k in inner if k is not type(None)), value, where)
    if is_dataclass(kind):
        if not isinstance(value, dict):
            raise Wrong(f"{where or 'the document'} is {shown(value)}, expected an object")
        hints = typing.get_type_hints(kind)
        for name in hints:
            if name not in value:
                raise Wrong(f"{where}.{name} is missing".removeprefix("."))
        found = {name: _made(hint, value[name], f"{where}.{name}".lstrip(".")) for name, hint in hints.items()}
        made: Any = kind
        return made(**found)
    if origin is tuple:
        if not isinstance(value, list):
            raise Wrong(f"{where} is {shown(value)}, expected a list")
        return tuple(_made(inner[0], one, f"{where}[{i}]") for i, one in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise Wrong(f"{where} is {shown(value)}, expected an object")
        return {name: _made(inner[1], one, f"{where}.{name}") for name, one in value.items()}
    is_right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not is_right or (kind is int and abs(value) >= 2**31 and not where.endswith("offset")):
        raise Wrong(f"{where} is {shown(value)}, expected {NAMES[kind]}")
    return value


NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _check(model: AnyModel) -> None:
    """Raises Wrong where tensors are missing or have other sizes than the structure says."""
    if model.element not in BYTES:
        raise Wrong(f"element is {shown(model.element)}, expected one of {', '.join(BYTES)}")
    for name, tensor in model.tensors.items():
        if tensor.layout not in LAYOUT_BYTES or not all(size > 0 for size in tensor.shape):
            raise Wrong(
                f"tensors.{name} is {shown(_plain(tensor))}, expected {', '.join(LAYOUT_BYTES)} of positive sizes"
            )
        if tensor.layout != "floats" and (len(tensor.shape) != 2 or any(size % 16 for size in tensor.shape)):
            raise Wrong(f"tensors.{name} has shape {list(tensor.shape)}, expected two multiples of 16")
    if not 1 <= model.vocabulary <= model.head.outputs or not all(model.n_layers):
        raise Wrong("it has a vocabulary beyond its head, or a stack without layers")
    wanted_of = recurrent_model.tensors_of(model) if isinstance(model, RecurrentModel) else _tensors_of(model)
    for wanted, shape, layout in wanted_of:
        if wanted is None:
            raise Wrong("a weight of 8 bits has no scales")
        name = wanted
        if name not in model.tensors:
            raise Wrong(f"it names the tensor {shown(name)}, which tensors does not have")
        if (stored := model.tensors[name].layout) != layout:
            raise Wrong(f"tensors.{name} has the layout {shown(stored)}, expected {layout}")
        if (found := model.tensors[name].shape) != shape:
            raise Wrong(f"tensors.{name} has shape {list(found)}, expected {list(shape)}")


def _tensors_of(model: Model) -> typing.Iterator[Wanted]:
    """Every tensor that the structure names, with the shape and layout that it must have."""
    of_weights = layout_of(model.element)
    for stack in (model.encoder, model.decoder):
        E, inside = stack.width, stack.heads * stack.head_size
        if E % 16 or not 0 < stack.true_width <= E or stack.head_size % 16 or not 16 <= stack.head_size <= 128:
            raise Wrong(f"a stack has width {E} and head size {stack.head_size}, expected multiples of 16")
        if stack.stem and stack is model.encoder:
            yield from _of_stem(stack, of_weights)
        elif stack.vocabulary < 1 or stack.embedding is None or stack.stem:
            raise Wrong(f"a stack has a vocabulary of {stack.vocabulary}, expected an embedding of at least 1")
        else:
            yield from of_embedding(stack.embedding, stack.embedding_row_scales, stack.vocabulary, E, of_weights)
        if stack.positions is not None and not stack.stem:
            yield stack.positions.table, (-(-stack.positions.n // 16) * 16, E), "fragments"
        for norm in (stack.embedding_norm, stack.final_norm):
            yield from _of_norm(norm, E)
        for layer in stack.layers:
            attentions = [(layer.self_attention, 3)]
            if (layer.cross_attention is not None) != (stack is model.decoder):
                raise Wrong("cross-attention is missing in the decoder, or there is some in the encoder")
            if layer.cross_attention is not None:
                attentions.append((layer.cross_attention, 1))
            for attention, n in attentions:
                yield from _of_norm(attention.norm, E)
                yield from of_linear(attention.rows, n * inside, E, of_weights)
                yield from of_linear(attention.output, E, inside, of_weights)
                if (bias := attention.distances) is not None:
                    yield bias.table, (stack.heads, bias.n), "floats"
            inner = layer.feed_forward
            yield from _of_norm(inner.norm, E)
            yield from of_linear(inner.inner, inner.outer.inputs * (2 if inner.gated else 1), E, of_weights)
            yield from of_linear(inner.outer, E, inner.outer.inputs, of_weights)
    own = model.decoder.heads * model.decoder.head_size
    yield from of_linear(model.cross, len(model.decoder.layers) * 2 * own, model.encoder.width, of_weights)
    yield from of_linear(model.head, model.head.outputs, model.decoder.width, of_weights)


def _of_stem(stack: Stack, layout: str) -> typing.Iterator[Wanted]:
    if stack.positions is None or stack.embedding_norm is not None or not stack.norm_first:
        raise Wrong("an encoder of sound has no positions, or norms where none are expected")
    yield stack.positions.table, (stack.positions.n, stack.width), "floats"
    channels = stack.stem[0].channels
    for one in stack.stem:
        if one.channels != channels or not 0 <= one.padding < one.size or one.step < 1:
            raise Wrong(f"a convolution reads {one.channels} channels with a step of {one.step}, expected {channels}")
        inputs = -(-one.size * one.channels // 16) * 16
        yield from of_linear(one.product, one.product.outputs, inputs, layout)
        channels = one.product.outputs
    if channels != stack.width:
        raise Wrong(f"the last convolution gives {channels} channels, expected {stack.width}")


def _of_norm(norm: Norm | None, width: int) -> typing.Iterator[Wanted]:
    if norm is not None:
        for name in (norm.weight, norm.bias):
            if name is not None:
                yield name, (width,), "floats"


__all__ = ["DESCRIPTION", "VERSION", "WEIGHTS", "AnyModel", "Linear", "Model", "RecurrentModel", "Tensor", "Weights"]
