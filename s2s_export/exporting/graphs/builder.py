"""A small builder of ONNX graphs. Each method adds a node, whose name says to which part of the model it belongs.

The graphs are written node by node from the model's weights; nothing is traced. So the code that emits them decides
what a step looks like (which dimensions are symbolic, where beams are, which projections share one matrix product), and
an export takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import torch
from onnx import TensorProto, helper

from .functions import DOMAINS, OPSET, function_protos
from .weights import WeightStore, small_constant

IR_VERSION = 11
FLOAT = TensorProto.FLOAT
INT64 = TensorProto.INT64
SMALL = 64  # elements; a smaller tensor of an embedded model is written into the graph
Dimension = int | str
Emitter = Callable[[onnx.NodeProto, list[str]], list[str] | None]


class GraphBuilder:
    """One ONNX graph under construction. Values are referred to by name.

    `with builder.scope("layer0"):` prefixes the names of the nodes that are added inside.
    """

    def __init__(self, name: str, store: WeightStore) -> None:
        self.name = name
        self._store = store
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._constants: dict[tuple[Any, ...], str] = {}
        self._scopes: list[str] = []
        self._counts: dict[str, int] = {}
        self._renamed: dict[str, str] = {}

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        self._scopes.append(name)
        try:
            yield
        finally:
            self._scopes.pop()

    def _fresh(self, stem: str) -> str:
        name = "/".join([*self._scopes, stem])
        self._counts[name] = self._counts.get(name, 0) + 1
        return name if self._counts[name] == 1 else f"{name}_{self._counts[name]}"

    # Inputs, outputs, weights

    def input(self, name: str, dtype: int, shape: Sequence[Dimension]) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, value: str, name: str, dtype: int, shape: Sequence[Dimension]) -> None:
        """Make `value` an output called `name`. It is renamed; an Identity node would copy a whole cache."""
        assert value not in self._renamed, f"{value} is an output already"
        self._renamed[value] = name
        self._outputs.append(helper.make_tensor_value_info(name, dtype, shape))

    def weight(self, stem: str, tensor: torch.Tensor) -> str:
        """A weight of the model; a Cast to fp32 follows if it is stored in a smaller type."""
        name = self._fresh(stem)
        proto = self._store.initializer(name, tensor)
        self._initializers[name] = proto
        return name if proto.data_type == FLOAT else self.op("Cast", [name], to=FLOAT)

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        """A small constant. Equal constants share one initializer."""
        array = np.asarray(value, dtype=dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"constant/{len(self._constants)}"
            self._initializers[name] = small_constant(name, array, dtype)
            self._constants[key] = name
        return self._constants[key]

    def embed(self, model: onnx.ModelProto, inputs: Sequence[str], emitter: Emitter | None = None) -> list[str]:
        """Add the nodes and weights of a whole model, fed `inputs` in its order. Returns the names of its outputs.

        Its operators are of the standard domain; functions are expanded. emitter: adds other nodes in place of one,
        given it and the names of its inputs, and returns the names of its outputs; or None, and the node is added.
        """
        model = onnx.inliner.inline_local_functions(model)
        with self.scope(self._fresh(model.graph.name or "model")):
            names = dict(zip([value.name for value in model.graph.input], inputs, strict=True))
            for initializer in model.graph.initializer:
                names[initializer.name] = self._embedded_weight(initializer)
            for node in model.graph.node:
                given = [names[value] if value else "" for value in node.input]
                made = None if emitter is None else emitter(node, given)
                if made is None:
                    self._nodes.append(self._renamed_node(node, names))
                else:
                    names.update(zip(node.output, made, strict=True))
        return [names[value.name] for value in model.graph.output]

    def _embedded_weight(self, proto: onnx.TensorProto) -> str:
        array = onnx.numpy_helper.to_array(proto)
        if array.dtype == np.float32 and array.size > SMALL:
            return self.weight(proto.name, torch.from_numpy(array.copy()))
        name = self._fresh(proto.name)
        self._initializers[name] = small_constant(name, array, array.dtype)
        return name

    def _renamed_node(self, node: onnx.NodeProto, names: dict[str, str]) -> onnx.NodeProto:
        """A copy with names of this graph. `names` gets those of its outputs; a graph inside has a scope of its own."""
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = self._fresh(node.name or node.op_type)
        copy.input[:] = [names[value] if value else "" for value in node.input]
        for attribute in copy.attribute:
            if attribute.HasField("g"):
                self._rename_inside(attribute.g, dict(names))
        for value in filter(None, node.output):
            names[value] = self._fresh(value)
        copy.output[:] = [names[value] if value else "" for value in node.output]
        return copy

    def _rename_inside(self, graph: onnx.GraphProto, names: dict[str, str]) -> None:
        for value in (*graph.input, *graph.initializer):
            names[value.name] = self._fresh(value.name)
            value.name = names[value.name]
        nodes = [self._renamed_node(node, names) for node in graph.node]
        del graph.node[:]
        graph.node.extend(nodes)
        del graph.value_info[:]
        for value in graph.output:
            value.name = names[value.name]

    # Nodes

    def ops(
        self, op_type: str, inputs: Sequence[str], n_outputs: int, domain: str = "", **attributes: Any
    ) -> list[str]:
        name = self._fresh(op_type)
        outputs = [f"{name}:{i}" for i in range(n_outputs)]
        self._nodes.append(helper.make_node(op_type, list(inputs), outputs, name=name, domain=domain, **attributes))
        return outputs

    def op(self, op_type: str, inputs: Sequence[str], domain: str = "", **attributes: Any) -> str:
        return self.ops(op_type, inputs, 1, domain, **attributes)[0]

    def reshape(self, value: str, shape: Sequence[int | str]) -> str:
        """Reshape; 0 keeps a dimension, -1 infers one, a string is the name of a [1] int64 value."""
        if any(isinstance(size, str) for size in shape):
            parts = [size if isinstance(size, str) else self.constant([size]) for size in shape]
            return self.op("Reshape", [value, self.op("Concat", parts, axis=0)])
        return self.op("Reshape", [value, self.constant(shape)])

    def transpose(self, value: str, order: Sequence[int]) -> str:
        return self.op("Transpose", [value], perm=list(order))

    def size(self, value: str, axis: int) -> str:
        """The size of one dimension as a [1] int64 value."""
        return self.op("Shape", [value], start=axis, end=axis + 1)

    def linear(self, rows: str, weight: torch.Tensor, bias: torch.Tensor | None, stem: str = "weight") -> str:
        """rows [R, in] times weight [out, in] transposed, plus bias [out]."""
        inputs = [rows, self.weight(stem, weight)]
        if bias is not None:
            inputs.append(self.weight(f"{stem}_bias", bias))
        return self.op("Gemm", inputs, transB=1)

    def range(self, limit: str) -> str:
        """0, 1, ... limit-1 for a [1] int64 value."""
        return self.op("Range", [self.constant(0), self.op("Squeeze", [limit]), self.constant(1)])

    def model(self) -> onnx.ModelProto:
        """The finished model, with the bodies of the functions in our own domains that it uses."""
        for node in self._nodes:
            node.input[:] = [self._renamed.get(value, value) for value in node.input]
            node.output[:] = [self._renamed.get(value, value) for value in node.output]
        graph = helper.make_graph(
            self._nodes, self.name, self._inputs, self._outputs, list(self._initializers.values())
        )
        functions = function_protos({(node.domain, node.op_type) for node in self._nodes})
        opsets = [helper.make_opsetid("", OPSET), *(helper.make_opsetid(domain, 1) for domain in DOMAINS)]
        return helper.make_model(
            graph, functions=functions, opset_imports=opsets, ir_version=IR_VERSION, producer_name="s2s_export"
        )
