"""What a module's three functions take and return, found out by running them on sources of several sizes.

    memory = model.encode(input_ids, source_mask)        input_ids [B,S] int64, source_mask [B,S] int64
    state = model.start(memory)                          one row for each source
    logits, state, weights = model.step(token, state)    token [R] int64, logits [R,V], weights [R,L,H,S] or None

Memories and states are named tuples of tensors, or None, whose first dimension is the row. Another dimension has a
fixed size, or is S, or grows by one with every step, which is a cache along time: C.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import UnsupportedModel

DTYPES = {torch.float32: "float32", torch.int64: "int64", torch.int32: "int32", torch.bool: "bool"}
FUNCTIONS = ("encode", "start", "step")
SIZES = ((2, 5), (3, 5), (2, 7))  # B and S of the runs, each of which changes one
N_STEPS = 4
Shape = tuple[int | str, ...]


@dataclass(frozen=True)
class Field:
    """A tensor of a memory or state.

    first: its shape before the first step, in which a cache has a fixed size, usually 0. changes: whether a step
    returns another one; the others are kept as they are.
    """

    name: str
    dtype: torch.dtype
    shape: Shape
    first: Shape = ()
    changes: bool = False


@dataclass(frozen=True)
class Interface:
    """memory, state: the fields that hold tensors, in their order. attention: L and H of the weights, or None."""

    memory: tuple[Field, ...]
    state: tuple[Field, ...]
    vocabulary_size: int
    attention: tuple[int, int] | None


@dataclass(frozen=True)
class Run:
    """One run: what the functions returned, the logits and weights of the first step, the state after it and later."""

    n_rows: int
    length: int
    memory: Any
    state: Any
    after: Any
    later: Any
    logits: Tensor
    weights: Tensor | None


def probe(model: Any, source_vocabulary: int | None, start_token: int) -> tuple[Interface, Run]:
    """The interface of a module, and the first of the runs that showed it. Raises UnsupportedModel.

    source_vocabulary: how many ids the encoder knows; None for as many as there are logits.
    """
    require_functions(model)
    runs = [run(model, *size, source_vocabulary or 1, start_token) for size in SIZES]
    first = runs[0]
    _require_ids(model, source_vocabulary or first.logits.shape[1])
    state = _fields("state", "start", runs, lambda r: r.state, lambda r: r.after)
    interface = Interface(
        memory=_fields("memory", "encode", runs, lambda r: r.memory, lambda r: r.memory),
        state=state,
        vocabulary_size=first.logits.shape[1],
        attention=_attention(runs),
    )
    return interface, first


@torch.no_grad()
def _require_ids(model: Any, n_ids: int) -> None:
    """Every id below `n_ids` must be one that the encoder knows."""
    ids = torch.full((1, 3), n_ids - 1)
    try:
        model.encode(ids, torch.ones_like(ids))
    except Exception as error:
        raise UnsupportedModel(
            f"encode failed for the id {n_ids - 1} ({type(error).__name__}); set source_vocabulary_size to the number "
            "of ids that it knows"
        ) from error


def require_functions(model: Any) -> None:
    missing = [name for name in FUNCTIONS if not callable(getattr(model, name, None))]
    if missing:
        raise UnsupportedModel(
            f"{type(model).__name__} has no function {' and no '.join(missing)}; expected encode(input_ids, "
            "source_mask), start(memory) and step(token, state), as docs/own-module.md shows"
        )


@torch.no_grad()
def run(model: Any, n_rows: int, length: int, source_vocabulary: int, start_token: int) -> Run:
    ids = torch.arange(n_rows * length).reshape(n_rows, length) % source_vocabulary
    mask = torch.ones((n_rows, length), dtype=torch.int64)
    token = torch.full((n_rows,), start_token)
    memory = _named_tuple("encode", _call("encode", model.encode, ids, mask))
    state = _named_tuple("start", _call("start", model.start, memory))
    found = _call("step", model.step, token, state)
    if not isinstance(found, tuple) or len(found) != 3:
        raise UnsupportedModel("step returned something else than three values; expected logits, state and weights")
    logits, after, weights = found
    if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[0] != n_rows:
        raise UnsupportedModel(f"step returned logits {_shape_of(logits)}; expected [R, V], here {n_rows} rows")
    later = after
    for _ in range(N_STEPS - 1):
        _, later, _ = _call("step", model.step, token, later)
    return Run(n_rows, length, memory, state, after, later, logits, weights)


def _call(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except Exception as error:
        sizes = ", ".join(_shape_of(value) for value in arguments if isinstance(value, Tensor))
        raise UnsupportedModel(
            f"{name} failed when it was run{f' on tensors {sizes}' if sizes else ''} "
            f"({type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''})"
        ) from error


def _named_tuple(function: str, found: Any) -> Any:
    if not isinstance(found, tuple) or not hasattr(found, "_fields"):
        raise UnsupportedModel(f"{function} returned a {type(found).__name__}; expected a named tuple of tensors")
    return found


def tensors_of(values: Any) -> list[Tensor]:
    """The tensors of a memory or state, Nones left out."""
    return [value for value in values if value is not None]


def _fields(
    what: str, function: str, runs: list[Run], before: Callable[[Run], Any], after: Callable[[Run], Any]
) -> tuple[Field, ...]:
    example = before(runs[0])
    later = after(runs[0])
    if type(later) is not type(example):
        raise UnsupportedModel(
            f"step returned a state of type {type(later).__name__}; expected {type(example).__name__}, as from start"
        )
    found = []
    for i, name in enumerate(example._fields):
        values = [before(each)[i] for each in runs]
        next_values = [after(each)[i] for each in runs]
        if values[0] is None:
            if next_values[0] is not None:
                raise UnsupportedModel(f"{what}.{name} is None after start and a tensor after step; expected a tensor")
            continue
        found.append(_field(f"{what}.{name}", name, runs, values, next_values))
    if not found:
        raise UnsupportedModel(f"{function} returned no tensor; expected at least one in its named tuple")
    return tuple(found)


def _field(title: str, name: str, runs: list[Run], values: list[Any], next_values: list[Any]) -> Field:
    for value in (*values, *next_values):
        if not isinstance(value, Tensor):
            raise UnsupportedModel(
                f"{title} is a {type(value).__name__}; expected a tensor with a row for each source, or None"
            )
        if value.dtype not in DTYPES:
            raise UnsupportedModel(f"{title} holds {value.dtype}; expected one of {', '.join(DTYPES.values())}")
    changes = any(new is not old for new, old in zip(next_values, values, strict=True))
    shape: list[int | str] = []
    for axis in range(values[0].dim()):
        shape.append(_letter(title, axis, runs, values, next_values))
    if not shape or shape[0] != "B":
        raise UnsupportedModel(
            f"{title} has shape {_shape_of(values[0])} for {runs[0].n_rows} sources; expected a row for each, first"
        )
    first = tuple(values[0].shape[axis] if size == "C" else size for axis, size in enumerate(shape))
    return Field(name, values[0].dtype, tuple(shape), first, changes)


def _letter(title: str, axis: int, runs: list[Run], values: list[Tensor], next_values: list[Tensor]) -> int | str:
    sizes = [value.shape[axis] for value in values]
    if any(value.dim() != values[0].dim() for value in next_values):
        raise UnsupportedModel(f"{title} has another number of dimensions after a step; expected the same")
    growth = {new.shape[axis] - size for new, size in zip(next_values, sizes, strict=True)}
    if axis == 0 and sizes == [r.n_rows for r in runs] and growth == {0}:
        return "B"
    if len(set(sizes)) == 1 and growth == {0}:
        return sizes[0]
    if len(set(sizes)) == 1 and growth == {1}:
        return "C"
    if sizes == [r.length for r in runs] and growth == {0}:
        return "S"
    raise UnsupportedModel(
        f"{title} has {', '.join(map(str, sizes))} elements along axis {axis} for sources of "
        f"{', '.join(str(r.length) for r in runs)} tokens, and {next(iter(growth)):+d} after a step; expected a fixed "
        "size, the source's length, or one more with every step"
    )


def _attention(runs: list[Run]) -> tuple[int, int] | None:
    weights = runs[0].weights
    if weights is None:
        return None
    if not isinstance(weights, Tensor) or weights.dim() != 4 or weights.shape[0::3] != (runs[0].n_rows, runs[0].length):
        raise UnsupportedModel(f"step returned attention weights {_shape_of(weights)}; expected [R, L, H, S] or None")
    return weights.shape[1], weights.shape[2]


def _shape_of(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else f"of type {type(value).__name__}"
