"""ONNX functions of our own domains, with portable bodies.

A function in `s2s.plugins` may be replaced by a TensorRT plugin. A function in `s2s.native` is replaced by TensorRT's
parser with a native layer, which it recognises by the function's name. ONNX Runtime inlines the bodies, of which the
innermost consist of standard operators of opset 24. No input of a plain function is left out, because TensorRT refuses
empty inputs there. Masks are always explicit, because TensorRT's importer ignores the lengths of the standard Attention
operator without saying so.

Letters as in docs/architecture.md; N = C*K cache slots, slot n = t*K + k.
"""

from __future__ import annotations

import functools

import onnx

OPSET = 24
PLUGINS = "s2s.plugins"
NATIVE = "s2s.native"
DOMAINS = (PLUGINS, NATIVE)
PLUGIN_ATTRIBUTES = {"plugin_namespace": PLUGINS, "plugin_version": "1"}

_IMPORTS = f'opset_import: ["" : {OPSET}, "{NATIVE}" : 1]'

# Inner functions. Attention over the keys that a mask selects. The caller has multiplied the query by the scale.
# query [B,H,K,D], key [B,H,N,D], value [B,H,N,D], mask additive, broadcastable to [B,H,K,N] -> [B,H,K,D]
# The last two inputs are for TensorRT and may be left out. The first is not used. lengths [B] int32 is the number of
# leading keys that may be seen: the mask says so as well, but this way slots that were never written need not be read.
_ATTENTION = f"""
<domain: "{NATIVE}", {_IMPORTS}>
TRT_Attention (query, key, value, mask, query_lengths, lengths) => (output) {{
    transposed = Transpose <perm = [0, 1, 3, 2]> (key)
    scores = MatMul (query, transposed)
    masked = Add (scores, mask)
    weights = Softmax <axis = -1> (masked)
    output = MatMul (weights, value)
}}
"""

# cache [B,H,N,D], update [B,H,K,D], index [B] -> the cache, of which the K slots from `index` on were overwritten; in
# place if possible
_CACHE_UPDATE = f"""
<domain: "{NATIVE}", {_IMPORTS}>
TRT_KVCacheUpdate (cache, update, index) => (updated) {{
    updated = TensorScatter <axis = 2, mode = "linear"> (cache, update, index)
}}
"""

# Outer functions. See plugins/beam_self_attention/README.md for what the kernel does with `ancestors` instead of the
# mask.
_WRITE_INDEX = """
    batch = Shape <start = 0, end = 1> (key_cache)
    n_beams = Shape <start = 2, end = 3> (query)
    slot = Mul (position, n_beams)
    index = Expand (slot, batch)
    end = Add (slot, n_beams)
    ends = Expand (end, batch)
    lengths = Cast <to = 6> (ends)
    key_cache_out = TRT_KVCacheUpdate (key_cache, key, index)
    value_cache_out = TRT_KVCacheUpdate (value_cache, value, index)
""".replace("TRT_", f"{NATIVE}.TRT_")
_SCALED = """
    scale_value = Constant <value_float: float = @scale> ()
    factor = CastLike (scale_value, query)
    scaled = Mul (query, factor)
"""
_ATTEND = f"{NATIVE}.TRT_Attention (scaled, key_cache_out, value_cache_out, "
_SELF_ATTENTION = f"""
<domain: "{PLUGINS}", {_IMPORTS}>
BeamSelfAttention <scale, plugin_namespace, plugin_version>
    (query, key, value, key_cache, value_cache, mask, ancestors, position)
    => (output, key_cache_out, value_cache_out) {{
    {_WRITE_INDEX} {_SCALED}
    output = {_ATTEND} mask, "", lengths)
}}
"""
# bias [1,H,1,C]: additive, by head and position, the same for all beams (relative positions of T5)
_SELF_ATTENTION_BIAS = f"""
<domain: "{PLUGINS}", {_IMPORTS}>
BeamSelfAttentionBias <scale, plugin_namespace, plugin_version>
    (query, key, value, key_cache, value_cache, mask, ancestors, position, bias)
    => (output, key_cache_out, value_cache_out) {{
    {_WRITE_INDEX} {_SCALED}
    last = Constant <value_ints = [4]> ()
    by_beam = Unsqueeze (bias, last)
    ones = Constant <value_ints = [1, 1, 1, 1]> ()
    repeats = Concat <axis = 0> (ones, n_beams)
    repeated = Expand (by_beam, repeats)
    kept = Constant <value_ints = [0, 0, 0]> ()
    n_slots = Shape <start = 2, end = 3> (key_cache)
    flat = Concat <axis = 0> (kept, n_slots)
    slots = Reshape (repeated, flat)
    biased = Add (mask, slots)
    output = {_ATTEND} biased, "", lengths)
}}
"""
_CROSS_ATTENTION = f"""
<domain: "{PLUGINS}", {_IMPORTS}>
CrossAttention <scale, plugin_namespace, plugin_version> (query, key, value, mask) => (output) {{
    {_SCALED}
    output = {NATIVE}.TRT_Attention (scaled, key, value, mask)
}}
"""
# The attention weights of CrossAttention, for alignments: [B,H,K,S]. They repeat the operators of the function above,
# so that ONNX Runtime's elimination of common subexpressions computes them once.
_ATTENTION_WEIGHTS = f"""
<domain: "{NATIVE}", {_IMPORTS}>
AttentionWeights <scale> (query, key, mask) => (weights) {{
    {_SCALED}
    transposed = Transpose <perm = [0, 1, 3, 2]> (key)
    scores = MatMul (scaled, transposed)
    masked = Add (scores, mask)
    weights = Softmax <axis = -1> (masked)
}}
"""

_SOURCES = {
    (NATIVE, "TRT_Attention"): _ATTENTION,
    (NATIVE, "TRT_KVCacheUpdate"): _CACHE_UPDATE,
    (NATIVE, "AttentionWeights"): _ATTENTION_WEIGHTS,
    (PLUGINS, "BeamSelfAttention"): _SELF_ATTENTION,
    (PLUGINS, "BeamSelfAttentionBias"): _SELF_ATTENTION_BIAS,
    (PLUGINS, "CrossAttention"): _CROSS_ATTENTION,
}


@functools.cache
def _parsed(key: tuple[str, str]) -> onnx.FunctionProto:
    return onnx.parser.parse_function(_SOURCES[key])


def function_protos(used: set[tuple[str, str]]) -> list[onnx.FunctionProto]:
    """The functions named in `used` (domain, name), and all that their bodies call."""
    found: dict[tuple[str, str], onnx.FunctionProto] = {}
    waiting = [key for key in sorted(used) if key in _SOURCES]
    while waiting:
        key = waiting.pop()
        if key not in found:
            found[key] = _parsed(key)
            waiting += [(n.domain, n.op_type) for n in found[key].node if (n.domain, n.op_type) in _SOURCES]
    return [found[key] for key in sorted(found)]
