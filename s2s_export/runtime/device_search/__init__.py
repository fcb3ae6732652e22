"""Decoding that stays on a device: nothing returns to the host between tokens but what is streamed.

    search = DeviceSearch(device, executor)       # device: CudaDevice() or HostDevice(); executor: queues decoder steps
    hypotheses = search.run(sources, options)

The search is the one of `decoding`: same rules, same draws, same order of ties. docs/gpu.md has the design. numpy and
ctypes only.
"""

from ..cuda.faults import DeviceLost
from ..cuda.interface import Device, Graph
from .loop import DeviceSearch
from .step_executor import StepExecutor

__all__ = ["Device", "DeviceLost", "DeviceSearch", "Graph", "StepExecutor"]
