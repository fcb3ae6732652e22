"""What cross-KV-init saves: a decoder step with K and V of the source computed once, against computing them each step.

    python examples/04_cross_attention_cache.py [--source-length 64] [--steps 48] [--num-beams 4]

Both ways run the same graphs and give the same tokens. The second runs cross_kv_init before every step, as a decoder
without that cache must. Operations are multiply-adds of matrix products, counted from the model's sizes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

import s2s_export
from s2s_export.bundle import Bundle, read
from s2s_export.runtime.backends.onnxruntime import OnnxRuntimeBackend
from s2s_export.runtime.decoding import StepQuery

CHECKPOINT = Path(__file__).parent / "models" / "number-words"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default=CHECKPOINT, type=Path)
    parser.add_argument("--source-length", default=64, type=int, metavar="S")
    parser.add_argument("--steps", default=48, type=int)
    parser.add_argument("--num-beams", default=4, type=int, metavar="K")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        s2s_export.export(arguments.checkpoint, Path(folder) / "bundle")
        bundle = read(Path(folder) / "bundle")
        backend = OnnxRuntimeBackend(bundle, threads=1)
        rng = np.random.default_rng(0)
        source = rng.integers(4, bundle.vocabulary_size - 1, arguments.source_length).tolist()
        once, tokens_once = decode(backend, source, arguments, recompute=False)
        each, tokens_each = decode(backend, source, arguments, recompute=True)
    assert (tokens_once == tokens_each).all()
    n_step, n_cross = count_operations(bundle, arguments.source_length, arguments.num_beams, arguments.steps)
    print(f"source of {arguments.source_length} tokens, {arguments.num_beams} beams, {arguments.steps} steps")
    print(f"{'':28}{'time a step':>14}{'multiply-adds a step':>24}")
    print(f"{'K and V once per source':28}{once * 1e3:>11.3f} ms{n_step:>24,}")
    print(f"{'K and V at every step':28}{each * 1e3:>11.3f} ms{n_step + n_cross:>24,}")
    print(f"{'ratio':28}{each / once:>13.2f}x{(n_step + n_cross) / n_step:>23.2f}x")


def decode(
    backend: OnnxRuntimeBackend, source: list[int], arguments: argparse.Namespace, recompute: bool
) -> tuple[float, np.ndarray]:
    """Greedy tokens by beam [T,K], and the median seconds of a step."""
    n_beams = arguments.num_beams
    state = backend.begin([source], n_beams)
    states = encoder_states(backend, source)
    token = np.zeros((1, n_beams), dtype=np.int64)
    parents = np.arange(n_beams)[None]
    seconds, tokens = [], []
    for _ in range(arguments.steps):
        begin = time.perf_counter()
        if recompute:
            backend.session("cross_kv_init").run(None, {"encoder_states": states})
        result = state.step(token, parents, StepQuery(n_candidates=n_beams))
        token = result.candidate_ids[:, 0, :].copy()
        seconds.append(time.perf_counter() - begin)
        tokens.append(token[0])
    return statistics.median(seconds), np.array(tokens)


def encoder_states(backend: OnnxRuntimeBackend, source: list[int]) -> np.ndarray:
    """[1,S,E]"""
    ids = np.array([source], dtype=np.int64)
    (states,) = backend.session("encoder").run(["encoder_states"], {"input_ids": ids, "source_mask": np.ones_like(ids)})
    return states


def count_operations(bundle: Bundle, source: int, beams: int, steps: int) -> tuple[int, int]:
    """Multiply-adds of a step half-way through the target, and of the cross K and V of one source."""
    sizes = bundle.manifest["sizes"]
    width, layers, inner = sizes["width"], sizes["decoder_layers"], sizes["heads"] * sizes["head_size"]
    projections = (
        4 * width * inner + 2 * width * inner + 2 * width * sizes["feed_forward"]
    )  # self, cross query and output, FFN
    attention = 2 * inner * (source + beams * steps // 2)  # scores and sums, over the slots of all beams
    step = beams * (layers * (projections + attention) + width * sizes["vocabulary_size"])
    return step, layers * 2 * source * width * inner


if __name__ == "__main__":
    main()
