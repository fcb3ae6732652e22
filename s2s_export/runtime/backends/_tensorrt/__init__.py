"""TensorRT and TensorRT-RTX through one adapter, which building/ uses too.

library.py     the adapter: asks a library for features, not for its version
messages.py    what the library says while it works, and which of it is an error here
validity.py    whether the library can run an engine here
engines.py     engines and the execution contexts that batches run on
state.py       a batch being decoded by the search on the host
executor.py    a batch being decoded by the search on the device
candidates.py  the best tokens of a step's logits
parts.py       more sources than an engine takes at once
kernel_cache.py  the kernels that TensorRT-RTX compiled for this GPU, kept for the next process
backend.py     what the backends `tensorrt` and `tensorrt-rtx` have in common
"""
