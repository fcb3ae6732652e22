"""A decoder step as launches: five a layer, and two besides.

    embedding
    each layer   norm + queries, keys and values
                 self-attention through the ancestor table + output, a term for each head
                 sum of the terms + residual + norm + query + cross-attention + output, a term for each head
                 sum of the terms + residual + norm + feed-forward up with its activation
                 feed-forward down + residual
    norm + output projection

With many rows or wide models, attention and the products around it are launches of their own, eight a layer; products
of more than 32 rows are cuBLASLt's where the encoder's are. With sources of more than 512 positions cross-attention is:
several blocks share a source, and a launch merges what they find. So it is in layers whose attention weights are asked
for, which are a launch more.

Letters: B sources, K beams, R = B*K rows, S source length, C positions, H heads, D head size, L layers, V vocabulary.
"""

from __future__ import annotations

from ...device_search.step_executor import Attention
from .alignment import AlignedHeads
from .encoder import EncoderProgram, activated
from .loaded import Buffer, Loaded, launches, named, structures
from .rows import Rows
from .step_program import Kept, StepProgram


class DecoderProgram(StepProgram):
    """A Transformer's step. What is kept: the caches [B, H, C*K, D] of every layer."""

    def __init__(
        self, loaded: Loaded, encoder: EncoderProgram, n_beams: int, capacity: int, buffer: Buffer,
        aligned: AlignedHeads | None = None,
    ) -> None:  # fmt: skip
        super().__init__(loaded, encoder.n_sources, n_beams, capacity, buffer)
        model, B, K, C = loaded.transformer, encoder.n_sources, n_beams, capacity
        stack = model.decoder
        n_rows, inside = B * K, stack.heads * stack.head_size
        shape = (B, stack.heads, C * K, stack.head_size)
        caches = [
            [buffer(f"{name}.{i}", shape, "float16") for name in ("self_key", "self_value")]
            for i in range(len(stack.layers))
        ]
        self.kept = [Kept(address, shape, "float16", B * stack.heads) for pair in caches for address in pair]
        own = named("decoder", buffer)
        library = None if encoder.library is None else encoder.library.beside(own)
        rows = Rows(loaded, self.program, stack, n_rows, own, library)
        heads = own("heads", (n_rows, 3 * inside), "float16")
        mixed = own("mixed", (n_rows, inside), "float16")
        hidden = own("hidden", (n_rows, max(one.feed_forward.outer.inputs for one in stack.layers)), "float16")
        is_fused, splits = launches.fuses_attention(n_rows, stack.width), launches.cross_splits(encoder.length)
        parts = own("parts", (n_rows, stack.heads, splits, stack.head_size + 2), "float32") if splits > 1 else None
        terms = [own(f"terms {i}", (stack.heads, n_rows, stack.width), "float32") for i in range(2 if is_fused else 0)]
        if aligned is not None:
            weights = buffer("attention", (B, K, aligned.layers, aligned.heads, encoder.length), "float32")
            self.attention = Attention(weights, aligned.layers, aligned.heads, encoder.length, "fp32")
        rows.embed(self.token, None, self.position)
        for i, layer in enumerate(stack.layers):
            attention, cross, part = layer.self_attention, layer.cross_attention, layer.feed_forward
            assert cross is not None
            keys = encoder.cross + 2 * i * inside * 2  # two bytes an element
            base = rows.into(attention.rows, attention.norm, heads)
            bias, (key_cache, value_cache) = attention.distances, caches[i]
            of_self = structures.SelfAttentionParameters(
                rows=heads, key_cache=key_cache, value_cache=value_cache, ancestors=self.ancestors,
                position=self.position, bias=loaded.address(bias.table if bias else None), output=mixed,
                sources=B, heads=stack.heads, beams=K, head_size=stack.head_size, capacity=C,
                first_distance=bias.first if bias else 0, n_distances=bias.n if bias else 0, scale=attention.scale,
            )  # fmt: skip
            of_cross = structures.CrossAttentionParameters(
                query=heads, keys=keys, values=keys + inside * 2, mask=encoder.mask, output=mixed, parts=parts,
                sources=B, heads=stack.heads, beams=K, head_size=stack.head_size, length=encoder.length,
                stride=model.cross.outputs, scale=cross.scale,
            )  # fmt: skip
            if is_fused:
                output = rows.out_by_heads(attention.output, attention.norm, terms[0], stack.heads, base)
                given = structures.SelfBlockParameters(attention=of_self, output=output)
                self.program.add(launches.self_block(model.element, given), given)
            else:
                self.program.add(launches.self_attention(model.element, of_self), of_self)
                rows.out_of(attention.output, attention.norm, mixed, base)
            looked = list(aligned.of_layer(i)) if aligned is not None else []
            if is_fused and splits == 1 and not looked:
                query, base = rows.from_parts(cross.rows, cross.norm)
                output = rows.out_by_heads(cross.output, cross.norm, terms[1], stack.heads, base)
                given = structures.CrossBlockParameters(query=query, attention=of_cross, output=output)
                self.program.add(launches.cross_block(model.element, given), given)
            else:
                base = rows.into(cross.rows, cross.norm, heads)
                for first, chosen in looked:
                    assert aligned is not None and self.attention is not None
                    given = structures.CrossWeightsParameters(
                        attention=of_cross, weights=self.attention.address, n_all=len(aligned.listed), first=first,
                        n_heads=len(chosen), listed=tuple(chosen),
                    )  # fmt: skip
                    self.program.add(launches.cross_weights(model.element, given), given)
                self.program.add(launches.cross_attention(model.element, of_cross), of_cross)
                if splits > 1:
                    self.program.add(launches.merge_cross(model.element, of_cross), of_cross)
                rows.out_of(cross.output, cross.norm, mixed, base)

            base = rows.into(part.inner, part.norm, hidden, **activated(part))
            rows.out_of(part.outer, part.norm, hidden, base)
        rows.head(model.head, output_float=self.logits, limit=model.vocabulary, scale=model.head_scale)
