"""Encoders of pictures: ViT (2010.11929), DeiT (2012.12877), BEiT (2106.08254), Swin (2103.14030) and Donut's Swin.

`ENCODERS` says how each is described. transformers gave ViT's and Swin's modules other names in version 5; both are
read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from ...errors import UnsupportedModel
from ..graphs.shifted_windows import ShiftedWindows, Stage, WindowLayer
from ..graphs.stems import Patches
from ..graphs.structure import Attention, Block, FeedForward, Linear, Norm, PairBias, PositionTable, Stack
from ._bart_like import activation


def _first(module: Any, *paths: str) -> Any:
    """The first of these attributes that there is, such as `self.query`."""
    for path in paths:
        found = module
        for name in path.split("."):
            found = getattr(found, name, None)
        if found is not None:
            return found
    raise UnsupportedModel(f"{type(module).__name__} has none of {', '.join(paths)}; upgrade s2s-export")


def _pair(size: Any) -> tuple[int, int]:
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return int(height), int(width)


def _attention(module: Any, n_heads: int) -> Attention:
    query = Linear.of(_first(module, "q_proj", "self.query", "attention.query"))
    return Attention(
        query=query,
        key=Linear.of(_first(module, "k_proj", "self.key", "attention.key")),
        value=Linear.of(_first(module, "v_proj", "self.value", "attention.value")),
        output=Linear.of(_first(module, "o_proj", "output.dense")),
        n_heads=n_heads,
        scale=float(query.weight.shape[0] // n_heads) ** -0.5,
    )


def _feed_forward(config: Any, layer: Any) -> FeedForward:
    return FeedForward(
        inner=Linear.of(_first(layer, "mlp.fc1", "intermediate.dense")),
        outer=Linear.of(_first(layer, "mlp.fc2", "output.dense")),
        activation=activation(config, config.hidden_act),
    )


def _scaled(linear: Linear, scale: Any) -> Linear:
    """scale: of each output, or 1."""
    if not isinstance(scale, torch.Tensor):
        return linear
    return Linear(linear.weight * scale[:, None], None if linear.bias is None else linear.bias * scale)


# ViT, DeiT and BEiT


def _vit(model: Any) -> Stack:
    config, embeddings = model.config, model.embeddings
    prefix = [embeddings.cls_token, *([embeddings.distillation_token] if config.model_type == "deit" else [])]
    return _flat(model, torch.cat(prefix, dim=1)[0], embeddings.position_embeddings, [None] * config.num_hidden_layers)


def _beit(model: Any) -> Stack:
    """Its layers' own scales (2103.17239) are multiplied into the projections before them."""
    config = model.config
    height, width = _pair(config.image_size)
    if model.embeddings.position_embeddings is not None and height != width:
        raise UnsupportedModel(
            f"beit: has absolute positions for pictures of {height} x {width} pixels; expected as many rows as "
            "columns, as transformers takes positions for those of a square"
        )
    window = (height // config.patch_size, width // config.patch_size)
    shared: Any = 0
    if config.use_shared_relative_position_bias:
        shared = _by_pair(_first(model, "shared_position_bias", "encoder.relative_position_bias"), window)
    biases: list[PairBias | None]
    if config.use_relative_position_bias:
        paths = ("relative_position_bias", "attention.attention.relative_position_bias")
        biases = [PairBias(_by_pair(_first(layer, *paths), window) + shared) for layer in _layers(model)]
    else:
        biases = [PairBias(shared) if config.use_shared_relative_position_bias else None] * config.num_hidden_layers
    return _flat(model, model.embeddings.cls_token[0], model.embeddings.position_embeddings, biases)


def _by_pair(module: Any, window: tuple[int, int]) -> Any:
    """[H,S,S] of BEiT's bias."""
    bias = module(window)
    return bias.reshape(bias.shape[-3:])


def _layers(model: Any) -> Any:
    return _first(model, "layers", "encoder.layer")


def _flat(model: Any, prefix: Any, positions: Any, biases: list[PairBias | None]) -> Stack:
    """An encoder whose layers all see the same patches, behind a prefix."""
    config, patches = model.config, model.embeddings.patch_embeddings.projection
    blocks = []
    for layer, bias in zip(_layers(model), biases, strict=True):
        attention = _attention(layer.attention, config.num_attention_heads)
        inner = _feed_forward(config, layer)
        scales = getattr(layer, "lambda_1", None), getattr(layer, "lambda_2", None)
        blocks.append(
            Block(
                self_attention=dataclasses.replace(
                    attention, output=_scaled(attention.output, scales[0]), relative=bias
                ),
                self_norm=Norm.of(layer.layernorm_before),
                feed_forward=dataclasses.replace(inner, outer=_scaled(inner.outer, scales[1])),
                feed_forward_norm=Norm.of(layer.layernorm_after),
            )
        )
    norm = model.layernorm
    return Stack(
        embedding=Patches(patches.weight, patches.bias, _pair(config.image_size), prefix),
        embedding_scale=1.0,
        positions=None if positions is None else PositionTable(positions[0]),
        blocks=tuple(blocks),
        final_norm=Norm.of(norm) if isinstance(norm, torch.nn.LayerNorm) else None,
    )


# Swin


def _swin(model: Any) -> Stack:
    """Donut's has no norm at its end."""
    config, embeddings = model.config, model.embeddings
    projection = embeddings.patch_embeddings.projection
    patches = Patches(projection.weight, projection.bias, _pair(config.image_size), is_padded=True)
    grid, stages = patches.grid, []
    for module in model.encoder.layers:
        if min(grid) < config.window_size:
            raise UnsupportedModel(
                f"{config.model_type}: a stage has {grid[0]} x {grid[1]} patches, fewer than a window of "
                f"{config.window_size}, which transformers can't compute"
            )
        stages.append(_stage(config, module, is_one_window=min(grid) == config.window_size))
        grid = ((grid[0] + 1) // 2, (grid[1] + 1) // 2)
    positions = embeddings.position_embeddings
    n_patches = patches.n_positions
    if positions is not None and positions.shape[1] != n_patches:
        raise UnsupportedModel(
            f"{config.model_type}: has {positions.shape[1]} absolute positions for {n_patches} patches, which "
            "transformers can't add"
        )
    return Stack(
        embedding=ShiftedWindows(
            patches,
            Norm.of(embeddings.norm),
            None if positions is None else positions[0],
            config.window_size,
            tuple(stages),
        ),
        embedding_scale=1.0,
        positions=None,
        blocks=(),
        final_norm=Norm.of(model.layernorm) if hasattr(model, "layernorm") else None,
    )


def _stage(config: Any, module: Any, *, is_one_window: bool) -> Stage:
    """is_one_window: along a side, so that shifted windows would see the same patches; transformers shifts none."""
    merging = module.downsample
    return Stage(
        tuple(_window_layer(config, layer, 0 if is_one_window else int(layer.shift_size)) for layer in module.blocks),
        None if merging is None else Norm.of(merging.norm),
        None if merging is None else Linear.of(merging.reduction),
    )


def _window_layer(config: Any, layer: Any, shift: int) -> WindowLayer:
    holder = _first(layer.attention, "relative_position_bias", "self")
    table, index = holder.relative_position_bias_table, holder.relative_position_index.reshape(-1)
    n = config.window_size**2
    n_heads = table.shape[1]
    return WindowLayer(
        attention=_attention(layer.attention, n_heads),
        bias=table[index].reshape(n, n, n_heads).permute(2, 0, 1),
        norm=Norm.of(layer.layernorm_before),
        feed_forward=_feed_forward(config, layer),
        feed_forward_norm=Norm.of(layer.layernorm_after),
        shift=shift,
    )


ENCODERS: dict[str, Callable[[Any], Stack]] = {
    "vit": _vit,
    "deit": _vit,
    "beit": _beit,
    "swin": _swin,
    "donut-swin": _swin,
}
