"""The encoder, and the cross-attention keys and values of all decoder layers, as launches.

Letters: B sources, S source length as it is run, L decoder layers, H heads, D head size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...sources import Source, SourceKind
from .library_products import products_of
from .loaded import Buffer, Loaded, Program, launches, named, structures
from .model import Positions
from .rows import Rows

LEAST_LENGTH = 16  # source lengths that are run are powers of two, so that few shapes exist


def source_length(loaded: Loaded, kind: SourceKind, sources: Sequence[Source], limit: int | None) -> int:
    """S for a batch. Windows of sound all have the same."""
    longest = max(map(kind.length, sources))
    return longest if loaded.model.reads_sound else run_length(longest, limit)


def run_length(length: int, limit: int | None) -> int:
    """S for sources of at most `length` tokens. limit: the model's own."""
    found = max(LEAST_LENGTH, 1 << max(length - 1, 0).bit_length())
    return found if limit is None else max(min(found, limit), length)


class EncoderProgram:
    """Everything that is computed once for a batch of B sources.

    Its memory: mask [B, S] int32, and ids [B, S] int64 with positions [B, S] int32 or the features [B, F, T] fp32, are
    written by the host; cross [B*S, L*2*H*D] is its result, of each layer the keys and then the values.
    """

    def __init__(
        self, loaded: Loaded, n_sources: int, length: int, buffer: Buffer, *, uses_library: bool = True
    ) -> None:
        """uses_library: cuBLASLt, where it is found."""
        model = loaded.transformer
        stack = model.encoder
        self._table = stack.positions
        self.n_sources, self.length = n_sources, length
        self.has_features = bool(stack.stem)
        self.mask = buffer("mask", (n_sources, length), "int32")
        n_rows, inside = n_sources * length, stack.heads * stack.head_size
        self.cross = buffer("cross", (n_rows, model.cross.outputs), "float16")
        self.results = (self.cross,)  # what a step reads
        self.program = Program(loaded)
        own = named("encoder", buffer)
        self.library = products_of(loaded, own) if uses_library else None
        rows = Rows(loaded, self.program, stack, n_rows, own, self.library)
        heads = own("heads", (n_rows, 3 * inside), "float16")
        mixed = own("mixed", (n_rows, inside), "float16")
        inner = max(layer.feed_forward.outer.inputs for layer in stack.layers)
        hidden = own("hidden", (n_rows, inner), "float16")
        if stack.stem:
            self.features_shape = (n_sources, stack.stem[0].channels, length * prod(one.step for one in stack.stem))
            self.features = buffer("features", self.features_shape, "float32")
            rows.convolve(self.features, self.features_shape, own)
        else:
            self.ids = buffer("ids", (n_sources, length), "int64")
            self.positions = buffer("positions", (n_sources, length), "int32")
            rows.embed(self.ids, self.positions, None)
        for layer in stack.layers:
            attention, part = layer.self_attention, layer.feed_forward
            base = rows.into(attention.rows, attention.norm, heads)
            bias = attention.distances
            given = structures.EncoderAttentionParameters(
                rows=heads, mask=self.mask, bias=loaded.address(bias.table if bias else None), output=mixed,
                sources=n_sources, heads=stack.heads, head_size=stack.head_size, length=length,
                first_distance=bias.first if bias else 0, n_distances=bias.n if bias else 0, scale=attention.scale,
            )  # fmt: skip
            self.program.add(launches.encoder_attention(model.element, given), given)
            rows.out_of(attention.output, attention.norm, mixed, base)
            base = rows.into(part.inner, part.norm, hidden, **activated(part))
            rows.out_of(part.outer, part.norm, hidden, base)
        rows.product(model.cross, rows.result(), output=self.cross)

    def upload(self, values: Mapping[str, NDArray[Any]], device: Any, stream: int) -> None:
        """values: what the kind of source prepared: at most S tokens of each source, or windows of S positions."""
        mask = filled(values["source_mask"], self.length, np.int32)
        device.to_device(self.mask, mask, stream)
        if self.has_features:
            features = np.ascontiguousarray(values["input_features"], np.float32)
            assert features.shape == self.features_shape
            device.to_device(self.features, features, stream)
        else:
            ids = filled(values["input_ids"], self.length, np.int64)
            device.to_device(self.ids, ids, stream)
            device.to_device(self.positions, rows_of(self._table, ids), stream)
        device.synchronize(stream)  # the copies have read the arrays above


def filled(rows: NDArray[Any], length: int, dtype: Any) -> NDArray[Any]:
    """rows [B, n] with zeros behind them: [B, length]."""
    found = np.zeros((len(rows), length), dtype)
    found[:, : rows.shape[1]] = rows
    return found


def activated(part: Any) -> dict[str, int]:
    """The fields of ProductParameters for a feed-forward layer's first product."""
    return {"activation": structures.ACTIVATIONS.index(part.activation), "gated": int(part.gated)}


def rows_of(table: Positions | None, ids: NDArray[np.int64]) -> NDArray[np.int32]:
    """The rows of the table of positions for ids [B, S]."""
    steps = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    if table is None:
        return np.zeros(ids.shape, np.int32)
    if table.padding_id is None:
        return (steps + table.offset).astype(np.int32)
    # fairseq's make_positions: cumsum(id != pad) * (id != pad) + pad
    real = ids != table.padding_id
    rows: NDArray[np.int32] = (np.cumsum(real, axis=1) * real + table.padding_id).astype(np.int32)
    return rows
