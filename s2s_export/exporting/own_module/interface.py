"""What a module's three functions take and return, found out by running them on sources of several sizes.

    memory = model.encode(input_ids, source_mask)        or what else its sources are (sources.py)
    state = model.start(memory)                          one row for each source
    logits, state, weights = model.step(token, state)    token [R] int64, logits [R,V], weights [R,L,H,S] or None

Memories and states are named tuples of tensors, or None, whose first dimension is the row. Another dimension has a
fixed size, or is S, or grows by one with every step, which is a cache along time: C; or it follows from S, as behind a
convolution with strides: F.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import UnsupportedModel
from .sources import Ids, Sources

DTYPES = {torch.float32: "float32", torch.int64: "int64", torch.int32: "int32", torch.bool: "bool"}
FUNCTIONS = ("encode", "start", "step")
N_STEPS = 4
SHORT, LONG = 4, 10  # and the fewest that a source has, and three times so many
Shape = tuple[int | str, ...]


@dataclass(frozen=True)
class Field:
    """A tensor of a memory or state.

    first: its shape before the first step, in which a cache has a fixed size, usually 0. changes: whether a step
    returns another one; the others are kept as they are. frames: what F was in each run, where the shape has it.
    """

    name: str
    dtype: torch.dtype
    shape: Shape
    first: Shape = ()
    changes: bool = False
    frames: tuple[int, ...] = ()


@dataclass(frozen=True)
class Interface:
    """memory, state: the fields that hold tensors, in their order. attention: L, H and S of the weights, or None; S is
    a number where all sources have one length."""

    memory: tuple[Field, ...]
    state: tuple[Field, ...]
    vocabulary_size: int
    attention: tuple[int, int, int | str] | None


@dataclass(frozen=True)
class Run:
    """One run: what the functions were given and returned.

    token: what was fed. after, logits, weights: what the first step returned. later: the state after some more.
    """

    n_rows: int
    length: int
    token: int
    source: tuple[Tensor, ...]
    memory: Any
    state: Any
    after: Any
    later: Any
    logits: Tensor
    weights: Tensor | None


def probe(model: Any, sources: Sources, start_token: int, limit: int | None = None) -> tuple[Interface, Run]:
    """The interface of a module, and the first of the runs that showed it. Raises UnsupportedModel.

    limit: of S. Where `sources` are ids of which nobody has said how many there are, there are as many as logits.
    """
    require_functions(model)
    short, long = _lengths(sources, limit)
    runs = [run(model, *size, sources, start_token) for size in ((2, short), (3, short), (2, long))]
    first = runs[0]
    if isinstance(sources, Ids):
        sources.n_ids = sources.n_ids or first.logits.shape[1]
        _require_ids(model, sources.n_ids)
    state = _fields("state", "start", runs, lambda r: r.state, lambda r: r.after)
    interface = Interface(
        memory=_fields("memory", "encode", runs, lambda r: r.memory, lambda r: r.memory),
        state=state,
        vocabulary_size=first.logits.shape[1],
        attention=_attention(runs),
    )
    lengths = {sizes for field in (*interface.memory, *interface.state) if (sizes := field.frames)}
    if len(lengths) > 1:
        raise UnsupportedModel(
            f"memory and state have the lengths {' and '.join(str(list(each)) for each in sorted(lengths))} for "
            f"sources of {[r.length for r in runs]}; expected one that follows from the source's"
        )
    return interface, first


def _lengths(sources: Sources, limit: int | None) -> tuple[int, int]:
    """Two values of S, far enough apart that a convolution with strides shows; one where all sources have the same."""
    if all("S" not in shape for _, _, shape in sources.inputs):
        return 1, 1
    long = min(LONG + 3 * sources.least, limit or LONG + 3 * sources.least)
    return max(sources.least, min(SHORT + sources.least, long - 1)), long


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
    scripted = [name for name, part in model.named_modules() if isinstance(part, torch.jit.ScriptModule)]
    if scripted:
        raise UnsupportedModel(
            f"{f'self.{scripted[0]}' if scripted[0] else 'the module'} is a torch.jit.ScriptModule, which can't be "
            "traced; put the module that it was made from in its place"
        )


@torch.no_grad()
def run(model: Any, n_rows: int, length: int, sources: Sources, start_token: int) -> Run:
    token = torch.full((n_rows,), start_token)
    source = sources.example(n_rows, length)
    memory = _rows("memory", "encode", call("encode", model.encode, *source), n_rows)
    state = _rows("state", "start", call("start", model.start, memory), n_rows)
    found = call("step", model.step, token, state)
    if not isinstance(found, tuple) or len(found) != 3:
        raise UnsupportedModel("step returned something else than three values; expected logits, state and weights")
    logits, after, weights = found
    if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[0] != n_rows:
        raise UnsupportedModel(f"step returned logits {_shape_of(logits)}; expected [R, V], here {n_rows} rows")
    for what, value in (("logits", logits), ("attention weights", weights)):
        if isinstance(value, Tensor) and value.dtype != torch.float32:
            raise UnsupportedModel(
                f"step returned {what} of {value.dtype}; expected torch.float32, such as .float() gives"
            )
    later = after
    for _ in range(N_STEPS - 1):
        _, later, _ = call("step", model.step, token, later)
    return Run(n_rows, length, start_token, source, memory, state, after, later, logits, weights)


def call(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of the module returns. Raises UnsupportedModel where it fails or changes what it is given."""
    given = list(_given(name, arguments))
    versions = [tensor._version for _, tensor in given]
    try:
        found = function(*arguments)
    except Exception as error:
        sizes = ", ".join(_shape_of(value) for value in arguments if isinstance(value, Tensor))
        raise UnsupportedModel(
            f"{name} failed when it was run{f' on tensors {sizes}' if sizes else ''} "
            f"({type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''})"
        ) from error
    for (title, tensor), version in zip(given, versions, strict=True):
        if tensor._version != version:
            raise UnsupportedModel(f"{name} changes {title} in place; expected a new tensor, not the given one changed")
    return found


def _given(function: str, arguments: tuple[Any, ...]) -> Iterator[tuple[str, Tensor]]:
    """The tensors among arguments by what their owner calls them."""
    for number, value in enumerate(arguments):
        if isinstance(value, Tensor):
            yield f"its argument {number + 1}" if function == "encode" else "token", value
        elif hasattr(value, "_fields"):
            title = "memory" if function == "start" else "state"
            yield from ((f"{title}.{n}", v) for n, v in zip(value._fields, value, strict=True) if isinstance(v, Tensor))


def _rows(what: str, function: str, found: Any, n_rows: int) -> Any:
    """The named tuple of tensors that a function must return, each with a row for each source."""
    if not isinstance(found, tuple) or not hasattr(found, "_fields"):
        raise UnsupportedModel(f"{function} returned a {type(found).__name__}; expected a named tuple of tensors")
    for name, value in zip(found._fields, found, strict=True):
        title = f"{what}.{name}"
        if value is None:
            continue
        if not isinstance(value, Tensor):
            raise UnsupportedModel(
                f"{title} is a {type(value).__name__}; expected a tensor with a row for each source, or None"
            )
        if value.dtype not in DTYPES:
            raise UnsupportedModel(
                f"{title} holds {value.dtype}; expected one of {', '.join(DTYPES.values())}, such as .float() gives"
            )
        if not value.dim() or value.shape[0] != n_rows:
            elsewhere = [axis for axis, size in enumerate(value.shape) if axis and size == n_rows]
            raise UnsupportedModel(
                f"{title} has the shape {_shape_of(value)} for {n_rows} sources; expected a row for each, first"
                + (f"; transpose axis {elsewhere[0]} to the front" if elsewhere else "")
            )
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
    for value, after in zip(values, next_values, strict=True):
        if value.dtype != after.dtype:
            raise UnsupportedModel(
                f"{title} is {value.dtype} before a step and {after.dtype} after it; expected one type"
            )
    changes = any(new is not old for new, old in zip(next_values, values, strict=True))
    shape: list[int | str] = []
    for axis in range(values[0].dim()):
        shape.append(_letter(title, axis, runs, values, next_values))
    first = tuple(values[0].shape[axis] if size == "C" else size for axis, size in enumerate(shape))
    frames = next((tuple(value.shape[axis] for value in values) for axis, size in enumerate(shape) if size == "F"), ())
    return Field(name, values[0].dtype, tuple(shape), first, changes, frames)


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
    if sizes[0] == sizes[1] and growth == {0}:
        return "F"
    raise UnsupportedModel(
        f"{title} has {', '.join(map(str, sizes))} elements along axis {axis} for sources of "
        f"{', '.join(str(r.length) for r in runs)} tokens, and {next(iter(growth)):+d} after a step; expected a fixed "
        "size, the source's length or one that follows from it, or one more with every step"
    )


def _attention(runs: list[Run]) -> tuple[int, int, int | str] | None:
    found = [r.weights for r in runs]
    weights = found[0]
    if weights is None:
        return None
    if not isinstance(weights, Tensor) or weights.dim() != 4 or weights.shape[0] != runs[0].n_rows:
        raise UnsupportedModel(f"step returned attention weights {_shape_of(weights)}; expected [R, L, H, S] or None")
    lengths = [each.shape[3] for each in found if each is not None]
    if lengths != [r.length for r in runs] and any(r.length != runs[0].length for r in runs):
        raise UnsupportedModel(
            f"step returned attention weights over {', '.join(map(str, lengths))} positions for sources of "
            f"{', '.join(str(r.length) for r in runs)}; expected as many as the source has, or None"
        )
    fixed = all(r.length == runs[0].length for r in runs)
    return weights.shape[1], weights.shape[2], lengths[0] if fixed else "S"


def _shape_of(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else f"of type {type(value).__name__}"
