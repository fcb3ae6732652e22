"""TensorRT and TensorRT-RTX through one adapter: what builds engines, and what runs them.

library.py     the adapter: asks a library for features, not for its version
messages.py    what the library says while it works, and which of it is an error here
gates.py       what a parsed network must consist of
compile.py     a lowered graph -> an engine                          [at build]
validity.py    whether an engine can run here, and what to do if not
memory.py      device memory, streams and copies through the driver
executor.py    engines with their buffers                            [at run time, numpy only]
state.py       a batch being decoded
"""
