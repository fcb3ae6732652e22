"""Model types of transformers that generate from a source and are refused, with the reason. See docs/families.md."""

from __future__ import annotations

REFUSED = {
    "nllb-moe": "transformers counts an expert's capacity over the whole batch with its padding, so that outputs "
    "depend on a source's neighbours, and sends every token to experts 0 and 1 alone",
    "prophetnet": "its logits come from a second stream of queries, whose position bias is computed from hidden "
    "states; the decoder step has one stream",
    "t5gemma2": "its decoder attends to its own tokens and to the source's under one softmax; the decoder step has an "
    "attention for each",
    "pegasus_x": "its encoder passes global tokens from layer to layer beside the source's own",
    "seamless_m4t": "it is several models in one; text to text among them has no checkpoint of its own",
    "seamless_m4t_v2": "it is several models in one; text to text among them has no checkpoint of its own",
    "speech-encoder-decoder": "its encoder reads sound",
    "speech_to_text": "its encoder reads sound",
    "moonshine": "its encoder reads sound",
    "vision-encoder-decoder": "its encoder reads pictures",
    "pix2struct": "its encoder reads pictures",
}
