"""Compiles kernels for the GPU side by side while the first parts run: one of the large folders takes a minute or two.

The cache of plugins/build.py is locked while a binary is made, so a part that needs one waits for it.
`python -m s2s_export.measuring.gpu_check.compiling FOLDER CAPABILITY MAJOR MINOR` makes one.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ... import plugin_sources

LARGE = ("transformer", "transformer_int8")
OTHERS = ("beam_search", "cross_attention", "beam_self_attention")
MODULE = "s2s_export.measuring.gpu_check.compiling"


@contextmanager
def begun(capability: str, release: tuple[int, int]) -> Iterator[None]:
    """Compiles in processes of their own, which are stopped at the end. What goes wrong is told by the part that needs
    the binary."""
    numbers = (capability, *map(str, release))
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", MODULE, folder, *numbers], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for folder in (*OTHERS, *LARGE)
    ]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    plugin_sources.module("build").binary_for(sys.argv[1], sys.argv[2], (int(sys.argv[3]), int(sys.argv[4])))
