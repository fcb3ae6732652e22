"""Random models as Marian writes them: an .npz with its options inside, and vocabularies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from s2s_export.measuring.bench.contestants import marian

WIDTH, INNER, LAYERS, HEADS = 16, 24, 2, 2
UNITS = 12  # of recurrent models
OPTIONS: dict[str, Any] = {
    **marian.OPTIONS, "dim-emb": WIDTH, "dec-depth": LAYERS, "enc-depth": LAYERS, "tied-embeddings-all": False,
    "transformer-dim-ffn": INNER, "transformer-ffn-activation": "relu", "transformer-heads": HEADS,
}  # fmt: skip


def save(folder: Path, sizes: tuple[int, int] = (31, 31), seed: int = 0, **changes: Any) -> Path:
    """A folder with model.npz, source.yml and target.yml. sizes: of the vocabularies. changes: options, with `_`."""
    given = {name.replace("_", "-"): value for name, value in changes.items()}
    options = {**OPTIONS, "dim-vocabs": list(sizes), **given}
    rng = np.random.default_rng(seed)
    weights: dict[str, np.ndarray] = {}

    def random(name: str, *shape: int, around: float = 0.0) -> None:
        weights[name] = (around + 0.4 * rng.standard_normal(shape)).astype(np.float32)

    def norm(name: str) -> None:
        random(f"{name}_scale", 1, WIDTH, around=1.0)
        random(f"{name}_bias", 1, WIDTH)

    if options["tied-embeddings-all"]:
        random("Wemb", sizes[0], WIDTH)
    else:
        random("encoder_Wemb", sizes[0], WIDTH)
        random("decoder_Wemb", sizes[1], WIDTH)
        if not options["tied-embeddings"]:
            random("decoder_ff_logit_out_W", WIDTH, sizes[1])
    random("decoder_ff_logit_out_b", 1, sizes[1])
    for side, parts in (("encoder", ("self",)), ("decoder", ("self", "context"))):
        for layer in range(1, LAYERS + 1):
            for part in parts:
                name = f"{side}_l{layer}_{part}"
                for letter in "qkvo":
                    random(f"{name}_W{letter}", WIDTH, WIDTH)
                    random(f"{name}_b{letter}", 1, WIDTH)
                norm(f"{name}_Wo_ln")
            name = f"{side}_l{layer}_ffn"
            random(f"{name}_W1", WIDTH, INNER)
            random(f"{name}_b1", 1, INNER)
            random(f"{name}_W2", INNER, WIDTH)
            random(f"{name}_b2", 1, WIDTH)
            norm(f"{name}_ffn_ln")
    return _write(folder, options, weights, sizes)


def save_recurrent(folder: Path, sizes: tuple[int, int] = (31, 31), seed: int = 0, **changes: Any) -> Path:
    """As `save`, for `--type s2s` or `amun`."""
    given = {name.replace("_", "-"): value for name, value in changes.items()}
    options = {**OPTIONS, "type": "s2s", "dim-rnn": UNITS, "enc-depth": 1, "dec-depth": 1, "dim-vocabs": list(sizes)}
    options |= given
    rng = np.random.default_rng(seed)
    weights: dict[str, np.ndarray] = {}

    def random(name: str, *shape: int) -> None:
        weights[name] = (0.5 * rng.standard_normal(shape)).astype(np.float32)

    def gru(name: str, inputs: int) -> None:
        for part, size in (("", 2 * UNITS), ("x", UNITS)):
            random(f"{name}_U{part}", UNITS, size)
            random(f"{name}_b{part}", 1, size)
            if inputs:
                random(f"{name}_W{part}", inputs, size)

    if options["tied-embeddings-all"]:
        random("Wemb", sizes[0], WIDTH)
    else:
        random("encoder_Wemb", sizes[0], WIDTH)
        random("decoder_Wemb", sizes[1], WIDTH)
    is_tied = options["tied-embeddings-all"] or options["tied-embeddings"]
    if not is_tied:
        random("decoder_ff_logit_l2_W", WIDTH, sizes[1])
    random("decoder_ff_logit_l2_b", 1, sizes[1])
    apart = options["enc-type"] == "bidirectional"
    for i in range(1, options["enc-depth"] + 1):
        if i == 1 or apart:
            for way in ("", "_r"):
                gru(f"encoder_bi{way}" + (f"_l{i}_cell1" if i > 1 else ""), WIDTH if i == 1 else UNITS)
        else:
            gru(f"encoder_l{i}_cell1", 2 * UNITS if i == 2 else UNITS)
    context = 2 * UNITS if apart or options["enc-depth"] == 1 else UNITS
    random("decoder_ff_state_W", context, UNITS)
    random("decoder_ff_state_b", 1, UNITS)
    random("decoder_W_comb_att", UNITS, context)
    random("decoder_Wc_att", context, context)
    random("decoder_U_att", context, 1)
    random("decoder_b_att", 1, context)
    for i in range(1, options["dec-cell-base-depth"] + 1):
        gru(f"decoder_cell{i}", {1: WIDTH, 2: context}.get(i, 0))
    for i in range(2, options["dec-depth"] + 1):
        gru(f"decoder_l{i}_cell1", UNITS)
    for i, size in enumerate((WIDTH, UNITS, context)):
        random(f"decoder_ff_logit_l1_W{i}", size, WIDTH)
        random(f"decoder_ff_logit_l1_b{i}", 1, WIDTH)
    if options["type"] == "amun":
        from s2s_export.exporting.toolkits.marian_rnn import AMUN

        weights = {AMUN.get(name, name): value for name, value in weights.items()}
        weights["decoder_c_tt"] = np.zeros((1, 1), np.float32)
    return _write(folder, options, weights, sizes)


def _write(folder: Path, options: dict[str, Any], weights: dict[str, np.ndarray], sizes: tuple[int, int]) -> Path:
    folder.mkdir(exist_ok=True)
    text = np.frombuffer(yaml.safe_dump(options).encode() + b"\0", dtype=np.int8)
    np.savez(folder / "model.npz", **weights, **{"special:model.yml": text})
    for name, size in zip(("source", "target"), sizes, strict=True):
        pieces = {"</s>": 0, "<unk>": 1} | {f"w{i}": i for i in range(2, size)}
        (folder / f"{name}.yml").write_text(yaml.safe_dump(pieces))
    return folder
