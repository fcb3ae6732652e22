"""The search in C++ (plugins/search), beside numpy's in `decoding`, which is its definition.

It serves greedy search and beam search with the rules that have a form for a device (`Rule.device_form`) and change the
scores of some tokens, `renormalize_logits`, and Whisper's rule of times. Its tokens and scores are numpy's bit for bit.
A call of it holds no interpreter lock. There are two ways in which it runs:

    loop    engines for a CPU with our own operators: the whole decode is one call, which calls the decoder step's
            operators, or runs it through ONNX Runtime's C interface; Python is entered where caches grow, where sources
            leave, and once a step where somebody wants to know about each (streams, sources that may be given up)
    steps   every other decode state, and alignments: a call for each step, between the decoder's

What it doesn't serve, numpy's search does (`settings.why_not`).
"""

from .chosen import LOOP as LOOP
from .chosen import PYTHON as PYTHON
from .chosen import STEPS as STEPS
from .chosen import NativeSearches as NativeSearches
from .chosen import TooMany as TooMany
