"""On whatever GPU this machine has: build, run, compare and measure all that needs one. One go, one folder.

    python -m s2s_export.measuring.gpu_check FOLDER [BUNDLE...] [--targets rtx-fp16,...] [--quick] [--minutes N]

    plan.py       the parts and their order, most important first
    run.py        runs them one after the other, each in a process of its own; what it found is on disk at once
    child.py      that process
    parts.py      what the parts do
    attention.py  the attention kernels by themselves
    search_check.py  whole searches against their definition
    rules_check.py  the rules kernel against the definition
    times.py      how long the search takes without a decoder
    sanitizers.py  parts again under compute-sanitizer
    targets.py    which targets suit this GPU
    report.py     the results as JSON and as tables

Without bundles it makes two models with random weights, of the sizes of an OPUS-MT model and of T5-small (needs the
[export] extra). A part that fails, crashes, hangs or lacks a package is a result, and the others still run. Without a
GPU it says so and exits 1.
"""

from .command import main

__all__ = ["main"]
