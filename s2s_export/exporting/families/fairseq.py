"""fairseq's Transformers for translation (1904.01038): a .pt with weights and options, and dict.*.txt beside it.

The search is fairseq-generate's with its usual options: the pad is never chosen, the first token is not the end, and
the last that fits is. Older names of weights are read as well.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import torch

from ...errors import CheckpointError, UnsupportedModel
from ..graphs.structure import Attention, Block, FeedForward, Linear, Norm, PositionTable, Stack, Transformer
from ..toolkits import pickles, vocabulary
from ..toolkits.options import Options
from ..toolkits.plain import PlainTransformer, Reference, ToolkitModel, plain_of, positions_of
from ..toolkits.sinusoids import sinusoids
from ..toolkits.weights import Weights
from . import Family

__all__ = ["MODEL_TYPES", "Reference", "describe", "load_model", "recognise", "stretch", "write_tokenizer"]

MODEL_TYPES = ("fairseq",)
TOOLKIT = "fairseq"
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
BOS, PAD, EOS, UNK = range(4)
LONGEST = 200  # tokens before the end
USUAL = {"num_beams": 5, "length_penalty": 1.0, "early_stopping": True, "min_length": 2, "suppress_tokens": [PAD]}
EPSILON = 1e-5
TANH = "gelu_pytorch_tanh"
ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_fast": TANH, "gelu_accurate": TANH, "tanh": "tanh"}
OVERWRITE = "#fairseq:overwrite"
MASK = "<mask>"  # one more symbol, which BART's tasks add
SENTENCEPIECE = (("sentencepiece.bpe.model", None), ("sentencepiece.model", None), ("spm.model", None))
LAYER = re.compile(r"(encoder|decoder)\.layers\.(\d+)\.")
# Names of before 2018: norms are numbered.
NUMBERED = {
    "encoder": ("self_attn_layer_norm", "final_layer_norm"),
    "decoder": ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"),
}


def recognise(folder: Path) -> dict[str, Any] | None:
    file = pickles.only_file(folder, b"optimizer_history", b"model") or pickles.only_file(
        folder, b"encoder.embed_tokens.weight", b"arch"
    )
    return None if file is None else {"model_type": MODEL_TYPES[0], "file": file.name}


def load_model(path: Path, config: dict[str, Any]) -> ToolkitModel:
    file = path / config["file"]
    checkpoint = pickles.load(file)
    options = _options(file, checkpoint)
    sides = _dictionaries(path, options)
    plain = PlainTransformer(_Reader(file, options, checkpoint, sides).structure, {"pad": PAD, "bos": BOS, "eos": EOS})
    longest = positions_of(plain.structure.decoder) or LONGEST + 2
    defaults = {
        **USUAL,
        "max_length": min(LONGEST + 2, longest),
        "forced_eos_token_id": EOS,
        "pad_token_id": PAD,
        "eos_token_id": EOS,
        "decoder_start_token_id": EOS,
    }
    return ToolkitModel(plain, defaults)


def stretch(model: ToolkitModel, positions: int) -> None:
    """Make computed tables of positions longer; learned ones stay as they are."""
    plain_of(model).stretch(positions)


def describe(model: ToolkitModel) -> Family:
    structure = plain_of(model).structure
    return Family(TOOLKIT, structure, positions_of(structure.encoder), positions_of(structure.decoder))


def write_tokenizer(path: Path, folder: Path) -> dict[str, Any] | None:
    """A sentencepiece model beside the checkpoint splits texts, or a file of merges its words; without either a text is
    pieces with spaces between.
    """
    found = recognise(path)
    assert found is not None
    file = path / found["file"]
    source, target = _dictionaries(path, _options(file, pickles.load(file)))
    around = vocabulary.Vocabularies(source, target, SPECIAL[UNK], suffix=(EOS,), skip_ids=(BOS, PAD, EOS))
    models = vocabulary.models_beside(path, SENTENCEPIECE)
    return vocabulary.write(around, folder, *models, codes=vocabulary.codes_beside(path))


def _options(file: Path, checkpoint: dict[str, Any]) -> Options:
    """Of `args`, or of the `model` and `task` parts of a newer `cfg`."""
    given: Any = checkpoint.get("args")
    if given is None and isinstance(config := checkpoint.get("cfg"), dict):
        given = {}
        for part in (config.get("task"), config.get("model")):
            values = vars(part) if isinstance(part, argparse.Namespace) else part
            if isinstance(values, dict):
                kind = {"task": values["_name"]} if part is config.get("task") and "_name" in values else {}
                given |= values | kind
    if not given or not isinstance(given, (dict, argparse.Namespace)):
        raise CheckpointError(f"{file}: has no options ('args' or 'cfg'); restore the checkpoint")
    return Options(file, given, TOOLKIT)


def _dictionaries(path: Path, options: Options) -> tuple[list[str], list[str]]:
    """The symbols of both sides, of dict.LANGUAGE.txt or of one dict.txt."""
    found = []
    for name in ("source_lang", "target_lang"):
        files = [path / f"dict.{options.get(name)}.txt", path / "dict.txt"]
        file = next((file for file in files if file.is_file()), None)
        if file is None:
            raise CheckpointError(f"{path}: has neither {files[0].name} nor dict.txt; put the dictionaries beside it")
        found.append(_dictionary(file))
    return found[0], found[1]


def _dictionary(file: Path) -> list[str]:
    """A line is a symbol, its count, and perhaps a flag. The special symbols come first and are not in the file."""
    symbols = list(SPECIAL)
    known = set(symbols)
    try:
        lines = file.read_bytes().decode("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file}: can't be read as UTF-8 ({error}); restore it") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        overwrites = line.rstrip().endswith(OVERWRITE)
        symbol, _, count = line.rstrip().removesuffix(OVERWRITE).rstrip().rpartition(" ")
        if not symbol or not count.isdigit():
            raise CheckpointError(f"{file}: line {number} is no symbol and its count; restore the dictionary")
        if symbol in known and not overwrites:
            raise CheckpointError(f"{file}: line {number} repeats {symbol!r}; restore the dictionary")
        known.add(symbol)
        symbols.append(symbol)
    return symbols


class _Reader:
    def __init__(
        self, file: Path, options: Options, checkpoint: dict[str, Any], sides: tuple[list[str], list[str]]
    ) -> None:
        for name, *known in (
            ("task", "translation"), ("cross_self_attention", False), ("adaptive_input", False),
            ("no_cross_attention", False), ("encoder_layers_to_keep", None), ("decoder_layers_to_keep", None),
        ):  # fmt: skip
            options.expect(name, *known)
        self._file, self._options, self._sides = file, options, sides
        self._activation = options.one_of("activation_fn", "relu", ACTIVATIONS)
        self._weights = Weights(file, _weights(file, checkpoint))
        if "encoder.layers.0.fc1.weight" not in self._weights:
            raise UnsupportedModel(
                f"{file}: its architecture '{options.get('arch', options.get('_name'))}' is no Transformer with an "
                "encoder and a decoder, which is what is read of fairseq's models"
            )
        self._weights.ignore(name for name in checkpoint["model"] if name.startswith("classification_heads."))

    def structure(self, positions: int) -> Transformer:
        encoder = self._stack("encoder", self._sides[0], positions)
        decoder = self._stack("decoder", self._sides[1], positions)
        assert isinstance(decoder.embedding, torch.Tensor)
        size = len(decoder.embedding)
        name = self._weights.first(
            "decoder.output_projection.weight", "decoder.embed_out", "decoder.embed_tokens.weight"
        )
        head = self._weights.take(name, size, decoder.width)
        self._weights.refuse_unread()
        layer, n_heads = self._options.number("alignment_layer", -1), self._options.number("alignment_heads", 0)
        n_all = self._options.number("decoder_attention_heads", 8)
        layer += len(decoder.blocks) if layer < 0 else 0
        if not 0 <= layer < len(decoder.blocks) or not 0 <= n_heads <= n_all:
            raise CheckpointError(f"{self._file}: its alignment_layer or alignment_heads is no layer's or head's")
        return Transformer(
            encoder,
            decoder,
            norm_first=self._is_first("encoder"),
            decoder_norm_first=self._is_first("decoder"),
            head=Linear(head),
            alignment_heads=tuple((layer, head) for head in range(n_heads or n_all)),
        )

    def _is_first(self, side: str) -> bool:
        return bool(self._options.get(f"{side}_normalize_before", False))

    def _stack(self, side: str, symbols: list[str], positions: int) -> Stack:
        embedding = self._weights.take(f"{side}.embed_tokens.weight", None, None)
        width = embedding.shape[1]
        if len(embedding) == len(symbols) + 1:
            symbols.append(MASK)
        if len(embedding) != len(symbols):
            raise CheckpointError(
                f"{self._file}: the {side} knows {len(embedding)} symbols, its dictionary {len(symbols)}; put the "
                "dictionaries beside the checkpoint with which it was trained"
            )
        n_layers = 1 + max(int(m[2]) for name in self._weights.names if (m := LAYER.match(name)) and m[1] == side)
        return Stack(
            embedding=embedding,
            embedding_scale=1.0 if self._options.get("no_scale_embedding", False) else width**0.5,
            positions=self._positions(side, width, positions),
            blocks=tuple(self._block(f"{side}.layers.{i}", side, width) for i in range(n_layers)),
            embedding_norm=self._maybe_norm(f"{side}.layernorm_embedding", width),
            final_norm=self._maybe_norm(f"{side}.layer_norm", width),
        )

    def _positions(self, side: str, width: int, positions: int) -> PositionTable | None:
        """Position 0 is the row behind the pad's."""
        if self._options.get("no_token_positional_embeddings", False):
            return None
        if self._options.get(f"{side}_learned_pos", False):
            return PositionTable(self._weights.take(f"{side}.embed_positions.weight", None, width), PAD + 1)
        return PositionTable(sinusoids(positions, width, PAD + 1, self._file))

    def _block(self, scope: str, side: str, width: int) -> Block:
        is_decoder = side == "decoder"
        inner = self._linear(f"{scope}.fc1", None, width)
        return Block(
            self_attention=self._attention(f"{scope}.self_attn", side, width),
            self_norm=self._norm(f"{scope}.self_attn_layer_norm", width),
            cross_attention=self._attention(f"{scope}.encoder_attn", side, width) if is_decoder else None,
            cross_norm=self._norm(f"{scope}.encoder_attn_layer_norm", width) if is_decoder else None,
            feed_forward=FeedForward(
                inner=inner,
                outer=self._linear(f"{scope}.fc2", width, inner.weight.shape[0]),
                activation=self._activation,
            ),
            feed_forward_norm=self._norm(f"{scope}.final_layer_norm", width),
        )

    def _attention(self, scope: str, side: str, width: int) -> Attention:
        n_heads = self._options.number(f"{side}_attention_heads", 8)
        if n_heads < 1 or width % n_heads:
            raise CheckpointError(f"{self._file}: {n_heads} heads don't divide the width {width}; restore it")
        query, key, value, output = (
            self._linear(f"{scope}.{name}_proj", width, width if name in ("q", "out") else None)
            for name in ("q", "k", "v", "out")
        )
        return Attention(query, key, value, output, n_heads=n_heads, scale=(width // n_heads) ** -0.5)

    def _linear(self, scope: str, outputs: int | None, inputs: int | None) -> Linear:
        return self._weights.linear(f"{scope}.weight", f"{scope}.bias", outputs, inputs)

    def _norm(self, scope: str, width: int) -> Norm:
        return self._weights.norm(f"{scope}.weight", f"{scope}.bias", width, EPSILON)

    def _maybe_norm(self, scope: str, width: int) -> Norm | None:
        return self._norm(scope, width) if f"{scope}.weight" in self._weights else None


def _weights(file: Path, checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
    """By today's names. Versions and the tables of sinusoids are left out."""
    model = checkpoint.get("model")
    if not isinstance(model, dict) or not all(isinstance(value, torch.Tensor) for value in model.values()):
        raise CheckpointError(f"{file}: its 'model' is no dictionary of weights; restore the checkpoint")
    found: dict[str, torch.Tensor] = {}
    for name, value in model.items():
        name = name.replace(".emb_layer_norm.", ".layernorm_embedding.")
        if numbered := re.fullmatch(r"((encoder|decoder)\.layers\.\d+)\.layer_norms\.(\d)\.(\w+)", name):
            name = f"{numbered[1]}.{NUMBERED[numbered[2]][int(numbered[3])]}.{numbered[4]}"
        if name.endswith((".version", ".embed_positions._float_tensor", ".embed_positions.weights")):
            continue
        if stacked := re.fullmatch(r"(.*)\.in_proj_(weight|bias)", name):
            if len(value) % 3:
                raise CheckpointError(f"{file}: '{name}' has {len(value)} rows, expected three parts; restore it")
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                found[f"{stacked[1]}.{letter}_proj.{stacked[2]}"] = part
        else:
            found[name] = value
    return found
