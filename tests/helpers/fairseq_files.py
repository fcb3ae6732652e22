"""Random checkpoints as fairseq saves them, with their dictionaries."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

WIDTH, INNER, LAYERS = 24, 36, 2
SIZES = (31, 29)
# What a checkpoint's `args` hold, as far as a model is made from them.
ARGS: dict[str, Any] = {
    "arch": "transformer", "task": "translation", "source_lang": "xx", "target_lang": "yy", "encoder_embed_dim": WIDTH,
    "decoder_embed_dim": WIDTH, "encoder_ffn_embed_dim": INNER, "decoder_ffn_embed_dim": INNER,
    "encoder_layers": LAYERS, "decoder_layers": LAYERS, "encoder_attention_heads": 4, "decoder_attention_heads": 3,
    "dropout": 0.0, "max_source_positions": 80, "max_target_positions": 80, "activation_fn": "relu",
    "encoder_normalize_before": False, "decoder_normalize_before": False, "encoder_learned_pos": False,
    "decoder_learned_pos": False, "no_scale_embedding": False, "layernorm_embedding": False,
    "no_token_positional_embeddings": False, "share_decoder_input_output_embed": False, "share_all_embeddings": False,
    "cross_self_attention": False, "adaptive_input": False, "no_cross_attention": False,
}  # fmt: skip


def weights(args: argparse.Namespace, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, torch.Tensor] = {}

    def random(name: str, *shape: int, around: float = 0.0) -> None:
        found[name] = around + 0.35 * torch.randn(shape, generator=generator)

    def linear(name: str, outputs: int, inputs: int) -> None:
        random(f"{name}.weight", outputs, inputs)
        random(f"{name}.bias", outputs)

    def norm(name: str) -> None:
        random(f"{name}.weight", WIDTH, around=1.0)
        random(f"{name}.bias", WIDTH)

    for side, size in zip(("encoder", "decoder"), SIZES, strict=True):
        found[f"{side}.version"] = torch.tensor([3.0])
        random(f"{side}.embed_tokens.weight", size, WIDTH)
        if getattr(args, f"{side}_learned_pos"):
            random(f"{side}.embed_positions.weight", args.max_source_positions + 2, WIDTH)
        if args.layernorm_embedding:
            norm(f"{side}.layernorm_embedding")
        for i in range(LAYERS):
            scope = f"{side}.layers.{i}"
            for part in ("self_attn", "encoder_attn") if side == "decoder" else ("self_attn",):
                for name in ("k", "v", "q", "out"):
                    linear(f"{scope}.{part}.{name}_proj", WIDTH, WIDTH)
                norm(f"{scope}.{part}_layer_norm")
            linear(f"{scope}.fc1", INNER, WIDTH)
            linear(f"{scope}.fc2", WIDTH, INNER)
            norm(f"{scope}.final_layer_norm")
        if getattr(args, f"{side}_normalize_before"):
            norm(f"{side}.layer_norm")
    found["decoder.output_projection.weight"] = found["decoder.embed_tokens.weight"]
    if not args.share_decoder_input_output_embed:
        random("decoder.output_projection.weight", SIZES[1], WIDTH)
    return found


def older(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """With the names of 2017: stacked projections, numbered norms, no projection that is an embedding."""
    renamed: dict[str, torch.Tensor] = {}
    order = ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm")
    for name, value in found.items():
        scope, _, part = name.rpartition(".")
        if scope.endswith("q_proj"):
            parts = [found[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            renamed[f"{scope.removesuffix('.q_proj')}.in_proj_{part}"] = torch.cat(parts)
        elif ".layers." in name and scope.endswith("layer_norm"):
            layer, _, norm = scope.rpartition(".")
            numbers = [n for n in order if f"{layer}.{n}.weight" in found]
            renamed[f"{layer}.layer_norms.{numbers.index(norm)}.{part}"] = value
        elif not scope.endswith(("k_proj", "v_proj")) and name != "decoder.output_projection.weight":
            renamed[name] = value
    return renamed


def save(folder: Path, *, layout: str = "args", seed: int = 0, **changes: Any) -> Path:
    """A folder with checkpoint_best.pt, dict.xx.txt and dict.yy.txt. layout: args, cfg or old."""
    folder.mkdir(parents=True, exist_ok=True)
    args = argparse.Namespace(**(ARGS | changes))
    model = weights(args, seed)
    checkpoint: dict[str, Any] = {
        "args": args, "cfg": None, "model": older(model) if layout == "old" else model,
        "optimizer_history": [{"criterion_name": "cross_entropy", "num_updates": 3}], "extra_state": {"epoch": 1},
        "last_optimizer_state": None,
    }  # fmt: skip
    if layout == "cfg":
        task = {"_name": args.task, "source_lang": "xx", "target_lang": "yy"}
        model_part = argparse.Namespace(**{k: v for k, v in vars(args).items() if k != "task"}, _name="transformer")
        checkpoint |= {"args": None, "cfg": {"_name": None, "task": task, "model": model_part, "common": {"seed": 1}}}
    torch.save(checkpoint, folder / "checkpoint_best.pt")
    for language, letter, size in (("xx", "w", SIZES[0]), ("yy", "t", SIZES[1])):
        lines = [f"{letter}{i} {100 - i}\n" for i in range(size - 4)]
        (folder / f"dict.{language}.txt").write_text("".join(lines), encoding="utf-8")
    return folder
