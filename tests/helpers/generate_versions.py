"""Where generate() of older releases of transformers does something else than the one that is followed.

docs/versions.md explains each. Comparisons with an older release leave these out.
"""

from __future__ import annotations

from typing import Any

import transformers

VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])
OPTIONS = {
    "encoder_repetition_penalty": (5, 19),  # confused the sources of a batch where there were beams
    "exponential_decay_length_penalty": (5, 19),  # a banned end token became NaN
    "sequence_bias": (5, 18),  # a sequence needed one more token before it
}
TWO_VOCABULARIES = (5, 18)  # beams of a decoder with a vocabulary of another size failed
CACHES_AS_OBJECTS = (4, 54)  # every model takes the cache that TorchState holds
PADDING_IN_A_SOURCE = (5, 2)  # a padding id in a source was masked where no mask was given


def followed(options: dict[str, Any]) -> dict[str, Any]:
    """The options without those that the installed release understands otherwise."""
    return {name: value for name, value in options.items() if OPTIONS.get(name, (0, 0)) <= VERSION}
