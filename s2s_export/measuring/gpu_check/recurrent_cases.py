"""Random cases for the kernels of recurrent models in plugins/transformer, beside those of native_cases.py.

Letters as in plugins/transformer/parameters.h.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .native_cases import Array, Case, allowed, dtype_of, fragments, launches, nothing, reference, stored, structures

KEPT = np.float32(0.5)  # what memory holds that a kernel is to leave as it is
EXACT = 1e-30


def _gates(rng: np.random.Generator, element: str, directions: int, n: int, units: int, width: int, name: str) -> Any:
    """A weight [directions*O, width] of n gates a unit as fields, and exactly as [directions, G, U, width]."""
    laid = [fragments.by_units(rng.standard_normal((n, units, width)) / np.sqrt(width)) for _ in range(directions)]
    of_weight, exact = stored(np.concatenate(laid), element, f"{name}_")
    each = exact.reshape(directions, -1, width)
    fields = {key.replace("weight_scale", "scale"): array for key, array in of_weight.items()}
    return fields, np.stack([fragments.of_units(one.T, n, units).transpose(0, 2, 1) for one in each])


def _biases(rng: np.random.Generator, directions: int, n: int, units: int) -> tuple[Array, Array]:
    """[directions*O], and by gate [directions, G, U]."""
    exact = rng.standard_normal((directions, n, units)).astype(np.float32)
    return np.concatenate([fragments.by_units(one) for one in exact]), exact


def _applied(kind: str, x: Array, h: Array, kept: Array) -> tuple[Array, Array]:
    hidden, after = (reference.lstm if kind == "lstm" else reference.gru)(x, h, kept)
    return hidden, after


def cell(rng: np.random.Generator, element: str, kind: str = "", rows: int = 0) -> Case:
    """A decoder's layer: rows that lie side by side with others, units of several tiles, with and without biases."""
    kind = kind or str(rng.choice(sorted(launches.GATES)))
    n, R = launches.GATES[kind], rows or int(rng.integers(1, 41))
    U, width = (16 * int(size) for size in rng.integers(1, [5, 30]))
    stride, output_stride = width + 8 * int(rng.integers(3)), U + 16
    dtype = dtype_of(element)
    x, before = (rng.standard_normal((R, size)).astype(dtype) for size in (stride, U))
    kept = before.astype(np.float32) if kind == "gru" else rng.standard_normal((R, U)).astype(np.float32)
    of_input, input_weight = _gates(rng, element, 1, n, U, width, "input")
    of_hidden, hidden_weight = _gates(rng, element, 1, n, U, U, "hidden")
    read = {**of_input, **of_hidden, "input": x, "before": before, "kept_before": kept}
    wide, state = x[:, :width].astype(np.float64), before.astype(np.float64)
    of_x, of_h = (np.einsum("ri,gui->gru", a, w[0]) for a, w in ((wide, input_weight), (state, hidden_weight)))
    size = np.einsum("ri,gui->ru", np.abs(wide), np.abs(input_weight[0]))
    size += np.einsum("ri,gui->ru", np.abs(state), np.abs(hidden_weight[0]))
    if rng.random() < 0.7:
        read["input_bias"], exact = _biases(rng, 1, n, U)
        of_x = of_x + exact[0][:, None]
    if rng.random() < 0.7:
        read["hidden_bias"], exact = _biases(rng, 1, n, U)
        of_h = of_h + exact[0][:, None]
    hidden, keeps = _applied(kind, of_x, of_h, kept.astype(np.float64))
    size = (1 + size) * (1 + np.abs(kept))
    expected = {"after": (hidden, allowed(element, hidden, size)), "kept_after": (keeps, allowed("fp32", keeps, size))}
    written = {"after": nothing((R, U), dtype), "kept_after": nothing((R, U), np.float32)}
    if rng.random() < 0.5:
        line = np.full((R, output_stride), KEPT)
        line[:, :U] = hidden
        written["output"] = np.full(line.shape, KEPT, dtype)
        expected["output"] = (line, np.pad(expected["after"][1], ((0, 0), (0, 16)), constant_values=EXACT))
    given = structures.CellParameters(
        rows=R, inputs=width, units=U, outputs=len(fragments.by_units(np.zeros((n, U)))), input_stride=stride, stride=U,
        output_stride=output_stride,
    )  # fmt: skip
    return Case(launches.cell(element, given, kind), given, read, written, expected)


def encoder_cell(rng: np.random.Generator, element: str) -> Case:
    """A position of an encoder's layer, in one direction or both; what the input gives was computed before."""
    kind, directions, reverse = str(rng.choice(sorted(launches.GATES))), int(rng.integers(1, 3)), int(rng.integers(2))
    n, B, S, U = launches.GATES[kind], int(rng.integers(1, 12)), int(rng.integers(1, 6)), 16 * int(rng.integers(1, 4))
    step, dtype, outputs = int(rng.integers(S)), dtype_of(element), len(fragments.by_units(np.zeros((n, U))))
    of_hidden, weight = _gates(rng, element, directions, n, U, U, "hidden")
    added = rng.standard_normal((B, S, directions, n, U)).astype(np.float32)
    laid = np.stack([[[fragments.by_units(gates) for gates in row] for row in rows] for rows in added])
    mask = (np.arange(S) < rng.integers(1, S + 1, B)[:, None]).astype(np.int32)
    after = rng.standard_normal((B, S, directions, U)).astype(dtype)
    kept = after.astype(np.float32) if kind == "gru" else rng.standard_normal(after.shape).astype(np.float32)
    read = {**of_hidden, "added": laid.astype(np.float32), "mask": mask}
    bias = np.zeros((directions, n, U))
    if rng.random() < 0.7:
        read["hidden_bias"], bias = _biases(rng, directions, n, U)
    found, keeps = after.astype(np.float64), kept.astype(np.float64)
    limits, kept_limits = (np.full(after.shape, EXACT) for _ in range(2))
    for d in range(directions):
        is_backward = d == 1 or bool(reverse)
        p = S - 1 - step if is_backward else step
        earlier = p + 1 if is_backward else p - 1
        has = (mask[:, earlier] != 0)[:, None] if 0 <= earlier < S else np.zeros((B, 1), bool)
        at = min(max(earlier, 0), S - 1)
        state, old = (np.where(has, one[:, at, d], 0).astype(np.float64) for one in (after, kept))
        h = np.einsum("bi,gui->gbu", state, weight[d]) + bias[d][:, None]
        result = _applied(kind, added[:, p, d].transpose(1, 0, 2).astype(np.float64), h, old)
        size = (1 + np.abs(added[:, p, d]).max(1) + np.einsum("bi,gui->bu", np.abs(state), np.abs(weight[d]))) * 3
        for part, one, limit, stored_as in ((found, 0, limits, element), (keeps, 1, kept_limits, "fp32")):
            part[:, p, d] = np.where(mask[:, p, None] != 0, result[one], 0)
            limit[:, p, d] = allowed(stored_as, part[:, p, d], size * (1 + np.abs(old)))
    given = structures.CellParameters(
        rows=B, units=U, outputs=outputs, stride=directions * U, added_stride=directions * outputs, length=S, step=step,
        reverse=reverse,
    )  # fmt: skip
    return Case(
        launches.cell(element, given, kind, directions), given, read, {"after": after, "kept_after": kept},
        {"after": (found, limits), "kept_after": (keeps, kept_limits)},
        {"before": ("after", 0), "kept_before": ("kept_after", 0)},
    )  # fmt: skip


def begin_step(rng: np.random.Generator, element: str, position: int = -1) -> Case:
    """position: 0 begins with the source's states, a later one with those of each beam's parent."""
    B, K, L, U, E = 2, int(rng.integers(1, 6)), int(rng.integers(1, 4)), 16 * int(rng.integers(1, 4)), 32
    C, R, dtype = 5, B * K, dtype_of(element)
    position = int(rng.integers(0, C + 1)) if position < 0 else position
    A = int(rng.choice([0, 48]))
    of_table, table = stored(rng.standard_normal((48, E)), element)
    ids, ancestors = rng.integers(0, 48, R), rng.integers(0, K, (B, K, C))
    first, after = (rng.standard_normal(shape).astype(dtype) for shape in ((B, L, U), (L, R, U)))
    kept_after = rng.standard_normal((L, R, U)).astype(np.float32)
    read: dict[str, Array] = {
        "ids": ids, "embedding": of_table["weight"], "ancestors": ancestors, "position": np.array([position], np.int64),
        "first": first, "after": after, "kept_after": kept_after,
    }  # fmt: skip
    if "weight_scale" in of_table:
        read["embedding_row_scales"] = of_table["weight_scale"]
    kept = np.zeros((B, L, U), np.float32)
    if rng.random() < 0.5:
        kept = read["first_kept"] = rng.standard_normal((B, L, U)).astype(np.float32)
    line = np.full((R, 16 + E + A), KEPT)
    line[:, 16 : 16 + E] = table[ids]
    if A:
        read["context"] = rng.standard_normal((B, A)).astype(dtype)
        line[:, 16 + E :] = np.repeat(read["context"].astype(np.float64), K, 0)
    parents = (np.arange(B)[:, None] * K + ancestors[..., max(position - 1, 0)]).reshape(-1)
    before: Array = after[:, parents]
    kept_before: Array = kept_after[:, parents]
    if position == 0:
        before, kept_before = (np.repeat(one.transpose(1, 0, 2), K, 1) for one in (first, kept))
    given = structures.BeginParameters(
        rows=R, beams=K, capacity=C, width=E, vocabulary=48, stride=line.shape[1], context_width=A, units=U, layers=L
    )
    expected: dict[str, tuple[Array, Array]] = {
        "line": (line, allowed(element, line, 0.1)),
        "before": (before.astype(np.float64), np.full(before.shape, EXACT)),
        "kept_before": (kept_before.astype(np.float64), np.full(before.shape, EXACT)),
    }
    written = {
        "line": np.full(line.shape, KEPT, dtype), "before": nothing(before.shape, dtype),
        "kept_before": nothing(before.shape, np.float32),
    }  # fmt: skip
    within = {"embedded": ("line", 32), "context_rows": ("line", 32 + 2 * E)}
    return Case(launches.begin_step(element, given), given, read, written, expected, within)


def pick_states(rng: np.random.Generator, element: str) -> Case:
    B, S, U, backward = (int(rng.integers(1, n)) for n in (5, 8, 4, 3))
    U, backward, dtype = 16 * U, backward - 1, dtype_of(element)
    states = rng.standard_normal((B, S, 2, U)).astype(dtype)
    kept = rng.standard_normal(states.shape).astype(np.float32)
    lengths = rng.integers(1, S + 1, B)
    at = np.zeros(B, np.int64) if backward else lengths - 1
    read = {"mask": (np.arange(S) < lengths[:, None]).astype(np.int32), "all": states, "all kept": kept}
    expected: dict[str, tuple[Array, Array]] = {}
    written: dict[str, Array] = {}
    for name, array in (("output", states), ("output_kept", kept)):
        rows = np.full((B, 2 * U), KEPT, np.float64)
        rows[:, :U] = array[np.arange(B), at, 1]
        expected[name] = (rows, np.full(rows.shape, EXACT))
        written[name] = np.full(rows.shape, KEPT, array.dtype)
    given = structures.PickParameters(length=S, stride=2 * U, output_stride=2 * U, units=U, backward=backward)
    within = {"states": ("all", 2 * U), "kept": ("all kept", 4 * U)}  # the second half of each row
    return Case(launches.pick_states(element, given, B), given, read, written, expected, within)


def source_scores(rng: np.random.Generator, element: str, additive: bool | None = None) -> Case:
    """additive: with a query and energies; else of states themselves."""
    additive = bool(rng.integers(2)) if additive is None else additive
    B, K, S, U = 2, int(rng.integers(1, 17)), int(rng.integers(1, 30)), 16 * int(rng.integers(1, 20))
    dtype = dtype_of(element)
    keys = rng.standard_normal((B, S, U)).astype(dtype)
    mask = (rng.random((B, S)) < 0.7).astype(np.int32)
    asked = rng.standard_normal((B, K, U)).astype(np.float32 if additive else dtype)
    read = {"keys": keys, "mask": mask, "query" if additive else "state": asked}
    exact, wide = asked.astype(np.float64), keys.astype(np.float64)
    if additive:
        energy = read["energy"] = rng.standard_normal(U).astype(np.float32)
        scores, size = reference.additive(exact, wide, energy.astype(np.float64)), np.abs(energy).sum()
    else:
        scores, size = exact @ wide.swapaxes(1, 2), np.abs(exact) @ np.abs(wide).swapaxes(1, 2)
    hidden = np.broadcast_to(mask[:, None] == 0, scores.shape)
    limits = np.where(hidden, EXACT, allowed("fp32", scores, size))
    scores = np.where(hidden, np.float64(np.finfo(np.float32).min), scores)
    given = structures.ScoreParameters(beams=K, length=S, units=U)
    written = {"scores": nothing(scores.shape, np.float32)}
    return Case(launches.source_scores(element, given, B), given, read, written, {"scores": (scores, limits)})


def source_context(rng: np.random.Generator, element: str) -> Case:
    """One source has nothing real; what lies beside the context stays as it is."""
    B, K, S, A = 2, int(rng.integers(1, 5)), int(rng.integers(1, 70)), 16 * int(rng.integers(1, 12))
    dtype, stride = dtype_of(element), A + 16
    annotations = rng.standard_normal((B, S, A)).astype(dtype)
    mask = rng.random((B, S)) < 0.7
    mask[0] = False
    scores = np.where(mask[:, None], 3 * rng.standard_normal((B, K, S)), np.finfo(np.float32).min).astype(np.float32)
    result = reference.softmax_mean(scores.astype(np.float64), annotations.astype(np.float64), mask)
    line = np.full((B * K, stride), KEPT, np.float64)
    line[:, :A] = result.reshape(B * K, A)
    limits = np.full(line.shape, EXACT)
    limits[:, :A] = allowed(element, line[:, :A], 5.0)
    given = structures.ContextParameters(beams=K, length=S, width=A, stride=stride)
    read, written = {"scores": scores, "annotations": annotations}, {"output": np.full(line.shape, KEPT, dtype)}
    return Case(launches.source_context(element, given, B), given, read, written, {"output": (line, limits)})


KINDS: dict[str, Callable[[np.random.Generator, str], Case]] = {
    "cell": cell,
    "encoder_cell": encoder_cell,
    "begin_step": begin_step,
    "pick_states": pick_states,
    "source_scores": source_scores,
    "source_context": source_context,
}
