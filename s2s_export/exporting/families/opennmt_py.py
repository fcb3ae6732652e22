"""OpenNMT-py's checkpoints (1701.02810), of versions 2 and 3: a .pt with weights, options and vocabularies.

Transformers become a structure; recurrent models a PyTorch module that is traced (`toolkits/opennmt_rnn.py`). Greedy
decoding gives OpenNMT-py's tokens. Its beam search leaves a finished beam in its place, so that fewer go on; ours is
that of `generate`, with OpenNMT-py's usual options.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from ...errors import CheckpointError, UnsupportedModel
from ..graphs.structure import (
    Attention,
    Block,
    FeedForward,
    Linear,
    PositionTable,
    RelativePositions,
    RelativeVectors,
    Rotary,
    Stack,
    Transformer,
)
from ..toolkits import opennmt_rnn, pickles, recurrent, vocabulary
from ..toolkits.buckets import FARTHEST, relative_positions
from ..toolkits.options import Options
from ..toolkits.plain import PlainTransformer, ToolkitModel, plain_of, positions_of
from ..toolkits.weights import Weights
from . import Family

__all__ = ["MODEL_TYPES", "Reference", "describe", "load_model", "recognise", "stretch", "write_tokenizer"]

MODEL_TYPES = ("opennmt-py",)
Reference = recurrent.reference_of
TOOLKIT = "OpenNMT-py"
# translate.py's own
USUAL = {"num_beams": 5, "length_penalty": 1.0, "early_stopping": True, "max_length": 251}
PAD, BOS, EOS, UNK = "<blank>", "<s>", "</s>", "<unk>"
ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "silu": "silu", "gated-gelu": "gelu"}
KINDS = {"transformer": "transformer", "rnn": "rnn", "brnn": "rnn"}
ROTARY_POSITIONS = 1024  # of computed tables; more by `stretch`
# What version 2 keeps its vocabularies in, and what hangs on them.
FIELDS = [
    *(f"torchtext.{part}" for part in (
        "data.field.Field", "data.field.RawField", "legacy.data.field.Field", "legacy.data.field.RawField",
        "vocab.Vocab", "legacy.vocab.Vocab", "vocab._default_unk_index", "legacy.vocab._default_unk_index",
        "data.utils.is_tokenizer_serializable", "data.pipeline.Pipeline", "legacy.data.pipeline.Pipeline",
    )),
    *(f"onmt.inputters.{part}" for part in (
        "text_dataset.TextMultiField", "text_dataset._feature_tokenize", "inputter.make_src", "inputter.make_tgt",
        "inputter.AlignField",
    )),
    "functools.partial",
]  # fmt: skip
SENTENCEPIECE = (("source.model", "target.model"), ("src.model", "tgt.model"), ("sentencepiece.model", None),
                 ("tokenizer.model", None))  # fmt: skip


def recognise(folder: Path) -> dict[str, Any] | None:
    file = pickles.only_file(folder, b"generator", b"vocab", b"opt")
    return None if file is None else {"model_type": MODEL_TYPES[0], "file": file.name}


def load_model(path: Path, config: dict[str, Any]) -> ToolkitModel:
    file = path / config["file"]
    checkpoint = pickles.load(file, FIELDS)
    options, (source, target) = _options(file, checkpoint), _vocabularies(file, checkpoint)
    kind = options.one_of("decoder_type", "rnn", {"transformer": "transformer", "rnn": "rnn"})
    if options.one_of("encoder_type", "rnn", KINDS) != kind:
        raise UnsupportedModel(f"{file}: its encoder is of another type than its decoder; expected the same")
    for name, *known in (("model_type", "text"), ("model_task", "seq2seq"), ("copy_attn", False)):
        options.expect(name, *known)
    weights = Weights(file, _weights(file, checkpoint))
    sizes = (len(source), len(target))
    ids = vocabulary.ids_of(target)
    named: dict[str, Any] = {
        name: ids[token] for name, token in (("pad", PAD), ("bos", BOS), ("eos", EOS)) if token in ids
    }
    if "eos" not in named:
        raise CheckpointError(f"{file}: the target's vocabulary lacks '{EOS}'; restore the checkpoint")
    start = checkpoint["vocab"].get("decoder_start_token", BOS) if isinstance(checkpoint["vocab"], dict) else BOS
    if start not in ids:
        raise CheckpointError(f"{file}: the target's vocabulary lacks '{start}', with which it starts; restore it")
    named = {"pad": named.get("pad", named["eos"]), "bos": named.get("bos")} | named
    defaults = {
        **USUAL,
        "pad_token_id": named["pad"],
        "eos_token_id": named["eos"],
        "decoder_start_token_id": ids[start],
    }
    if kind == "rnn":
        module: Any = opennmt_rnn.build(file, options, weights, sizes, named)
    else:
        reader = _Reader(file, options, weights, sizes)
        module = PlainTransformer(reader.structure, named)
    return ToolkitModel(module, defaults)


def stretch(model: ToolkitModel, positions: int) -> None:
    if isinstance(model.model, PlainTransformer):
        model.model.stretch(positions)


def describe(model: ToolkitModel) -> Family:
    if not isinstance(model.model, PlainTransformer):
        return recurrent.family(TOOLKIT.lower(), model)
    structure = plain_of(model).structure
    return Family(TOOLKIT.lower(), structure, positions_of(structure.encoder), positions_of(structure.decoder))


def write_tokenizer(path: Path, folder: Path) -> dict[str, Any] | None:
    """Sentencepiece models beside the checkpoint split texts; without them a text is pieces with spaces between."""
    found = recognise(path)
    assert found is not None
    file = path / found["file"]
    source, target = _vocabularies(file, pickles.load(file, FIELDS))
    ids = vocabulary.ids_of(target)
    skipped = tuple(ids[token] for token in (PAD, BOS, EOS) if token in ids)
    around = vocabulary.Vocabularies(source, target, UNK, skip_ids=skipped)
    return vocabulary.write(around, folder, *vocabulary.models_beside(path, SENTENCEPIECE))


def _options(file: Path, checkpoint: dict[str, Any]) -> Options:
    given = checkpoint.get("opt")
    if given is None or not (isinstance(given, dict) or hasattr(given, "__dict__")):
        raise CheckpointError(f"{file}: has no options ('opt'); restore the checkpoint")
    options = Options(file, given, TOOLKIT)
    for name in ("lora_layers", "quant_layers"):
        options.expect(name, [])
    return options


def _vocabularies(file: Path, checkpoint: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Version 3 has lists of tokens, version 2 torchtext's fields, older ones a list of pairs."""
    held = checkpoint.get("vocab")
    found = []
    for number, side in enumerate(("src", "tgt")):
        value = held.get(side) if isinstance(held, dict) else None
        if isinstance(held, list) and len(held) > number and isinstance(held[number], (list, tuple)):
            value = held[number][-1]
        if isinstance(value, pickles.StandIn) and (fields := value.get("fields")):
            value = fields[0][-1]
        if isinstance(value, pickles.StandIn):
            inner = value.get("vocab")
            value = (inner if isinstance(inner, pickles.StandIn) else value).get("itos")
        if not isinstance(value, list) or not value or not all(isinstance(token, str) for token in value):
            raise CheckpointError(f"{file}: its vocabulary has no tokens for '{side}'; restore the checkpoint")
        found.append(value)
    if isinstance(held, dict) and held.get("src_feats"):
        raise UnsupportedModel(f"{file}: its sources have features; expected tokens alone")
    return found[0], found[1]


def _weights(file: Path, checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
    """By name; the output projection is `generator.weight`. Of old norms, `a_2` and `b_2` are the weight and bias."""
    model = checkpoint.get("model")
    if model is None:  # version 3 can keep them apart
        from safetensors.torch import load_file

        beside = sorted(file.parent.glob(f"{file.stem}*.safetensors"))
        if not beside:
            raise CheckpointError(f"{file}: has no weights, and no {file.stem}*.safetensors is beside it; restore them")
        try:
            model = {name: value for path in beside for name, value in load_file(path).items()}
        except Exception as error:
            raise CheckpointError(f"{beside[0]}: can't be read ({str(error)[:200]}); restore it") from error
    generator = checkpoint.get("generator") or {}
    if not isinstance(model, dict) or not isinstance(generator, dict):
        raise CheckpointError(f"{file}: its weights are no dictionary; restore the checkpoint")
    named = dict(model) | {f"generator.{name.removeprefix('0.')}": value for name, value in generator.items()}
    found = {}
    for name, value in named.items():
        renamed = re.sub(r"(layer_norm(?:_\d+)?)\.([ab])_2$", lambda m: f"{m[1]}.{OLD_NORM[m[2]]}", name)
        if not isinstance(value, torch.Tensor):
            raise CheckpointError(f"{file}: '{name}' is a {type(value).__name__}, expected a weight; restore it")
        found[renamed] = value
    return found


OLD_NORM = {"a": "weight", "b": "bias"}


class _Reader:
    """A Transformer's weights as a structure."""

    def __init__(self, file: Path, options: Options, weights: Weights, sizes: tuple[int, int]) -> None:
        self._file, self._weights, self._sizes = file, weights, sizes
        for name, *known in (
            ("parallel_residual", False), ("shared_layer_norm", False), ("sliding_window", 0), ("num_experts", 0),
            ("self_attn_type", "scaled-dot", "scaled-dot-flash"), ("layer_norm", "standard", "rms"),
            ("aan_useffn", False),
        ):  # fmt: skip
            options.expect(name, *known)
        self._has_rms = options.get("layer_norm") == "rms"
        epsilon = options.get("norm_eps", 1e-6)
        if not isinstance(epsilon, float) or not 0 < epsilon < 1:
            raise CheckpointError(f"{file}: its option norm_eps is {epsilon!r}; expected a small number; restore it")
        self._epsilon = epsilon
        self._activation = options.one_of("pos_ffn_activation_fn", "relu", ACTIVATIONS)
        self._n_heads, self._n_keys = options.number("heads", 8), options.number("num_kv", 0)
        self._farthest = options.number("max_relative_positions", 0)
        self._n_buckets = options.number("relative_positions_buckets", 0)
        if self._farthest < -1 or self._farthest > FARTHEST:
            raise UnsupportedModel(
                f"{file}: {TOOLKIT}'s option max_relative_positions is {self._farthest}; expected -1 (rotary), 0, or a "
                "distance"
            )
        self._is_interleaved = bool(options.get("rotary_interleave", True))
        self._theta = float(options.number("rotary_theta", 10000))
        self._rotary_size = options.number("rotary_dim", 0)
        common = options.number("layers", -1)
        self._n_layers = {
            "encoder": common if common > 0 else options.number("enc_layers", 2),
            "decoder": common if common > 0 else options.number("dec_layers", 2),
        }
        self._alignment = (-1, 1)
        if options.get("lambda_align", 0):
            self._alignment = (options.number("alignment_layer", -1), options.number("alignment_heads", 0))

    def structure(self, positions: int) -> Transformer:
        encoder = self._stack("encoder", "transformer", self._sizes[0], positions)
        decoder = self._stack("decoder", "transformer_layers", self._sizes[1], positions)
        head = self._weights.linear("generator.weight", "generator.bias", self._sizes[1], decoder.width)
        self._weights.refuse_unread()
        layer, n_heads = self._alignment
        layer += len(decoder.blocks) if layer < 0 else 0
        if not 0 <= layer < len(decoder.blocks) or not 0 <= n_heads <= self._n_heads:
            raise CheckpointError(f"{self._file}: its alignment_layer or alignment_heads is no layer's or head's")
        heads = tuple((layer, head) for head in range(n_heads or self._n_heads))
        return Transformer(encoder, decoder, norm_first=True, head=head, alignment_heads=heads)

    def _stack(self, side: str, layers: str, size: int, positions: int) -> Stack:
        scope = f"{side}.embeddings.make_embedding"
        embedding = self._weights.take(f"{scope}.emb_luts.0.weight", size, None)
        width = embedding.shape[1]
        if self._n_heads < 1 or width % self._n_heads:
            raise CheckpointError(f"{self._file}: {self._n_heads} heads don't divide its width {width}; restore it")
        has_table = f"{scope}.pe.pe" in self._weights
        table = self._weights.take(f"{scope}.pe.pe") if has_table else None
        rotary = self._rotary(width // self._n_heads, positions) if self._farthest == -1 else None
        blocks = tuple(
            self._block(f"{side}.{layers}.{i}", width, rotary, is_decoder=side == "decoder")
            for i in range(self._n_layers[side])
        )
        return Stack(
            embedding=embedding,
            embedding_scale=width**0.5 if has_table else 1.0,
            positions=None if table is None else PositionTable(table.reshape(-1, width)),
            blocks=blocks,
            final_norm=self._norm(f"{side}.layer_norm", width),
        )

    def _block(self, scope: str, width: int, rotary: Rotary | None, *, is_decoder: bool) -> Block:
        own = f"{scope}.layer_norm_1" if is_decoder else f"{scope}.layer_norm"
        inner = f"{scope}.feed_forward"
        first = self._linear(f"{inner}.w_1", None, width)
        size = first.weight.shape[0]
        is_gated = f"{inner}.w_3.weight" in self._weights
        return Block(
            self_attention=self._attention(f"{scope}.self_attn", width, rotary, is_decoder=is_decoder),
            self_norm=self._norm(own, width),
            cross_attention=self._attention(f"{scope}.context_attn", width) if is_decoder else None,
            cross_norm=self._norm(f"{scope}.layer_norm_2", width) if is_decoder else None,
            feed_forward=FeedForward(
                inner=self._linear(f"{inner}.w_3", size, width) if is_gated else first,
                outer=self._linear(f"{inner}.w_2", width, size),
                activation=self._activation,
                gate=first if is_gated else None,
            ),
            feed_forward_norm=self._norm(f"{inner}.layer_norm", width),
        )

    def _attention(
        self, scope: str, width: int, rotary: Rotary | None = None, *, is_decoder: bool | None = None
    ) -> Attention:
        """is_decoder: of self-attention; None for attention to the source, which knows no positions."""
        head = width // self._n_heads
        of_keys = head * (self._n_keys or self._n_heads)
        query, key, value, output = (
            self._linear(f"{scope}.{name}", *shape)
            for name, shape in (
                ("linear_query", (width, width)),
                ("linear_keys", (of_keys, width)),
                ("linear_values", (of_keys, width)),
                ("final_linear", (width, width)),
            )
        )
        if rotary is not None and self._is_interleaved:
            query, key = _halves_apart(query, head), _halves_apart(key, head)
        vectors: RelativeVectors | None = None
        bias: RelativePositions | None = None
        if is_decoder is not None and self._n_buckets > 0:
            table = self._weights.take(f"{scope}.relative_attention_bias.weight", self._n_buckets, self._n_heads)
            bias = relative_positions(table, self._farthest, not is_decoder, self._file)
        elif is_decoder is not None and self._farthest > 0:
            name = f"{scope}.relative_positions_embeddings.weight"
            both = self._weights.take(name, 2 * self._farthest + 1, head)
            vectors = RelativeVectors(both, both)
        return Attention(
            query=query,
            key=key,
            value=value,
            output=output,
            n_heads=self._n_heads,
            scale=head**-0.5,
            n_key_heads=self._n_keys if self._n_keys not in (0, self._n_heads) else None,
            relative=bias,
            rotary=rotary,
            relative_vectors=vectors,
        )

    def _rotary(self, size: int, positions: int) -> Rotary:
        if self._rotary_size not in (0, size) or size % 2:
            raise UnsupportedModel(
                f"{self._file}: {TOOLKIT}'s option rotary_dim is {self._rotary_size}; expected {size}, a head's size"
            )
        rates = 1.0 / (self._theta ** (torch.arange(0, size, 2).float() / size))
        angles = torch.outer(torch.arange(max(positions, ROTARY_POSITIONS)), rates)
        return Rotary(angles.cos(), angles.sin())

    def _linear(self, scope: str, outputs: int | None, inputs: int | None) -> Linear:
        return self._weights.linear(f"{scope}.weight", f"{scope}.bias", outputs, inputs)

    def _norm(self, scope: str, width: int) -> Any:
        bias = None if self._has_rms else f"{scope}.bias"
        return self._weights.norm(f"{scope}.weight", bias, width, self._epsilon)


def _halves_apart(layer: Linear, size: int) -> Linear:
    """Neighbours of a head that are turned against each other become its two halves, as `Rotary` has them."""
    order = torch.cat([torch.arange(0, size, 2), torch.arange(1, size, 2)])
    rows = (torch.arange(0, len(layer.weight), size)[:, None] + order).reshape(-1)
    return Linear(layer.weight[rows], None if layer.bias is None else layer.bias[rows])
