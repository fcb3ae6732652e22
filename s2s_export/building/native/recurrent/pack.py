"""Writes a recurrent structure as model.json and weights.bin, which the backend `cuda` reads.

Units and embeddings are filled with zeros up to multiples of 16, each direction of an encoder by itself: so weights
that read both directions, or several things side by side, have gaps of zeros between their columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .... import plugin_sources
from ....runtime.backends._cuda_native import model as packed
from ....runtime.backends._cuda_native import recurrent_model
from ..pack import Packer
from ..structure import Array, Linear, Weight
from .structure import RecurrentStructure, Score, Unit

fragments = plugin_sources.module("transformer.fragments")
rounded = fragments.rounded


def write(structure: RecurrentStructure, element: str, vocabulary: int, folder: Path) -> packed.RecurrentModel:
    """Raises BuildError for weights that the element can't hold."""
    with (folder / packed.WEIGHTS).open("wb") as file:
        model = _Recurrent(Packer(file, element), structure).model(element, vocabulary)
    packed.write(model, folder / packed.DESCRIPTION)
    return model


def _spread(weight: Array, sizes: Sequence[int]) -> Array:
    """Columns [..., sum(sizes)] with zeros behind each part, up to multiples of 16."""
    parts = np.split(np.asarray(weight, np.float32), np.cumsum(sizes)[:-1], axis=-1)
    return np.concatenate([fragments.filled(part, *part.shape[:-1], rounded(part.shape[-1])) for part in parts], -1)


class _Recurrent:
    def __init__(self, packer: Packer, structure: RecurrentStructure) -> None:
        self._packer, self._structure = packer, structure
        self._embedding = structure.target.array.shape[1]
        self._units = structure.decoder[0].size
        self._annotation = [unit.size for unit in structure.encoder[-1]]
        summary = structure.summary
        self._context = [] if summary is None else [len(summary.weight.array)]
        if structure.score is not None:
            self._context = self._annotation

    def model(self, element: str, vocabulary: int) -> packed.RecurrentModel:
        s, packer = self._structure, self._packer
        read: list[list[int]] = [[s.source.array.shape[1]]]
        read += [[unit.size for unit in layer] for layer in s.encoder]
        encoder = [self._cells(layer, read[i], f"encoder.{i}") for i, layer in enumerate(s.encoder)]
        columns = [[self._embedding, *self._context], *[[self._units]] * (len(s.decoder) - 1)]
        decoder = [self._cells((unit,), columns[i], f"decoder.{i}") for i, unit in enumerate(s.decoder)]
        found = packed.RecurrentModel(
            version=packed.VERSION,
            kind=recurrent_model.KIND,
            element=element,
            vocabulary=vocabulary,
            source=self._table(s.source, "source"),
            target=self._table(s.target, "target"),
            encoder=tuple(encoder),
            decoder=tuple(decoder),
            reverse=s.reverse,
            summary=None if s.summary is None else self._reading(s.summary, self._annotation, "summary"),
            score=None if s.score is None else self._score(s.score),
            initial=None if s.initial is None else self._initial(s.initial),
            readout=None if s.readout is None else self._readout(s.readout),
            head=packer.linear(s.head, "head"),
            tensors=packer.tensors,
        )
        packer.align()
        return found

    def _table(self, weight: Weight, name: str) -> recurrent_model.Table:
        vocabulary, width = weight.array.shape
        embedding, scales = self._packer.matrix(weight.array, f"{name}.embedding")
        return recurrent_model.Table(embedding, scales, vocabulary, rounded(width))

    def _cells(self, units: tuple[Unit, ...], sizes: Sequence[int], name: str) -> recurrent_model.Cells:
        """sizes: of what the layer reads, side by side."""
        size, kind = rounded(units[0].size), units[0].kind

        def laid(gates: Array) -> Array:
            """[G, U, ...] of a direction as outputs."""
            return np.asarray(fragments.by_units(fragments.filled(gates, len(gates), size, *gates.shape[2:])))

        hidden_biases = [unit.hidden_bias for unit in units]
        biases = [unit.input_bias for unit in units]
        if kind == "lstm":  # which are added up in any case
            biases = [one if other is None else one + other for one, other in zip(biases, hidden_biases, strict=True)]
            hidden_biases = [None] * len(units)
        kept = [laid(one) for one in hidden_biases if one is not None]
        return recurrent_model.Cells(
            kind=kind,
            directions=len(units),
            units=size,
            input=self._packer.product(
                np.concatenate([laid(_spread(unit.input, sizes)) for unit in units]),
                np.concatenate([laid(bias) for bias in biases]),
                f"{name}.input",
            ),
            hidden=self._packer.product(
                np.concatenate([laid(_spread(unit.hidden, [unit.size])) for unit in units]),
                np.concatenate(kept) if kept else None,
                f"{name}.hidden",
            ),
        )

    def _reading(self, linear: Linear, sizes: Sequence[int], name: str) -> packed.Linear:
        """A product of what lies side by side with these sizes."""
        return self._packer.product(_spread(linear.weight.array, sizes), linear.bias, name)

    def _score(self, score: Score) -> recurrent_model.Score:
        key = score.key
        if key is None and any(size % fragments.TILE for size in self._annotation[:-1]):
            # Between the directions there is a gap of zeros: keys are the annotations with columns as states have them.
            key = Linear(Weight(np.eye(sum(self._annotation), dtype=np.float32), ""), None)
        return recurrent_model.Score(
            query=None if score.query is None else self._packer.linear(score.query, "score.query"),
            energy=None if score.energy is None else self._packer.vector(score.energy, "score.energy"),
            key=None if key is None else self._reading(key, self._annotation, "score.key"),
        )

    def _initial(self, linear: Linear) -> packed.Linear:
        """Its outputs are layer by layer."""
        n_layers, size = len(self._structure.decoder), rounded(self._units)
        weight = np.asarray(linear.weight.array, np.float32)
        laid = fragments.filled(weight.reshape(n_layers, self._units, -1), n_layers, size, rounded(weight.shape[1]))
        bias = None
        if linear.bias is not None:
            bias = fragments.filled(linear.bias.reshape(n_layers, self._units), n_layers, size).reshape(-1)
        return self._packer.product(laid.reshape(n_layers * size, -1), bias, "initial")

    def _readout(self, linear: Linear) -> packed.Linear:
        """Of each pair of outputs the larger one counts: they lie as a gate and its product do."""
        sizes = [self._units, self._embedding, *self._context]
        weight, bias = _spread(linear.weight.array, sizes), linear.bias
        n = rounded(len(weight) // 2)
        laid = fragments.interleaved(*(fragments.filled(weight[i::2], n, weight.shape[1]) for i in (0, 1)))
        if bias is not None:
            bias = fragments.interleaved(*(fragments.filled(np.asarray(bias)[i::2], n) for i in (0, 1)))
        return self._packer.product(laid, bias, "readout")
