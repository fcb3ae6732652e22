"""The three functions of a module as ONNX models, traced by torch.export and written by torch.onnx.

Every dimension that a source or a step may change is dynamic, and a function that fixes one is refused.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import re
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from ...errors import MissingExtra, UnsupportedModel
from ..graphs.functions import OPSET
from . import masked, recurrence, slots
from .interface import Field, Interface, Run, tensors_of
from .recurrence import as_one_operator
from .sources import Sources
from .views import NotFollowed

# What torch says of a failed trace, and what helps. The first that is found is the reason.
HINTS = (
    (
        r"data-dependent|GuardOnDataDependent|Could not guard|item\(\)|DynamicControlFlow|bool\(\)",
        "Python asks for a tensor's value (an if, int(), bool() or .item() of a tensor); compute it with torch.where "
        "or an index instead, and check the input elsewhere",
    ),
    (
        r"specialized it to be a constant|Constraints violated|marked .* as dynamic",
        "the function works for the size of the example only; avoid loops over a length and int(tensor.shape[i])",
    ),
    (
        r"No ONNX function found|No decompositions registered|Cannot dispatch|DispatchError",
        "torch.onnx has no form of this operator; write it with others",
    ),
)


@dataclass(frozen=True)
class Traced:
    """The functions as ONNX models, whose inputs and outputs are in the order of the interface's fields.

    slots: what the step's caches became, where they need no copy. why_copied: why they do; None where there are none.
    """

    encode: onnx.ModelProto
    start: onnx.ModelProto
    step: onnx.ModelProto
    slots: slots.Slots | None = None
    why_copied: str | None = None


@dataclass
class _IntoSlots:
    """Changes a traced step whose caches along time can be slots. fields: of the state."""

    fields: tuple[Field, ...]
    slots: slots.Slots | None = None
    why_not: str | None = None

    def __call__(self, program: Any) -> None:
        if not any("C" in f.shape for f in self.fields):
            return
        try:
            found = slots.find(program, self.fields)
        except NotFollowed as reason:
            self.why_not = str(reason)
            return
        found.apply()
        self.slots = found.slots


class _Function(nn.Module):
    """A function of plain tensors: a method of `model` that takes and returns tuples of them."""

    def __init__(self, model: nn.Module, body: Callable[..., tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.model = model  # so that its parameters are known
        self._body = body

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return self._body(*tensors)


def trace(model: Any, sources: Sources, interface: Interface, example: Run) -> Traced:
    """Raises UnsupportedModel, which says which function can't be traced and what in it is the reason."""
    require_onnxscript()

    def encode(*source: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensors_of(model.encode(*source)))

    def start(*memory: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensors_of(model.start(_filled(example.memory, memory))))

    def step(token: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        logits, after, weights = model.step(token, _filled(example.state, state))
        changed = [v for f, v in zip(interface.state, tensors_of(after), strict=True) if f.changes]
        return (logits, *changed, *([] if weights is None else [weights]))

    source = [Field(name, dtype, shape) for name, dtype, shape in sources.inputs]
    token = Field("", torch.int64, ("B",))
    # The state after some steps: torch takes the sizes 0 and 1 for fixed, which a cache along time has before.
    state, memory = _copies(example.later), _copies(example.memory)
    functions: dict[str, tuple[Callable[..., Any], list[Tensor], list[Field]]] = {
        "encode": (encode, list(example.source), source),
        "start": (start, memory, list(interface.memory)),
        "step": (step, [torch.zeros(example.n_rows, dtype=torch.int64), *state], [token, *interface.state]),
    }
    into_slots = _IntoSlots(interface.state)
    with as_one_operator(model):
        found = {
            name: _traced(model, name, *parts, into_slots if name == "step" else None)
            for name, parts in functions.items()
        }
    return Traced(**found, slots=into_slots.slots, why_copied=into_slots.why_not)


def _copies(values: Any) -> list[Tensor]:
    """Tensors of their own: of a view torch.export guards the sizes of what it looks into, which a graph has not."""
    return [value.clone(memory_format=torch.contiguous_format) for value in tensors_of(values)]


def require_onnxscript() -> None:
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtra("onnxscript", "export", "tracing a module") from error


def _filled(example: Any, tensors: tuple[Tensor, ...]) -> Any:
    """A named tuple of the example's class, with Nones where it has them."""
    waiting = iter(tensors)
    return type(example)(*[None if value is None else next(waiting) for value in example])


def _traced(
    model: nn.Module,
    name: str,
    body: Callable[..., Any],
    examples: list[Tensor],
    fields: list[Field],
    change: Callable[[Any], None] | None,
) -> onnx.ModelProto:
    """change: what is done with the program before it is written."""
    dynamic = torch.export.Dim.DYNAMIC
    sizes = [{axis: dynamic for axis, size in enumerate(f.shape) if isinstance(size, str)} for f in fields]
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(
                _Function(model, body), tuple(examples), dynamic_shapes=(tuple(sizes),), strict=False
            )
            _cast_subtracted(program)
            if change is not None:
                change(program)
            masked.spell_out(program)
            written = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                custom_translation_table={**recurrence.translation(), **slots.translation()},
                input_names=[f"in{i}" for i in range(len(examples))],
                verbose=False,
            )
            assert written is not None
            return written.model_proto
    except Exception as error:
        raise UnsupportedModel(f"{name} can't be traced: {_reason(model, error)}") from error


def _cast_subtracted(program: Any) -> None:
    """Casts the whole numbers of `1.0 - mask`, which torch.onnx can't write, to the result's type."""
    graph = program.graph_module.graph
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.rsub.Scalar):
        given, result = node.args[0], node.meta["val"]
        if given.meta["val"].dtype != result.dtype:
            with graph.inserting_before(node):
                cast = graph.call_function(torch.ops.aten.to.dtype, (given, result.dtype))
            cast.meta["val"] = given.meta["val"].to(result.dtype)
            node.replace_input_with(given, cast)
    program.graph_module.recompile()


def _reason(model: nn.Module, error: BaseException) -> str:
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    said = " ".join(" ".join(str(each).split()) for each in chain)
    hint = next((hint for pattern, hint in HINTS if re.search(pattern, said)), None)
    lines = [line.strip() for line in str(chain[-1]).splitlines() if line.strip()]
    found = (lines[0] if lines else type(error).__name__).split(" For more information, run with")[0]
    found = found[:200].rstrip(".;:! ")
    place = _place(model, chain)
    return f"{found}{f' (in {place})' if place else ''}" + (f"; {hint}" if hint else "")


def _place(model: nn.Module, chain: list[BaseException]) -> str | None:
    """The last line of the file that defines the module's class which the error passed through."""
    try:
        file = inspect.getfile(type(model))
    except (TypeError, OSError):
        return None
    for error in reversed(chain):
        places = [entry for entry in traceback.extract_tb(error.__traceback__) if entry.filename == file]
        if places:
            return f"{places[-1].name}, line {places[-1].lineno}: {places[-1].line}"
    return None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch reports its progress, and a failed graph, to the log and both outputs; we report what matters ourselves."""
    loggers = [
        logging.getLogger(name)
        for name in ("torch.onnx", "torch.export", "torch._dynamo", "torch.fx", "onnxscript", "onnx_ir")
    ]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        unread = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(unread), contextlib.redirect_stderr(unread):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
