"""Emits the three graphs of recurrent encoder-decoders: LSTM (1409.3215), GRU (1406.1078), attention (1409.0473).

The encoder is ONNX's LSTM or GRU operator with sequence lengths, so that padding changes nothing. The decoder step uses
plain matrix products, which every backend runs well for one token. It first gathers its states [B,K,U] by `parents`: a
Transformer leaves its caches where they are and follows the ancestor table, but a recurrent model has only U numbers to
move for each layer and beam.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
import torch

from ...runtime.sources.token_ids import INPUT_IDS
from .biases import source_mask_bias
from .builder import FLOAT, INT64, Dimension, GraphBuilder
from .structure import Linear
from .transformer import emit_candidates
from .weights import WeightStore

Tensor = torch.Tensor


@dataclass(frozen=True)
class Unit:
    """One direction of one layer as torch stores it: input [G*U, in], hidden [G*U, U], biases [G*U].

    kind: "lstm" with the gates i, f, g, o or "gru" with r, z, n.
    """

    kind: str
    input_weight: Tensor
    hidden_weight: Tensor
    input_bias: Tensor
    hidden_bias: Tensor

    @property
    def size(self) -> int:
        return self.hidden_weight.shape[1]


@dataclass(frozen=True)
class Score:
    """The score of annotation h_j for state s: v.tanh(W s + k_j) with `query`, else s.k_j; k_j = key(h_j), or h_j."""

    query: Linear | None = None
    energy: Linear | None = None
    key: Linear | None = None


@dataclass(frozen=True)
class Recurrent:
    """A recurrent encoder-decoder. Letters: V vocabulary, E embedding, U units.

    encoder: units by layer and direction. A layer has one direction, or a forward and a backward one.
    reverse_source: the encoder reads from the last token to the first.
    summary: [U, U], the context tanh(summary(h)) that is fed to every step (1406.1078), or None.
    score: of the attention, or None without attention. initial: computes the first states of all layers from the
    context or from the backward encoder; None if the decoder starts from the encoder's last states.
    readout: maxout layer before the output, or None.
    """

    EMITTER: ClassVar[str] = ".recurrent"

    source_embedding: Tensor
    target_embedding: Tensor
    encoder: tuple[tuple[Unit, ...], ...]
    decoder: tuple[Unit, ...]
    output: Linear
    reverse_source: bool = False
    summary: Linear | None = None
    score: Score | None = None
    initial: Linear | None = None
    readout: Linear | None = None

    def sizes(self) -> dict[str, int]:
        return {
            "vocabulary_size": self.output.weight.shape[0],
            "source_vocabulary_size": self.source_embedding.shape[0],
            "width": self.target_embedding.shape[1],
            "units": self.decoder[0].size,
            "encoder_layers": len(self.encoder),
            "decoder_layers": len(self.decoder),
        }

    @property
    def state_names(self) -> tuple[str, ...]:
        return ("hidden", "cell") if self.decoder[0].kind == "lstm" else ("hidden",)


def emit(model: Recurrent, store: WeightStore) -> dict[str, onnx.ModelProto]:
    """The graphs by name: encoder, cross_kv_init, decoder_step. Weights go to `store`."""
    return {
        "encoder": _encoder(model, store),
        "cross_kv_init": _cross_kv_init(model, store),
        "decoder_step": _decoder_step(model, store),
    }


def _encoder(model: Recurrent, store: WeightStore) -> onnx.ModelProto:
    """Outputs: encoder_states [B,S,U] with attention, context [B,U] with a summary, else the last states [B,L,U]."""
    g = GraphBuilder("encoder", store)
    units = model.decoder[0].size
    ids = g.input(INPUT_IDS, INT64, ["B", "S"])
    mask = g.input("source_mask", INT64, ["B", "S"])
    with g.scope("encoder"):
        lengths = g.op("Cast", [g.op("ReduceSum", [mask, g.constant([1])], keepdims=0)], to=onnx.TensorProto.INT32)
        x = g.op("Gather", [g.weight("embedding", model.source_embedding), ids], axis=0)  # [B,S,E]
        x = g.transpose(x, [1, 0, 2])  # [S,B,E]
        finals = []
        for i, layer in enumerate(model.encoder):
            with g.scope(f"layer{i}"):
                x, final = _recurrence(g, x, layer, lengths, model.reverse_source)
                finals.append(final)
        if model.score is not None:
            states = g.transpose(x, [1, 0, 2])
        elif model.summary is not None:
            last = g.op("Squeeze", [finals[-1][0], g.constant([0])])  # [B,U]
            context = g.op("Tanh", [g.linear(last, model.summary.weight, model.summary.bias, "summary")])
    if model.score is not None:
        g.output(states, "encoder_states", FLOAT, ["B", "S", units])
    elif model.summary is not None:
        g.output(context, "context", FLOAT, ["B", units])
    else:
        for name, values in zip(model.state_names, zip(*finals, strict=True), strict=True):
            by_layer = g.op("Concat", list(values), axis=0) if len(values) > 1 else values[0]  # [L,B,U]
            g.output(g.transpose(by_layer, [1, 0, 2]), f"final_{name}", FLOAT, ["B", len(values), units])
    return g.model()


def _recurrence(
    g: GraphBuilder, x: str, layer: tuple[Unit, ...], lengths: str, reverse: bool
) -> tuple[str, tuple[str, ...]]:
    """x [S,B,in] -> outputs [S,B,dirs*U] and the last states [dirs,B,U]."""
    kind = layer[0].kind
    inputs = [
        x,
        g.weight("input", torch.stack([_onnx_gates(unit.input_weight, kind) for unit in layer])),
        g.weight("hidden", torch.stack([_onnx_gates(unit.hidden_weight, kind) for unit in layer])),
        g.weight("bias", torch.stack([_onnx_biases(unit) for unit in layer])),
        lengths,
    ]
    direction = "bidirectional" if len(layer) == 2 else "reverse" if reverse else "forward"
    attributes: dict[str, Any] = {"hidden_size": layer[0].size, "direction": direction}
    if kind == "gru":
        attributes["linear_before_reset"] = 1  # as in torch, where the reset gate multiplies W h + b and not h
    outputs, *final = g.ops(kind.upper(), inputs, 3 if kind == "lstm" else 2, **attributes)  # [S,dirs,B,U]
    merged = g.reshape(g.transpose(outputs, [0, 2, 1, 3]), [0, 0, len(layer) * layer[0].size])
    return merged, tuple(final)


def _onnx_gates(stacked: Tensor, kind: str) -> Tensor:
    """torch stacks the gates i, f, g, o (r, z, n), ONNX i, o, f, g (z, r, n)."""
    parts = stacked.chunk(4 if kind == "lstm" else 3)
    order = (0, 3, 1, 2) if kind == "lstm" else (1, 0, 2)
    return torch.cat([parts[i] for i in order])


def _onnx_biases(unit: Unit) -> Tensor:
    return torch.cat([_onnx_gates(unit.input_bias, unit.kind), _onnx_gates(unit.hidden_bias, unit.kind)])


def _cross_kv_init(model: Recurrent, store: WeightStore) -> onnx.ModelProto:
    """What is computed once per source: the score's projection of the annotations, and the decoder's first states."""
    g = GraphBuilder("cross_kv_init", store)
    units, n_layers = model.decoder[0].size, len(model.decoder)
    if model.score is None and model.summary is None:
        for name in model.state_names:
            final = g.input(f"final_{name}", FLOAT, ["B", n_layers, units])
            for i, value in enumerate(_split_layers(g, final, n_layers)):
                g.output(value, f"{name}.{i}", FLOAT, ["B", units])
        return g.model()
    assert model.initial is not None
    if model.score is not None:
        states = g.input("encoder_states", FLOAT, ["B", "S", units])
        batch = g.size(states, 0)
        if (key := model.score.key) is not None:
            keys = g.linear(g.reshape(states, [-1, units]), key.weight, key.bias, "key")
            g.output(g.reshape(keys, [batch, g.size(states, 1), units]), "cross_key.0", FLOAT, ["B", "S", units])
        first = g.op("Gather", [states, g.constant(0)], axis=1)  # [B,U]; its second half read the source backwards
        one = g.constant([1])
        source = g.op("Slice", [first, g.constant([units // 2]), g.constant([units]), one])
    else:
        source = g.input("context", FLOAT, ["B", units])
        batch = g.size(source, 0)
    first = g.op("Tanh", [g.linear(source, model.initial.weight, model.initial.bias, "initial")])
    hidden = _split_layers(g, g.reshape(first, [0, n_layers, units]), n_layers)
    for i, value in enumerate(hidden):
        g.output(value, f"hidden.{i}", FLOAT, ["B", units])
    for i in range(n_layers if "cell" in model.state_names else 0):
        zero = g.op("Expand", [g.constant(0.0, np.float32), g.op("Concat", [batch, g.constant([units])], axis=0)])
        g.output(zero, f"cell.{i}", FLOAT, ["B", units])
    return g.model()


def _split_layers(g: GraphBuilder, stacked: str, n_layers: int) -> list[str]:
    """[B,L,U] -> L times [B,U]"""
    return [g.op("Gather", [stacked, g.constant(i)], axis=1) for i in range(n_layers)]


def _decoder_step(model: Recurrent, store: WeightStore) -> onnx.ModelProto:
    g = GraphBuilder("decoder_step", store)
    units = model.decoder[0].size
    token = g.input("token", INT64, ["B", "K"])
    parents = g.input("parents", INT64, ["B", "K"])
    batch, beams = g.size(token, 0), g.size(token, 1)
    shape: list[Dimension] = ["B", "K", units]
    with g.scope("decoder"):
        x = g.op("Gather", [g.weight("embedding", model.target_embedding), g.reshape(token, [-1])], axis=0)  # [R,E]
        rows = parent_rows(g, parents, batch, beams)
        states = [
            [
                g.op("Gather", [g.reshape(g.input(f"{name}.{i}", FLOAT, shape), [-1, units]), rows], axis=0)
                for name in model.state_names
            ]
            for i in range(len(model.decoder))
        ]
        context = weights = None
        if model.score is not None:
            with g.scope("attention"):
                context, weights = _attend(g, model.score, states[-1][0], units, batch, beams)
        elif model.summary is not None:
            context = _repeat_rows(g, g.input("context", FLOAT, ["B", units]), units, batch, beams)
        value = x if context is None else g.op("Concat", [x, context], axis=1)
        updated = []
        for i, unit in enumerate(model.decoder):
            with g.scope(f"layer{i}"):
                updated.append(_cell(g, unit, value, states[i]))
                value = updated[-1][0]
        if model.readout is not None:
            assert context is not None
            seen = g.op("Concat", [value, x, context], axis=1)
            pairs = g.reshape(g.linear(seen, model.readout.weight, model.readout.bias, "readout"), [0, -1, 2])
            value = g.op("ReduceMax", [pairs, g.constant([2])], keepdims=0)
    with g.scope("head"):
        logits = g.linear(value, model.output.weight, model.output.bias, "head")
    emit_candidates(g, logits, model.output.weight.shape[0], batch, beams)
    if weights is not None:
        g.output(g.op("Unsqueeze", [weights, g.constant([2, 3])]), "attention", FLOAT, ["B", "K", 1, 1, "S"])
    for i, layer_states in enumerate(updated):
        for name, state in zip(model.state_names, layer_states, strict=True):
            g.output(g.reshape(state, [batch, beams, units]), f"{name}_out.{i}", FLOAT, shape)
    return g.model()


def parent_rows(g: GraphBuilder, parents: str, batch: str, beams: str) -> str:
    """parents [B,K] -> the row b*K + parents[b,k] of each beam, [R]."""
    first = g.op("Mul", [g.range(batch), g.op("Squeeze", [beams])])
    return g.reshape(g.op("Add", [g.op("Unsqueeze", [first, g.constant([1])]), parents]), [-1])


def _repeat_rows(g: GraphBuilder, value: str, units: int, batch: str, beams: str) -> str:
    """[B,U] -> [R,U], a row for every beam"""
    shape = g.op("Concat", [batch, beams, g.constant([units])], axis=0)
    return g.reshape(g.op("Expand", [g.op("Unsqueeze", [value, g.constant([1])]), shape]), [-1, units])


def _attend(g: GraphBuilder, score: Score, state: str, units: int, batch: str, beams: str) -> tuple[str, str]:
    """state [R,U] -> context [R,U] and weights [B,K,S] (1409.0473, equations 5 and 6)."""
    annotations = g.input("encoder_states", FLOAT, ["B", "S", units])
    keys = annotations if score.key is None else g.input("cross_key.0", FLOAT, ["B", "S", units])
    mask = g.op("Squeeze", [source_mask_bias(g, g.input("source_mask", INT64, ["B", "S"])), g.constant([1])])  # [B,1,S]
    if score.query is None:
        asking = g.reshape(state, [batch, beams, units])
        energies = g.op("MatMul", [asking, g.transpose(keys, [0, 2, 1])])  # [B,K,S]
    else:
        assert score.energy is not None
        asking = g.linear(state, score.query.weight, score.query.bias, "query")
        asking = g.reshape(asking, [batch, beams, 1, units])
        both = g.op("Tanh", [g.op("Add", [asking, g.op("Unsqueeze", [keys, g.constant([1])])])])  # [B,K,S,U]
        energy = g.weight("energy", score.energy.weight.reshape(-1, 1))
        energies = g.op("Squeeze", [g.op("MatMul", [both, energy]), g.constant([3])])
    weights = g.op("Softmax", [g.op("Add", [energies, mask])], axis=-1)
    context = g.reshape(g.op("MatMul", [weights, annotations]), [-1, units])
    return context, weights


def _cell(g: GraphBuilder, unit: Unit, x: str, states: list[str]) -> list[str]:
    """One unit for rows x [R,in] and states [R,U]. The equations are in reference/lstm.py and reference/gru.py."""
    hidden = states[0]
    sizes = g.constant([unit.size] * (4 if unit.kind == "lstm" else 3))
    if unit.kind == "lstm":
        weight = torch.cat([unit.input_weight, unit.hidden_weight], dim=1)
        joined = g.op("Concat", [x, hidden], axis=1)
        gates = g.linear(joined, weight, unit.input_bias + unit.hidden_bias, "gates")
        i, f, candidate, o = g.ops("Split", [gates, sizes], 4, axis=1)
        kept = g.op("Mul", [g.op("Sigmoid", [f]), states[1]])
        cell = g.op("Add", [kept, g.op("Mul", [g.op("Sigmoid", [i]), g.op("Tanh", [candidate])])])
        return [g.op("Mul", [g.op("Sigmoid", [o]), g.op("Tanh", [cell])]), cell]
    from_input = g.ops("Split", [g.linear(x, unit.input_weight, unit.input_bias, "input"), sizes], 3, axis=1)
    from_hidden = g.ops("Split", [g.linear(hidden, unit.hidden_weight, unit.hidden_bias, "hidden"), sizes], 3, axis=1)
    reset, update = (g.op("Sigmoid", [g.op("Add", [from_input[i], from_hidden[i]])]) for i in (0, 1))
    candidate = g.op("Tanh", [g.op("Add", [from_input[2], g.op("Mul", [reset, from_hidden[2]])])])
    # (1 - z) * n + z * h = n + z * (h - n)
    return [g.op("Add", [candidate, g.op("Mul", [update, g.op("Sub", [hidden, candidate])])])]
