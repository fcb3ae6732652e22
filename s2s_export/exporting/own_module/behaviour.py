"""Whether a module's functions depend on what they are given and on nothing else: what tracing takes for granted.

A function that keeps something in the module, draws random numbers, or lets the padding of a batch change a source's
scores can be traced, and would decode otherwise than its owner expects.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import UnsupportedModel
from ...runtime.sources import MASK
from .interface import Run, call, tensors_of
from .sources import Sources

TOLERANCE = 1e-4  # times the largest score: sums of other lengths differ by rounding
N_STEPS = 3
Snapshot = dict[str, tuple[int, int]]


def snapshot(model: nn.Module) -> Snapshot:
    """What is in a module and in those inside it: an object's identity by its name, and how often it was changed."""
    return {name: (id(value), value._version if isinstance(value, Tensor) else 0) for name, value in _held(model)}


def _held(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for path, module in model.named_modules():
        own = {name: value for name, value in vars(module).items() if not name.startswith("_")}
        for name, value in {**own, **module._parameters, **module._buffers}.items():
            yield f"{path}.{name}".strip("."), value


@torch.no_grad()
def require_functions_of_arguments(model: Any, first: Run, before: Snapshot) -> None:
    """Calls the functions once more with what they were given in the first run, others having been made since.

    before: a snapshot from before all runs. Raises UnsupportedModel.
    """
    after = snapshot(model)
    changed = sorted(name for name in {**before, **after} if before.get(name) != after.get(name))
    why = (
        f"it keeps {', '.join(f'self.{name}' for name in changed[:3])} between calls; put it into the memory or state"
        if changed
        else "it draws random numbers, or keeps something between calls; leave out the noise (F.dropout needs "
        "training=self.training), and put the rest into the memory or state"
    )
    token = torch.full((first.n_rows,), first.token)
    for name, function, given, found in (  # the last first: `encode` would put what is kept back to what it was
        ("step", model.step, (token, first.state), (first.logits, *first.after)),
        ("start", model.start, (first.memory,), first.state),
        ("encode", model.encode, first.source, first.memory),
    ):
        try:
            again = call(name, function, *given)
        except UnsupportedModel as error:
            raise UnsupportedModel(f"{error}, though it had not failed before: {why}") from error
        again = (again[0], *again[1]) if name == "step" else again
        if any(not _close(one, other) for one, other in zip(tensors_of(found), tensors_of(again), strict=True)):
            raise UnsupportedModel(f"{name} gives other values for the same arguments: {why}")


def _close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    largest = one.abs().nan_to_num(0, 0, 0).max() if one.numel() else 0.0
    return torch.allclose(one, other, rtol=0, atol=float(TOLERANCE * largest), equal_nan=True)


@torch.no_grad()
def effect_of_padding(model: Any, sources: Sources, first: Run, padding: int) -> str | None:
    """What is to be known of a source's scores beside a longer one, in a sentence; None where they are those alone.

    padding: the id that fills ids up. Raises UnsupportedModel where they change beside a source of the same length.
    """
    names = [name for name, _, _ in sources.inputs]
    if MASK not in names:
        return None
    values, mask = (value.clone() for value in sources.example(2, first.length + sources.least + 2))
    n = first.length
    alone = _scores(model, (values[1:, :n].clone(), mask[1:, :n].clone()), first.token)[0]
    beside = _scores(model, (values[:, :n].clone(), mask[:, :n].clone()), first.token)[1]
    values[1, n:], mask[1, n:] = 0 if values.is_floating_point() else padding, 0
    padded = _scores(model, (values, mask), first.token)[1]
    if not _close(alone, beside):
        raise UnsupportedModel(
            f"a source's scores change by {float((alone - beside).abs().max()):.1g} with the other sources of its "
            "batch; compute each row from itself alone"
        )
    if not _close(alone, padded):
        return (
            f"a source's scores change by {float((alone - padded).abs().max()):.1g} where its batch is padded; give "
            "sources of one length, or use source_mask in encode and step: masked_fill before a softmax, a product "
            "with it around a convolution, pack_padded_sequence with source_mask.sum(1).cpu() before a recurrent layer"
        )
    return None


def _scores(model: Any, source: tuple[Tensor, ...], token: int) -> Tensor:
    """Log-probabilities [B,V] after some steps."""
    state = call("start", model.start, call("encode", model.encode, *source))
    for _ in range(N_STEPS):
        logits, state, _ = call("step", model.step, torch.full((len(source[0]),), token), state)
    return torch.log_softmax(logits, dim=-1)
