"""Random text models as CTranslate2 keeps them: a model.bin of any version, and what stands beside it."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

WIDTH, INNER, LAYERS, HEADS, POSITIONS = 24, 36, 2, 3, 40
TYPES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4, "bfloat16": 5}
SPECIAL = ["<unk>", "<s>", "</s>"]
Variables = dict[str, np.ndarray]


def pieces(n: int, letter: str = "w") -> list[str]:
    return [*SPECIAL, *(f"{letter}{i}" for i in range(n - len(SPECIAL)))]


def write_model(
    path: Path, variables: Variables, spec: str = "TransformerSpec", version: int = 6, revision: int = 7
) -> None:
    """Equal arrays of a decoder's embedding and head become an alias where the version has them."""

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    stored = dict(sorted(variables.items()))
    aliases = {}
    head, embedding = stored.get("decoder/projection/weight"), stored.get("decoder/embeddings/weight")
    if version > 2 and head is not None and head is embedding:
        aliases["decoder/projection/weight"] = "decoder/embeddings/weight"
        del stored["decoder/projection/weight"]
        stored.pop("decoder/projection/weight_scale", None)
    out = struct.pack("<I", version) + text(spec) + struct.pack("<II", revision, len(stored))
    for name, array in stored.items():
        kind = "bfloat16" if array.dtype == np.uint16 else array.dtype.name
        out += text(name) + struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        out += (
            struct.pack("<BI", TYPES[kind], array.nbytes)
            if version > 3
            else struct.pack("<BI", array.itemsize, array.size)
        )
        out += array.tobytes()
    if version > 2:
        out += struct.pack("<I", len(aliases)) + b"".join(text(a) + text(b) for a, b in aliases.items())
    path.write_bytes(out)


def random_variables(
    *,
    sizes: tuple[int, int] = (31, 31),
    seed: int = 0,
    pre_norm: bool = True,
    activation: int = 0,
    embedding_norm: bool = False,
    relative: str | None = None,
    gated: bool = False,
    rms: bool = False,
    key_heads: int | None = None,
    stored_positions: bool = True,
    from_zero: bool = False,
    tied: bool = False,
    alignment: tuple[int, int] = (-1, 1),
    scale_embeddings: float | bool = True,
) -> Variables:
    rng = np.random.default_rng(seed)
    found: Variables = {}

    def random(name: str, *shape: int, around: float = 0.0) -> None:
        found[name] = (around + 0.35 * rng.standard_normal(shape)).astype(np.float32)

    def norm(name: str) -> None:
        random(f"{name}/gamma", WIDTH, around=1.0)
        if not rms:
            random(f"{name}/beta", WIDTH)

    def linear(name: str, outputs: int, inputs: int = WIDTH) -> None:
        random(f"{name}/weight", outputs, inputs)
        if not rms:
            random(f"{name}/bias", outputs)

    head = WIDTH // HEADS
    of_keys = (key_heads or HEADS) * head
    for side, size in zip(("encoder", "decoder"), sizes, strict=True):
        embedding = f"{side}/embeddings_0" if side == "encoder" else f"{side}/embeddings"
        random(f"{embedding}/weight", size, WIDTH)
        found[f"{side}/num_heads"] = np.array(HEADS, np.int16)
        found[f"{side}/pre_norm"] = np.array(pre_norm, np.int8)
        found[f"{side}/activation"] = np.array(activation, np.int8)
        kind = np.int8 if isinstance(scale_embeddings, bool) else np.float32
        found[f"{side}/scale_embeddings"] = np.array(scale_embeddings, kind)
        if relative is None and stored_positions:
            random(f"{side}/position_encodings/encodings", POSITIONS, WIDTH)
        if pre_norm:
            norm(f"{side}/layer_norm")
        if embedding_norm:
            norm(f"{side}/layernorm_embedding")
        for i in range(LAYERS):
            scope = f"{side}/layer_{i}"
            for part in ("self_attention", "attention") if side == "decoder" else ("self_attention",):
                is_cross = part == "attention"
                norm(f"{scope}/{part}/layer_norm")
                if is_cross:
                    linear(f"{scope}/{part}/linear_0", WIDTH)
                linear(f"{scope}/{part}/linear_{int(is_cross)}", (0 if is_cross else WIDTH) + 2 * of_keys)
                linear(f"{scope}/{part}/linear_{1 + is_cross}", WIDTH)
                if key_heads:
                    found[f"{scope}/{part}/num_heads_kv"] = np.array(key_heads, np.int32)
            own = f"{scope}/self_attention"
            if relative == "vectors":
                random(f"{own}/relative_position_keys", 7, head)
                random(f"{own}/relative_position_values", 7, head)
            elif relative == "bias":
                if i == 0:
                    random(f"{own}/relative_attention_bias", 8, HEADS)
                else:
                    found[f"{own}/relative_attention_bias"] = found[
                        f"{side}/layer_0/self_attention/relative_attention_bias"
                    ]
                found[f"{own}/relative_attention_max_distance"] = np.array(12, np.int32)
                for part in ("self_attention", "attention") if side == "decoder" else ("self_attention",):
                    found[f"{scope}/{part}/queries_scale"] = np.array(1.0, np.float32)
            norm(f"{scope}/ffn/layer_norm")
            linear(f"{scope}/ffn/linear_0", INNER)
            if gated:
                linear(f"{scope}/ffn/linear_0_noact", INNER)
            linear(f"{scope}/ffn/linear_1", WIDTH, INNER)
    found["encoder/embeddings_merge"] = np.array(0, np.int8)
    found["decoder/alignment_layer"], found["decoder/alignment_heads"] = (np.array(n, np.int16) for n in alignment)
    found["decoder/start_from_zero_embedding"] = np.array(from_zero, np.int8)
    for name in ("alibi", "alibi_use_positive_positions", "scale_alibi"):
        found[f"decoder/{name}"] = np.array(0, np.int8)
    linear("decoder/projection", sizes[1])
    if tied:
        found["decoder/projection/weight"] = found["decoder/embeddings/weight"]
    return found


def quantised(variables: Variables, kind: str) -> Variables:
    """As CTranslate2's converters quantise: matrices only to int8 and int16, all that are no numbers to float16."""
    found: Variables = {}
    for name, value in variables.items():
        is_weight = name.endswith("/weight")
        if kind == "int8" and is_weight:
            scale = 127 / np.abs(value).max(axis=1)
            found[name] = np.rint(value * scale[:, None]).astype(np.int8)
            found[f"{name}_scale"] = scale.astype(np.float32)
        elif kind == "int16" and is_weight:
            scale = np.float32(1024 / np.abs(value).max())
            found[name] = np.rint(value * scale).astype(np.int16)
            found[f"{name}_scale"] = np.array(scale, np.float32)
        elif kind == "float16" and value.ndim and value.dtype == np.float32:
            found[name] = value.astype(np.float16)
        elif kind == "bfloat16" and value.ndim and value.dtype == np.float32:
            found[name] = (value.view(np.uint32) >> 16).astype(np.uint16)
        else:
            found[name] = value
    return found


def save(
    folder: Path,
    *,
    version: int = 6,
    quantise: str | None = None,
    text: bool = False,
    config: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    """A folder as ct2-opennmt-py-converter writes it. text: vocabularies as .txt. options: of `random_variables`."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = options.get("sizes", (31, 31))
    variables = random_variables(**options)
    if quantise:
        variables = quantised(variables, quantise)
    write_model(folder / "model.bin", variables, version=version, revision=7 if version > 4 else 5)
    lists = {"shared": pieces(sizes[0])} if sizes[0] == sizes[1] else {
        "source": pieces(sizes[0], "s"), "target": pieces(sizes[1], "t")}  # fmt: skip
    for name, tokens in lists.items():
        if text:
            (folder / f"{name}_vocabulary.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
        else:
            (folder / f"{name}_vocabulary.json").write_text(json.dumps(tokens), encoding="utf-8")
    if version > 5:
        settings = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "decoder_start_token": "<s>",
                    "add_source_bos": False, "add_source_eos": False, "layer_norm_epsilon": None}  # fmt: skip
        (folder / "config.json").write_text(json.dumps(settings | (config or {})), encoding="utf-8")
    return folder
