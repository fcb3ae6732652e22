"""Which heads' cross-attention weights a step gives where they are asked for: those of the bundle's own step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .... import plugin_sources
from ....bundle import Bundle
from .model import AnyModel, RecurrentModel

MOST_LISTED = plugin_sources.module("transformer.structures").MOST_LISTED_HEADS


@dataclass(frozen=True)
class AlignedHeads:
    """A step's weights are [B, K, layers, heads, S]. listed: (layer, head) of the decoder, of each of them in turn."""

    layers: int
    heads: int
    listed: tuple[tuple[int, int], ...]

    def of_layer(self, layer: int) -> Iterator[tuple[int, list[int]]]:
        """(first, heads) of each launch that a layer needs: heads whose weights lie side by side from `first` on."""
        first, found = 0, list[int]()
        for place, (of, head) in enumerate([*self.listed, (-1, 0)]):
            if of == layer and len(found) < MOST_LISTED:
                first = first if found else place
                found.append(head)
                continue
            if found:
                yield first, found
            first, found = place, [head] if of == layer else []


def aligned_heads(bundle: Bundle, model: AnyModel) -> AlignedHeads | None:
    """None for a model without attention, a recurrent one, and one that gives some heads and does not say which."""
    shapes = [
        one["shape"] for one in bundle.manifest["graphs"]["decoder_step"]["outputs"] if one["name"] == "attention"
    ]
    if not shapes or isinstance(model, RecurrentModel):
        return None
    *_, layers, heads, _ = shapes[0]
    listed = [tuple(pair) for pair in (bundle.manifest.get("speech") or {}).get("alignment_heads") or ()]
    if listed and (layers, heads) == (1, len(listed)):
        return AlignedHeads(1, heads, tuple(listed))
    if (layers, heads) == (len(model.decoder.layers), model.decoder.heads):
        return AlignedHeads(layers, heads, tuple((i, h) for i in range(layers) for h in range(heads)))
    return None
