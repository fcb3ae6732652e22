"""Speech for voice assistants: the Wyoming protocol, on a port of its own (`s2s serve --wyoming PORT`).

events      what goes over the wire: one event after another, each bounded before memory is taken for it
dialogue    one connection: sound in, transcript out
server      the port: how many connections there may be, and how they end
"""
