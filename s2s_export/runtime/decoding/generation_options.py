"""The options of one way to decode, checked. `options.py` makes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class GenerationOptions:
    """One way to decode. Made by `resolve`, which checks; hashable, so sources with equal options can share a batch.

    Names and meanings are generate()'s. Lists are tuples; a token id that may be several is a tuple, empty where unset.
    max_length, min_length: tokens, decoder prompt included. seed: of the sampling, None for a new one each time.
    of_rules: the options that decoding rules declare in their own files, in the order of their names; each is an
    attribute too, such as `options.top_k`.
    """

    max_length: int
    min_length: int | None = 0
    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    num_beams: int = 1
    num_return_sequences: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str | None = False

    decoder_start_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: tuple[int, ...] = ()
    pad_token_id: int | None = None
    decoder_input_ids: tuple[int, ...] | None = None

    do_sample: bool | None = False
    seed: int | None = None
    of_rules: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> GenerationOptions:
        """From the values of all options by name, those of rules among them."""
        own = {field.name for field in fields(cls)}
        of_rules = tuple((name, values[name]) for name in sorted(values) if name not in own)
        return cls(**{name: value for name, value in values.items() if name in own}, of_rules=of_rules)

    def values(self) -> dict[str, Any]:
        """All options by name."""
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "of_rules"}
        return {**own, **dict(self.of_rules)}

    def __getattr__(self, name: str) -> Any:
        """The option of a rule. Python asks only for names that are no fields."""
        for option, value in self.__dict__.get("of_rules", ()):
            if option == name:
                return value
        raise AttributeError(f"there is no generation option '{name}'")

    @property
    def prompt(self) -> tuple[int, ...]:
        """What the decoder is fed before it is asked for its first token, as generate() builds it."""
        start = self.decoder_start_token_id if self.decoder_start_token_id is not None else self.bos_token_id
        given = self.decoder_input_ids
        if start is None:
            return given or ()
        if given is None:
            return (start,)
        return given if given[0] == start else (start, *given)

    @property
    def n_rows(self) -> int:
        """K: the beams, or the independent samples, that a decode state must hold for every source."""
        if dict(self.of_rules).get("return_alternatives"):  # a beam search for each
            return self.num_beams * self.num_return_sequences
        return max(self.num_beams, self.num_return_sequences)

    @property
    def min_tokens_to_keep(self) -> int:
        """How many tokens a sampling filter leaves: with beams one that is not an end token must remain."""
        return 1 if self.num_beams == 1 else max(2, len(self.eos_token_id) + 1)
