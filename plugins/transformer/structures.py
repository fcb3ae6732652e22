"""The arguments of the Transformer's kernels, as ctypes mirrors parameters.h."""

from __future__ import annotations

import ctypes

from ..beam_search.structures import RulesParameters


def fields(pointers: str, integers: str, floats: str) -> tuple[tuple[str, type], ...]:
    return (
        *((name, ctypes.c_void_p) for name in pointers.split()),
        *((name, ctypes.c_int32) for name in integers.split()),
        *((name, ctypes.c_float) for name in floats.split()),
    )


class ProductParameters(ctypes.Structure):
    _fields_ = fields(
        "input weight weight_scale bias norm_weight norm_bias residual parts parts_bias sum normed output output_float",
        "rows inputs outputs stride limit true_width activation gated splits n_parts",
        "epsilon scale",
    )


class NormParameters(ctypes.Structure):
    _fields_ = fields("input weight bias output output_float", "rows width true_width", "epsilon")


class EmbedParameters(ctypes.Structure):
    _fields_ = fields(
        "ids embedding embedding_row_scales positions rows_of_positions position output output_float",
        "rows width vocabulary n_positions offset padding_id padding_moves",
        "scale",
    )


class SelfAttentionParameters(ctypes.Structure):
    _fields_ = fields(
        "rows key_cache value_cache ancestors position bias output",
        "sources heads beams head_size capacity first_distance n_distances",
        "scale",
    )


MOST_LISTED_HEADS = 64  # S2S_MOST_LISTED_HEADS of parameters.h


class HeadOutputParameters(ctypes.Structure):
    _fields_ = fields("weight weight_scale parts", "outputs", "")


class SelfBlockParameters(ctypes.Structure):
    _fields_ = (("attention", SelfAttentionParameters), ("output", HeadOutputParameters))


class CrossAttentionParameters(ctypes.Structure):
    _fields_ = fields(
        "query keys values mask output parts", "sources heads beams head_size length stride splits", "scale"
    )


class CrossWeightsParameters(ctypes.Structure):
    _fields_ = (
        ("attention", CrossAttentionParameters),
        *fields("weights", "n_all first n_heads", ""),
        ("listed", ctypes.c_uint8 * MOST_LISTED_HEADS),
    )


class CrossBlockParameters(ctypes.Structure):
    _fields_ = (
        ("query", ProductParameters),
        ("attention", CrossAttentionParameters),
        ("output", HeadOutputParameters),
    )


class HeadParameters(ctypes.Structure):
    _fields_ = (
        ("product", ProductParameters),
        ("rules", RulesParameters),
        *fields("list_values list_ids list_maximum list_sum", "candidates lists", ""),
    )


class WindowParameters(ctypes.Structure):
    _fields_ = fields("input output", "positions length channels inputs size step padding by_channel", "")


class EncoderAttentionParameters(ctypes.Structure):
    _fields_ = fields("rows mask bias output", "sources heads head_size length first_distance n_distances", "scale")


class CellParameters(ctypes.Structure):
    _fields_ = fields(
        "input input_weight input_scale input_bias hidden_weight hidden_scale hidden_bias added mask before "
        "kept_before after kept_after output",
        "rows inputs units outputs input_stride stride added_stride output_stride length step reverse",
        "",
    )


class BeginParameters(ctypes.Structure):
    _fields_ = fields(
        "ids embedding embedding_row_scales embedded context context_rows ancestors position first first_kept after "
        "kept_after before kept_before",
        "rows beams capacity width vocabulary stride context_width units layers",
        "",
    )


class PickParameters(ctypes.Structure):
    _fields_ = fields("states kept mask output output_kept", "length stride output_stride units backward", "")


class ScoreParameters(ctypes.Structure):
    _fields_ = fields("query state energy keys mask scores", "beams length units", "")


class ContextParameters(ctypes.Structure):
    _fields_ = fields("scores annotations output", "beams length width stride", "")


# In the order of s2s_transformer_sizes.
ALL = (
    *(ProductParameters, NormParameters, EmbedParameters),
    *(SelfAttentionParameters, CrossAttentionParameters, EncoderAttentionParameters),
    *(SelfBlockParameters, CrossBlockParameters, HeadParameters, WindowParameters),
    *(CellParameters, BeginParameters, PickParameters, ScoreParameters, ContextParameters),
    CrossWeightsParameters,
)
# In the order of parameters.h.
ACTIVATIONS = ("linear", "relu", "gelu", "gelu_tanh", "silu", "quick_gelu", "tanh", "sigmoid")
GATED, MAXOUT = 1, 2  # of ProductParameters.gated
