"""Checks, before a batch is begun, that there is enough memory for it.

The operating system would not refuse the allocation: it promises more memory than it has, and kills the process when
the memory is used. So the least that a batch needs is compared with what is free. The estimate counts what grows with
the number of rows (log-probabilities, and the first slots of the caches) and nothing else, so it refuses only batches
that could not have worked.
"""

from __future__ import annotations

from ..bundle import Bundle
from ..errors import InputError
from . import free_memory
from .decoding import GenerationOptions

FLOAT = 4  # bytes
SLOTS = 16  # slots of a cache that are allocated at first


def check(bundle: Bundle, n_sources: int, options: GenerationOptions) -> None:
    """Raises InputError if the rows of a batch do not fit into the free memory."""
    wanted = least_bytes(bundle, n_sources * options.n_rows)
    if wanted < 1 << 28:  # small enough not to check
        return
    free = free_memory.available()
    if free is not None and wanted > free:
        name, value = ("num_beams", options.num_beams)
        if options.num_return_sequences > value:
            name, value = ("num_return_sequences", options.num_return_sequences)
        raise InputError(
            f"{name} is {value}, which with {n_sources} source{'s' if n_sources > 1 else ''} takes at least "
            f"{_size(wanted)} of memory, but {_size(free)} are free; lower {name} or the batch size"
        )


def least_bytes(bundle: Bundle, n_rows: int) -> int:
    sizes: dict[str, int] = bundle.manifest["sizes"]
    width = 2 * sizes.get("decoder_layers", 0) * sizes.get("heads", 0) * sizes.get("head_size", 0)
    return n_rows * FLOAT * (bundle.vocabulary_size + width * SLOTS)


def _size(n_bytes: int) -> str:
    """Such as "12.3 GiB"; works for integers that are too large for a float, too."""
    value = n_bytes / 2**30 if n_bytes < 2**100 else float(n_bytes >> 30) if n_bytes < 2**1000 else float("inf")
    return f"{value:,.1f} GiB" if value < 1e6 else f"{value:.0e} GiB"
