"""IPluginV3 plugins in Python, for TensorRT and for TensorRT-RTX alike.

    changed = ensure_parser_can_load_plugins(trt)              # parser_library.py; a sentence to show, or None
    names = register(trt, binaries={"beam_self_attention": path, "cross_attention": path})
    config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)

After `register`, the ONNX parser takes a plugin for every node of the domain `s2s.plugins` that carries the attributes
`plugin_namespace` and `plugin_version`, and engines that hold such plugins can be deserialised. Building needs no
driver. `load` loads the kernels before a layer runs; without it that happens when the first one does.

Serialised with a layer: its scale. The kernels stay outside the engine, so that better ones serve engines that exist;
`VERSION` changes when they compute something else. Engines made with this glue run with the C++ one, and the reverse.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from s2s_export.errors import BackendError, BuildError, EngineError
from s2s_export.runtime.cuda import libcuda
from s2s_export.runtime.cuda.binary import LoadedBinary

from .. import operations
from ..common.nodes import DOMAIN, VERSION, Launch, Operation
from .parser_library import ensure_parser_can_load_plugins

_registered: dict[tuple[str, str], Any] = {}  # (flavour, operation) -> creator; the registry keeps no reference
_refusals: list[str] = []
PROBED = {**dict.fromkeys("BHKSCNT", 1), "D": 64}  # sizes of which every folder has a kernel


class Kernels:
    """A folder's kernels: the path of their binary, which is loaded by `load` or at the first launch."""

    def __init__(self, folder: str, path: Path | None) -> None:
        self.folder = folder
        self.path = path
        self._binary: LoadedBinary | None = None

    def load(self, probe: str) -> None:
        """Loads the binary and looks for the kernel `probe` in it: a driver that loads lazily reads the code only then.

        Raises EngineError without a binary, BackendUnavailable for one that this driver can't use."""
        self._loaded().find(probe)

    def run(self, launch: Launch, argument: Any, stream: int) -> None:
        self._loaded().run(launch, argument, stream)

    def _loaded(self) -> LoadedBinary:
        if self._binary is None:
            if self.path is None:
                raise EngineError(
                    f"no binary of the kernels in plugins/{self.folder}; expected the one that was built with the "
                    "engine; build the target again"
                )
            self._binary = LoadedBinary(libcuda.driver(), self.path.read_bytes(), self.path.name)
        return self._binary


def register(trt: ModuleType, binaries: Mapping[str, Path] | None = None) -> list[str]:
    """Registers a creator for every operation with TensorRT's registry; returns the operations' names.

    binaries: the compiled kernels by folder (`build.fatbin`); may be left out where engines are only built.
    Calling it again replaces the binaries of plugins that are created from then on.
    Raises BackendUnavailable when the parser could not survive a plugin (parser_library.py mends that), BuildError when
    the registry refuses one.
    """
    ensure_parser_can_load_plugins(trt, repair=False)
    if not hasattr(trt, "IPluginV3OneBuildV2"):
        raise BuildError(
            f"{trt.__name__} {trt.__version__} has no plugins with aliased tensors; expected 10.3 or later; "
            "update it, or build the target without plugins"
        )
    registry = trt.get_plugin_registry()
    kernels = {
        folder: Kernels(folder, Path(path) if (path := (binaries or {}).get(folder)) else None)
        for folder in sorted({operation.folder for operation in operations().values()})
    }
    for name, operation in operations().items():
        key = (trt.__name__, name)
        if key in _registered:
            _registered[key].kernels = kernels[operation.folder]
            continue
        creator = make_creator(trt, operation, kernels[operation.folder])
        if not registry.register_creator(creator, DOMAIN):
            raise BuildError(
                f"TensorRT's registry refused the plugin {name}; expected no other '{DOMAIN}' plugin of that name; "
                "unload the library that brought it"
            )
        _registered[key] = creator
    return sorted(operations())


def load(trt: ModuleType) -> None:
    """Loads the kernels of all registered plugins that have a binary, so that what is missing shows before a layer
    runs. Raises BackendUnavailable for a binary that this driver can't use."""
    for (flavour, name), creator in _registered.items():
        if flavour == trt.__name__ and creator.kernels.path is not None:
            creator.kernels.load(operations()[name].plan("fp16", PROBED).kernel)


def unregister(trt: ModuleType) -> None:
    """Undoes `register`, so that the next network of this process takes the function bodies.

    No engine that holds the plugins may be in use.
    """
    registry = trt.get_plugin_registry()
    for key in [key for key in _registered if key[0] == trt.__name__]:
        registry.deregister_creator(_registered.pop(key))


def refusals() -> list[str]:
    """The reasons why plugins refused sizes since the last call. A build asks after each engine: the library builds
    one all the same, and it would fail when those sizes come."""
    found = list(_refusals)
    _refusals.clear()
    return found


def describe(operation: Operation) -> str:
    """What the engine inspector shows of a layer: which outputs are which inputs' memory."""
    return "; ".join(f"{t.name} is {t.aliases}" for t in operation.outputs if t.aliases) or "nothing in place"


def element_types(trt: ModuleType) -> dict[Any, str]:
    return {trt.DataType.FLOAT: "fp32", trt.DataType.HALF: "fp16", trt.DataType.BF16: "bf16"}


def make_plugin_class(trt: ModuleType) -> type:
    """The plugin's class. Made at run time, since its bases are TensorRT's."""
    elements = element_types(trt)

    class AttentionPlugin(trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuildV2, trt.IPluginV3OneRuntime):
        """One node. `operation` says what it is; nothing here is about a particular kernel."""

        def __init__(self, operation: Operation, kernels: Kernels, scale: float) -> None:
            trt.IPluginV3.__init__(self)
            trt.IPluginV3OneCore.__init__(self)
            trt.IPluginV3OneBuildV2.__init__(self)
            trt.IPluginV3OneRuntime.__init__(self)
            self.operation = operation
            self.kernels = kernels
            self.scale = scale
            self.plugin_name = operation.name
            self.plugin_version = VERSION
            self.plugin_namespace = DOMAIN
            self.num_outputs = len(operation.outputs)
            self.metadata_string = describe(operation)
            self._input_of = {tensor.name: i for i, tensor in enumerate(operation.inputs)}
            self._prepared: tuple[Launch, Any] | None = None
            # The serialised field points into this array and does not keep it alive.
            self._scale = np.array([scale], np.float32)

        def get_capability_interface(self, type: Any) -> Any:
            return self

        def clone(self) -> Any:
            return AttentionPlugin(self.operation, self.kernels, self.scale)

        # Building

        def get_output_data_types(self, input_types: Sequence[Any]) -> list[Any]:
            return [input_types[0] for _ in self.operation.outputs]

        def get_output_shapes(self, inputs: Sequence[Any], shape_inputs: Any, builder: Any) -> list[Any]:
            # An error that is raised here is reported by the parser. An output has its alias's shape, or the query's.
            query = zip(self.operation.inputs[0].shape, (inputs[0][i] for i in range(4)), strict=True)
            self._refuse({letter: dim.get_constant_value() for letter, dim in query if dim.is_constant()})
            return [trt.DimsExprs(inputs[self._input_of[t.aliases or "query"]]) for t in self.operation.outputs]

        def supports_format_combination(self, position: int, tensors: Sequence[Any], n_inputs: int) -> bool:
            given = tensors[position].desc
            described = (*self.operation.inputs, *self.operation.outputs)[position]
            if given.format != trt.TensorFormat.LINEAR:
                return False
            if described.kind == "int64":
                return given.type == trt.DataType.INT64
            return given.type in elements and given.type == tensors[0].desc.type

        def get_aliased_input(self, output: int) -> int:
            aliased = self.operation.outputs[output].aliases
            return -1 if aliased is None else self._input_of[aliased]

        def configure_plugin(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
            """Notes sizes that no kernel serves, at the query's largest sizes in the profile.

            Other extents are checked once they are known: the maxima of a profile need not fit each other, since a
            cache of N slots has fewer positions the more beams share it. An exception that leaves this method (or
            supports_format_combination) corrupts TensorRT-RTX 1.7's memory, hence `refusals`.
            """
            with contextlib.suppress(BuildError):
                self._refuse(dict(zip(self.operation.inputs[0].shape, tuple(inputs[0].max), strict=True)))

        def get_workspace_size(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
            return 0

        def get_valid_tactics(self) -> list[int]:
            return []

        def get_fields_to_serialize(self) -> Any:
            scale = trt.PluginField("scale", self._scale, trt.PluginFieldType.FLOAT32)
            return trt.PluginFieldCollection([scale])

        # Running

        def attach_to_context(self, context: Any) -> Any:
            return self.clone()

        def set_tactic(self, tactic: int) -> None:
            pass

        def on_shape_change(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
            self._prepared = self._launch([tuple(t.dims) for t in inputs], elements[inputs[0].type])

        def enqueue(
            self,
            input_descriptions: Sequence[Any],
            output_descriptions: Sequence[Any],
            inputs: Sequence[int],
            outputs: Sequence[int],
            workspace: int,
            stream: int,
        ) -> None:
            """Queues the kernel: no allocation, no synchronisation, so that it can be captured into a graph."""
            if self._prepared is None:
                self.on_shape_change(input_descriptions, output_descriptions)
            launch, argument = self._prepared
            fill_addresses(self.operation, argument, inputs, outputs)
            self.kernels.run(launch, argument, stream)

        def _refuse(self, sizes: Mapping[str, int]) -> None:
            try:
                self.operation.refuse(sizes)
            except BuildError as reason:
                if str(reason) not in _refusals:
                    _refusals.append(str(reason))
                raise

        def _launch(self, shapes: list[tuple[int, ...]], element: str) -> tuple[Launch, Any]:
            sizes = self.operation.sizes(shapes)
            self.operation.refuse(sizes)
            return self.operation.plan(element, sizes), self.operation.arguments(sizes, {}, self.scale)

    return AttentionPlugin


def fill_addresses(operation: Operation, argument: Any, inputs: Sequence[int], outputs: Sequence[int]) -> None:
    """Puts the tensors' addresses into the kernel's argument. Raises BackendError when an alias was not kept."""
    for tensor, address in zip(operation.inputs, inputs, strict=True):
        if tensor.name not in operation.unread:
            setattr(argument, tensor.name, address)
    for tensor, address in zip(operation.outputs, outputs, strict=True):
        if tensor.aliases is None:
            setattr(argument, tensor.name, address)
        elif address != getattr(argument, tensor.aliases):
            raise BackendError(
                f"{operation.name}: {tensor.name} lies at {address:#x}, expected {tensor.aliases}'s address "
                f"{getattr(argument, tensor.aliases):#x}; bind both to the same memory"
            )


def make_creator(trt: ModuleType, operation: Operation, kernels: Kernels) -> Any:
    """The creator of one operation, for the parser (phase BUILD) and for deserialising (phase RUNTIME)."""
    plugin_class = make_plugin_class(trt)

    class Creator(trt.IPluginCreatorV3One):
        def __init__(self) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.kernels = kernels
            self.name = operation.name
            self.plugin_version = VERSION
            self.plugin_namespace = DOMAIN
            self._empty = np.array([], np.float32)  # the field points at it
            scale = trt.PluginField("scale", self._empty, trt.PluginFieldType.FLOAT32)
            self.field_names = trt.PluginFieldCollection([scale])

        def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:
            given = {field.name: field.data for field in fields}
            if "scale" not in given:
                raise BuildError(f"node {name} ({operation.name}) lacks the attribute 'scale'; export again")
            return plugin_class(operation, self.kernels, float(np.asarray(given["scale"]).reshape(-1)[0]))

    return Creator()
