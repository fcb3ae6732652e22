"""Recurrent layers while a module is traced: torch would unroll them over the length of the example.

`as_one_operator` replaces nn.RNN, nn.GRU and nn.LSTM by modules of the same interface that call one opaque operator for
each layer, which becomes ONNX's RNN, GRU or LSTM. Packed sequences are understood: between `pack_padded_sequence` and
`pad_packed_sequence` the padded tensor goes on with its lengths, which ONNX's operators take.

Letters: S length, B rows, U units, n directions, G gates.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.utils import rnn

from ...errors import UnsupportedModel

KINDS = {"LSTM": "LSTM", "GRU": "GRU", "RNN_TANH": "RNN", "RNN_RELU": "RNN"}
# torch stacks the gates i, f, g, o of an LSTM and r, z, n of a GRU; ONNX i, o, f, g and z, r, n.
GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}
N_STATES = {"LSTM": 2, "GRU": 1, "RNN": 1}


@torch.library.custom_op("s2s_export::recurrence", mutates_args=())
def recurrence(
    inputs: Tensor,
    weight: Tensor,
    hidden_weight: Tensor,
    bias: Tensor,
    lengths: Tensor,
    hidden: Tensor,
    cell: Tensor,
    kind: str,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer as ONNX defines it: inputs [S,B,in], states [n,B,U] -> outputs [S,n,B,U] and the last states.

    Outside of a trace nobody calls it.
    """
    raise NotImplementedError


@recurrence.register_fake
def _(
    inputs: Tensor,
    weight: Tensor,
    hidden_weight: Tensor,
    bias: Tensor,
    lengths: Tensor,
    hidden: Tensor,
    cell: Tensor,
    kind: str,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    directions, units = hidden.shape[0], hidden.shape[2]
    outputs = inputs.new_empty((inputs.shape[0], directions, inputs.shape[1], units))
    return outputs, torch.empty_like(hidden), torch.empty_like(cell)


def translation() -> dict[Any, Any]:
    """How torch.onnx writes the operator."""
    from onnxscript import opset18

    op: Any = opset18

    def translate(  # type: ignore[no-untyped-def]
        inputs, weight, hidden_weight, bias, lengths, hidden, cell, kind, activation
    ):
        directions, units = int(hidden_weight.shape[0]), int(hidden_weight.shape[2])
        options: dict[str, Any] = {
            "hidden_size": units,
            "direction": "bidirectional" if directions == 2 else "forward",
        }
        given = (inputs, weight, hidden_weight, bias, op.Cast(lengths, to=6), hidden)  # 6: int32
        if kind == "LSTM":
            return op.LSTM(*given, cell, **options)
        if kind == "GRU":  # torch's reset gate multiplies W h + b and not h
            outputs, last = op.GRU(*given, **options, linear_before_reset=1)
        else:
            outputs, last = op.RNN(*given, **options, activations=[activation] * directions)
        return outputs, last, cell

    return {torch.ops.s2s_export.recurrence.default: translate}


class Packed(NamedTuple):
    """In place of a PackedSequence: the padded tensor [S,B,F] and the lengths [B]."""

    padded: Tensor
    lengths: Tensor


class Recurrence(nn.Module):
    """In place of an nn.RNN, nn.GRU or nn.LSTM, whose attributes it has."""

    def __init__(self, original: nn.RNNBase, name: str) -> None:
        super().__init__()
        if original.proj_size:
            raise UnsupportedModel(
                f"{name} has proj_size {original.proj_size}, and ONNX's LSTM no projection; project its outputs with "
                "an nn.Linear instead"
            )
        for attribute in ("input_size", "hidden_size", "num_layers", "batch_first", "bidirectional", "mode", "bias"):
            setattr(self, attribute, getattr(original, attribute))
        self.hidden_size: int
        self.num_layers: int
        self.batch_first: bool
        self.kind = KINDS[original.mode]
        self.activation = "Relu" if original.mode == "RNN_RELU" else "Tanh"
        self.directions = 2 if original.bidirectional else 1
        for layer in range(original.num_layers):
            suffixes = [f"_l{layer}", f"_l{layer}_reverse"][: self.directions]
            parts = {
                "weight": [_gates(getattr(original, f"weight_ih{s}"), self.kind) for s in suffixes],
                "hidden_weight": [_gates(getattr(original, f"weight_hh{s}"), self.kind) for s in suffixes],
                "biases": [_biases(original, s, self.kind) for s in suffixes],
            }
            for part, tensors in parts.items():
                self.register_buffer(f"{part}_{layer}", torch.stack(tensors).detach())

    def flatten_parameters(self) -> None:
        """Nothing to do: the weights are stacked."""

    def forward(self, inputs: Any, states: Any = None) -> tuple[Any, Any]:
        is_packed = isinstance(inputs, Packed)
        x = inputs.padded if is_packed else inputs
        is_single = x.dim() == 2
        if is_single:
            x = x.unsqueeze(0 if self.batch_first else 1)
        if self.batch_first and not is_packed:
            x = x.transpose(0, 1)
        rows, lengths = x.shape[1], inputs.lengths if is_packed else None
        if lengths is None:
            lengths = torch.full((rows,), x.shape[0], dtype=torch.int64)
        first = self._first(states, x, rows)
        lasts: list[list[Tensor]] = [[], []]
        for layer in range(self.num_layers):
            place = slice(layer * self.directions, (layer + 1) * self.directions)
            outputs, *last = recurrence(
                x,
                getattr(self, f"weight_{layer}"),
                getattr(self, f"hidden_weight_{layer}"),
                getattr(self, f"biases_{layer}"),
                lengths,
                first[0][place],
                first[1][place],
                self.kind,
                self.activation,
            )
            x = outputs.permute(0, 2, 1, 3).flatten(2)
            for found, value in zip(lasts, last, strict=True):
                found.append(value)
        final: Any = tuple(torch.cat(found) for found in lasts[: N_STATES[self.kind]])
        if is_packed:
            return Packed(x, lengths), final if self.kind == "LSTM" else final[0]
        if self.batch_first:
            x = x.transpose(0, 1)
        if is_single:
            x, final = x.squeeze(0 if self.batch_first else 1), tuple(value.squeeze(1) for value in final)
        return x, final if self.kind == "LSTM" else final[0]

    def _first(self, states: Any, x: Tensor, rows: Any) -> tuple[Tensor, Tensor]:
        """Hidden and cell states before the first step, [layers*n,B,U] each."""
        zeros = x.new_zeros((self.num_layers * self.directions, rows, self.hidden_size))
        if states is None:
            return zeros, zeros
        given = tuple(states) if self.kind == "LSTM" else (states, zeros)
        hidden, cell = (value.unsqueeze(1) if value.dim() == 2 else value for value in given)
        return hidden, cell


def _gates(stacked: Tensor, kind: str) -> Tensor:
    parts = stacked.chunk(len(GATES[kind]))
    return torch.cat([parts[i] for i in GATES[kind]])


def _biases(original: nn.RNNBase, suffix: str, kind: str) -> Tensor:
    if not original.bias:
        size = 2 * len(GATES[kind]) * original.hidden_size
        return torch.zeros(size)
    return torch.cat([_gates(getattr(original, f"bias_{part}{suffix}"), kind) for part in ("ih", "hh")])


def _pack(input: Tensor, lengths: Tensor, batch_first: bool = False, enforce_sorted: bool = True) -> Packed:
    return Packed(input.transpose(0, 1) if batch_first else input, torch.as_tensor(lengths))


def _pad(
    sequence: Packed, batch_first: bool = False, padding_value: float = 0.0, total_length: int | None = None
) -> tuple[Tensor, Tensor]:
    padded = sequence.padded
    if padding_value:
        steps = torch.arange(padded.shape[0])[:, None, None]
        padded = torch.where(steps < sequence.lengths[None, :, None], padded, padding_value)
    return padded.transpose(0, 1) if batch_first else padded, sequence.lengths


@contextmanager
def as_one_operator(model: nn.Module) -> Iterator[None]:
    """Replaces the recurrent layers of `model` and the functions that pack sequences until the block ends."""
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    for path, module in list(model.named_modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.RNNBase):
                replaced.append((module, name, child))
                setattr(module, name, Recurrence(child, f"{path}.{name}".strip(".")))
    with ExitStack() as stack:
        for original, stand_in in ((rnn.pack_padded_sequence, _pack), (rnn.pad_packed_sequence, _pad)):
            for namespace in _namespaces(model):  # also where it was imported by name
                if names := [name for name, value in namespace.items() if value is original]:
                    stack.enter_context(mock.patch.dict(namespace, dict.fromkeys(names, stand_in)))
        try:
            yield
        finally:
            for owner, name, child in replaced:
                setattr(owner, name, child)


def _namespaces(model: nn.Module) -> list[dict[str, Any]]:
    """The names of all imported modules, and those that the functions of the model's classes see."""
    found = {id(vars(module)): vars(module) for module in list(sys.modules.values()) if hasattr(module, "__dict__")}
    for owner in {cls for module in model.modules() for cls in type(module).__mro__}:
        for function in list(vars(owner).values()):
            if (names := getattr(function, "__globals__", None)) is not None:
                found[id(names)] = names
    return list(found.values())
