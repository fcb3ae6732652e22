"""The names of full TensorRT that compiling uses, as versions 10.3 and 10.7 have them, with nothing behind them.

No GPU, no compiler: the "engine" of a graph is its file's name, and a parsed network has the layers that a prepared
graph's own record (prepared.json beside it) says its plugin nodes become.
"""

from __future__ import annotations

import enum
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from s2s_export.building.gpu.gates import CROSS_ATTENTIONS, SELF_ATTENTIONS
from s2s_export.runtime.backends._tensorrt.library import Library


class LayerType(enum.Enum):
    """Neither version has ATTENTION_INPUT or KV_CACHE_UPDATE."""

    ELEMENTWISE = 0
    PLUGIN_V3 = 1


def full_tensorrt(version: str) -> tuple[Library, list[dict[str, Any]]]:
    """A stand-in of a version, and the list to which every build adds what it was asked for."""
    asked: list[dict[str, Any]] = []

    class ILogger:
        Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2, INFO=3, VERBOSE=4)

        def __init__(self) -> None:
            pass

    class Network:
        def __init__(self, flags: int) -> None:
            self.flags, self.layers, self.path = flags, [], ""

        @property
        def num_layers(self) -> int:
            return len(self.layers)

        def get_layer(self, i: int) -> Any:
            return self.layers[i]

    class Profile:
        def __init__(self) -> None:
            self.shapes: dict[str, Any] = {}

        def set_shape(self, name: str, least: Any, best: Any, most: Any) -> None:
            self.shapes[name] = (least, best, most)

    class Config:
        def __init__(self) -> None:
            self.pools: dict[str, int] = {}
            self.features: list[str] = []
            self.profiles: list[Profile] = []

        def set_memory_pool_limit(self, pool: str, size: int) -> None:
            self.pools[pool] = size

        def set_preview_feature(self, feature: str, value: bool) -> None:
            self.features.append(feature)

        def add_optimization_profile(self, profile: Profile) -> None:
            self.profiles.append(profile)

    class Builder:
        def __init__(self, logger: Any) -> None:
            pass

        def create_network(self, flags: int) -> Network:
            return Network(flags)

        def create_builder_config(self) -> Config:
            return Config()

        def create_optimization_profile(self) -> Profile:
            return Profile()

        def build_serialized_network(self, network: Network, config: Config) -> bytes:
            asked.append({"flags": network.flags, "config": config, "path": network.path})
            return network.path.encode()

    class OnnxParser:
        num_errors = 0

        def __init__(self, network: Network, logger: Any) -> None:
            self.network = network

        def supports_operator(self, name: str) -> bool:
            return not name.startswith("TRT_")

        def parse_from_file(self, path: str) -> bool:
            record = json.loads((Path(path).parent / "prepared.json").read_text())
            operators = record["graphs"][Path(path).stem]["operators"]
            count = sum(operators.get(name, 0) for name in (*SELF_ATTENTIONS, *CROSS_ATTENTIONS))
            layers = [LayerType.ELEMENTWISE, *[LayerType.PLUGIN_V3] * count]
            self.network.layers = [SimpleNamespace(type=kind) for kind in layers]
            self.network.path = path
            return True

    trt = SimpleNamespace(
        __version__=version,
        __name__="tensorrt",
        ILogger=ILogger,
        Builder=Builder,
        OnnxParser=OnnxParser,
        Runtime=object,
        LayerType=LayerType,
        BuilderFlag=SimpleNamespace(FP16=0),
        NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1),
        MemoryPoolType=SimpleNamespace(WORKSPACE="workspace"),
        PreviewFeature=SimpleNamespace(ALIASED_PLUGIN_IO_10_03="aliased"),
        ProfilingVerbosity=SimpleNamespace(DETAILED="detailed"),
    )
    return Library("tensorrt", trt), asked  # type: ignore[arg-type]
