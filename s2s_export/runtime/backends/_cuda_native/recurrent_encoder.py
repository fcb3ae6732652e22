"""A recurrent encoder and the decoder's first states, as launches.

What the tokens give to a layer's gates is one product for all positions. A launch for each position follows, in both
directions at once where there are two, which is what a recurrent layer costs: each waits for the one before.

Letters: B sources, S source length as it is run, L decoder layers, U units, A annotations' width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from .encoder import filled
from .loaded import Buffer, Loaded, Program, launches, named, structures
from .model import Linear
from .recurrent_model import Cells

TANH = structures.ACTIVATIONS.index("tanh")


class RecurrentEncoder:
    """See `encoder.EncoderProgram`. Its results: first [B, L, U], first_kept [B, L, U] fp32 or None for zeros; with
    attention annotations [B*S, A] and keys [B*S, U], with a summary context [B, U]."""

    def __init__(self, loaded: Loaded, n_sources: int, length: int, buffer: Buffer) -> None:
        model, own = loaded.recurrent, named("encoder", buffer)
        self._loaded, self.program = loaded, Program(loaded)
        self.n_sources, self.length = n_sources, length
        n_rows, n_layers, units = n_sources * length, len(model.decoder), model.units
        self.mask = buffer("mask", (n_sources, length), "int32")
        self.ids = buffer("ids", (n_sources, length), "int64")
        shape = (n_sources, n_layers * units)
        self.first = buffer("first", shape, "float16")
        is_zero = model.initial is not None and model.decoder[0].kind == "lstm"
        self.first_kept = None if is_zero else buffer("first kept", shape, "float32")
        self.annotations = self.keys = self.context = 0

        rows = self._embed(n_rows, own)
        most = max(cells.input.outputs for cells in model.encoder)
        gates = own("gates", (n_rows, most), "float32")
        for i, cells in enumerate(model.encoder):
            states = own(f"states {i}", (n_rows, cells.width), "float16")
            kept = own(f"kept {i}", (n_rows, cells.width), "float32")
            self._product(cells.input, rows, n_rows, output_float=gates)
            self._layer(cells, gates, states, kept)
            if model.initial is None:
                at = i * units
                self._pick(cells, states, kept, 0, self.first + 2 * at, (self.first_kept or 0) + 4 * at, shape[1])
            rows = states
        if model.initial is not None:
            last, direction = model.encoder[-1], model.encoder[-1].directions - 1
            asked = own("last state", (n_sources, last.units), "float16")
            self._pick(last, rows, kept, direction, asked, None, last.units)
            if model.summary is not None:
                self.context = buffer("context", (n_sources, model.summary.outputs), "float16")
                self._product(model.summary, asked, n_sources, output=self.context, activation=TANH)
                asked = self.context
            self._product(
                model.initial, asked, n_sources, output=self.first, output_float=self.first_kept, activation=TANH
            )
        if model.score is not None:
            self.annotations = self.keys = rows
            if model.score.key is not None:
                self.keys = buffer("keys", (n_rows, units), "float16")
                self._product(model.score.key, rows, n_rows, output=self.keys)

        self.results = (self.first, self.first_kept, self.annotations, self.keys, self.context)  # what a step reads

    def _embed(self, n_rows: int, own: Buffer) -> int:
        table = self._loaded.recurrent.source
        rows = own("embedded", (n_rows, table.width), "float16")
        given = structures.EmbedParameters(
            ids=self.ids, embedding=self._loaded.address(table.embedding),
            embedding_row_scales=self._loaded.address(table.row_scales), output=rows,
            output_float=own("embedded in fp32", (n_rows, table.width), "float32"), rows=n_rows, width=table.width,
            vocabulary=table.vocabulary, n_positions=1, padding_id=-1, scale=1.0,
        )  # fmt: skip
        self.program.add(launches.embed(self._loaded.model.element, given), given)
        return rows

    def _product(self, linear: Linear, rows: int, n_rows: int, **more: Any) -> None:
        add_product(self._loaded, self.program, linear, rows, n_rows, **more)

    def _layer(self, cells: Cells, gates: int, states: int, kept: int) -> None:
        loaded = self._loaded
        for step in range(self.length):
            given = structures.CellParameters(
                hidden_weight=loaded.address(cells.hidden.weight), hidden_scale=loaded.address(cells.hidden.scale),
                hidden_bias=loaded.address(cells.hidden.bias), added=gates, mask=self.mask, before=states,
                kept_before=kept, after=states, kept_after=kept, rows=self.n_sources, units=cells.units,
                outputs=cells.gates, stride=cells.width, added_stride=cells.input.outputs, length=self.length,
                step=step, reverse=int(loaded.recurrent.reverse),
            )  # fmt: skip
            self.program.add(launches.cell(loaded.model.element, given, cells.kind, cells.directions), given)

    def _pick(
        self, cells: Cells, states: int, kept: int, direction: int, output: int, output_kept: int | None, stride: int
    ) -> None:
        """The last states of a direction."""
        column = direction * cells.units
        given = structures.PickParameters(
            states=states + 2 * column, kept=kept + 4 * column, mask=self.mask, output=output,
            output_kept=output_kept, length=self.length, stride=cells.width, output_stride=stride, units=cells.units,
            backward=int(direction == 1 or self._loaded.recurrent.reverse),
        )  # fmt: skip
        self.program.add(launches.pick_states(self._loaded.model.element, given, self.n_sources), given)

    def upload(self, values: Mapping[str, NDArray[Any]], device: Any, stream: int) -> None:
        """values: what the kind of source prepared: at most S tokens of each source."""
        for address, name, dtype in ((self.mask, "source_mask", "int32"), (self.ids, "input_ids", "int64")):
            device.to_device(address, filled(values[name], self.length, dtype), stream)
            device.synchronize(stream)  # the copy has read the array


def add_product(loaded: Loaded, program: Program, linear: Linear, rows: int, n_rows: int, **more: Any) -> None:
    """A product of `rows` [n_rows, I]. more: further fields of ProductParameters; limit: outputs to store, if not
    all."""
    outputs = linear.outputs // 2 if more.get("gated") else linear.outputs
    limit = more.pop("limit", outputs)
    given = structures.ProductParameters(
        input=rows, weight=loaded.address(linear.weight), weight_scale=loaded.address(linear.scale),
        bias=loaded.address(linear.bias), rows=n_rows, inputs=linear.inputs, outputs=linear.outputs, stride=limit,
        limit=limit, scale=1.0, **more,
    )  # fmt: skip
    program.add(launches.product(loaded.model.element, given), given)
