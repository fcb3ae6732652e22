"""Random models as Marian writes them: an .npz with its options inside, and vocabularies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

WIDTH, INNER, LAYERS, HEADS = 16, 24, 2, 2
# What marian-decoder asks of a Transformer's options, at their defaults.
OPTIONS: dict[str, Any] = {
    "bert-train-type-embeddings": False, "dec-cell": "gru", "dec-cell-base-depth": 2, "dec-cell-high-depth": 1,
    "dec-depth": LAYERS, "dim-emb": WIDTH, "dim-rnn": 1024, "enc-cell": "gru", "enc-cell-depth": 1,
    "enc-depth": LAYERS, "enc-type": "bidirectional", "factors-combine": "sum", "factors-dim-emb": 0,
    "input-types": [], "layer-normalization": False, "lemma-dim-emb": 0, "lemma-dependency": "", "right-left": False,
    "skip": False, "tied-embeddings": False, "tied-embeddings-all": False, "tied-embeddings-src": False,
    "transformer-aan-activation": "swish", "transformer-aan-depth": 2, "transformer-aan-nogate": False,
    "transformer-decoder-autoreg": "self-attention", "transformer-decoder-dim-ffn": 0,
    "transformer-decoder-ffn-depth": 0, "transformer-depth-scaling": False, "transformer-dim-aan": 2048,
    "transformer-dim-ffn": INNER, "transformer-ffn-activation": "relu", "transformer-ffn-depth": 2,
    "transformer-guided-alignment-layer": "last", "transformer-heads": HEADS, "transformer-no-projection": False,
    "transformer-no-affine": False, "transformer-no-bias": False, "transformer-pool": False,
    "transformer-postprocess": "dan", "transformer-postprocess-emb": "d", "transformer-postprocess-top": "",
    "transformer-preprocess": "", "transformer-rnn-projection": False, "transformer-tied-layers": [],
    "transformer-train-position-embeddings": False, "output-omit-bias": False, "type": "transformer", "ulr": False,
    "ulr-dim-emb": 0, "ulr-trainable-transformation": False, "version": "v1.12.0",
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
    folder.mkdir(exist_ok=True)
    text = np.frombuffer(yaml.safe_dump(options).encode() + b"\0", dtype=np.int8)
    np.savez(folder / "model.npz", **weights, **{"special:model.yml": text})
    for name, size in zip(("source", "target"), sizes, strict=True):
        pieces = {"</s>": 0, "<unk>": 1} | {f"w{i}": i for i in range(2, size)}
        (folder / f"{name}.yml").write_text(yaml.safe_dump(pieces))
    return folder
