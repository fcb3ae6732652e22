"""The GPU through its driver: memory, streams, modules, graphs and faults; and its emulation on the CPU."""
