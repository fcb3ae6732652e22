"""A decoder step as launches: five a layer, and two besides.

    embedding
    each layer   norm + queries, keys and values
                 self-attention through the ancestor table + output, a term for each head
                 sum of the terms + residual + norm + query + cross-attention + output, a term for each head
                 sum of the terms + residual + norm + feed-forward up with its activation
                 feed-forward down + residual
    norm + output projection

With many rows or wide models, attention and the products around it are launches of their own, eight a layer. With
sources of more than 512 positions cross-attention is: several blocks share a source, and a launch merges what they
find.

Letters: B sources, K beams, R = B*K rows, S source length, C positions, H heads, D head size, L layers, V vocabulary.
"""

from __future__ import annotations

from ...device_search.step_executor import CandidateTables
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
        is_fused, splits = launches.fuses_attention(n_rows, stack.width), launches.cross_splits(encoder.length)
        parts = own("parts", (n_rows, stack.heads, splits, stack.head_size + 2), "float32") if splits > 1 else None
        terms = [own(f"terms {i}", (stack.heads, n_rows, stack.width), "float32") for i in range(2 if is_fused else 0)]
        rows.embed(self.token, None, self.position)
        for i, layer in enumerate(stack.layers):
            attention, cross, part = layer.self_attention, layer.cross_attention, layer.feed_forward
            assert cross is not None
            keys = encoder.cross + 2 * i * inside * 2  # two bytes an element
            base = rows.into(attention.rows, attention.norm, heads)
            bias, (key_cache, value_cache) = attention.distances, self.caches[i]
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
            if is_fused and splits == 1:
                query, base = rows.from_parts(cross.rows, cross.norm)
                output = rows.out_by_heads(cross.output, cross.norm, terms[1], stack.heads, base)
                given = structures.CrossBlockParameters(query=query, attention=of_cross, output=output)
                self.program.add(launches.cross_block(model.element, given), given)
            else:
                base = rows.into(cross.rows, cross.norm, heads)
                self.program.add(launches.cross_attention(model.element, of_cross), of_cross)
                if splits > 1:
                    self.program.add(launches.merge_cross(model.element, of_cross), of_cross)
                rows.out_of(cross.output, cross.norm, mixed, base)

            base = rows.into(part.inner, part.norm, hidden, **activated(part))
            rows.out_of(part.outer, part.norm, hidden, base)
        self._element = model.element
        self._head = rows.head(
            model.head, output_float=self.logits, limit=model.vocabulary, scale=model.head_scale
        )  # fmt: skip

    def candidate_lists(self, candidates: int) -> int:
        """See `step_executor.FindsCandidates`."""
        head = self._head
        return int(launches.candidate_lists(head.rows, head.inputs, head.limit, candidates))

    def run_candidates(self, stream: int, tables: CandidateTables) -> None:
        """A step that finds each row's best tokens and leaves no logits."""
        given = structures.HeadParameters(
            product=self._head, candidates=tables.candidates, lists=tables.lists, **tables.addresses
        )
        if tables.rules is not None:
            given.rules = tables.rules
        self.program.run_with(launches.head_candidates(self._element, given), given, stream)
