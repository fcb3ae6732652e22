"""The backend `cuda`: a model from packed weights, with kernels of our own (plugins/transformer).

model.py, recurrent_model.py, parts.py
              the engine's description and weights, on disk
loaded.py     the same on the GPU, and programs of launches
rows.py       what both stacks of a Transformer queue: products with their norms, residuals and attention
encoder.py    encoder and cross-attention keys and values of a batch
decoder.py    a decoder step as launches
recurrent_encoder.py, recurrent_decoder.py
              the same of recurrent models
step_program.py, programs.py
              what both kinds of steps share, and which kind a model has
executor.py   batches under the search on the device
state.py      batches under the search on the host
backend.py    the backend
"""
