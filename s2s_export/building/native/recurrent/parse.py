"""Reads a recurrent model's structure back from the three graphs of a bundle.

They are those of `exporting/graphs/recurrent.py`: the reference models of 2014. A decoder step that was traced from a
module's own code may have any operators, and is refused.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ....bundle import Bundle
from ...graphs import graph as graphs
from ...graphs.links import attribute
from ..parse import INPUT_IDS, refused
from ..reading import NotStandard, Reader
from ..structure import Array, Linear, Weight
from .structure import RecurrentStructure, Score, Unit

STATES, CONTEXT = "encoder_states", "context"
KINDS = {"LSTM": "lstm", "GRU": "gru"}
# Of ONNX's gates i, o, f, g and z, r, n: torch's order.
ORDERS = {"lstm": (0, 2, 3, 1), "gru": (1, 0, 2)}
TRACED = "state_"  # how the states of a traced module begin


def parse(bundle: Bundle) -> RecurrentStructure:
    """Raises BuildError, with the reason, for a model that is none of the reference models."""
    kind = bundle.manifest["source"].get("kind", "token_ids")
    if kind != "token_ids":
        raise refused(bundle, f"its decoder is recurrent and it reads {kind.replace('_', ' ')}, not text")
    read = {name: Reader(graphs.load(bundle.graph_path(name), name)) for name in bundle.manifest["graphs"]}
    step, encoder, first = read["decoder_step"], read["encoder"], read["cross_kv_init"]
    try:
        if any(name.startswith(TRACED) for name in step.graph.inputs):
            raise NotStandard("its decoder is recurrent, and its steps were traced from a module's own code")
        return _Decoder(step).structure(encoder, first)
    except NotStandard as reason:
        raise refused(bundle, str(reason)) from None


class _Decoder:
    """The decoder step's parts, by the names of their values."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        outputs = reader.graph.outputs
        self.states = [name for name in outputs if name.startswith("hidden_out.")]
        self.states = [str(self._maker(f"hidden_out.{i}", "Reshape").input[0]) for i in range(len(self.states))]
        if not self.states:
            raise NotStandard("its decoder is recurrent and has no hidden states")

    def _maker(self, value: str, *op_types: str) -> Any:
        return self.reader.node(value, *op_types, what="the recurrent decoder's step")

    def structure(self, encoder: Reader, first: Reader) -> RecurrentStructure:
        softmax = next((node for node in self.reader.graph.nodes if node.op_type == "LogSoftmax"), None)
        if softmax is None:
            raise NotStandard("its decoder step has no log-softmax")
        value, head = self.reader.linear(softmax.input[0], "the output projection")
        units, read = [], []
        for i, state in enumerate(self.states):
            gates = self._lstm if self.reader.maker(state) == "Mul" else self._gru
            before, unit = gates(state, i)
            units.append(unit)
            read.append(before)
        if read[1:] != self.states[:-1]:
            raise NotStandard("a layer of its recurrent decoder reads something else than the layer before")
        embedded, context = read[0], ""
        if self.reader.maker(read[0]) == "Concat":
            embedded, context = self._maker(read[0], "Concat").input
        readout = None
        if self.reader.maker(value) == "ReduceMax":
            pairs = self._maker(self._maker(value, "ReduceMax").input[0], "Reshape").input[0]
            seen, readout = self.reader.linear(pairs, "the layer before the output projection")
            if list(self._maker(seen, "Concat").input) != [self.states[-1], embedded, context]:
                raise NotStandard("the layer before the output projection reads no state, embedding and context")
        elif value != self.states[-1]:
            raise NotStandard("its output projection reads something else than the last layer's state")
        layers, reverse, source = _encoder(encoder)
        key = _key(first) if "cross_key.0" in first.graph.outputs else None
        score = self._score(context, key) if context and self._is_attention(context) else None
        return RecurrentStructure(
            source=source,
            target=self._embedding(embedded),
            encoder=layers,
            decoder=tuple(units),
            reverse=reverse,
            summary=_summary(encoder) if context and score is None else None,
            score=score,
            initial=_initial(first),
            readout=readout,
            head=head,
        )

    def _embedding(self, value: str) -> Weight:
        node = self._maker(value, "Gather")
        if self._maker(node.input[1], "Reshape").input[0] != "token":
            raise NotStandard("embeddings are looked up by something else than the tokens")
        return self.reader.weight(node.input[0], "the embedding")

    def _is_gathered(self, value: str, name: str) -> bool:
        """Whether a value is the states of the beams' parents."""
        node = self.reader.links.maker(value, "Gather")
        shaped = None if node is None else self.reader.links.maker(node.input[0], "Reshape")
        return shaped is not None and shaped.input[0] == name

    def _lstm(self, state: str, number: int) -> tuple[str, Unit]:
        """What a layer reads, and its weights."""
        gate = self._maker(self._maker(state, "Mul").input[0], "Sigmoid")
        joined, gates = self.reader.linear(self._maker(gate.input[0], "Split").input[0], "an LSTM's gates")
        value, before = self._maker(joined, "Concat").input
        if not self._is_gathered(before, f"hidden.{number}") or gates.bias is None:
            raise NotStandard("an LSTM's gates read no last state or have no bias")
        weight, bias = _by_gate(gates.weight.array, 4), _by_gate(gates.bias, 4)
        n = weight.shape[1]
        return value, Unit("lstm", weight[..., :-n], weight[..., -n:], bias, None)

    def _gru(self, state: str, number: int) -> tuple[str, Unit]:
        candidate = self._maker(self._maker(state, "Add").input[0], "Tanh")
        total = self._maker(candidate.input[0], "Add")
        product = self._maker(total.input[1], "Mul")
        value, read = self.reader.linear(self._maker(total.input[0], "Split").input[0], "a GRU's gates")
        before, hidden = self.reader.linear(self._maker(product.input[1], "Split").input[0], "a GRU's gates")
        if not self._is_gathered(before, f"hidden.{number}") or read.bias is None or hidden.bias is None:
            raise NotStandard("a GRU's gates read no last state or have no bias")
        return value, Unit(
            "gru",
            *(_by_gate(one.weight.array, 3) for one in (read, hidden)),
            *(_by_gate(bias, 3) for bias in (read.bias, hidden.bias)),
        )

    def _is_attention(self, context: str) -> bool:
        return self.reader.maker(self._maker(context, "Reshape").input[0]) == "MatMul"

    def _score(self, context: str, key: Linear | None) -> Score:
        weights, annotations = self._maker(self._maker(context, "Reshape").input[0], "MatMul").input
        energies = self._maker(self._maker(weights, "Softmax").input[0], "Add").input[0]
        query = energy = None
        if self.reader.maker(energies) == "Squeeze":
            product = self._maker(self._maker(energies, "Squeeze").input[0], "MatMul")
            both = self._maker(self._maker(product.input[0], "Tanh").input[0], "Add")
            before, query = self.reader.linear(self._maker(both.input[0], "Reshape").input[0], "attention's query")
            keys, energy = self._maker(both.input[1], "Unsqueeze").input[0], self.reader.constant(product.input[1])
        else:
            product = self._maker(energies, "MatMul")
            before = self._maker(product.input[0], "Reshape").input[0]
            keys = self._maker(product.input[1], "Transpose").input[0]
        is_known = annotations == STATES and keys == (STATES if key is None else "cross_key.0")
        if not is_known or (query is not None and energy is None):
            raise NotStandard("attention reads something else than the encoder's states and their keys")
        if not self._is_gathered(before, f"hidden.{len(self.states) - 1}"):
            raise NotStandard("attention asks with something else than the last layer's state before the step")
        return Score(query, None if energy is None else np.asarray(energy, np.float32).reshape(-1), key)


def _by_gate(array: Array, n: int) -> Array:
    """[G*U, ...] -> [G, U, ...]"""
    found = np.asarray(array, np.float32)
    return found.reshape(n, -1, *found.shape[1:])


def _encoder(reader: Reader) -> tuple[tuple[tuple[Unit, ...], ...], bool, Weight]:
    """Layers, whether they read backwards, and the embedding."""
    layers: list[tuple[Unit, ...]] = []
    value, reverse = "", False
    for node in reader.graph.nodes:
        if node.op_type not in KINDS:
            if node.op_type == "RNN":
                raise NotStandard("its encoder has plain recurrent layers, no LSTM or GRU")
            continue
        inside = reader.node(node.input[0], "Reshape", "Transpose", what="what a layer of the encoder reads").input[0]
        if not layers:
            table = reader.node(inside, "Gather", what="what the encoder's first layer reads")
            if table.input[1] != INPUT_IDS:
                raise NotStandard("embeddings are looked up by something else than the tokens")
            source = reader.weight(table.input[0], "the embedding")
        elif reader.node(inside, "Transpose", what="what a layer of the encoder reads").input[0] != value:
            raise NotStandard("a layer of its recurrent encoder reads something else than the layer before")
        layers.append(_layer(reader, node))
        value = str(node.output[0])
        reverse = attribute(node, "direction", b"forward") == b"reverse"
    if not layers:
        raise NotStandard("its encoder has no LSTM or GRU")
    return tuple(layers), reverse, source


def _layer(reader: Reader, node: Any) -> tuple[Unit, ...]:
    kind = KINDS[node.op_type]
    if kind == "gru" and not attribute(node, "linear_before_reset", 0):
        raise NotStandard("the reset gate of its GRU multiplies the state and not its product")
    n, found = len(ORDERS[kind]), []
    order = list(ORDERS[kind])
    weights, hidden, biases = (reader.constant(name) for name in node.input[1:4])
    if weights is None or hidden is None or biases is None or any(node.input[5:]) or attribute(node, "activations"):
        raise NotStandard("a layer of its recurrent encoder has first states or activations of its own")
    for one, other, bias in zip(weights, hidden, biases, strict=True):
        of_input, of_hidden = (_by_gate(half, n)[order] for half in np.split(np.asarray(bias, np.float32), 2))
        found.append(Unit(kind, _by_gate(one, n)[order], _by_gate(other, n)[order], of_input, of_hidden))
    return tuple(found)


def _summary(reader: Reader) -> Linear:
    value = reader.node(CONTEXT, "Tanh", what="the context").input[0]
    return reader.linear(value, "the context")[1]


def _initial(reader: Reader) -> Linear | None:
    """None where the decoder starts from the encoder's states."""
    stacked = reader.node("hidden.0", "Gather", what="the decoder's first state").input[0]
    if stacked in reader.graph.inputs:
        return None
    value = reader.node(stacked, "Reshape", what="the decoder's first state").input[0]
    value = reader.node(value, "Tanh", what="the decoder's first state").input[0]
    return reader.linear(value, "the decoder's first state")[1]


def _key(reader: Reader) -> Linear:
    return reader.linear(reader.node("cross_key.0", "Reshape", what="attention's keys").input[0], "attention's keys")[1]
