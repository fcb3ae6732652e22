"""Finds in a traced step the attention over caches along time, so that the caches become slots.

A cache is a state field that grows by one with every step. Its owner concatenates what is new, attends to all of it and
returns it. Where a step does nothing else with its caches, no beam needs a cache of its own: keys and values stay in
slots where they were written, a table of ancestors says which of them a beam sees, and the step computes what is new
alone. `find` proves that a step is such a one, element by element (views.py):

    what an attention reads of the past is what the field holds, time for time and row for row
    what it reads of the new token is what the step returns in the field at the same place

`Found.apply` puts the operator SlotAttention in place of each attention; the caches are read no more but for their
length, which is the position.

Letters: R rows, H heads, G heads of keys and values, D head size, T positions before the step.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.export.graph_signature import TensorArgument
from torch.fx import Node

from .attending import Attending, Reader
from .interface import Field
from .views import Elements, NotFollowed, aten, call, is_view, packet_of, shape_of, tensor_of

DOMAIN, OPERATOR, NUMBER = "s2s.slots", "SlotAttention", "number"


@torch.library.custom_op("s2s_export::slot_attention", mutates_args=())
def slot_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, number: int) -> Tensor:
    """query [R,H*D], key and value [R,G*D] of this token, bias [H|1,T+1] -> [R,H*D].

    number: which of the step's attentions it is. Outside of a trace nobody calls it.
    """
    raise NotImplementedError


@slot_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, number: int) -> Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


def translation() -> dict[Any, Any]:
    """How torch.onnx writes the operator."""
    from onnx.defs import OpSchema
    from onnxscript.values import Op, Opset

    kind, optional = "tensor(float)", OpSchema.FormalParameterOption.Optional
    inputs = [OpSchema.FormalParameter(name, kind) for name in ("query", "key", "value")]
    schema = OpSchema(
        OPERATOR,
        DOMAIN,
        1,
        inputs=[*inputs, OpSchema.FormalParameter("bias", kind, param_option=optional)],
        outputs=[OpSchema.FormalParameter("output", kind)],
        attributes=[OpSchema.Attribute(NUMBER, OpSchema.AttrType.INT, required=True)],
    )
    written: Any = Op(Opset(DOMAIN, 1), OPERATOR, schema)

    def translate(query, key, value, bias, number):  # type: ignore[no-untyped-def]
        return written(*(given for given in (query, key, value, bias) if given is not None), **{NUMBER: number})

    return {torch.ops.s2s_export.slot_attention.default: translate}


@dataclass(frozen=True)
class SlotAttention:
    """One attention over slots: H, G, D, and what multiplies its scores."""

    n_heads: int
    key_heads: int
    head_size: int
    scale: float
    soft_cap: None = None


@dataclass(frozen=True)
class Slots:
    """What became of the state.

    caches: fields that slots took the place of. counters: fields that are what `start` said, and one more with every
    step. attentions: whose keys and values lie in slots, in their order.
    """

    caches: frozenset[str]
    counters: frozenset[str]
    attentions: tuple[SlotAttention, ...]


@dataclass
class _Cache:
    """A field along time. time: its axis. returned: the numbers of what the step returns in it."""

    name: str
    node: Node
    time: int
    shape: tuple[int, ...]
    before: Tensor
    returned: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def length(self) -> int:
        return self.shape[self.time]

    def past(self) -> Tensor:
        """[R, channels, T]: the elements of the field by row and time."""
        return self.before.movedim(self.time, -1).reshape(self.shape[0], -1, self.length)

    def new(self) -> Tensor:
        """[R, channels]: what the step adds, channel for channel as in `past`."""
        return self.returned.select(self.time, self.length).reshape(self.shape[0], -1)


_Read = tuple[Attending, SlotAttention, tuple[Node, Node, Node]]  # and its queries, keys and values of this token


@dataclass
class Found:
    """A step whose caches can be slots, and how."""

    program: Any
    slots: Slots
    _attentions: list[_Read]
    _caches: dict[str, Node]
    _returned: dict[str, int]
    _sizes: list[tuple[Node, Callable[[], Any]]]

    def apply(self) -> None:
        """Change the program."""
        graph = self.program.graph_module.graph
        # The last first: what one attention gives may be what the next one reads.
        for number, (attending, heads, read) in reversed([*enumerate(self._attentions)]):
            last = attending.last
            with graph.inserting_before(last):
                n_heads = (heads.n_heads, heads.key_heads, heads.key_heads)
                rows = [_rows(graph, node, n * heads.head_size) for node, n in zip(read, n_heads, strict=True)]
                bias = attending.bias(graph)
                mixed = call(graph, torch.ops.s2s_export.slot_attention.default, *rows, bias, number)
                last.replace_all_uses_with(attending.shaped(graph, mixed))
        for node, made in self._sizes:
            with graph.inserting_before(node):
                node.replace_all_uses_with(made())
        (output,) = graph.find_nodes(op="output")
        returned, specs = list(output.args[0]), self.program.graph_signature.output_specs
        with graph.inserting_before(output):
            for name, place in self._returned.items():  # which no one reads
                returned[place] = call(graph, aten.clone.default, self._caches[name])
                specs[place].arg = TensorArgument(name=returned[place].name)
        output.args = (tuple(returned),)
        # What could draw random numbers, as dropout does in training, would stay otherwise.
        graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
        self.program.graph_module.recompile()


def _rows(graph: Any, node: Node, width: int) -> Node:
    value = tensor_of(node)
    if value is not None and value.dim() == 2 and value.shape[1] == width:
        return node
    return call(graph, aten.reshape.default, node, [-1, width])


def _size(graph: Any, node: Node, axis: int, more: int) -> Node:
    size = call(graph, aten.sym_size.int, node, axis)
    return call(graph, operator.add, size, more) if more else size


def find(program: Any, fields: Sequence[Field]) -> Found:
    """fields: of the state, whose tensors follow the token. Raises NotFollowed, with what stands in the way."""
    return _Search(program, fields).found()


class _Search:
    def __init__(self, program: Any, fields: Sequence[Field]) -> None:
        self._program, self._fields = program, fields
        graph = program.graph_module.graph
        self._nodes: list[Node] = list(graph.nodes)
        self._output = self._nodes[-1]
        by_name = {node.name: node for node in self._nodes if node.op == "placeholder"}
        _, *given = (by_name[name] for name in program.graph_signature.user_inputs)
        self._given = dict(zip((f.name for f in fields), given, strict=True))
        self._elements = Elements()
        self._caches: dict[Node, _Cache] = {}
        self._returned = {f.name: 1 + i for i, f in enumerate(f for f in fields if f.changes)}  # behind the logits

    def found(self) -> Found:
        counters = set()
        for f in self._fields:
            if "C" in f.shape:
                self._add_cache(f)
            elif f.changes:
                if not self._is_counter(f):
                    raise NotFollowed(f"state.{f.name} changes with every step too, and must follow its beam")
                counters.add(f.name)
        self._of_caches = self._reached()
        for cache in self._caches.values():
            self._check_returned(cache)
        attentions = [self._attention(found) for found in self._attendings()]
        slots = Slots(
            frozenset(cache.name for cache in self._caches.values()),
            frozenset(counters),
            tuple(heads for _, heads, _ in attentions),
        )
        if not attentions:
            raise NotFollowed("no attention reads them")
        return Found(
            self._program,
            slots,
            attentions,
            {cache.name: node for node, cache in self._caches.items()},
            {cache.name: self._returned[cache.name] for cache in self._caches.values()},
            list(self._sizes()),
        )

    def _add_cache(self, f: Field) -> None:
        if f.shape.count("C") != 1 or f.first[f.shape.index("C")] != 0:
            raise NotFollowed(f"state.{f.name} is not empty before the first step")
        node = self._given[f.name]
        value = tensor_of(node)
        if value is None or value.dtype != torch.float32:
            raise NotFollowed(f"state.{f.name} holds no float32")
        self._caches[node] = _Cache(f.name, node, f.shape.index("C"), shape_of(node), self._elements.of(node))

    def _is_counter(self, f: Field) -> bool:
        """Whether a step returns this field and one more, whatever it is given."""
        node = self._output.args[0][self._returned[f.name]]  # type: ignore[index]
        return (
            isinstance(node, Node)
            and packet_of(node) is aten.add
            and node.args in ((self._given[f.name], 1), (1, self._given[f.name]))
            and not node.kwargs
            and f.dtype in (torch.int64, torch.int32)
            and all(size == 1 for size in f.shape[1:])
        )

    def _reached(self) -> set[Node]:
        """The caches, and what shows elements of them."""
        reached = set(self._caches)
        for node in self._nodes:
            if is_view(node) and reached.intersection(node.all_input_nodes):
                reached.add(node)
        return reached

    def _check_returned(self, cache: _Cache) -> None:
        node: Any = self._output.args[0][self._returned[cache.name]]  # type: ignore[index]
        cache.returned = self._elements.of(node)
        expected = [size + (axis == cache.time) for axis, size in enumerate(cache.shape)]
        if list(cache.returned.shape) != expected:
            raise NotFollowed(f"state.{cache.name} changes its shape")
        if not torch.equal(cache.returned.narrow(cache.time, 0, cache.length), cache.before):
            raise NotFollowed(f"what state.{cache.name} held is changed, or moved, when it is returned")

    def _attendings(self) -> Iterator[Attending]:
        """The attentions over caches. Raises NotFollowed where something else reads a cache."""
        done: set[Node] = set()
        n_rows = next(iter(self._caches.values())).shape[0]
        reader = Reader(self._elements, self._of_caches, n_rows)
        for node in self._nodes:
            read = [given for given in node.all_input_nodes if given in self._of_caches]
            if not read or node in self._of_caches or node in done or packet_of(node) is aten.sym_size:
                continue
            if node is self._output:
                self._check_output()
                continue
            try:
                found = reader.at(node)
            except NotFollowed as reason:
                names = sorted({name for given in read for name in self._names(given)})
                raise NotFollowed(f"{' and '.join(f'state.{n}' for n in names)}: {reason}") from None
            done.update(found.readers)
            yield found

    def _names(self, node: Node) -> set[str]:
        """The fields that a value shows elements of."""
        waiting, found, seen = [node], set(), set()
        while waiting:
            each = waiting.pop()
            if each in self._caches:
                found.add(self._caches[each].name)
            elif each in self._of_caches and each not in seen:
                seen.add(each)
                waiting += each.all_input_nodes
        return found

    def _check_output(self) -> None:
        places = {self._returned[cache.name] for cache in self._caches.values()}
        for place, node in enumerate(self._output.args[0]):  # type: ignore[arg-type]
            if node in self._of_caches and place not in places:
                raise NotFollowed("the step returns a cache elsewhere than in its field")

    def _attention(self, found: Attending) -> _Read:
        keys, key = self._side(found, found.keys, "keys")
        values, value = self._side(found, found.values, "values")
        if keys != values:
            raise NotFollowed(f"keys have {keys[0]} heads of {keys[1]} and values {values[0]} of {values[1]}")
        query = self._holding(found.queries.reshape(len(found.queries), -1), found.last, "queries")
        return found, SlotAttention(found.keys.shape[1], *keys, found.scale), (query, key, value)

    def _side(self, found: Attending, numbers: Tensor, what: str) -> tuple[tuple[int, int], Node]:
        """G and D of the keys or values numbers [R,H,T+1,D], and a value that holds those of this token [R,G*D]."""
        rows, n_heads, length, head_size = numbers.shape
        groups = next(
            g for g in range(1, n_heads + 1)
            if n_heads % g == 0
            and torch.equal(numbers, numbers[:, :: n_heads // g].repeat_interleave(n_heads // g, 1))
        )  # fmt: skip
        numbers = numbers[:, :: n_heads // groups]
        past, new = numbers[:, :, : length - 1], numbers[:, :, length - 1]  # [R,G,T,D], [R,G,D]
        for cache in self._caches.values():
            if int(cache.before.min()) <= int(past.min()) and int(past.max()) <= int(cache.before.max()):
                break
        else:
            raise NotFollowed(f"the {what} of an attention are not those of one cache")
        held = cache.past()  # [R,channels,T]
        first = {int(number): channel for channel, number in enumerate(held[0, :, 0])}
        channels = torch.tensor([first.get(int(number), 0) for number in past[0, :, 0].reshape(-1)])
        if length - 1 != cache.length or rows != cache.shape[0]:
            raise NotFollowed(f"the {what} of an attention are a part of state.{cache.name}")
        expected = held[:, channels].reshape(rows, groups, head_size, length - 1).transpose(2, 3)
        if not torch.equal(expected, past):
            raise NotFollowed(f"the {what} of an attention are not state.{cache.name} row for row and time for time")
        if not torch.equal(cache.new()[:, channels].reshape(new.shape), new):
            raise NotFollowed(f"state.{cache.name} is given other {what} than the attention reads")
        return (groups, head_size), self._holding(new.reshape(rows, -1), found.last, what)

    def _holding(self, numbers: Tensor, last: Node, what: str) -> Node:
        """A value before `last` that holds these elements [R, n] row by row."""
        for node in self._nodes[: self._nodes.index(last)]:
            value = tensor_of(node)
            if value is None or node in self._of_caches or node.op == "get_attr":
                continue
            shape = shape_of(node)
            is_such = bool(shape) and shape[0] == numbers.shape[0] and math.prod(shape) == numbers.numel()
            if is_such and torch.equal(self._elements.of(node).reshape(numbers.shape), numbers):
                return node
        raise NotFollowed(f"the {what} of a token lie nowhere in the order of an attention's heads")

    def _sizes(self) -> Iterator[tuple[Node, Callable[[], Any]]]:
        """The sizes that are asked of what will be no more, and what to ask instead."""
        graph = self._program.graph_module.graph
        for node in self._nodes:
            if packet_of(node) is aten.sym_size and node.args[0] in self._of_caches - {*self._caches}:
                yield node, self._same_size(graph, node)

    def _same_size(self, graph: Any, node: Node) -> Callable[[], Any]:
        wanted = str(node.meta["val"])
        for given, cache in self._caches.items():
            value: Any = tensor_of(given)
            length, rows = value.shape[cache.time], value.shape[0]
            for size, axis, more in ((length, cache.time, 0), (length + 1, cache.time, 1), (rows, 0, 0)):
                if str(size) == wanted:
                    return partial(_size, graph, given, axis, more)
        raise NotFollowed(f"the size {wanted} of a cache is asked for")
