"""One adapter over `tensorrt` and `tensorrt_rtx`. Nothing here asks for a version: a feature is there or it is not."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

from ....errors import BackendUnavailable, BuildError

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
INSTALL = {
    "tensorrt": "pip install 's2s-export[tensorrt]' (on a Jetson, TensorRT comes with JetPack)",
    "tensorrt-rtx": "pip install 's2s-export[rtx]'",
}
NAMES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
MIB = 1 << 20


def load(flavour: str) -> Library:
    """The library of a flavour, "tensorrt" or "tensorrt-rtx". Raises BackendUnavailable, with the pip line, when it
    can't be imported."""
    try:
        module = importlib.import_module(MODULES[flavour])
        module.Builder, module.Runtime  # noqa: B018 (an incomplete installation lacks them)
    except (ImportError, OSError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
        raise BackendUnavailable(f"{NAMES[flavour]} can't be imported ({reason}); {INSTALL[flavour]}") from error
    return Library(flavour, module)


def unavailable(flavour: str) -> str | None:
    """Why the library can't be used, or None. Does not look for a GPU."""
    try:
        load(flavour)
    except BackendUnavailable as error:
        return str(error)
    return None


@dataclass(frozen=True)
class Library:
    """flavour: as recipes say it. trt: the imported module."""

    flavour: str
    trt: ModuleType

    @property
    def name(self) -> str:
        return NAMES[self.flavour]

    @property
    def version(self) -> str:
        return str(self.trt.__version__)

    # Features

    @cached_property
    def compiles_ahead_of_time(self) -> bool:
        """Whether it compiles for GPUs that this machine does not have."""
        return hasattr(self.trt, "ComputeCapability")

    @cached_property
    def tells_validity(self) -> bool:
        """Whether it can tell if an engine runs here before the engine is loaded."""
        return hasattr(self.trt.Runtime, "get_engine_validity")

    @cached_property
    def has_cache_layer(self) -> bool:
        """Whether it has a layer that updates K/V caches in place."""
        return "KV_CACHE_UPDATE" in self.trt.LayerType.__members__

    @cached_property
    def reports_progress(self) -> bool:
        return hasattr(self.trt, "IProgressMonitor")

    # Objects

    def create_network(self, builder: Any) -> Any:
        """A strongly typed network: its types are the graph's."""
        flags = 0
        if not self.compiles_ahead_of_time:
            flag = getattr(self.trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
            flags = 0 if flag is None or _is_always_strong(self.trt) else 1 << int(flag)
        return builder.create_network(flags)

    def lacking(self, operators: Iterable[str], logger: Any) -> list[str]:
        """Those of `operators` that the ONNX parser does not know."""
        builder = self.trt.Builder(logger)
        if builder is None:
            raise BuildError(f"{self.name} {self.version} made no builder; is its GPU driver working? run s2s doctor")
        network = self.create_network(builder)  # in a variable: the parser does not keep it alive
        parser = self.trt.OnnxParser(network, logger)
        return [name for name in operators if not parser.supports_operator(name)]

    def set_compute_capabilities(self, config: Any, capabilities: Sequence[str]) -> None:
        """Raises BuildError for one that the library does not know."""
        if not self.compiles_ahead_of_time or not capabilities:
            return
        known = self.trt.ComputeCapability.__members__
        wanted = [f"SM{capability.replace('.', '')}" for capability in capabilities]
        if missing := [name for name in wanted if name not in known]:
            names = ", ".join(sorted(name for name in known if name.startswith("SM")))
            raise BuildError(
                f"{self.name} {self.version} compiles for {names}, not for {', '.join(missing)}; "
                "change compute_capabilities in the recipe, or choose a target of flavour 'tensorrt'"
            )
        config.num_compute_capabilities = len(wanted)
        for i, name in enumerate(wanted):
            config.set_compute_capability(known[name], i)

    def set_workspace(self, config: Any, mib: int) -> None:
        config.set_memory_pool_limit(self.trt.MemoryPoolType.WORKSPACE, mib * MIB)

    def allow_aliased_plugins(self, config: Any) -> None:
        """Allows plugins to write K/V caches in place. Raises BuildError if the library has no such plugins."""
        feature = getattr(self.trt.PreviewFeature, "ALIASED_PLUGIN_IO_10_03", None)
        if feature is None:
            raise BuildError(
                f"{self.name} {self.version} has no plugins that write in place; expected 10.3 or later; "
                "update it, or set plugins = false in the recipe"
            )
        config.set_preview_feature(feature, True)

    def require_user_allocation(self, config: Any) -> None:
        """Builds an engine that allocates nothing while it runs, where the library has such engines: only their
        launches can be captured into a CUDA graph. The caller gives contexts their memory. The build fails for graphs
        with loops, whose memory is known only at run time."""
        if flag := getattr(self.trt.BuilderFlag, "REQUIRE_USER_ALLOCATION", None):
            config.set_flag(flag)


def _is_always_strong(trt: ModuleType) -> bool:
    """Whether all networks are strongly typed: the flag that asked for fp16 was removed together with weak typing."""
    return not hasattr(trt.BuilderFlag, "FP16")
