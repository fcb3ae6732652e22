"""Writes a structure as model.json and weights.bin, which the backend `cuda` reads (runtime/backends/_cuda_native).

Widths are filled with zeros up to multiples of 16, heads each by itself, so that the kernels know no other sizes. A
weight of the bundle that several parts use is stored once.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import plugin_sources
from ...errors import BuildError
from ...runtime.backends._cuda_native import model as packed
from .structure import Attention, Convolution, FeedForward, Linear, Norm, Part, Positions, Stack, Structure

fragments = plugin_sources.module("transformer.fragments")
Array = NDArray[Any]
LARGEST = {"fp16": 65504.0, "bf16": float("inf"), "int8": float("inf")}


def write(structure: Structure, element: str, vocabulary: int, folder: Path) -> packed.Model:
    """Raises BuildError for weights that the element can't hold, and for heads that are too large."""
    with (folder / packed.WEIGHTS).open("wb") as file:
        packer = Packer(file, element)
        encoder, decoder = (packer.stack(stack, name) for stack, name in _stacks(structure))
        attention = structure.decoder.parts[0].layer
        assert isinstance(attention, Attention)
        cross = packer.cross(structure.cross, attention)
        head = packer.linear(structure.head, "head")
        model = packed.Model(
            packed.VERSION, element, vocabulary, encoder, decoder, cross, head, structure.head_scale, packer.tensors
        )
        packer.align()
    packed.write(model, folder / packed.DESCRIPTION)
    return model


def _stacks(structure: Structure) -> list[tuple[Stack, str]]:
    return [(structure.encoder, "encoder"), (structure.decoder, "decoder")]


def _filled(array: Array) -> Array:
    """With zeros up to multiples of 16 in each axis."""
    return np.asarray(fragments.filled(array, *map(fragments.rounded, array.shape)))


def _split_heads(array: Array, n: int, heads: int, size: int) -> Array:
    """[n*H*D, ...] -> [n*H*D', ...], D' the next multiple of 16."""
    parts = array.reshape(n * heads, size, *array.shape[1:])
    more = fragments.rounded(size) - size
    return np.pad(parts, [(0, 0), (0, more)] + [(0, 0)] * (array.ndim - 1)).reshape(-1, *array.shape[1:])


class Packer:
    """Writes tensors to a file, each once. tensors: where they lie."""

    def __init__(self, file: Any, element: str) -> None:
        self._file = file
        self._element = element
        self._size = 0
        self._places: dict[tuple[str, ...], str] = {}
        self.tensors: dict[str, packed.Tensor] = {}

    def align(self) -> None:
        padding = -self._size % packed.ALIGNMENT
        self._file.write(bytes(padding))
        self._size += padding

    def _store(self, name: str, array: Array, layout: str, shape: tuple[int, ...]) -> str:
        raw = np.ascontiguousarray(array).tobytes()
        key = (layout, str(shape), hashlib.sha256(raw).hexdigest())
        if key not in self._places:
            self.align()
            self.tensors[name] = packed.Tensor(self._size, layout, shape)
            self._file.write(raw)
            self._size += len(raw)
            self._places[key] = name
        return self._places[key]

    def matrix(self, weight: Array, name: str) -> tuple[str, str | None]:
        """weight [O, I], filled to multiples of 16, and where it is stored in 8 bits the scale of each output."""
        found = _filled(np.asarray(weight, np.float32))
        if self._element != "int8":
            return self._plain(found, name), None
        if not np.isfinite(found).all():
            raise BuildError(f"the weight {name} has values that are no numbers; expected finite ones; export again")
        numbers, scale = fragments.quantized(found)
        stored = self._store(name, fragments.pack(numbers, "int8"), "bytes", found.shape)
        return stored, self._store(f"{name}.scale", scale, "floats", scale.shape)

    def _plain(self, weight: Array, name: str) -> str:
        element = fragments.activations(self._element)
        found = _filled(np.asarray(weight, np.float32))
        largest = float(np.abs(found).max(initial=0.0))
        if not largest <= LARGEST[element]:
            raise BuildError(
                f"the weight {name} has a value of {largest:g}, which {element} can't hold; expected at most "
                f"{LARGEST[element]:g}; build cuda-native-bf16"
            )
        return self._store(name, fragments.pack(found, element), "fragments", found.shape)

    def vector(self, values: Array, name: str) -> str:
        filled = _filled(np.asarray(values, np.float32))
        return self._store(name, filled, "floats", filled.shape)

    def product(self, weight: Array, bias: Array | None, name: str) -> packed.Linear:
        """weight [O, I], bias [O]: filled to multiples of 16."""
        stored, scale = self.matrix(weight, f"{name}.weight")
        outputs, inputs = (fragments.rounded(size) for size in weight.shape)
        kept = None if bias is None else self.vector(bias, f"{name}.bias")
        return packed.Linear(stored, scale, kept, outputs, inputs)

    def linear(self, linear: Linear, name: str) -> packed.Linear:
        return self.product(linear.weight.array, linear.bias, name)

    def norm(self, norm: Norm | None, name: str) -> packed.Norm | None:
        if norm is None:
            return None
        bias = None if norm.bias is None else self.vector(norm.bias, f"{name}.bias")
        return packed.Norm(self.vector(norm.weight, f"{name}.weight"), bias, norm.epsilon)

    def stack(self, stack: Stack, name: str) -> packed.Stack:
        n = 3 if name == "decoder" else 2
        layers = [self._layer(stack.parts[i : i + n], f"{name}.{i // n}") for i in range(0, len(stack.parts), n)]
        first = stack.parts[0].layer
        assert isinstance(first, Attention)
        for part in stack.parts:
            if isinstance(part.layer, Attention) and (part.layer.heads, part.layer.head_size) != (
                first.heads, first.head_size,
            ):  # fmt: skip
                raise BuildError(f"layers of the {name} have heads of different sizes; the backend cuda takes one size")
        if first.head_size > 128:
            raise BuildError(
                f"heads of the {name} have {first.head_size} elements; the backend cuda takes at most 128; build a "
                "target of onnxruntime-cuda or TensorRT"
            )
        embedding = row_scales = None
        if stack.embedding is not None:
            vocabulary, width = stack.embedding.array.shape
            embedding, row_scales = self.matrix(stack.embedding.array, f"{name}.embedding")
        else:
            vocabulary, width = 0, len(stack.stem[-1].weight)
        return packed.Stack(
            width=fragments.rounded(width),
            true_width=width,
            heads=first.heads,
            head_size=fragments.rounded(first.head_size),
            norm_first=stack.norm_first,
            embedding=embedding,
            embedding_row_scales=row_scales,
            vocabulary=vocabulary,
            embedding_scale=stack.embedding_scale,
            positions=self._positions(stack.positions, name, is_plain=bool(stack.stem)),
            embedding_norm=self.norm(stack.embedding_norm, f"{name}.embedding_norm"),
            final_norm=self.norm(stack.final_norm, f"{name}.final_norm"),
            layers=tuple(layers),
            stem=self._stem(stack.stem, name),
        )

    def _stem(self, stem: tuple[Convolution, ...], name: str) -> tuple[packed.Convolution, ...]:
        """Beyond the first convolution channels are filled up to a multiple of 16, as the rows before them are."""
        found = []
        for i, one in enumerate(stem):
            n_out, size, channels = one.weight.shape
            more = fragments.rounded(channels) - channels if i else 0
            weight = np.pad(np.asarray(one.weight, np.float32), ((0, 0), (0, 0), (0, more))).reshape(n_out, -1)
            product = self.product(weight, one.bias, f"{name}.stem.{i}")
            found.append(packed.Convolution(product, channels + more, size, one.step, one.padding, one.activation))
        return tuple(found)

    def _positions(self, positions: Positions | None, name: str, is_plain: bool) -> packed.Positions | None:
        """is_plain: rows are added as they are, by a product that makes the stream, and not looked up."""
        if positions is None:
            return None
        array = np.asarray(positions.table.array, np.float32)
        if is_plain:
            filled = fragments.filled(array, len(array), fragments.rounded(array.shape[1]))
            table = self._store(f"{name}.positions", filled, "floats", filled.shape)
        else:
            table = self._plain(array, f"{name}.positions")
        n = len(positions.table.array)
        return packed.Positions(table, n, positions.offset, positions.padding_id, positions.padding_moves)

    def _layer(self, parts: tuple[Part, ...], name: str) -> packed.Layer:
        attentions = [self._attention(part, f"{name}.{i}") for i, part in enumerate(parts[:-1])]
        return packed.Layer(
            self_attention=attentions[0],
            cross_attention=attentions[1] if len(attentions) > 1 else None,
            feed_forward=self._feed_forward(parts[-1], f"{name}.feed_forward"),
        )

    def _attention(self, part: Part, name: str) -> packed.Attention:
        own = part.layer
        assert isinstance(own, Attention)
        heads, size = own.heads, own.head_size
        n = own.rows.weight.array.shape[0] // (heads * size)
        weight = _split_heads(np.asarray(own.rows.weight.array), n, heads, size)
        bias = None if own.rows.bias is None else _split_heads(np.asarray(own.rows.bias), n, heads, size)
        output = _split_heads(np.ascontiguousarray(own.output.weight.array.T), 1, heads, size).T
        norm = self.norm(part.norm, f"{name}.norm")
        assert norm is not None
        return packed.Attention(
            rows=self.product(weight, bias, f"{name}.rows"),
            output=self.product(output, own.output.bias, f"{name}.output"),
            norm=norm,
            scale=own.scale,
            distances=self._distances(own, f"{name}.distances"),
        )

    def _distances(self, own: Attention, name: str) -> packed.Distances | None:
        if own.distances is None:
            return None
        table = np.asarray(own.distances.table, np.float32)
        return packed.Distances(self._store(name, table, "floats", table.shape), own.distances.first, table.shape[1])

    def _feed_forward(self, part: Part, name: str) -> packed.FeedForward:
        own = part.layer
        assert isinstance(own, FeedForward)
        weight, bias = np.asarray(own.inner.weight.array), own.inner.bias
        if own.gated:
            gate, inner = np.split(weight, 2)
            weight = fragments.interleaved(_rows_filled(gate), _rows_filled(inner))
            if bias is not None:
                bias = fragments.interleaved(*(_rows_filled(half) for half in np.split(np.asarray(bias), 2)))
        norm = self.norm(part.norm, f"{name}.norm")
        assert norm is not None
        return packed.FeedForward(
            inner=self.product(weight, bias, f"{name}.inner"),
            outer=self.linear(own.outer, f"{name}.outer"),
            norm=norm,
            activation=own.activation,
            gated=own.gated,
        )

    def cross(self, layers: tuple[Linear, ...], attention: Attention) -> packed.Linear:
        """Keys and values of all layers as one product."""
        heads, size = attention.heads, attention.head_size
        weight = np.concatenate([_split_heads(np.asarray(one.weight.array), 2, heads, size) for one in layers])
        bias = None
        if any(one.bias is not None for one in layers):
            found = [np.zeros(2 * heads * size, np.float32) if one.bias is None else one.bias for one in layers]
            bias = np.concatenate([_split_heads(np.asarray(one), 2, heads, size) for one in found])
        return self.product(weight, bias, "cross")


def _rows_filled(array: Array) -> Array:
    return np.asarray(fragments.filled(array, fragments.rounded(len(array)), *array.shape[1:]))
