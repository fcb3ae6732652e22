"""Builds, runs, compares and measures everything that needs a GPU, on the GPU of this machine.

    python -m s2s_export.measuring.gpu_check FOLDER [BUNDLE...] [--targets rtx-fp16,...] [--quick] [--minutes N]

    plan.py       the parts and their order, most important first
    run.py        runs them one after the other, each in a process of its own, and saves each result at once
    child.py      that process
    parts.py      what the parts do
    attention.py  the attention kernels, compared with their references
    search_check.py  whole searches, compared with the emulation
    rules_check.py  the kernel of the decoding rules, compared with their definition
    native.py     the kernels of the backend cuda and their cases (native_cases.py), and its decoder step, timed
    decodes.py    whole decodes with a decoder step by PyTorch or ONNX Runtime
    times.py      how long the search takes without a decoder
    sanitizers.py  some parts again under compute-sanitizer
    targets.py    which targets suit this GPU
    report.py     the results as JSON and as tables

Without BUNDLE it makes two models with random weights, of the sizes of an OPUS-MT model and of T5-small, for which it
needs the [export] extra. If a part fails, crashes, hangs or lacks a package, that is its result, and the others still
run. Without a GPU the exit status is 1.
"""

from .command import main

__all__ = ["main"]
