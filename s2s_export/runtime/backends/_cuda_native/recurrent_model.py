"""The description of a recurrent model: what the backend `cuda` runs of LSTMs, GRUs and attention without heads.

Letters: V vocabulary, E embedding, U units, G gates, O outputs of a layer's gates, A annotations' width. Widths are
multiples of 16. A layer's gates lie as plugins/transformer/recurrent.cuh wants them: fragments.by_units.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ....schema import shown
from .parts import TILE, Linear, Tensors, Wanted, Wrong, layout_of, of_embedding, of_linear, weight_bytes

KIND = "recurrent"
GATES = {"lstm": 4, "gru": 3}


@dataclass(frozen=True)
class Table:
    """embedding [V, E]. row_scales [V]: of an embedding of 8 bits, else None."""

    embedding: str
    row_scales: str | None
    vocabulary: int
    width: int


@dataclass(frozen=True)
class Cells:
    """A layer of `units` units in each direction. input [directions*O, I], hidden [directions*O, U]."""

    kind: str
    directions: int
    units: int
    input: Linear
    hidden: Linear

    @property
    def gates(self) -> int:
        """O."""
        return self.hidden.outputs // self.directions

    @property
    def width(self) -> int:
        """Of a row of its states."""
        return self.directions * self.units


@dataclass(frozen=True)
class Score:
    """energy . tanh(query(s) + key(h)) with query and energy [U], else s . key(h). Without key, h itself."""

    query: Linear | None
    energy: str | None
    key: Linear | None


@dataclass(frozen=True)
class RecurrentModel:
    """reverse: an encoder of one direction reads from the last token to the first. summary: of the encoder's last
    state, the context of every step. score: of the attention. initial: the decoder's first states [L*U], of the context
    or of the backward encoder's last state; None where they are the encoder's. readout [2*E, U+E+A]: each output is the
    larger of two (outputs 8 and 8 in turn), of the last layer's state, the embedding and the context. head [V, E or U].
    """

    version: int
    kind: str
    element: str
    vocabulary: int
    source: Table
    target: Table
    encoder: tuple[Cells, ...]
    decoder: tuple[Cells, ...]
    reverse: bool
    summary: Linear | None
    score: Score | None
    initial: Linear | None
    readout: Linear | None
    head: Linear
    tensors: Tensors

    @property
    def n_layers(self) -> tuple[int, int]:
        """Of encoder and decoder."""
        return len(self.encoder), len(self.decoder)

    @property
    def reads_sound(self) -> bool:
        return False

    @property
    def units(self) -> int:
        """Of a decoder layer."""
        return self.decoder[0].units

    @property
    def context_width(self) -> int:
        """Of what each step reads of the source besides its states."""
        if self.score is not None:
            return self.encoder[-1].width
        return 0 if self.summary is None else self.summary.outputs

    @property
    def step_bytes(self) -> int:
        """Bytes of weights that a decoder step reads."""
        parts = [self.head, *(part for one in self.decoder for part in (one.input, one.hidden))]
        query = None if self.score is None else self.score.query
        parts += [part for part in (self.readout, query) if part is not None]
        return weight_bytes(parts, self.element)


def tensors_of(model: RecurrentModel) -> Iterator[Wanted]:
    """Every tensor that the structure names, with the shape and layout that it must have."""
    layout = layout_of(model.element)
    for table in (model.source, model.target):
        if table.vocabulary < 1 or table.width % TILE:
            raise Wrong(f"a table has {table.vocabulary} rows of {table.width}, expected some of a multiple of {TILE}")
        yield from of_embedding(table.embedding, table.row_scales, table.vocabulary, table.width, layout)
    U, A, L = model.units, model.context_width, len(model.decoder)
    width = model.source.width
    for cells in model.encoder:
        yield from _of_cells(cells, width, layout)
        width = cells.width
    width = model.target.width + A
    for cells in model.decoder:
        if cells.directions != 1 or cells.units != U or cells.kind != model.decoder[0].kind:
            raise Wrong("the decoder's layers differ, or have several directions")
        yield from _of_cells(cells, width, layout)
        width = cells.width
    last = model.encoder[-1]
    if model.summary is not None:
        yield from of_linear(model.summary, model.summary.outputs, last.width, layout)
    if model.score is not None:
        yield from _of_score(model.score, U, last, layout)
    if model.initial is not None:
        yield from of_linear(model.initial, L * U, last.units if model.summary is None else A, layout)
    elif [(one.kind, one.directions, one.units) for one in model.encoder] != [(model.decoder[0].kind, 1, U)] * L:
        raise Wrong("the decoder starts from the encoder's states, but has other layers")
    features = U
    if model.readout is not None:
        yield from of_linear(model.readout, model.readout.outputs, U + model.target.width + A, layout)
        features = model.readout.outputs // 2
    yield from of_linear(model.head, model.head.outputs, features, layout)


def _of_cells(cells: Cells, width: int, layout: str) -> Iterator[Wanted]:
    if cells.kind not in GATES or cells.directions not in (1, 2) or cells.units % TILE:
        raise Wrong(
            f"a layer has {cells.units} units of kind {shown(cells.kind)} in {cells.directions} directions, expected "
            f"{' or '.join(GATES)} and multiples of {TILE}"
        )
    gates = cells.directions * -(-cells.units // (TILE // GATES[cells.kind])) * TILE
    yield from of_linear(cells.input, gates, width, layout)
    yield from of_linear(cells.hidden, gates, cells.units, layout)


def _of_score(score: Score, units: int, last: Cells, layout: str) -> Iterator[Wanted]:
    if last.directions != 2 or (score.query is None) != (score.energy is None):
        raise Wrong("attention reads an encoder of one direction, or has a query without energies")
    if score.query is not None:
        yield from of_linear(score.query, units, units, layout)
        yield score.energy, (units,), "floats"
    if score.key is not None:
        yield from of_linear(score.key, units, last.width, layout)
    elif last.width != units:
        raise Wrong(f"annotations have {last.width} elements and states {units}, expected as many")
