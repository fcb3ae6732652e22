"""The parts of benchmarks/serve_load.py.

models.py    the models that are served, and their conversions
server.py    one server in a process of its own
client.py    closed and open loops of requests over loopback
attack.py    malformed requests, clients that disconnect, slow clients
"""
