"""The options with which a toolkit trained a model: looked up with their defaults, refused where they are unknown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import CheckpointError, UnsupportedModel


class Options:
    """path: named in errors. given: an argparse.Namespace or a mapping. toolkit: how errors call it."""

    def __init__(self, path: Path, given: Any, toolkit: str) -> None:
        self._path, self._toolkit = path, toolkit
        self._given: Mapping[str, Any] = given if isinstance(given, Mapping) else vars(given)

    def get(self, name: str, default: Any = None) -> Any:
        """The option's value; `default` where it is missing or None."""
        value = self._given.get(name)
        return default if value is None else value

    def number(self, name: str, default: int) -> int:
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value):
            raise CheckpointError(f"{self._path}: its option {name} is {value!r}; expected a whole number; restore it")
        return int(value)

    def one_of(self, name: str, default: str, known: Mapping[str, Any]) -> Any:
        """What `known` says of the option's value."""
        value = self.get(name, default)
        if not isinstance(value, str) or value not in known:
            raise self._unknown(name, value, known)
        return known[value]

    def expect(self, name: str, *known: Any) -> None:
        """The first is the default. Raises UnsupportedModel for another value, which is another model."""
        if (value := self.get(name, known[0])) not in known:
            raise self._unknown(name, value, known)

    def _unknown(self, name: str, value: Any, known: Any) -> UnsupportedModel:
        shown = " or ".join(repr(value) for value in known)
        return UnsupportedModel(f"{self._path}: {self._toolkit}'s option {name} is {value!r}; expected {shown}")
