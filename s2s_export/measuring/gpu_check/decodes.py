"""Whole decodes without TensorRT: another library computes the decoder step, and the search runs on the GPU.

First, tokens and scores are compared with those of ONNX Runtime on the CPU, with rules, samples and streams, for each
way of repeating a step. Then the steps are timed, beside transformers' generate() on the same GPU.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ... import bundle as bundles
from ...building import samples
from ...runtime.session import Session, load
from ..bench.work import NEUTRAL, random_sources

SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {"num_beams": 1},
    "4 beams": {"num_beams": 4, "num_return_sequences": 2},
    "4 beams with rules": {
        "num_beams": 4, "no_repeat_ngram_size": 2, "min_new_tokens": 5, "repetition_penalty": 1.2,
        "length_penalty": 0.6, "bad_words_ids": [[7], [8, 9]],
    },
    "samples": {"num_beams": 1, "do_sample": True, "seed": 5, "top_k": 20, "num_return_sequences": 3},
    "4 beams, sampled": {"num_beams": 4, "do_sample": True, "seed": 6, "top_p": 0.9},
}  # fmt: skip
N_SOURCES, N_TOKENS = 8, 24
SOURCE_LENGTH, FEW_TOKENS, MANY_TOKENS = 32, 7, 31  # a step's time is the slope between these output lengths
SCORE_TOLERANCE = 1e-4  # the contract's, for fp32

Save = Callable[[dict[str, Any]], None]
Decode = Callable[[list[list[int]], int, int], object]  # sources, beams, new tokens


@dataclass(frozen=True)
class Contestant:
    """A way to decode: `open` returns a session with this `search` (see `s2s_export.load`)."""

    label: str
    search: str
    open: Callable[[bundles.Bundle, str], Session]
    is_exact: bool  # whether its tokens are compared, which is so in fp32


def _torch(element: str, opened: bundles.Bundle, search: str) -> Session:
    import torch

    from ...runtime.backends._torch_step import TorchDeviceBackend
    from ...runtime.cuda import device as cuda

    kinds = {"fp32": torch.float32, "fp16": torch.float16}
    return Session(opened, TorchDeviceBackend(opened, cuda.shared(), "cuda", kinds[element]), search=search)


def _onnxruntime(opened: bundles.Bundle, search: str) -> Session:
    from ...runtime.backends.onnxruntime_cuda import OnnxRuntimeCudaBackend

    graphs = opened.manifest["graphs"]
    return Session(opened, OnnxRuntimeCudaBackend(opened, opened.path, graphs), search=search)


def _contestants(name: str, opens: Callable[[bundles.Bundle, str], Session], *searches: str) -> list[Contestant]:
    return [Contestant(f"{name}, {search}", search, opens, "fp32" in name) for search in searches]


DEVICE = ("device-while", "device-replay", "device-queue")
TORCH = (
    *_contestants("torch fp32", partial(_torch, "fp32"), *DEVICE, "host"),
    *_contestants("torch fp16", partial(_torch, "fp16"), *DEVICE),
)
ONNXRUNTIME = (*_contestants("onnxruntime fp32", _onnxruntime, *DEVICE[1:], "host"),)


def agreement(contestants: Sequence[Contestant], bundle: str, save: Save) -> list[str]:
    """Compare tokens in fp32 with those of ONNX Runtime on the CPU. Returns what is wrong."""
    opened = bundles.read(bundle)
    reference = load(bundle, backend="onnxruntime")
    sources, _ = samples.sources(opened, N_SOURCES)
    limit = min(N_TOKENS, (opened.max_target_length or N_TOKENS) - 1)
    works = {name: {**options, "max_new_tokens": limit} for name, options in SEARCHES.items()}
    expected = {name: reference.generate(sources, **options) for name, options in works.items()}
    found: dict[str, Any] = {}
    wrong = []
    for one in contestants:
        try:
            session = one.open(opened, one.search)
            for name, options in works.items():
                entry = _compared(session.generate(sources, **options), expected[name])
                found[f"{one.label}, {name}"] = entry
                if entry["equal"] < entry["outputs"]:
                    wrong.append(f"{one.label}, {name}: {entry['outputs'] - entry['equal']} outputs differ")
                if not entry["largest_score_difference"] <= SCORE_TOLERANCE:
                    wrong.append(f"{one.label}, {name}: scores differ by {entry['largest_score_difference']:.1e}")
            beams = session.options(**works["4 beams"])
            streamed = [token for part in session.searcher.stream(sources[0], beams) for token in part]
            if streamed != (best := session.generate(sources[:1], **works["4 beams"])[0][0].token_ids):
                wrong.append(f"{one.label}: the stream told {streamed}, the search found {best}")
        except Exception as error:  # any error of a driver or library is a result; the others still run
            found[one.label] = {"reason": f"{type(error).__name__}: {error}"}
            wrong.append(f"{one.label}: {type(error).__name__}: {error}")
        save({"agreement": found})
    return wrong


def _compared(found: Any, expected: Any) -> dict[str, Any]:
    pairs = [(a, b) for of, wanted in zip(found, expected, strict=True) for a, b in zip(of, wanted, strict=True)]
    equal = [a.token_ids == b.token_ids for a, b in pairs]
    differences = [abs(a.score - b.score) for (a, b), same in zip(pairs, equal, strict=True) if same]
    return {"outputs": len(pairs), "equal": sum(equal), "largest_score_difference": max(differences, default=0.0)}


def times(
    contestants: Sequence[Contestant],
    bundle: str,
    checkpoint: str | None,
    points: Sequence[tuple[int, int]],
    rounds: int,
    save: Save,
) -> None:
    """Microseconds of a step and milliseconds of a call of each system, in turns, for each (batch size, beams)."""
    opened = bundles.read(bundle)
    racing: dict[str, Decode] = {}
    absent: dict[str, str] = {}

    def enter(label: str, make: Callable[[], Decode]) -> None:
        try:
            racing[label] = make()
        except Exception as error:  # a result, as above
            absent[label] = f"{type(error).__name__}: {error}"

    for one in contestants:
        enter(one.label, lambda one=one: _ours(one.open(opened, one.search)))  # type: ignore[misc]
    if checkpoint is not None:
        enter("transformers generate fp16", lambda: _theirs(checkpoint))
    found: list[dict[str, Any]] = []
    for batch, beams in points:
        sources = random_sources(opened, batch, SOURCE_LENGTH)
        taken: dict[str, dict[int, list[float]]] = {name: {} for name in racing}
        for n_round in range(rounds + 1):  # the first round captures graphs and does not count
            for name in list(racing):
                for n in (FEW_TOKENS, MANY_TOKENS):
                    begin = time.perf_counter()
                    try:
                        racing[name](sources, beams, n)
                    except Exception as error:  # a result, as above
                        absent[name] = f"{type(error).__name__}: {error}"
                        del racing[name], taken[name]
                        break
                    if n_round:
                        taken[name].setdefault(n, []).append(time.perf_counter() - begin)
        for name, by_length in taken.items():
            few, many = (statistics.median(by_length[n]) for n in (FEW_TOKENS, MANY_TOKENS))
            found.append(
                {
                    "batch": batch, "beams": beams, "system": name, "call_ms": 1e3 * many,
                    "step_us": 1e6 * (many - few) / (MANY_TOKENS - FEW_TOKENS),
                    "tokens_per_second": batch * MANY_TOKENS / many,
                    "spread": float(np.ptp(by_length[MANY_TOKENS]) / many),
                }
            )  # fmt: skip
        save({"times": found, "absent": absent})


def _ours(session: Session) -> Decode:
    def decode(sources: list[list[int]], beams: int, n: int) -> object:
        options = session.options(**{**NEUTRAL, "num_beams": beams, "min_new_tokens": n, "max_new_tokens": n})
        return session.decode(sources, options, batch_size=len(sources))

    return decode


def _theirs(checkpoint: str) -> Decode:
    from ..bench.contestants import Job
    from ..bench.contestants._generate import Generate, load_model

    job = Job("transformers", "", checkpoint, 1, {"device": "cuda"})
    return Generate(load_model(job), {}).decode


def run(contestants: Sequence[Contestant], save: Save, bundle: str, checkpoint: str | None, quick: bool) -> str | None:
    """Compare and time all contestants. Returns what is wrong, or None."""
    wrong = agreement([one for one in contestants if one.is_exact], bundle, save)
    points = [(1, 4)] if quick else [(1, 4), (8, 4), (64, 4), (1, 1), (1, 8)]
    times(contestants, bundle, checkpoint, points, 2 if quick else 3, save)
    return "; ".join(wrong) or None
