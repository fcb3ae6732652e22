"""What an ONNX node of the domain `s2s.plugins` is: its tensors, which outputs alias which inputs, and its kernel.

A folder's `operation.py` describes its nodes with these classes. The TensorRT glue and the tests read nothing else.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from s2s_export.errors import BuildError

DOMAIN = "s2s.plugins"
VERSION = "1"

ELEMENTS = ("fp32", "fp16", "bf16")  # the index is the number that the C interface calls an element type by
ELEMENT_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
MAX_BEAMS = 16
MAX_HEAD_SIZE = 128
WIDTHS = (32, 64, 128)

STATUSES = {
    -1: "the element type is not fp32, fp16 or bf16",
    -2: f"the head size is not a multiple of 8 in 8..{MAX_HEAD_SIZE}",
    -3: f"the number of beams is not in 1..{MAX_BEAMS}",
    -4: "sources, heads or positions are below 1, or above 65535",
    -5: "a tensor's address is null or not aligned to 16 bytes",
    -100: "a barrier was never reached by all threads",
}


@dataclass(frozen=True)
class Tensor:
    """A tensor of a node. `shape` holds letters of the project's alphabet, or numbers.

    kind: "element" (the node's compute type) or "int64". aliases: the input whose memory this output is.
    """

    name: str
    shape: tuple[str | int, ...]
    kind: str = "element"
    aliases: str | None = None


@dataclass(frozen=True)
class Launch:
    """One kernel launch: which kernel of the folder's binary, over which grid, with how many threads a block."""

    kernel: str
    grid: tuple[int, int, int]
    threads: int


@dataclass(frozen=True)
class Operation:
    """A node type.

    parameters: the kernel's only argument as ctypes mirrors it. Its pointer fields bear tensors' names; the rest is
        filled by `sizes_of`, which maps letters to field names, and `scale`.
    plan: (element, sizes by letter) -> Launch.
    """

    name: str
    folder: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    parameters: type[ctypes.Structure]
    size_fields: Mapping[str, str]
    plan: Callable[[str, Mapping[str, int]], Launch]
    unread: frozenset[str] = field(default_factory=frozenset)  # inputs that the kernel does not read

    def sizes(self, shapes: Sequence[Sequence[int]]) -> dict[str, int]:
        """Letters bound to the inputs' shapes. Raises BuildError when two tensors disagree."""
        if len(shapes) != len(self.inputs):
            names = ", ".join(tensor.name for tensor in self.inputs)
            raise BuildError(f"{self.name} has {len(shapes)} inputs, not {len(self.inputs)} ({names}); export again")
        bound: dict[str, int] = {}
        for tensor, shape in zip(self.inputs, shapes, strict=True):
            if len(shape) != len(tensor.shape):
                raise self._mismatch(tensor, shape, bound)
            for letter, size in zip(tensor.shape, shape, strict=True):
                expected = bound.setdefault(letter, size) if isinstance(letter, str) else letter
                if size != expected:
                    raise self._mismatch(tensor, shape, bound)
        if "N" in bound and bound["N"] != bound["C"] * bound["K"]:
            raise BuildError(
                f"{self.name} has {bound['N']} cache slots for {bound['C']} positions of {bound['K']} beams; "
                f"expected {bound['C'] * bound['K']}; size the caches by the number of beams"
            )
        return bound

    def _mismatch(self, tensor: Tensor, shape: Sequence[int], bound: Mapping[str, int]) -> BuildError:
        letters = ", ".join(str(letter) for letter in tensor.shape)
        known = ", ".join(f"{letter}={size}" for letter, size in bound.items())
        return BuildError(
            f"{self.name}: {tensor.name} has shape {list(shape)}, expected [{letters}] with {known}; export again"
        )

    def refuse(self, sizes: Mapping[str, int]) -> None:
        """Raises BuildError for sizes that no kernel serves. Letters without a value yet are not checked."""
        found = []
        beams, head_size = sizes.get("K", 1), sizes.get("D", 8)
        if not 1 <= beams <= MAX_BEAMS:
            found.append(f"{beams} beams (expected 1 to {MAX_BEAMS})")
        if not 8 <= head_size <= MAX_HEAD_SIZE or head_size % 8:
            found.append(f"head size {head_size} (expected a multiple of 8 up to {MAX_HEAD_SIZE})")
        if found:
            raise BuildError(f"{self.name} has no kernel for {' and '.join(found)}; build the target without plugins")

    def arguments(
        self, sizes: Mapping[str, int], addresses: Mapping[str, int | None], scale: float
    ) -> ctypes.Structure:
        """The kernel's argument. `addresses` by tensor name; a missing one is null."""
        given = self.parameters(scale=scale)
        for name, kind, *_ in self.parameters._fields_:
            if kind is ctypes.c_void_p:
                setattr(given, name, addresses.get(name))
        for letter, name in self.size_fields.items():
            setattr(given, name, sizes[letter])
        return given


def check(status: int, what: str) -> None:
    """Turns a launcher's status into an error."""
    if status:
        reason = STATUSES.get(status, f"CUDA error {status}")
        raise BuildError(f"{what} was not launched: {reason}; build the target without this plugin")


def width(head_size: int) -> int:
    """The kernel width that serves a head size: the least of WIDTHS that is not smaller."""
    return next(w for w in WIDTHS if head_size <= w)


def block_threads(positions: int) -> int:
    """Threads of a block: more warps only help a long history."""
    return 128 if positions <= 128 else 256
