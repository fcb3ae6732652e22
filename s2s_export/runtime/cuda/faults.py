"""Errors of a device: what was found, what was expected, what to do."""

from __future__ import annotations

from ...errors import BackendError

OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY
# After one of these errors every later call in the process fails: illegal address and instruction, misaligned
# address, launch timeout and failure, assertion, ECC error, device unavailable or removed, unknown.
FATAL = frozenset({46, 214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 999})


class DeviceLost(BackendError):
    """The device failed while it decoded. The batch has no result, and this process can't use the device again."""


class OutOfMemory(BackendError):
    """The device has too little free memory. Batches that are already being decoded are not affected."""


def lost(name: str, what: str, status: int, reason: str) -> DeviceLost:
    return DeviceLost(
        f"{name} was lost while {what} (CUDA error {status}, {reason}); expected it to stay; these sentences have no "
        "result and this process can't use the GPU again: start a new one, and see the driver's log (dmesg)"
    )


def out_of_memory(name: str, what: str, needed: int, free: int | None) -> OutOfMemory:
    has = "" if free is None else f", {free / 2**20:.1f} MiB are free"
    return OutOfMemory(
        f"{name} has no room for {what}: {needed / 2**20:.1f} MiB asked for{has}; lower the batch size, the number of "
        "beams or max_new_tokens, or build the target with smaller ranges"
    )
