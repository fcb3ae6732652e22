"""This kernel's tolerance: that of any fp32 attention over rounded inputs."""

from ..common.tolerances import allowed

__all__ = ["allowed"]
