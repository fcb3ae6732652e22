"""A decoder step as launches: eight a layer, and two besides.

    embedding
    each layer   norm + queries, keys and values; self-attention through the ancestor table; output + residual
                 norm + query of cross-attention; cross-attention; output + residual
                 norm + feed-forward up with its activation; feed-forward down + residual
    norm + output projection

Letters: B sources, K beams, R = B*K rows, S source length, C positions, H heads, D head size, L layers, V vocabulary.
"""

from __future__ import annotations

from .encoder import EncoderProgram, activated
from .loaded import Buffer, Loaded, Program, launches, named, structures
from .rows import Rows


class DecoderProgram:
    """A step of B sources with K beams. token [B, K], position [1] and ancestors [B, K, C] int64 are read, logits
    [B, K, V] fp32 written; the caches [B, H, C*K, D] of every layer are changed in place."""

    def __init__(self, loaded: Loaded, encoder: EncoderProgram, n_beams: int, capacity: int, buffer: Buffer) -> None:
        model, stack, B, K, C = loaded.model, loaded.model.decoder, encoder.n_sources, n_beams, capacity
        self.n_beams, self.capacity = n_beams, capacity
        n_rows, inside = B * K, stack.heads * stack.head_size
        self.token = buffer("token", (B, K), "int64")
        self.position = buffer("position", (1,), "int64")
        self.ancestors = buffer("ancestors", (B, K, C), "int64")
        self.logits = buffer("logits", (B, K, model.vocabulary), "float32")
        self.cache_shape = (B, stack.heads, C * K, stack.head_size)
        self.caches = [
            [buffer(f"{name}.{i}", self.cache_shape, "float16") for name in ("self_key", "self_value")]
            for i in range(len(stack.layers))
        ]
        own = named("decoder", buffer)
        self.program = Program(loaded)
        rows = Rows(loaded, self.program, stack, n_rows, own)
        heads = own("heads", (n_rows, 3 * inside), "float16")
        mixed = own("mixed", (n_rows, inside), "float16")
        hidden = own("hidden", (n_rows, max(one.feed_forward.outer.inputs for one in stack.layers)), "float16")
        rows.embed(self.token, None, self.position)
        for i, layer in enumerate(stack.layers):
            attention, cross, part = layer.self_attention, layer.cross_attention, layer.feed_forward
            assert cross is not None
            base = rows.into(attention.rows, attention.norm, heads)
            bias, (key_cache, value_cache) = attention.distances, self.caches[i]
            given = structures.SelfAttentionParameters(
                rows=heads, key_cache=key_cache, value_cache=value_cache, ancestors=self.ancestors,
                position=self.position, bias=loaded.address(bias.table if bias else None), output=mixed,
                sources=B, heads=stack.heads, beams=K, head_size=stack.head_size, capacity=C,
                first_distance=bias.first if bias else 0, n_distances=bias.n if bias else 0, scale=attention.scale,
            )  # fmt: skip
            self.program.add(launches.self_attention(model.element, given), given)
            rows.out_of(attention.output, attention.norm, mixed, base)

            base = rows.into(cross.rows, cross.norm, heads)
            keys = encoder.cross + 2 * i * inside * 2  # two bytes an element
            given = structures.CrossAttentionParameters(
                query=heads, keys=keys, values=keys + inside * 2, mask=encoder.mask, output=mixed, sources=B,
                heads=stack.heads, beams=K, head_size=stack.head_size, length=encoder.length,
                stride=model.cross.outputs, scale=cross.scale,
            )  # fmt: skip
            self.program.add(launches.cross_attention(model.element, given), given)
            rows.out_of(cross.output, cross.norm, mixed, base)

            base = rows.into(part.inner, part.norm, hidden, **activated(part))
            rows.out_of(part.outer, part.norm, hidden, base)
        rows.head(model.head, output_float=self.logits, limit=model.vocabulary, scale=model.head_scale)
