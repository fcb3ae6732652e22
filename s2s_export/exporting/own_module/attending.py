"""Reads an attention out of a traced graph: its query, keys, values, scale and bias.

    F.scaled_dot_product_attention(query, keys, values)
    softmax(query @ keys.transpose(-1, -2) * scale + bias) @ values, also by torch.bmm and torch.einsum

Letters: R rows, H heads, D head size, N positions that are attended to.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from .views import Elements, NotFollowed, aten, call, is_view, packet_of, shape_of, tensor_of

MASKED = -1e9  # added to the scores of what a mask hides; its exp is 0 in fp32
HIDDEN = -1e4  # what fills hidden scores is as low as this, or lower
NO_QUERY = "is multiplied by something that is no query"


@dataclass
class Attending:
    """queries, keys, values: numbers of elements (views.Elements), [R,H,D], [R,H,N,D] and [R,H,N,D].

    last: the node that gives the mixed values. readers: the nodes that read keys or values. bias, shaped: add nodes to
    a graph, the bias [H|1,N], or None; and what `last` gave, of rows [R,H*D].
    """

    last: Node
    queries: Tensor
    keys: Tensor
    values: Tensor
    scale: float
    readers: tuple[Node, ...]
    bias: Callable[[Any], Node | None]
    shaped: Callable[[Any, Node], Node]


@dataclass(frozen=True)
class _Added:
    """What is added to scores, or a bool mask.

    n_heads: H or 1, of the bias that it makes. hidden: which value of a mask hides; None for what is added.
    """

    node: Node
    n_heads: int
    hidden: bool | None

    def bias(self, graph: Any) -> Node:
        """[H|1,N]"""
        node = self.node
        if self.hidden is not None:
            node = call(graph, aten.logical_not.default, node) if not self.hidden else node
            node = call(graph, aten.mul.Tensor, call(graph, aten.to.dtype, node, torch.float32), MASKED)
        return call(graph, aten.reshape.default, node, [self.n_heads, -1])


def _sum(graph: Any, added: Sequence[_Added]) -> Node | None:
    total = None
    for each in added:
        bias = each.bias(graph)
        total = bias if total is None else call(graph, aten.add.Tensor, total, bias)
    return total


@dataclass(frozen=True)
class _Side:
    """An operand of a product, and the letters of its axes."""

    node: Node
    letters: str

    def size(self, letter: str) -> int:
        return shape_of(self.node)[self.letters.index(letter)]


@dataclass(frozen=True)
class _Product:
    """A product of two values as einsum has it. of: the operand that holds elements of caches; by: the other."""

    node: Node
    by: _Side
    of: _Side
    letters: str

    @classmethod
    def read(cls, node: Node, of_caches: Collection[Node]) -> _Product:
        """Raises NotFollowed where `node` is no product of a cache and something else."""
        packet = packet_of(node)
        if packet is aten.einsum and len(node.args[1]) == 2:  # type: ignore[arg-type]
            operands: Any = node.args[1]
            given, _, result = str(node.args[0]).replace(" ", "").partition("->")
            letters = [*given.split(","), result]
        elif packet in (aten.matmul, aten.bmm):
            operands = node.args[:2]
            n = [len(shape_of(operand)) for operand in operands]
            letters = []
            if n[0] == n[1] and n[0] > 2:
                outer = string.ascii_lowercase[: n[0] - 2]
                letters = [f"{outer}yx", f"{outer}xz", f"{outer}yz"]
        else:
            raise NotFollowed(f"is read by {packet or node.target}, and not as keys or values of an attention")
        sides = [_Side(operand, text) for operand, text in zip(operands, letters, strict=False)]
        sides.sort(key=lambda side: side.node in of_caches)
        if len(letters) != 3 or "." in "".join(letters) or [s.node in of_caches for s in sides] != [False, True]:
            raise NotFollowed(NO_QUERY)
        return cls(node, sides[0], sides[1], letters[2])

    def axes(self) -> tuple[str, str, str, str]:
        """The letters of what both operands and the result have, of what is summed over, of what the cache's operand
        has alone, and of what the other has alone, which are single."""
        of, by = self.of.letters, self.by.letters
        batch = "".join(c for c in of if c in by and c in self.letters)
        summed = "".join(c for c in of if c in by and c not in self.letters)
        alone = "".join(c for c in of if c not in by)
        single = "".join(c for c in by if c not in of)
        if not batch or len(summed) != 1 or len(alone) != 1 or sorted(self.letters) != sorted(batch + alone + single):
            raise NotFollowed(NO_QUERY)
        if any(self.by.size(c) != 1 for c in single):
            raise NotFollowed("is read by an attention with several queries a row")
        return batch, summed, alone, single


def _permuted(numbers: Tensor, order: str, wanted: str) -> Tensor:
    return numbers.permute([order.index(c) for c in wanted])


class Reader:
    """Reads the attentions of one graph. of_caches: what keys and values are among. n_rows: R of the example."""

    def __init__(self, elements: Elements, of_caches: Collection[Node], n_rows: int) -> None:
        self._elements, self._of_caches, self._n_rows = elements, of_caches, n_rows

    def at(self, node: Node) -> Attending:
        """The attention of which `node` is the first to read keys or values. Raises NotFollowed."""
        if packet_of(node) is aten.scaled_dot_product_attention:
            return self._fused(node)
        return self._plain(_Product.read(node, self._of_caches))

    def _fused(self, node: Node) -> Attending:
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
        given: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        query, key, value = (given[name] for name in names[:3])
        mask = given.get("attn_mask")
        if given.get("dropout_p") or given.get("is_causal"):
            raise NotFollowed("is read by an attention with dropout, or is_causal for a single token")
        if query in self._of_caches or mask in self._of_caches:
            raise NotFollowed("is the query or mask of an attention")
        *batch, n_queries, head_size = shape_of(query)
        if not batch or n_queries != 1:
            raise NotFollowed("is read by an attention with several queries a row")
        grouped = bool(given.get("enable_gqa"))
        keys, values = (self._by_head(self._elements.of(part), batch, grouped) for part in (key, value))
        added = []
        if mask is not None:
            scores = torch.arange(math.prod(keys.shape[:3])).reshape(*batch, 1, keys.shape[2])
            is_bool = _dtype(mask) is torch.bool
            added.append(self._added(mask, scores, keys.shape, False if is_bool else None))
        scale = given.get("scale")

        def shaped(graph: Any, mixed: Node) -> Node:
            return call(graph, aten.reshape.default, mixed, [-1, *shape_of(node)[1:]])

        scale = head_size**-0.5 if scale is None else float(scale)
        queries = self._elements.of(query).reshape(self._n_rows, -1, head_size)
        return Attending(node, queries, keys, values, scale, (node,), lambda graph: _sum(graph, added), shaped)

    def _plain(self, scoring: _Product) -> Attending:
        batch, summed, length, single = scoring.axes()
        sizes = [scoring.by.size(c) for c in batch]
        keys = self._by_head(self._shown(scoring.of, batch + length + summed), sizes)
        scores = self._elements.new(*sizes, keys.shape[2], *[1] * len(single))
        first = int(scores.min())
        self._elements.set(scoring.node, _permuted(scores, batch + length + single, scoring.letters))
        weights, scale, added = self._weights(scoring.node, first, keys.shape)
        mixing = _Product.read(_only_user(weights), self._of_caches)
        if mixing.by.node is not weights:
            raise NotFollowed("is multiplied by something that is no attention's weights")
        batch_, summed_, alone_, single_ = mixing.axes()
        mixed_sizes = [mixing.by.size(c) for c in batch_]
        values = self._by_head(self._shown(mixing.of, batch_ + summed_ + alone_), mixed_sizes)
        order = _permuted(self._elements.of(weights), mixing.by.letters, batch_ + summed_ + single_)
        if not torch.equal(order.reshape(-1), torch.arange(first, first + scores.numel())):
            raise NotFollowed("is multiplied by an attention's weights in another order")

        def shaped(graph: Any, mixed: Node) -> Node:
            shape = [-1, *mixed_sizes[1:], values.shape[3], *[1] * len(single_)]
            found = call(graph, aten.reshape.default, mixed, shape)
            axes = [(batch_ + alone_ + single_).index(c) for c in mixing.letters]
            return found if axes == sorted(axes) else call(graph, aten.permute.default, found, axes)

        queries = self._shown(scoring.by, batch + single + summed).reshape(self._n_rows, -1, keys.shape[3])
        readers = (scoring.node, mixing.node)
        return Attending(mixing.node, queries, keys, values, scale, readers, lambda graph: _sum(graph, added), shaped)

    def _shown(self, side: _Side, wanted: str) -> Tensor:
        return _permuted(self._elements.of(side.node), side.letters, wanted)

    def _by_head(self, numbers: Tensor, batch: Sequence[int], grouped: bool = False) -> Tensor:
        """[...,N,D] -> [R,H,N,D], what heads share repeated for each."""
        if grouped:
            numbers = numbers.repeat_interleave(batch[-1] // numbers.shape[-3], -3)
        try:
            return numbers.expand(*batch, *numbers.shape[-2:]).reshape(self._n_rows, -1, *numbers.shape[-2:])
        except RuntimeError:
            raise NotFollowed(f"has the shape {list(numbers.shape)} for queries {list(batch)}") from None

    def _weights(self, scores: Node, first: int, shape: Sequence[int]) -> tuple[Node, float, list[_Added]]:
        """From scores to weights: the last node of them, what scores are multiplied by, and what is added to them."""
        node, scale, added, is_done = scores, 1.0, list[_Added](), False
        while True:
            following = _only_user(node)
            packet, numbers = packet_of(following), self._elements.of(node)
            other = next((each for each in following.args if each is not node), None)
            if is_done and packet is not aten.dropout and not is_view(following):
                return node, scale, added
            if packet in (aten.mul, aten.div) and isinstance(other, (int, float)) and following.args[0] is node:
                if added:
                    raise NotFollowed("has scores that are scaled after a bias was added")
                scale = scale * other if packet is aten.mul else scale / other
            elif packet is aten.add and isinstance(other, Node) and not following.kwargs:
                added.append(self._added(other, numbers - first, shape, None))
            elif packet is aten.masked_fill and isinstance(other, Node) and _is_low(following.args[2]):
                added.append(self._added(other, numbers - first, shape, True))
            elif packet in (aten.softmax, aten._softmax):
                along = numbers.movedim(other if isinstance(other, int) else -1, -1).reshape(-1, shape[2])
                expected = torch.arange(first, first + numbers.numel()).reshape(-1, shape[2])
                if not torch.equal(along[along[:, 0].argsort()], expected):
                    raise NotFollowed("has scores whose softmax is not over time")
                is_done = True
            elif not (packet is aten.dropout and following.args[2] is False) and not is_view(following):
                raise NotFollowed(f"has scores that are read by {packet or following.target}")
            if not is_view(following):
                if shape_of(following) != tuple(numbers.shape):
                    raise NotFollowed("has scores that something makes larger")
                self._elements.set(following, numbers)
            node = following

    def _added(self, node: Node, scores: Tensor, shape: Sequence[int], hidden: bool | None) -> _Added:
        """scores: the places of what it is added to in [R,H,N]. Raises NotFollowed where rows or beams differ in it."""
        if node in self._of_caches or (hidden is None and _dtype(node) is not torch.float32):
            raise NotFollowed("has scores to which something else than a float32 bias is added")
        own = self._elements.of(node)
        table = torch.empty(math.prod(shape[:3]), dtype=torch.int64)
        table[scores.reshape(-1)] = own.expand(scores.shape).reshape(-1)
        table = table.reshape(*shape[:3])
        if not (table == table[:1]).all():
            raise NotFollowed("has a bias or mask with a row of its own for each source or beam")
        by_head = table[0]
        if (by_head == by_head[:1]).all():
            by_head = by_head[:1]
        if own.numel() != by_head.numel() or not torch.equal(own.reshape(-1), by_head.reshape(-1)):
            raise NotFollowed("has a bias whose axes are not heads and time")
        return _Added(node, len(by_head), hidden)


def _dtype(node: Any) -> torch.dtype | None:
    value = tensor_of(node)
    return None if value is None else value.dtype


def _is_low(value: Any) -> bool:
    return isinstance(value, (int, float)) and value <= HIDDEN


def _only_user(node: Node) -> Node:
    if len(node.users) != 1:
        raise NotFollowed("has scores or weights that are read twice")
    return next(iter(node.users))
