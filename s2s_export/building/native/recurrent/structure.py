"""A recurrent model's parts with their weights as arrays, as they were read from a bundle's graphs.

Gates are in torch's order: i, f, g, o of an LSTM, r, z, n of a GRU. Letters: G gates, U units, I inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..structure import Array, Linear, Weight


@dataclass(frozen=True)
class Unit:
    """One direction of a layer: input [G, U, I], hidden [G, U, U], biases [G, U]. A bias that was added to another is
    None."""

    kind: str
    input: Array
    hidden: Array
    input_bias: Array
    hidden_bias: Array | None

    @property
    def size(self) -> int:
        return int(self.hidden.shape[2])


@dataclass(frozen=True)
class Score:
    """energy [U] . tanh(query(s) + key(h)) with query and energy, else s . key(h). Without key, h itself."""

    query: Linear | None
    energy: Array | None
    key: Linear | None


@dataclass(frozen=True)
class RecurrentStructure:
    """See `runtime.backends._cuda_native.recurrent_model.RecurrentModel`. encoder: by layer and direction."""

    source: Weight
    target: Weight
    encoder: tuple[tuple[Unit, ...], ...]
    decoder: tuple[Unit, ...]
    reverse: bool
    summary: Linear | None
    score: Score | None
    initial: Linear | None
    readout: Linear | None
    head: Linear
