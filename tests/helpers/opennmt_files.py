"""Random checkpoints as OpenNMT-py saves them, of versions 2 and 3."""

from __future__ import annotations

import argparse
import collections
import functools
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

WIDTH, INNER, LAYERS, HEADS = 24, 36, 2, 4
TOKENS = ["<unk>", "<blank>", "<s>", "</s>", *(f"w{i}" for i in range(27))]
# What a checkpoint's options hold, as far as a model is read from them.
OPTIONS: dict[str, Any] = {
    "model_type": "text", "model_task": "seq2seq", "encoder_type": "transformer", "decoder_type": "transformer",
    "layers": LAYERS, "enc_layers": LAYERS, "dec_layers": LAYERS, "hidden_size": WIDTH, "enc_hid_size": WIDTH,
    "dec_hid_size": WIDTH, "word_vec_size": WIDTH, "src_word_vec_size": WIDTH, "tgt_word_vec_size": WIDTH,
    "heads": HEADS, "transformer_ff": INNER, "dropout": [0.0], "attention_dropout": [0.0], "position_encoding": True,
    "position_encoding_type": "SinusoidalInterleaved", "max_relative_positions": 0, "relative_positions_buckets": 0,
    "pos_ffn_activation_fn": "relu", "add_qkvbias": False, "add_ffnbias": True, "num_kv": 0, "layer_norm": "standard",
    "norm_eps": 1e-6, "parallel_residual": False, "shared_layer_norm": False, "rotary_interleave": True,
    "rotary_theta": 10000, "rotary_dim": 0, "sliding_window": 0, "num_experts": 0, "num_experts_per_tok": 2,
    "self_attn_type": "scaled-dot", "aan_useffn": False, "full_context_alignment": False, "alignment_layer": -2,
    "alignment_heads": 0, "lambda_align": 0.0, "copy_attn": False, "copy_attn_type": "general", "brnn": False,
    "reuse_copy_attn": False, "rnn_type": "LSTM", "bridge": False, "input_feed": 1, "global_attention": "general",
    "global_attention_function": "softmax", "coverage_attn": False, "context_gate": None, "share_embeddings": False,
    "share_decoder_embeddings": False, "feat_merge": "concat", "feat_vec_exponent": 0.7, "feat_vec_size": -1,
    "optim": "adam", "use_ckpting": [], "world_size": 1, "parallel_mode": "data_parallel", "lora_layers": [],
    "quant_layers": [], "freeze_word_vecs_enc": False, "freeze_word_vecs_dec": False,
}  # fmt: skip


def options(**changes: Any) -> argparse.Namespace:
    found = OPTIONS | changes
    return argparse.Namespace(**(found | {"brnn": found["encoder_type"] == "brnn"}))


def weights(opt: argparse.Namespace, seed: int = 0) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The model's weights and the generator's, by OpenNMT-py's names."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, torch.Tensor] = {}

    def random(name: str, *shape: int, around: float = 0.0) -> None:
        found[name] = around + 0.35 * torch.randn(shape, generator=generator)

    def linear(name: str, outputs: int, inputs: int, *, bias: bool) -> None:
        random(f"{name}.weight", outputs, inputs)
        if bias:
            random(f"{name}.bias", outputs)

    def norm(name: str) -> None:
        random(f"{name}.weight", WIDTH, around=1.0)
        if opt.layer_norm == "standard":
            random(f"{name}.bias", WIDTH)

    is_rnn = opt.decoder_type == "rnn"
    for side in ("encoder", "decoder"):
        scope = f"{side}.embeddings.make_embedding"
        random(f"{scope}.emb_luts.0.weight", len(TOKENS), WIDTH)
        if opt.position_encoding and not is_rnn:
            random(f"{scope}.pe.pe", 5000, 1, WIDTH)  # as many as OpenNMT-py makes
    if is_rnn:
        _recurrent(opt, random, linear)
    else:
        _transformer(opt, random, linear, norm)
    linear("generator", len(TOKENS), WIDTH, bias=True)
    apart = {name.removeprefix("generator."): found.pop(name) for name in list(found) if name.startswith("generator.")}
    return found, apart


def _transformer(opt: argparse.Namespace, random: Any, linear: Any, norm: Any) -> None:
    head, gated = WIDTH // HEADS, opt.pos_ffn_activation_fn in ("silu", "gated-gelu")
    of_keys = head * (opt.num_kv or HEADS)
    for side, layers in (("encoder", "transformer"), ("decoder", "transformer_layers")):
        for i in range(LAYERS):
            scope = f"{side}.{layers}.{i}"
            for part in ("self_attn", "context_attn") if side == "decoder" else ("self_attn",):
                for name, outputs in (("keys", of_keys), ("values", of_keys), ("query", WIDTH)):
                    linear(f"{scope}.{part}.linear_{name}", outputs, WIDTH, bias=opt.add_qkvbias)
                linear(f"{scope}.{part}.final_linear", WIDTH, WIDTH, bias=opt.add_qkvbias)
            if opt.relative_positions_buckets:
                random(f"{scope}.self_attn.relative_attention_bias.weight", opt.relative_positions_buckets, HEADS)
            elif opt.max_relative_positions > 0:
                size = 2 * opt.max_relative_positions + 1
                random(f"{scope}.self_attn.relative_positions_embeddings.weight", size, head)
            linear(f"{scope}.feed_forward.w_1", INNER, WIDTH, bias=opt.add_ffnbias)
            linear(f"{scope}.feed_forward.w_2", WIDTH, INNER, bias=opt.add_ffnbias)
            if gated:
                linear(f"{scope}.feed_forward.w_3", INNER, WIDTH, bias=opt.add_ffnbias)
            norm(f"{scope}.feed_forward.layer_norm")
            for name in ("layer_norm_1", "layer_norm_2") if side == "decoder" else ("layer_norm",):
                norm(f"{scope}.{name}")
        norm(f"{side}.layer_norm")


def _recurrent(opt: argparse.Namespace, random: Any, linear: Any) -> None:
    gates = 4 if opt.rnn_type == "LSTM" else 3
    directions = 2 if opt.encoder_type == "brnn" else 1
    units = WIDTH // directions
    for i in range(LAYERS):
        for suffix in ("", "_reverse")[:directions]:
            for name, inputs in (("ih", WIDTH), ("hh", units)):
                random(f"encoder.rnn.weight_{name}_l{i}{suffix}", gates * units, inputs)
                random(f"encoder.rnn.bias_{name}_l{i}{suffix}", gates * units)
        first = WIDTH * 2 if opt.input_feed and i == 0 else WIDTH
        for name, inputs in (("ih", first), ("hh", WIDTH)):
            weight = f"layers.{i}.{{}}_{name}" if opt.input_feed else f"{{}}_{name}_l{i}"
            random(f"decoder.rnn.{weight.format('weight')}", gates * WIDTH, inputs)
            random(f"decoder.rnn.{weight.format('bias')}", gates * WIDTH)
    for i in range(gates - 2 if opt.bridge else 0):
        linear(f"encoder.bridge.{i}", units * LAYERS, units * LAYERS, bias=True)
    score = opt.global_attention
    if score == "general":
        linear("decoder.attn.linear_in", WIDTH, WIDTH, bias=False)
    if score == "mlp":
        linear("decoder.attn.linear_context", WIDTH, WIDTH, bias=False)
        linear("decoder.attn.linear_query", WIDTH, WIDTH, bias=True)
        linear("decoder.attn.v", 1, WIDTH, bias=False)
    if score != "none":
        linear("decoder.attn.linear_out", WIDTH, 2 * WIDTH, bias=score == "mlp")


def save(folder: Path, version: int = 3, seed: int = 0, **changes: Any) -> Path:
    """A folder with model_step_1.pt. changes: of the options."""
    folder.mkdir(parents=True, exist_ok=True)
    opt = options(**changes)
    model, generator = weights(opt, seed)
    checkpoint = {"model": model, "generator": generator, "opt": opt, "optim": {"training_step": 1}}
    file = folder / "model_step_1.pt"
    if version == 3:
        lists = {"src": TOKENS, "tgt": TOKENS, "data_task": "seq2seq", "decoder_start_token": "<s>"}
        torch.save(checkpoint | {"vocab": lists}, file)
        return folder
    # Version 2: the norms' and generator's older names, and vocabularies in objects of torchtext.
    checkpoint["model"] = {_older(name): value for name, value in model.items()}
    checkpoint["generator"] = {f"0.{name}": value for name, value in generator.items()}
    with torchtext() as make:
        fields = {side: make() for side in ("src", "tgt")}
        torch.save(checkpoint | {"vocab": fields}, file, _use_new_zipfile_serialization=False)
    return folder


def _older(name: str) -> str:
    if "layer_norm" in name:
        return name.replace(".weight", ".a_2").replace(".bias", ".b_2")
    return name


@contextmanager
def torchtext() -> Iterator[Any]:
    """Makes fields of classes that are named as torchtext's and OpenNMT-py's were, while the block runs."""
    made = {}
    for module in ("torchtext", "torchtext.data", "torchtext.data.field", "torchtext.vocab", "onmt", "onmt.inputters",
                   "onmt.inputters.text_dataset"):  # fmt: skip
        made[module] = types.ModuleType(module)

    def place(module: str, name: str, value: Any) -> Any:
        value.__module__, value.__qualname__, value.__name__ = module, name, name
        setattr(made[module], name, value)
        return value

    field = place("torchtext.data.field", "Field", type("Field", (), {}))
    vocabulary = place("torchtext.vocab", "Vocab", type("Vocab", (), {}))
    several = place("onmt.inputters.text_dataset", "TextMultiField", type("TextMultiField", (), {}))
    tokenize = place("onmt.inputters.text_dataset", "_feature_tokenize", lambda text: text.split())
    unknown = place("torchtext.vocab", "_default_unk_index", lambda: 0)
    before = {name: sys.modules.get(name) for name in made}
    sys.modules.update(made)

    def make() -> Any:
        held, inner, outer = vocabulary(), field(), several()
        held.itos, held.freqs = TOKENS, collections.Counter(TOKENS)
        held.stoi = collections.defaultdict(unknown, {token: i for i, token in enumerate(TOKENS)})
        inner.vocab, inner.tokenize, inner.dtype = held, functools.partial(tokenize), torch.int64
        outer.fields = [("src", inner)]
        return outer

    try:
        yield make
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
