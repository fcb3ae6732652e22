"""From a bundle's portable graphs to the graphs that one target's library compiles. Runs at build time, needs onnx.

    dimensions.py    a recipe's ranges fitted to a model; how many slots a cache has
    specialize.py    removes outputs that the target does not want, and sets static sizes
    expand.py        operators that an older parser lacks, written out
    running.py       the three graphs on ONNX Runtime, step by step
    activations.py   how large every value becomes on the samples
    overflow.py      which nodes can't be fp16
    quantize.py      int8 and fp8 by explicit Q/DQ
    precision.py     an element type for every value, and the casts between
    rounding.py      bf16 on a CPU that has none
    agreement.py     the lowered graphs against the fp32 ones
    lower.py         all of these in order
    gates.py         what a network must consist of once TensorRT has parsed it
    compile.py       a lowered graph -> an engine

graphs/graph.py has the graph in memory that they change, samples.py beside this folder the sources they are tried on.
Every pass returns what it did in counts and names, and the build records it.
"""
