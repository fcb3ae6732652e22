"""A bundle as a server. Nothing here imports torch, transformers or onnx.

batcher      sources of many requests decoded together: a library of its own, without HTTP
queueing     whose turn it is, and how much may wait
processes    the batcher's place taken by several processes; engine.py has one of them
models       what is served: bundles by their names and language pairs
translating  a text of any length through a batcher: sentences, white space, HTML
app          the web application; formats/ has one file for each protocol that clients speak
wyoming/     speech for voice assistants, on a port of its own
telemetry    traces of requests
server       sockets, signals, draining
"""
