"""The backend `cuda`: a Transformer from packed weights, with kernels of our own (plugins/transformer).

model.py      the engine's description and weights, on disk and on the GPU
program.py    what both stacks queue: products with their norms, residuals and attention
decoder.py    a decoder step as launches
encoder.py    encoder and cross-attention keys and values of a batch
executor.py   batches under the search on the device
state.py      batches under the search on the host
backend.py    the backend
"""
