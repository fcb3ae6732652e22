"""Runs an ONNX graph with PyTorch operators, node by node: the slow, plain version that fast ones are compared with.

It knows the operators that this project's graphs use and no others, and follows ONNX's definition of each (opset 24).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import torch
from onnx import numpy_helper
from torch import Tensor
from torch.nn import functional as F

from ...bundle import Tensor as Described
from ...errors import BundleError

Values = list[Any]
DTYPES = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.BOOL: torch.bool,
}


def _described(value: Any) -> Described:
    """An input or output of a graph, as a manifest would describe it."""
    tensor = value.type.tensor_type
    dtype = str(DTYPES.get(tensor.elem_type, tensor.elem_type)).removeprefix("torch.")
    sizes = [size.dim_value if size.HasField("dim_value") else size.dim_param or None for size in tensor.shape.dim]
    return Described(dtype, sizes if tensor.HasField("shape") else None)


class TorchGraph:
    """One graph, loaded. `run` takes and returns tensors by name. inputs, outputs: the graph's own, by name."""

    def __init__(self, path: Path, device: torch.device) -> None:
        model = onnx.load(path)
        self.device = device
        self.inputs = {value.name: _described(value) for value in model.graph.input}
        self.outputs = {value.name: _described(value) for value in model.graph.output}
        self.nodes = list(model.graph.node)
        self.functions = {(f.domain, f.name): f for f in model.functions}
        self.weights = {t.name: _tensor(t).to(device) for t in model.graph.initializer}

    @torch.no_grad()
    def run(self, feed: Mapping[str, Tensor]) -> dict[str, Any]:
        """Every value of the graph by name, including the outputs."""
        values: dict[str, Any] = {**self.weights, **feed, "": None}
        self._run_nodes(self.nodes, values, {})
        return values

    def _run_nodes(self, nodes: Sequence[Any], values: dict[str, Any], outer: Mapping[str, Any]) -> None:
        for node in nodes:
            inputs = [values[name] for name in node.input]
            attributes = _attributes(node, outer)
            function = self.functions.get((node.domain, node.op_type))
            if function is not None:
                outputs = self._call(function, inputs, attributes)
            else:
                outputs = _listed(_operator(node)(inputs, attributes))
            values.update(zip(node.output, outputs, strict=False))

    def _call(self, function: Any, inputs: Values, attributes: dict[str, Any]) -> Values:
        given = [*inputs, *[None] * (len(function.input) - len(inputs))]
        values: dict[str, Any] = {**dict(zip(function.input, given, strict=True)), "": None}
        self._run_nodes(function.node, values, attributes | {"device": self.device})
        return [values[name] for name in function.output]


# Inputs that give a size, an axis or a number of elements. They are read on the host.
SIZES = {
    "Reshape": {1}, "Expand": {1}, "Unsqueeze": {1}, "Squeeze": {1}, "Slice": {1, 2, 3}, "Split": {1},
    "Range": {0, 1, 2}, "TopK": {1}, "ReduceSum": {1}, "ReduceMax": {1}, "CumSum": {1},
}  # fmt: skip
Step = Callable[[], dict[str, Tensor]]


class StaticTorchGraph:
    """A graph for inputs whose shapes and addresses stay. What follows from shapes alone is worked out once, on the
    host, so that nothing of a later run waits for the device, and a CUDA graph can hold it.

    element: what floating-point values are computed in; None as the graph has it. A cast to fp32 is one to `element`.
    """

    def __init__(self, path: Path, device: torch.device, element: torch.dtype | None = None) -> None:
        model = onnx.inliner.inline_local_functions(onnx.load(path))
        self.device = device
        self.element = element or torch.float32
        self._nodes = list(model.graph.node)
        tensors = {t.name: _tensor(t) for t in model.graph.initializer}
        self._weights = {n: self._on_device(t) for n, t in tensors.items() if t.is_floating_point() and t.dim()}
        self._static = {name: tensor for name, tensor in tensors.items() if name not in self._weights}

    def _on_device(self, value: Tensor) -> Tensor:
        return value.to(self.device, self.element) if value.is_floating_point() else value.to(self.device)

    @torch.no_grad()
    def bind(self, inputs: Mapping[str, Tensor], in_place: Mapping[str, str], wanted: Sequence[str]) -> Step:
        """What runs the graph on `inputs` once and returns its outputs `wanted`.

        inputs: on the device; their contents are read at each run. in_place: outputs that are written where an input
        lies, by that input's name.
        """
        static: dict[str, Any] = {**self._static, "": None}
        values: dict[str, Any] = {**self._weights, **inputs}
        on_device: dict[str, Tensor] = {}
        calls: list[tuple[Callable[..., Any], list[Any], dict[str, Any], list[str]]] = []
        for node in _reaching(self._nodes, {*wanted, *in_place.values()}):
            attributes = _attributes(node, {"device": torch.device("cpu")})
            if node.op_type == "Shape" and node.input[0] in values:
                static[node.output[0]] = OPERATORS["Shape"]([values[node.input[0]]], attributes).cpu()
                continue
            if all(name in static for name in node.input):
                found = _listed(_operator(node)([static[name] for name in node.input], attributes))
                static.update(zip(node.output, found, strict=False))
                continue
            if node.op_type == "Cast" and DTYPES[attributes["to"]].is_floating_point:
                attributes["to"] = next(number for number, kind in DTYPES.items() if kind == self.element)
            given: list[Any] = []  # names of values that change, tensors of those that don't
            for i, name in enumerate(node.input):
                if name not in static or static[name] is None or i in SIZES.get(node.op_type, ()):
                    given.append(static.get(name, name))
                else:
                    given.append(on_device.setdefault(name, self._on_device(static[name])))
            operator = _scatter_in_place if node.op_type == "TensorScatter" else _operator(node)
            calls.append((operator, given, attributes, list(node.output)))
            _call_into(values, *calls[-1])
        kept = {name: value for name, value in values.items() if name in self._weights or name in inputs}

        @torch.no_grad()
        def step() -> dict[str, Tensor]:
            found = dict(kept)
            for call in calls:
                _call_into(found, *call)
            return {name: found[name] for name in wanted}

        return step


def _call_into(
    values: dict[str, Any], operator: Callable[..., Any], given: Values, attributes: dict[str, Any], outputs: list[str]
) -> None:
    found = operator([values[one] if isinstance(one, str) else one for one in given], attributes)
    values.update(zip(outputs, _listed(found), strict=False))


def _listed(found: Any) -> list[Any]:
    return list(found) if isinstance(found, (tuple, list)) else [found]


def _reaching(nodes: Sequence[Any], outputs: set[str]) -> list[Any]:
    """The nodes, in order, that `outputs` depend on."""
    needed, found = set(outputs), []
    for node in reversed(nodes):
        if needed & set(node.output):
            needed |= set(node.input)
            found.append(node)
    return found[::-1]


def _operator(node: Any) -> Callable[[Values, dict[str, Any]], Any]:
    if node.op_type not in OPERATORS:
        raise BundleError(f"the graph uses the operator {node.op_type}, which the torch backend does not know")
    return OPERATORS[node.op_type]


def _scatter_in_place(x: Values, a: dict[str, Any]) -> Tensor:
    """TensorScatter that writes into the cache: cache [B,H,N,D], update [B,H,K,D], first slots [B] on the device."""
    cache, update, first = x
    slots = first[:, None] + torch.arange(update.shape[2], device=cache.device)
    return cache.scatter_(2, slots[:, None, :, None].expand_as(update), update)  # type: ignore[no-any-return]


def _tensor(proto: Any) -> Tensor:
    array = numpy_helper.to_array(proto)
    if proto.data_type == onnx.TensorProto.BFLOAT16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def _attributes(node: Any, outer: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"device": outer.get("device"), "n_outputs": len(node.output)}
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            found[attribute.name] = outer[attribute.ref_attr_name]
        else:
            value = onnx.helper.get_attribute_value(attribute)
            found[attribute.name] = value.decode() if isinstance(value, bytes) else value
    return found


def _sizes(value: Tensor) -> list[int]:
    return [int(size) for size in value.reshape(-1).tolist()]


def _reshape(x: Values, a: dict[str, Any]) -> Tensor:
    shape = [int(x[0].shape[i]) if size == 0 else size for i, size in enumerate(_sizes(x[1]))]
    return x[0].reshape(shape)  # type: ignore[no-any-return]


def _gather(x: Values, a: dict[str, Any]) -> Tensor:
    axis = a.get("axis", 0)
    flat = x[0].index_select(axis, x[1].reshape(-1))
    return flat.reshape(*x[0].shape[:axis], *x[1].shape, *x[0].shape[axis + 1 :])  # type: ignore[no-any-return]


def _unsqueeze(x: Values, a: dict[str, Any]) -> Tensor:
    value, rank = x[0], x[0].dim() + x[1].numel()
    for axis in sorted(size % rank for size in _sizes(x[1])):
        value = value.unsqueeze(axis)
    return value  # type: ignore[no-any-return]


def _squeeze(x: Values, a: dict[str, Any]) -> Tensor:
    axes = _sizes(x[1]) if len(x) > 1 and x[1] is not None else [i for i, size in enumerate(x[0].shape) if size == 1]
    return torch.squeeze(x[0], axes)


def _slice(x: Values, a: dict[str, Any]) -> Tensor:
    value = x[0]
    for axis, begin, end in zip(_sizes(x[3]), _sizes(x[1]), _sizes(x[2]), strict=True):
        value = value.narrow(axis, begin, min(end, value.shape[axis]) - begin)
    return value  # type: ignore[no-any-return]


def _expand(x: Values, a: dict[str, Any]) -> Tensor:
    shape = torch.broadcast_shapes(x[0].shape, _sizes(x[1]))  # type: ignore[no-untyped-call]
    return x[0].expand(shape)  # type: ignore[no-any-return]


def _gemm(x: Values, a: dict[str, Any]) -> Tensor:
    weight = x[1].T if a.get("transB", 0) else x[1]
    product = x[0] @ weight
    return product if len(x) < 3 else product + x[2]  # type: ignore[no-any-return]


def _rms_norm(x: Values, a: dict[str, Any]) -> Tensor:
    wide = x[0].float()  # squares are beyond fp16
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + a["epsilon"])
    return (wide * scale).to(x[0].dtype) * x[1]  # type: ignore[no-any-return]


def _top_k(x: Values, a: dict[str, Any]) -> tuple[Tensor, Tensor]:
    values, indices = torch.sort(x[0], dim=a.get("axis", -1), descending=True, stable=True)
    n = int(x[1])
    return values[..., :n], indices[..., :n]


def _tensor_scatter(x: Values, a: dict[str, Any]) -> Tensor:
    cache, update = x[0].clone(), x[1]
    for row, begin in enumerate(_sizes(x[2])):
        cache[row, :, begin : begin + update.shape[2]] = update[row]
    return cache  # type: ignore[no-any-return]


def _constant(x: Values, a: dict[str, Any]) -> Tensor:
    if "value" in a:
        return _tensor(a["value"]).to(a["device"])
    if "value_float" in a:
        return torch.tensor(a["value_float"], dtype=torch.float32, device=a["device"])
    return torch.tensor(a.get("value_ints", a.get("value_int")), dtype=torch.int64, device=a["device"])


def _recurrence(x: Values, a: dict[str, Any], kind: str) -> tuple[Tensor, ...]:
    """LSTM or GRU of ONNX on x [S,B,in] with lengths: outputs [S,dirs,B,U] and the last states [dirs,B,U]."""
    inputs, weights, hidden_weights, biases, lengths = x[:5]
    units, direction = a["hidden_size"], a.get("direction", "forward")
    n_steps, batch = inputs.shape[:2]
    outputs, lasts = [], []
    for i, backwards in enumerate([False, True] if direction == "bidirectional" else [direction == "reverse"]):
        bias, hidden_bias = biases[i].chunk(2)
        states = [inputs.new_zeros(batch, units) for _ in range(2 if kind == "lstm" else 1)]
        steps: list[Any] = [None] * n_steps
        for t in reversed(range(n_steps)) if backwards else range(n_steps):
            alive = (t < lengths)[:, None]
            new = _UNITS[kind](inputs[t] @ weights[i].T + bias, states, hidden_weights[i], hidden_bias)
            states = [torch.where(alive, fresh, old) for fresh, old in zip(new, states, strict=True)]
            steps[t] = torch.where(alive, states[0], torch.zeros_like(states[0]))
        outputs.append(torch.stack(steps))
        lasts.append(states)
    return torch.stack(outputs, dim=1), *(torch.stack(group) for group in zip(*lasts, strict=True))


def _lstm_unit(fed: Tensor, states: Values, weight: Tensor, bias: Tensor) -> Values:
    i, o, f, g = (fed + states[0] @ weight.T + bias).chunk(4, dim=1)
    cell = torch.sigmoid(f) * states[1] + torch.sigmoid(i) * torch.tanh(g)
    return [torch.sigmoid(o) * torch.tanh(cell), cell]


def _gru_unit(fed: Tensor, states: Values, weight: Tensor, bias: Tensor) -> Values:
    z_in, r_in, n_in = fed.chunk(3, dim=1)
    z_hidden, r_hidden, n_hidden = (states[0] @ weight.T + bias).chunk(3, dim=1)
    update = torch.sigmoid(z_in + z_hidden)
    candidate = torch.tanh(n_in + torch.sigmoid(r_in + r_hidden) * n_hidden)
    return [(1 - update) * candidate + update * states[0]]


_UNITS: dict[str, Callable[[Tensor, Values, Tensor, Tensor], Values]] = {"lstm": _lstm_unit, "gru": _gru_unit}

OPERATORS: dict[str, Callable[[Values, dict[str, Any]], Any]] = {
    "Add": lambda x, a: x[0] + x[1],
    "Sub": lambda x, a: x[0] - x[1],
    "Mul": lambda x, a: x[0] * x[1],
    "Div": lambda x, a: x[0] / x[1] if x[0].is_floating_point() else torch.div(x[0], x[1], rounding_mode="trunc"),
    "Min": lambda x, a: torch.minimum(x[0], x[1]),
    "Max": lambda x, a: torch.maximum(x[0], x[1]),
    "And": lambda x, a: x[0] & x[1],
    "Or": lambda x, a: x[0] | x[1],
    "Neg": lambda x, a: -x[0],
    "Not": lambda x, a: ~x[0],
    "Equal": lambda x, a: x[0] == x[1],
    "LessOrEqual": lambda x, a: x[0] <= x[1],
    "Less": lambda x, a: x[0] < x[1],
    "Greater": lambda x, a: x[0] > x[1],
    "Where": lambda x, a: torch.where(x[0], x[1], x[2]),
    "Cast": lambda x, a: x[0].to(DTYPES[a["to"]]),
    "CastLike": lambda x, a: x[0].to(x[1].dtype),
    "Identity": lambda x, a: x[0],
    "Constant": _constant,
    "Shape": lambda x, a: torch.tensor(x[0].shape[a.get("start", 0) : a.get("end")], device=x[0].device),
    "Reshape": _reshape,
    "Transpose": lambda x, a: x[0].permute(*a["perm"]),
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Concat": lambda x, a: torch.cat(x, dim=a["axis"]),
    "Split": lambda x, a: torch.split(x[0], _sizes(x[1]), dim=a.get("axis", 0)),
    "Slice": _slice,
    "Expand": _expand,
    "Range": lambda x, a: torch.arange(int(x[0]), int(x[1]), int(x[2]), device=x[0].device),
    "CumSum": lambda x, a: torch.cumsum(x[0], dim=int(x[1])),
    "ReduceSum": lambda x, a: x[0].sum(dim=_sizes(x[1]), keepdim=bool(a.get("keepdims", 1))),
    "ReduceMax": lambda x, a: x[0].amax(dim=_sizes(x[1]), keepdim=bool(a.get("keepdims", 1))),
    "ArgMax": lambda x, a: torch.argmax(x[0], dim=a["axis"], keepdim=bool(a.get("keepdims", 1))),
    "NonZero": lambda x, a: torch.nonzero(x[0]).T,
    "Gather": _gather,
    "GatherElements": lambda x, a: torch.gather(x[0], a.get("axis", 0), x[1]),
    "ScatterND": lambda x, a: x[0].index_put(tuple(x[1].unbind(-1)), x[2]),
    "TensorScatter": _tensor_scatter,
    "MatMul": lambda x, a: x[0] @ x[1],
    "Gemm": _gemm,
    "Softmax": lambda x, a: torch.softmax(x[0], dim=a.get("axis", -1)),
    "LogSoftmax": lambda x, a: torch.log_softmax(x[0], dim=a.get("axis", -1)),
    "TopK": _top_k,
    "LayerNormalization": lambda x, a: F.layer_norm(x[0], x[1].shape, x[1], x[2], a["epsilon"]),
    "RMSNormalization": _rms_norm,
    "Relu": lambda x, a: torch.relu(x[0]),
    "Tanh": lambda x, a: torch.tanh(x[0]),
    "Sigmoid": lambda x, a: torch.sigmoid(x[0]),
    "Gelu": lambda x, a: F.gelu(x[0], approximate=a.get("approximate", "none")),
    "LSTM": lambda x, a: _recurrence(x, a, "lstm"),
    "GRU": lambda x, a: _recurrence(x, a, "gru"),
}
