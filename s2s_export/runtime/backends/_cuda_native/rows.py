"""The residual stream of a stack on its way through the layers: which norm it waits for, and what adds to it.

With the norm first, a layer's part reads the norm of the stream and is added to the stream. With the norm behind, the
stream is normed when the next part reads it; the normed rows are what that part is added to. Both are one product that
begins with a norm, where the rows are few; for many rows the norm is a launch of its own. Where attention's output
projection was left as a term for each head (`out_by_heads`), the product that reads the stream next adds them up. It
stores sum and norm in memory of their own, as other blocks of the same launch still read the old. Letters as in
parameters.h.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from .loaded import Buffer, Loaded, Program, launches, structures
from .model import Linear, Norm, Stack


@dataclass(frozen=True)
class Parts:
    """Terms [n, R, E] at an address whose sum, with a bias [E], is to be added to the rows at `base`."""

    address: int
    n: int
    bias: int | None
    base: int


class Rows:
    """R rows of a stack. Adds to `program` what is asked of it."""

    def __init__(self, loaded: Loaded, program: Program, stack: Stack, n_rows: int, buffer: Buffer) -> None:
        self._loaded, self._program, self._stack, self.n = loaded, program, stack, n_rows
        self._element = loaded.model.element
        shape = (n_rows, stack.width)
        self._stream = buffer("stream", shape, "float32")
        self._next_stream = buffer("next stream", shape, "float32")
        self._copy = buffer("stream copy", shape, "float16")  # the stream in the element, where no norm is pending
        self._normed = buffer("normed", shape, "float32")
        self._next_normed = buffer("next normed", shape, "float32")
        self._normed_copy = buffer("normed copy", shape, "float16")
        self._pending: Norm | None = None
        self._parts: Parts | None = None

    def embed(self, ids: int, rows_of_positions: int | None, position: int | None) -> None:
        """ids [R] int64. Positions are rows of the table, or follow from `position`, an address."""
        stack, table = self._stack, self._stack.positions
        padding_id = -1 if table is None or table.padding_id is None else table.padding_id
        given = structures.EmbedParameters(
            ids=ids,
            embedding=self._loaded.address(stack.embedding),
            embedding_row_scales=self._loaded.address(stack.embedding_row_scales),
            positions=None if table is None else self._loaded.address(table.table),
            rows_of_positions=None if table is None else rows_of_positions,
            position=position,
            output=self._copy,
            output_float=self._stream,
            rows=self.n,
            width=stack.width,
            vocabulary=stack.vocabulary,
            n_positions=1 if table is None else table.n,
            offset=0 if table is None else table.offset,
            padding_id=padding_id,
            padding_moves=int(table is not None and table.padding_moves),
            scale=stack.embedding_scale,
        )
        self._program.add(launches.embed(self._element, given), given)
        self._pending = stack.embedding_norm
        if stack.norm_first:
            self._settle()

    def convolve(self, features: int, shape: tuple[int, ...], buffer: Buffer) -> None:
        """The stream begins with convolutions of features [B, channels, length] fp32. Each is a product of its windows;
        positions are added by the last, source by source, as all sources have the same."""
        stack, (n_sources, _, length) = self._stack, shape
        assert stack.positions is not None
        rows = features
        for i, one in enumerate(stack.stem):
            n = (length + 2 * one.padding - one.size) // one.step + 1
            inputs, outputs = one.product.inputs, one.product.outputs
            of_windows = structures.WindowParameters(
                input=rows, output=buffer(f"windows {i}", (n_sources * n, inputs), "float16"), positions=n,
                length=length, channels=one.channels, inputs=inputs, size=one.size, step=one.step,
                padding=one.padding, by_channel=int(i == 0),
            )  # fmt: skip
            self._program.add(launches.windows(self._element, of_windows, n_sources), of_windows)
            rows, length = buffer(f"convolved {i}", (n_sources * n, outputs), "float16"), n
            is_last = i == len(stack.stem) - 1
            for source in range(n_sources if is_last else 1):
                given = self._arguments(one.product, of_windows.output + source * n * inputs * 2, output=rows)
                given.rows = n if is_last else n_sources * n
                given.activation = structures.ACTIVATIONS.index(one.activation)
                if is_last:
                    given.output = None
                    given.output_float = self._stream + source * n * outputs * 4
                    given.residual = self._loaded.address(stack.positions.table)
                self._program.add(launches.product(self._element, given), given)
        assert n_sources * length == self.n

    def _settle(self) -> None:
        """Norms the stream where it lies, if that is pending."""
        if self._pending is not None:
            self._norm_rows(self._pending, self._copy, self._stream)
            self._pending = None

    def _norm_rows(self, norm: Norm, output: int | None, output_float: int | None) -> None:
        given = structures.NormParameters(
            input=self._stream,
            weight=self._loaded.address(norm.weight),
            bias=self._loaded.address(norm.bias),
            output=output,
            output_float=output_float,
            rows=self.n,
            width=self._stack.width,
            true_width=self._stack.true_width,
            epsilon=norm.epsilon,
        )
        self._program.add(launches.norm(self._element, given), given)

    def into(self, linear: Linear, norm: Norm, output: int, **more: Any) -> int:
        """A layer's part begins: a product of the stream. norm: the part's own. Returns the address of the rows to
        which the part is to be added."""
        if self._parts is not None:
            given, base = self.from_parts(linear, norm, output=output, **more)
            self._program.add(launches.product(self._element, given), given)
            return base
        if self._stack.norm_first:
            self._product_of(linear, norm, keep=False, output=output, **more)
            return self._stream
        pending = self._pending
        self._product_of(linear, pending, keep=True, output=output, **more)
        return self._stream if pending is None else self._normed

    def out_by_heads(self, linear: Linear, norm: Norm, parts: int, n_parts: int, base: int) -> ctypes.Structure:
        """A layer's part ends in terms [n_parts, R, E] that a launch writes to `parts`; `base` is what `into` returned.
        Returns that launch's arguments for it."""
        self._parts = Parts(parts, n_parts, self._loaded.address(linear.bias), base)
        self._pending = None if self._stack.norm_first else norm
        given: ctypes.Structure = structures.HeadOutputParameters(
            weight=self._loaded.address(linear.weight),
            weight_scale=self._loaded.address(linear.scale),
            parts=parts,
            outputs=linear.outputs,
        )
        return given

    def from_parts(self, linear: Linear, norm: Norm, **more: Any) -> tuple[ctypes.Structure, int]:
        """What `into` queues after `out_by_heads`, and what it returns, for whoever queues it with something else."""
        parts, self._parts = self._parts, None
        assert parts is not None
        if self._stack.norm_first:
            self._stream, self._next_stream = self._next_stream, self._stream
            kept, base = {"sum": self._stream}, self._stream
        else:
            assert self._pending is not None
            norm = self._pending
            self._normed, self._next_normed = self._next_normed, self._normed
            kept, base = {"normed": self._normed}, self._normed
        given = self._arguments(
            linear, parts.base, **self._norm_of(norm), parts=parts.address, n_parts=parts.n, parts_bias=parts.bias,
            **kept, **more,
        )  # fmt: skip
        return given, base

    def _norm_of(self, norm: Norm) -> dict[str, Any]:
        """The fields of a product that begins with a norm."""
        weight, bias = self._loaded.address(norm.weight), self._loaded.address(norm.bias)
        return {"norm_weight": weight, "norm_bias": bias, "epsilon": norm.epsilon}

    def out_of(self, linear: Linear, norm: Norm, rows: int, base: int) -> None:
        """A layer's part ends: a product of `rows` is added to `base`, what `into` returned."""
        stack = self._stack
        copy = (
            self._copy if stack.norm_first and stack.final_norm is None else None
        )  # for `result`, which norms nothing
        self.product(linear, rows, residual=base, output_float=self._stream, output=copy)
        self._pending = None if stack.norm_first else norm

    def result(self) -> int:
        """The address of the stack's result [R, E] in the element."""
        norm = self._last_norm()
        if norm is None:
            return self._copy
        self._norm_rows(norm, self._normed_copy, None)
        return self._normed_copy

    def head(self, linear: Linear, **more: Any) -> None:
        """A product of the stack's result."""
        self._product_of(linear, self._last_norm(), keep=False, **more)

    def _last_norm(self) -> Norm | None:
        if self._stack.final_norm is None:
            return self._pending
        self._settle()
        return self._stack.final_norm

    def _product_of(self, linear: Linear, norm: Norm | None, keep: bool, **more: Any) -> None:
        """A product of the stream, normed where there is a norm. keep: whether the normed rows are wanted as fp32."""
        normed = self._normed if keep else None
        if norm is None:
            self.product(linear, self._copy, **more)
        elif launches.norms_itself(self.n, linear.inputs):
            self.product(linear, self._stream, **self._norm_of(norm), normed=normed, **more)
        else:
            self._norm_rows(norm, self._normed_copy, normed)
            self.product(linear, self._normed_copy, **more)

    def product(self, linear: Linear, rows: int, **more: Any) -> None:
        """A product of `rows`. more: further fields of ProductParameters; limit: outputs to store, if not all."""
        given = self._arguments(linear, rows, **more)
        self._program.add(launches.product(self._element, given), given)

    def _arguments(self, linear: Linear, rows: int, *, limit: int | None = None, **more: Any) -> ctypes.Structure:
        outputs = linear.outputs // 2 if more.get("gated") else linear.outputs
        given: ctypes.Structure = structures.ProductParameters(
            input=rows,
            weight=self._loaded.address(linear.weight),
            weight_scale=self._loaded.address(linear.scale),
            bias=self._loaded.address(linear.bias),
            rows=self.n,
            inputs=linear.inputs,
            outputs=linear.outputs,
            stride=limit or outputs,
            limit=limit or outputs,
            true_width=self._stack.true_width,
            **{"scale": 1.0, **more},
        )
        return given
