"""Models of given sizes with random weights, so that systems can be measured without a trained model.

Each is written as a checkpoint. quick: a small one of the same kind. Needs torch and transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ...errors import S2SError, UnknownOption
from ...exporting.checkpoint import quiet_transformers
from .rounds import Progress

SEED = 7
SHARPNESS = 12.0  # of the copying attention: the neighbouring position gets about e**-12
QUIETNESS = 0.02  # scale of what all other layers add to the residual stream
LOUDNESS = 10.0  # scale of the copied token in the residual stream


@dataclass(frozen=True)
class Sizes:
    """Of a model of Marian's kind. layers: of encoder and decoder."""

    vocabulary: int
    width: int
    heads: int
    layers: tuple[int, int]
    inner: int


QUICK = Sizes(501, 128, 4, (2, 2), 256)
OPUS_MT = Sizes(58101, 512, 8, (6, 6), 2048)
STUDENT = Sizes(32000, 256, 8, (6, 2), 1536)  # as those that are distilled for browsers and phones
TINY = Sizes(8000, 128, 4, (3, 2), 512)
DEEP = Sizes(32000, 512, 8, (12, 1), 2048)  # a deep encoder before a shallow decoder (2006.10369)


def marian(sizes: Sizes, in_16_bits: bool, folder: Path, quick: bool) -> None:
    """A model with random weights that copies its source, token by token, up to its end token.

    A Transformer with random weights repeats one token for ever, and which one depends on rounding, so that systems
    would not do the same work. Here, the last decoder layer attends from position t to source position t (its queries
    and keys are the positional encoding, in dimensions that embeddings leave empty) and passes on the token. Everything
    else is random, and takes the same time. in_16_bits: all values are such as half precision holds.
    """
    import torch
    import transformers

    sizes = QUICK if quick else sizes
    size, width, n_heads, inner = sizes.vocabulary, sizes.width, sizes.heads, sizes.inner
    config = transformers.MarianConfig(
        vocab_size=size, d_model=width, encoder_ffn_dim=inner, decoder_ffn_dim=inner, encoder_layers=sizes.layers[0],
        decoder_layers=sizes.layers[1], encoder_attention_heads=n_heads, decoder_attention_heads=n_heads,
        activation_function="swish", scale_embedding=True, max_position_embeddings=512, bos_token_id=None,
        eos_token_id=0, pad_token_id=size - 1, decoder_start_token_id=size - 1, forced_eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(SEED)
    model = transformers.MarianMTModel(config).eval()
    head_size = width // n_heads
    # Sines are in the first half of the encoding, cosines in the second. The first pairs have the highest frequencies
    # and so distinguish neighbours best.
    pairs = torch.arange(head_size // 2)
    code = torch.cat([pairs, width // 2 + pairs])
    # The slowest sine is about 0 at all positions: after a layer norm, it holds what the norm subtracted.
    still = width // 2 - 1
    content = torch.tensor([d for d in range(width) if d not in {still, *code.tolist()}])
    with torch.no_grad():
        embedding = model.model.shared.weight
        # With equal norms and mean 0, so that a layer norm scales the encoding alike for every token.
        rows = torch.randn(size, len(content))
        rows -= rows.mean(dim=1, keepdim=True)
        embedding.zero_()
        embedding[:, content] = 1.36 * rows / rows.norm(dim=1, keepdim=True)
        embedding[size - 1] = 0  # the decoder starts from nothing, as in Marian
        for name, parameter in model.named_parameters():
            if name.endswith(("out_proj.weight", "fc2.weight")):
                parameter.mul_(QUIETNESS)
        attention = model.model.decoder.layers[-1].encoder_attn
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj):
            projection.weight.zero_()
        for head in range(n_heads):
            rows = head * head_size + torch.arange(head_size)
            for projection in (attention.q_proj, attention.k_proj):
                projection.weight[rows, code] = SHARPNESS
                projection.weight[rows, still] = -SHARPNESS
        rows = torch.arange(len(content))
        attention.v_proj.weight[rows, content] = 1.0
        attention.out_proj.weight[content, rows] = LOUDNESS
    if in_16_bits:
        model = model.half().float()
    common = {"eos_token_id": 0, "pad_token_id": size - 1, "decoder_start_token_id": size - 1, "max_length": 512}
    model.generation_config = transformers.GenerationConfig(num_beams=4, bad_words_ids=[[size - 1]], **common)
    _check_that_it_copies(model, size)
    with quiet_transformers():
        model.save_pretrained(folder)


def _check_that_it_copies(model: Any, size: int) -> None:
    import torch

    sources = torch.randint(1, size - 1, (3, 60))
    sources[:, -1] = 0
    with torch.inference_mode(), quiet_transformers():
        found = model.generate(
            input_ids=sources, attention_mask=torch.ones_like(sources), num_beams=1, max_new_tokens=64
        )
    if not torch.equal(found[:, 1:], sources):
        raise S2SError(
            "the random model does not copy its source; expected it to, so that every system does the same work; "
            "report it with the versions of torch and transformers"
        )


def t5_small(folder: Path, quick: bool) -> None:
    import torch
    import transformers

    small = {"vocab_size": 501, "d_model": 64, "d_kv": 8, "d_ff": 128, "num_layers": 2, "num_decoder_layers": 2}
    config = transformers.T5Config(decoder_start_token_id=0, **(small if quick else {}))
    torch.manual_seed(SEED)
    model = transformers.T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        last = model.decoder.block[-1].layer[-1].DenseReluDense
        last.wi.weight.mul_(8)
        last.wo.weight.mul_(8)
    model.generation_config = transformers.GenerationConfig(eos_token_id=1, pad_token_id=0, decoder_start_token_id=0)
    with quiet_transformers():
        model.save_pretrained(folder)


MAKERS: dict[str, Callable[[Path, bool], None]] = {
    "opus-mt": partial(marian, OPUS_MT, False),
    "opus-mt-16": partial(marian, OPUS_MT, True),
    "student": partial(marian, STUDENT, False),
    "tiny": partial(marian, TINY, False),
    "deep": partial(marian, DEEP, False),
    "t5-small": t5_small,
}
TARGETS = ("cpu-fp32", "cpu-int8")


def prepare(
    shape: str, folder: Path, targets: Sequence[str] = TARGETS, progress: Progress = lambda text: None
) -> tuple[str, str]:
    """Make a model of a shape of MAKERS, its bundle and engines in a folder. Returns the bundle's and the checkpoint's
    paths. Raises UnknownOption; BuildError where an engine can't be built here."""
    from ... import engines
    from ...building.build import build
    from ...exporting.export import export

    if shape not in MAKERS:
        raise UnknownOption(shape, MAKERS, "shape")
    checkpoint, bundle = folder / shape, folder / f"{shape}.bundle"
    progress(f"{shape}: a model with random weights")
    MAKERS[shape](checkpoint, False)
    progress(f"{shape}: export")
    export(checkpoint, bundle)
    for target in targets:
        if target != engines.PORTABLE:
            progress(f"{shape}: build {target}")
            build(bundle, target)
    return str(bundle), str(checkpoint)
