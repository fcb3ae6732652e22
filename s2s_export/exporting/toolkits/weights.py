"""The weights of a toolkit's model by name, with the checks that every reader needs.

A weight that is missing, misshapen, no number or not finite is one sentence. What was never asked for is known in the
end: a model with weights that nobody read is another model than its reader thinks, and is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from ...errors import CheckpointError, UnsupportedModel
from ..graphs.structure import Linear, Norm

Size = int | None  # of a dimension; None for any


class Weights:
    """path: named in errors. tensors: by name; floating-point ones are given out as fp32."""

    def __init__(self, path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
        self.path = path
        self._tensors = tensors
        self._read: set[str] = set()
        self._given: dict[str, torch.Tensor] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    @property
    def names(self) -> Iterable[str]:
        return self._tensors

    def first(self, *names: str) -> str:
        """The first of these names that is there, or the first of all, so that an error names it."""
        return next((name for name in names if name in self), names[0])

    def take(self, name: str, *shape: Size) -> torch.Tensor:
        """Raises CheckpointError. shape: what it must have; no sizes for any shape."""
        self._read.add(name)
        if name not in self._given:
            if name not in self._tensors:
                raise CheckpointError(f"{self.path}: has no weight '{name}'; restore the model")
            value = self._tensors[name].detach().float()
            if value.numel() and not bool(torch.isfinite(value).all()):
                raise CheckpointError(f"{self.path}: the weight '{name}' holds NaN or infinity; restore the model")
            self._given[name] = value
        value = self._given[name]
        if shape and not _fits(value.shape, shape):
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise CheckpointError(
                f"{self.path}: the weight '{name}' has shape {list(value.shape)}, expected [{wanted}]; restore it"
            )
        return value

    def maybe(self, name: str, *shape: Size) -> torch.Tensor | None:
        return self.take(name, *shape) if name in self else None

    def linear(self, weight: str, bias: str, outputs: Size = None, inputs: Size = None) -> Linear:
        """weight [out, in]; a bias that is not there is none."""
        found = self.take(weight, outputs, inputs)
        return Linear(found, self.maybe(bias, found.shape[0]))

    def norm(self, weight: str, bias: str | None, width: Size, epsilon: float) -> Norm:
        """bias: None for RMSNorm."""
        return Norm(self.take(weight, width), None if bias is None else self.take(bias, width), epsilon)

    def ignore(self, names: Iterable[str]) -> None:
        """Names that change nothing at inference."""
        self._read.update(names)

    def refuse_unread(self) -> None:
        """Raises UnsupportedModel, which names what no part of the model has asked for."""
        if left := sorted(set(self._tensors) - self._read):
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise UnsupportedModel(
                f"{self.path}: has the weight '{left[0]}'{more}, which no model that is read here has; see "
                "docs/families.md for what is read"
            )


def _fits(found: Sequence[int], wanted: Sequence[Size]) -> bool:
    return len(found) == len(wanted) and all(w in (None, f) for f, w in zip(found, wanted, strict=True))
