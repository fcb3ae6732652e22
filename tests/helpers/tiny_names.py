"""Names that tests are made for; a conftest can't be imported by name."""

import pytest

FAMILIES = ["marian", "marian-two-vocabularies", "bart", "mbart", "m2m_100", "pegasus", "t5", "t5-gated", "mt5"]
# One of each structure (bias of distances or positions, norms before or after, scaled or not): what every precision and
# every way of compiling is tried on, where FAMILIES times all of these would take minutes.
STRUCTURES = ["marian", "m2m_100", "t5-gated"]


def in_the_long_run(names, fast):
    """All names, for `parametrize`, of which those that are not in `fast` are slow."""
    return [pytest.param(name, marks=() if name in fast else pytest.mark.slow) for name in names]


# FAMILIES for what treats those of a structure alike.
EACH_FAMILY = in_the_long_run(FAMILIES, STRUCTURES)
RECURRENT = {
    "lstm": {"model": "lstm"},
    "gru": {"model": "gru"},
    "attention": {"model": "attention", "score": "dot", "cell": "lstm", "encoder_layers": 1},
}
