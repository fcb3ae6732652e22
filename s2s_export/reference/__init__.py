"""The encoder-decoders with which the field began, in plain PyTorch: one file each, with one interface (interface.py).

lstm.py         Sutskever, Vinyals, Le 2014   a context of fixed size, as the decoder's first state
gru.py          Cho et al. 2014               a context of fixed size, fed to every step
attention.py    Bahdanau, Cho, Bengio 2014    a context of its own for every step
transformer.py  Vaswani et al. 2017           attention only
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .config import MODEL_TYPE_PREFIX, MODELS, ReferenceConfig

if TYPE_CHECKING:
    from .interface import EncoderDecoder

__all__ = ["MODELS", "MODEL_TYPE_PREFIX", "ReferenceConfig", "build"]

CLASSES = {
    "lstm": "LSTMEncoderDecoder",
    "gru": "GRUEncoderDecoder",
    "attention": "AttentionEncoderDecoder",
    "transformer": "TransformerEncoderDecoder",
}


def build(config: ReferenceConfig) -> EncoderDecoder:
    """The model that `config` describes, with random weights from torch's global generator."""
    module = import_module(f".{config.model}", __name__)
    return getattr(module, CLASSES[config.model])(config)
