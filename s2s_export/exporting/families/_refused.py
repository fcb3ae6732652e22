"""Model types of transformers that generate from a source and are refused, with the reason. See docs/families.md."""

from __future__ import annotations

REFUSED = {
    "nllb-moe": "transformers sends every token to experts 0 and 1, whatever the router chooses, so that there is no "
    "right output to agree with",
    "pegasus_x": "its encoder passes global tokens from layer to layer beside the source's own",
    "seamless_m4t": "it is several models in one; text to text among them has no checkpoint of its own",
    "seamless_m4t_v2": "it is several models in one; text to text among them has no checkpoint of its own",
}
