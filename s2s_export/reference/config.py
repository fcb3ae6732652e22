"""Every size and option of a reference model, checked in one place.

Letters used by the model files: B sources, R rows (sources times beams), S source length, T target length, L layers,
H heads, D head size, V vocabulary, E width of embeddings (`d_model`), U units of a recurrent layer (`hidden_size`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError, InvalidOption, UnknownOption, nearest

# Options that only some models have, with their default values.
SPECIFIC: dict[str, dict[str, Any]] = {
    "lstm": {"hidden_size": None, "reverse_source": True},
    "gru": {"hidden_size": None},
    "attention": {"hidden_size": None, "cell": "gru", "score": "additive"},
    "transformer": {"heads": 4, "ff_size": None, "norm": "pre", "positions": "sinusoidal"},
}
MODELS = tuple(SPECIFIC)
CHOICES = {
    "cell": ("gru", "lstm"),
    "score": ("additive", "dot", "general"),
    "norm": ("pre", "post"),
    "positions": ("sinusoidal", "learned"),
}
MODEL_TYPE_PREFIX = "s2s-"  # config.json says "model_type": "s2s-lstm"


@dataclass(frozen=True)
class ReferenceConfig:
    """One reference model. An option that the model does not have must be left at None.

    model: lstm (1409.3215), gru (1406.1078), attention (1409.0473) or transformer (1706.03762).
    vocab_size: V, of one vocabulary shared by source and target.
    d_model: E. hidden_size: U, by default d_model; in an attention model's encoder, each direction has U/2.
    dropout: probability, on embeddings, between layers and before the output layer.
    tie_embeddings: source embedding, target embedding and output layer are one matrix [V, E].
    reverse_source: lstm reads the source backwards. cell, score: of the attention model's decoder.
    heads, ff_size, norm, positions: of the transformer; ff_size is by default 4 d_model.
    max_source_length, max_target_length: in tokens, including the end token; longer texts are refused.
    """

    model: str
    vocab_size: int
    d_model: int = 256
    encoder_layers: int = 2
    decoder_layers: int = 2
    dropout: float = 0.1
    tie_embeddings: bool = False
    max_source_length: int = 128
    max_target_length: int = 128
    pad_token_id: int = 0
    bos_token_id: int = 1
    eos_token_id: int = 2
    hidden_size: int | None = None
    reverse_source: bool | None = None
    cell: str | None = None
    score: str | None = None
    heads: int | None = None
    ff_size: int | None = None
    norm: str | None = None
    positions: str | None = None

    def __post_init__(self) -> None:
        if self.model not in SPECIFIC:
            raise InvalidOption(f"unknown model '{self.model}'{nearest(self.model, MODELS)}")
        defaults = {**SPECIFIC[self.model]}
        if "hidden_size" in defaults:
            defaults["hidden_size"] = self.d_model
        if "ff_size" in defaults:
            defaults["ff_size"] = 4 * self.d_model
        for name, value in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)  # only here: the instance is frozen from now on
        problems = self._contradictions()
        if problems:
            raise InvalidOption(f"{self.model} model: " + "; ".join(problems))

    @property
    def units(self) -> int:
        """`hidden_size` of a recurrent model, which always has one."""
        if self.hidden_size is None:
            raise InvalidOption(f"a {self.model} has no hidden_size; expected a recurrent model")
        return self.hidden_size

    @property
    def model_type(self) -> str:
        return MODEL_TYPE_PREFIX + self.model

    def to_dict(self) -> dict[str, Any]:
        """The contents of config.json: `model_type`, and every field that this model has."""
        fields = dataclasses.asdict(self)
        del fields["model"]
        return {"model_type": self.model_type, **{name: value for name, value in fields.items() if value is not None}}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ReferenceConfig:
        """The inverse of `to_dict`. Raises CheckpointError."""
        fields = dict(fields)
        model_type = str(fields.pop("model_type", None))
        if model_type.removeprefix(MODEL_TYPE_PREFIX) not in MODELS or not model_type.startswith(MODEL_TYPE_PREFIX):
            known = ", ".join(MODEL_TYPE_PREFIX + name for name in MODELS)
            raise CheckpointError(
                f"config.json says model_type '{model_type}', expected a reference model ({known}); "
                "give a checkpoint that `s2s train` wrote"
            )
        known_fields = [field.name for field in dataclasses.fields(cls)]
        try:
            for name in fields:
                if name not in known_fields:
                    raise UnknownOption(name, known_fields, "field")
            return cls(model=model_type.removeprefix(MODEL_TYPE_PREFIX), **fields)
        except (UnknownOption, InvalidOption, TypeError) as error:
            raise CheckpointError(f"config.json can't be used: {error}; restore it, or train again") from error

    def _contradictions(self) -> list[str]:
        problems = []
        specific = SPECIFIC[self.model]
        for name in sorted({name for options in SPECIFIC.values() for name in options} - set(specific)):
            if getattr(self, name) is not None:
                owners = " and ".join(model for model, options in SPECIFIC.items() if name in options)
                problems.append(f"{name} is an option of {owners}; leave it out")
        for name, allowed in CHOICES.items():
            if name in specific and getattr(self, name) not in allowed:
                problems.append(f"{name} is '{getattr(self, name)}', expected {' or '.join(allowed)}")
        problems += self._wrong_numbers(specific)
        if problems:
            return problems  # the next checks compute with the numbers
        return self._wrong_combinations()

    def _wrong_numbers(self, specific: Mapping[str, Any]) -> list[str]:
        problems = []
        sizes = ["vocab_size", "d_model", "encoder_layers", "decoder_layers", "max_source_length", "max_target_length"]
        sizes += [name for name in ("hidden_size", "heads", "ff_size") if name in specific]
        for name in sizes:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                problems.append(f"{name} is {value!r}, expected a positive whole number")
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                problems.append(f"{name} is {value!r}, expected a token id")
        if not isinstance(self.dropout, (int, float)) or not 0 <= self.dropout < 1:
            problems.append(f"dropout is {self.dropout!r}, expected a probability below 1")
        for name in ("tie_embeddings", "reverse_source"):
            if not isinstance(getattr(self, name), (bool, type(None))):
                problems.append(f"{name} is {getattr(self, name)!r}, expected true or false")
        return problems

    def _wrong_combinations(self) -> list[str]:
        problems = []
        special = {"pad": self.pad_token_id, "bos": self.bos_token_id, "eos": self.eos_token_id}
        if len(set(special.values())) < 3:
            problems.append(f"pad, bos, eos are {', '.join(map(str, special.values()))}, expected three different ids")
        if max(special.values()) >= self.vocab_size:
            problems.append(
                f"a special token has id {max(special.values())}, expected below vocab_size, {self.vocab_size}"
            )
        if self.model == "lstm" and self.encoder_layers != self.decoder_layers:
            problems.append(
                f"encoder_layers is {self.encoder_layers} and decoder_layers {self.decoder_layers}, expected the same: "
                "each decoder layer starts from an encoder layer's last state"
            )
        if self.model == "lstm" and self.tie_embeddings and self.hidden_size != self.d_model:
            problems.append(
                f"tie_embeddings needs hidden_size equal to d_model, and they are {self.hidden_size} and {self.d_model}"
            )
        if self.model == "attention" and self.hidden_size is not None and self.hidden_size % 2:
            problems.append(f"hidden_size is {self.hidden_size}, expected an even number: each direction gets half")
        if self.model == "transformer" and self.heads is not None and self.d_model % self.heads:
            problems.append(f"d_model is {self.d_model}, expected a multiple of heads, which is {self.heads}")
        if self.model == "transformer" and self.positions == "sinusoidal" and self.d_model % 2:
            problems.append(f"d_model is {self.d_model}, expected an even number: sinusoidal positions come in pairs")
        return problems
