"""An NVIDIA GPU with nothing but its driver: engines of packed weights, run by kernels of our own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ... import plugin_sources
from ...bundle import Bundle
from ...engines import folder_of, targets_of, why_no_engine, why_no_single_engine
from ...errors import BuildError, InvalidOption
from ..cuda import driver
from ._declaration import Declaration

if TYPE_CHECKING:
    from ._cuda_native.backend import NativeBackend

NAME = "cuda"
FLAVOURS = ("cuda-native",)
KERNELS = "transformer"  # the folder of plugins/
OLDEST = 7.5  # compute capability: the first whose tensor cores have the mma that the kernels use


def unavailable() -> str | None:
    """Everything that is missing here: a driver and a GPU, and kernels for it."""
    missing = [driver.unavailable(), _lacks_kernels()]
    if missing[0] is None and float(driver.device().capability) < OLDEST:
        return (
            f"{driver.device().name} has compute capability {driver.device().capability}; expected {OLDEST} (Turing) "
            "or newer; take the backend onnxruntime-cuda"
        )
    return "; and ".join(reason for reason in missing if reason) or None


def _lacks_kernels() -> str | None:
    try:
        reason: str | None = plugin_sources.module("build").lacks_binary(KERNELS)
    except BuildError as error:
        return str(error)
    return reason


def incompatible_reason(bundle: Bundle, target: str | None) -> str | None:
    """Why the bundle can't run: no engine of packed weights, several, or none of that target."""
    if target is not None:
        return why_no_engine(bundle, target, FLAVOURS)
    return why_no_single_engine(bundle, FLAVOURS)


def open(bundle: Bundle, target: str | None = None, threads: int | None = None) -> NativeBackend:
    """threads: checked and not used; a GPU does the work."""
    if threads is not None and threads < 1:
        raise InvalidOption(f"threads is {threads}; expected at least 1")
    from ..cuda import device
    from ._cuda_native.backend import NativeBackend

    chosen = target or targets_of(bundle, FLAVOURS)[0]
    return NativeBackend(bundle, folder_of(bundle, chosen), device.shared())


BACKEND = Declaration(
    name=NAME,
    preference=25,
    flavours=FLAVOURS,
    runs_portable_graphs=False,
    computes_on_cores=False,
    unavailable=unavailable,
    incompatible_reason=incompatible_reason,
    open=open,
    search="on the device",
)
