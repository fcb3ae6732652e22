#!/usr/bin/env python3
"""What ONNX Runtime's CPU kernels cost, one beside the other: the measurements behind the passes in s2s_export/cpu.

    benchmarks/cpu_kernels.py            products, attention, norms and top-k at 1, 4 and 32 rows

Each line gives the least CPU time of one thread in microseconds; variants take turns, so that a busy machine slows all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from s2s_export.building.cpu.onnxruntime.products import by_block, by_channel

ROWS = (1, 4, 32)
CONTRIB = "com.microsoft"
RNG = np.random.default_rng(0)
Feed = dict[str, np.ndarray]


def model(
    nodes: Sequence[Any], feed: Feed, output: str, constants: Feed, dtype: int = TensorProto.FLOAT
) -> Callable[[], None]:
    """A call that runs the nodes once."""
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in feed.items()
    ]
    outputs = [helper.make_tensor_value_info(output, dtype, None)]
    weights = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(list(nodes), "kernels", inputs, outputs, weights)
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid(CONTRIB, 1)]
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    made = helper.make_model(graph, opset_imports=opsets, ir_version=11)
    session = ort.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run([output], feed)


def compare(title: str, variants: dict[str, Callable[[], None]], n: int = 40, parts: int = 1) -> None:
    best = dict.fromkeys(variants, float("inf"))
    for _ in range(n):
        for name, call in variants.items():
            begin = time.thread_time()
            call()
            best[name] = min(best[name], (time.thread_time() - begin) * 1e6 / parts)
    print(f"{title:<34}" + "  ".join(f"{name} {value:.1f}" for name, value in best.items()), flush=True)


def products(n_in: int, n_out: int) -> None:
    weight = RNG.standard_normal((n_out, n_in)).astype(np.float32)
    values, scale = by_channel(weight)
    for rows in ROWS:
        feed = {"x": RNG.standard_normal((rows, n_in)).astype(np.float32)}
        node = helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)
        variants = {"fp32": model([node], feed, "y", {"w": weight})}
        node = helper.make_node("DynamicQuantizeMatMul", ["x", "q", "s"], ["y"], domain=CONTRIB)
        variants["channel"] = model([node], feed, "y", {"q": values, "s": scale})
        for block in (32, 128, 512):
            blocks, scales = by_block(weight, block)
            facts: dict[str, Any] = {"K": n_in, "N": n_out, "bits": 8, "block_size": block, "accuracy_level": 4}
            node = helper.make_node("MatMulNBits", ["x", "q", "s"], ["y"], domain=CONTRIB, **facts)
            variants[f"block {block}"] = model([node], feed, "y", {"q": blocks, "s": scales})
        compare(f"product {n_in} x {n_out}, {rows} rows", variants, n=12 if n_out > 5000 else 40)


def attention(sources: int, beams: int, slots: int, heads: int = 8, size: int = 64) -> None:
    key = RNG.standard_normal((sources, heads, slots, size)).astype(np.float32)
    query = RNG.standard_normal((sources, beams, heads * size)).astype(np.float32)
    mask = np.zeros((sources, 1, beams, slots), np.float32)
    shapes = {"apart": np.array([0, 0, heads, size]), "joined": np.array([0, 0, heads * size])}

    def plain(transposed: bool) -> list[Any]:
        return [
            helper.make_node("Reshape", ["q", "apart"], ["a"]),
            helper.make_node("Transpose", ["a"], ["b"], perm=[0, 2, 1, 3]),
            helper.make_node(
                "FusedMatMul", ["b", "k"], ["c"], domain=CONTRIB, alpha=0.125, transB=0 if transposed else 1
            ),
            helper.make_node("Add", ["c", "m"], ["d"]),
            helper.make_node("Softmax", ["d"], ["e"], axis=-1),
            helper.make_node("MatMul", ["e", "v"], ["f"]),
            helper.make_node("Transpose", ["f"], ["g"], perm=[0, 2, 1, 3]),
            helper.make_node("Reshape", ["g", "joined"], ["y"]),
        ]

    feed = {"q": query, "k": key, "v": key, "m": mask}
    turned = {**feed, "k": np.ascontiguousarray(key.transpose(0, 1, 3, 2))}
    inputs = ["q", "k", "v", "", "", "m"]
    fused = helper.make_node("MultiHeadAttention", inputs, ["y"], domain=CONTRIB, num_heads=heads, scale=0.125)
    variants = {
        "plain": model(plain(False), feed, "y", shapes),
        "keys transposed": model(plain(True), turned, "y", shapes),
        "MultiHeadAttention": model([fused], feed, "y", {}),
    }
    compare(f"attention {sources} x {beams}, {slots} slots", variants)


def norms(width: int = 512, n: int = 18) -> None:
    weight = RNG.standard_normal(width).astype(np.float32)
    for rows in ROWS:
        x = RNG.standard_normal((rows, width)).astype(np.float32)

        def chain(fused: bool) -> list[Any]:
            nodes, value = [], "x"
            for i in range(n):
                names: dict[str, Any] = {"inputs": [value, "r", "w", "w"], "outputs": [f"y{i}"]}
                if fused:
                    nodes.append(helper.make_node("SkipLayerNormalization", **names, domain=CONTRIB))
                else:
                    nodes.append(helper.make_node("Add", [value, "r"], [f"a{i}"]))
                    nodes.append(helper.make_node("LayerNormalization", [f"a{i}", "w", "w"], [f"y{i}"], axis=-1))
                value = f"y{i}"
            return nodes

        feed = {"x": x, "r": x}
        both = {
            name: model(chain(f), feed, f"y{n - 1}", {"w": weight})
            for name, f in (("Add + norm", False), ("fused", True))
        }
        compare(f"residual and norm, {rows} rows", both, parts=n)


def best_tokens(vocabulary: int = 58112, group: int = 64) -> None:
    for rows in ROWS:
        feed = {"x": RNG.standard_normal((rows, vocabulary)).astype(np.float32)}
        constants = {"k": np.array([8]), "g": np.array([-1, vocabulary // group, group]), "axis": np.array([2])}
        groups = [
            helper.make_node("Reshape", ["x", "g"], ["grouped"]),
            helper.make_node("ReduceMax", ["grouped", "axis"], ["largest"], keepdims=0),
            helper.make_node("TopK", ["largest", "k"], ["y", "i"]),
        ]
        variants = {
            "TopK": model([helper.make_node("TopK", ["x", "k"], ["y", "i"])], feed, "y", {"k": constants["k"]}),
            "best groups": model(groups, feed, "y", constants),
            "LogSoftmax": model([helper.make_node("LogSoftmax", ["x"], ["y"], axis=-1)], feed, "y", {}),
        }
        compare(f"best of {vocabulary}, {rows} rows", variants)


if __name__ == "__main__":
    for sizes in ((512, 1536), (512, 512), (2048, 512), (512, 58112)):
        products(*sizes)
    for shape in ((1, 1, 36), (1, 4, 144), (8, 4, 144), (8, 4, 30)):
        attention(*shape)
    norms()
    best_tokens()
