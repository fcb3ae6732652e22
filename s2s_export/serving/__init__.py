"""A bundle as a server. Nothing here imports torch, transformers or onnx.

batcher      sources of many requests decoded together: a library of its own, without HTTP
models       what is served: bundles by their names and language pairs
translating  a text of any length through a batcher: sentences, white space, HTML
app          the web application; formats/ has one file for each protocol that clients speak
server       sockets, signals, draining
"""
