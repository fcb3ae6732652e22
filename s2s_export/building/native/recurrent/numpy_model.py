"""A recurrent engine of packed weights, computed in numpy and float32: the definition of what the backend computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .... import plugin_sources
from ....runtime.backends._cuda_native.model import RecurrentModel
from ....runtime.backends._cuda_native.recurrent_model import GATES, Cells, Score, Table
from ....runtime.backends._cuda_native.state import answer
from ....runtime.decoding.state import Ints, StepQuery, StepResult
from ..numpy_weights import Floats, Unpacked

fragments = plugin_sources.module("transformer.fragments")
reference = plugin_sources.module("transformer.reference")


class NumpyRecurrent(Unpacked[RecurrentModel]):
    """An open engine of a recurrent model."""

    def embedded(self, table: Table, ids: Ints) -> Floats:
        return self.weight(table.embedding, table.row_scales)[ids]

    def tanh_of(self, rows: Floats, linear: Any) -> Floats:
        return np.asarray(np.tanh(self.product(rows, linear)), np.float32)

    def cell(
        self, cells: Cells, direction: int, of_input: Floats, state: Floats, kept: Floats
    ) -> tuple[Floats, Floats]:
        """of_input [R, O]: what a direction's input gives. state [R, U], and an LSTM's cells or a GRU's states."""
        n = GATES[cells.kind]
        place = slice(direction * cells.gates, (direction + 1) * cells.gates)
        of_state = self.product(state, cells.hidden)[:, place]
        x, h = (fragments.of_units(rows, n, cells.units) for rows in (of_input, of_state))
        hidden, after = reference.lstm(x, h, kept) if n == 4 else reference.gru(x, h, kept)
        return np.asarray(hidden, np.float32), np.asarray(after, np.float32)

    def encode(self, values: Mapping[str, NDArray[Any]]) -> tuple[Floats, list[tuple[Floats, Floats]]]:
        """values: what a kind of source prepared. The last layer's states [B, S, A], and each layer's last ones of its
        last direction [B, U] with what is kept beside them."""
        ids, mask = values["input_ids"], values["source_mask"] != 0
        B, S = mask.shape
        x, lasts = self.embedded(self.model.source, ids), []
        for cells in self.model.encoder:
            of_input = self.product(x.reshape(B * S, -1), cells.input).reshape(B, S, cells.directions, -1)
            found = np.zeros((B, S, cells.directions, cells.units), np.float32)
            for direction in range(cells.directions):
                is_backward = direction == 1 or self.model.reverse
                state = kept = np.zeros((B, cells.units), np.float32)
                for p in reversed(range(S)) if is_backward else range(S):
                    after = self.cell(cells, direction, of_input[:, p, direction], state, kept)
                    real = mask[:, p, None]
                    state, kept = (np.where(real, a, b) for a, b in zip(after, (state, kept), strict=True))
                    found[:, p, direction] = np.where(real, state, 0)
            lasts.append((state, kept))
            x = found.reshape(B, S, -1)
        return x, lasts

    def begin(self, values: Mapping[str, NDArray[Any]], n_beams: int) -> RecurrentState:
        return RecurrentState(self, values, n_beams)


class RecurrentState:
    """See `decoding.state.DecodeState`."""

    def __init__(self, owner: NumpyRecurrent, values: Mapping[str, NDArray[Any]], n_beams: int) -> None:
        self.vocabulary_size = owner.model.vocabulary
        self.n_beams = n_beams
        self._owner, self._is_first = owner, True
        model = owner.model
        annotations, lasts = owner.encode(values)
        self.n_sources = len(annotations)
        B, L, U = self.n_sources, len(model.decoder), model.units
        self._source = {"mask": values["source_mask"] != 0, "annotations": annotations}
        self._context: Floats | None = None
        if model.summary is not None:
            self._source["context"] = owner.tanh_of(lasts[-1][0], model.summary)
        if model.score is not None:
            keys = model.score.key
            self._source["keys"] = annotations if keys is None else owner.product(annotations, keys)
        if model.initial is None:
            first, kept = (np.stack(part, 1) for part in zip(*lasts, strict=True))
        else:
            given = self._source["context"] if model.summary is not None else lasts[-1][0]
            first = kept = owner.tanh_of(given, model.initial).reshape(B, L, U)
            if model.decoder[0].kind == "lstm":
                kept = np.zeros_like(first)
        self._states, self._kept = (np.repeat(part[:, None], n_beams, 1) for part in (first, kept))  # [B, K, L, U]

    def step(self, tokens: Ints, parents: Ints, query: StepQuery) -> StepResult:
        return answer(self.logits(tokens, parents), query)

    def logits(self, tokens: Ints, parents: Ints) -> Floats:
        """[B, K, V]"""
        owner, model, (B, K) = self._owner, self._owner.model, tokens.shape
        if not self._is_first:
            at = (np.arange(B)[:, None], parents)
            self._states, self._kept = self._states[at], self._kept[at]
        self._is_first = False
        states, kept = (part.reshape(B * K, *part.shape[2:]) for part in (self._states, self._kept))
        line = [owner.embedded(model.target, tokens.reshape(-1))]
        if model.score is not None:
            line.append(self._attend(model.score, states[:, -1].reshape(B, K, -1)).reshape(B * K, -1))
        elif model.summary is not None:
            line.append(np.repeat(self._source["context"], K, 0))
        x, found = np.concatenate(line, 1), []
        for i, cells in enumerate(model.decoder):
            found.append(owner.cell(cells, 0, owner.product(x, cells.input), states[:, i], kept[:, i]))
            x = found[-1][0]
        self._states, self._kept = (
            np.stack(part, 1).reshape(B, K, len(found), -1) for part in zip(*found, strict=True)
        )
        if model.readout is not None:
            pairs = owner.product(np.concatenate([x, *line], 1), model.readout)
            x = np.maximum(*(fragments.parted(pairs.T)[i].T for i in (0, 1)))
        return owner.product(x, model.head)[:, : self.vocabulary_size].reshape(B, K, -1)

    def _attend(self, score: Score, state: Floats) -> Floats:
        """state [B, K, U]: the context [B, K, A]."""
        owner, keys = self._owner, self._source["keys"]
        if score.query is None or score.energy is None:
            scores = state @ keys.swapaxes(1, 2)
        else:
            asked = owner.product(state.reshape(-1, state.shape[2]), score.query).reshape(state.shape)
            scores = reference.additive(asked, keys, owner.array(score.energy))
        return np.asarray(reference.softmax_mean(scores, self._source["annotations"], self._source["mask"]), np.float32)

    def keep(self, sources: Ints) -> None:
        self.n_sources = len(sources)
        self._source = {name: value[sources] for name, value in self._source.items()}
        self._states, self._kept = self._states[sources], self._kept[sources]
