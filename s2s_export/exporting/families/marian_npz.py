"""Marian's own files: a folder with a model's .npz and its vocabularies (1804.00344), decoded as marian-decoder does.

The weights are read into transformers' Marian, with what differs put right: Marian's first token has a zero embedding
and no logit, its norms have a smaller epsilon, and its sinusoids another base. The zero row is one more token, which
is the decoder's start and is never chosen. Recurrent models are in `toolkits/marian_rnn.py`.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import CheckpointError, UnsupportedModel
from ..parity import TransformersReference
from ..tokenizers.reference import unknown_of, write_sentencepiece
from ..tokenizers.write import write_tokenizer as write_checkpoint_tokenizer
from ..toolkits import marian_rnn, recurrent
from ..toolkits.plain import ToolkitModel
from . import Family
from .marian import describe as describe_marian

MODEL_TYPES = ("marian-npz",)
OPTIONS = "special:model.yml"
UNKNOWN = "<unk>"
END = 0  # </s> in every vocabulary of Marian
NEVER = -1e4  # its exp is 0 in fp32, and fp16 holds it
POSITIONS = 1024  # of the tables of sinusoids, which Marian computes; more by `stretch`
EPSILON = 1e-9
# What numpy raises for a damaged file.
DAMAGED = (OSError, ValueError, KeyError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error)
# Options whose other values are other models, with the value that is read.
EXPECTED: dict[str, tuple[Any, ...]] = {
    "type": ("transformer",),
    "transformer-preprocess": ("",),
    "transformer-postprocess": ("dan",),
    "transformer-postprocess-emb": ("d", ""),
    "transformer-postprocess-top": ("",),
    "transformer-decoder-autoreg": ("self-attention",),
    "transformer-ffn-depth": (2,),
    "transformer-ffn-activation": ("relu", "swish", "gelu"),
    "transformer-train-position-embeddings": (False,),
    "transformer-no-projection": (False,),
    "transformer-depth-scaling": (False,),
    "transformer-rnn-projection": (False,),
    "transformer-decoder-dim-ffn": (0,),
    "transformer-decoder-ffn-depth": (0,),
    "transformer-tied-layers": ([],),
    "lemma-dim-emb": (0,),
    "ulr": (False,),
}
ATTENTION = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}


def recognise(folder: Path) -> dict[str, Any] | None:
    """The configuration of a folder that has one .npz with Marian's options in it; None for other folders."""
    files = sorted(folder.glob("*.npz"))
    if not files:
        return None
    if len(files) > 1:
        raise CheckpointError(f"{folder}: has {len(files)} .npz files; leave the one that is to be exported")
    return {"model_type": MODEL_TYPES[0], "file": files[0].name, "options": _options(files[0])}


def load_model(path: Path, config: dict[str, Any]) -> Any:
    import transformers

    options = config["options"]
    if options.get("type") in marian_rnn.TYPES:
        module = marian_rnn.build(path, options, _weights(path / config["file"]), END)
        special = {"pad": module.config.pad_token_id, "eos": END, "decoder_start": module.config.bos_token_id}
        defaults = {f"{name}_token_id": value for name, value in special.items()}
        return ToolkitModel(module, {**defaults, "suppress_tokens": _suppressed(path)})
    for name, known in EXPECTED.items():
        if (found := options.get(name, known[0])) not in known:
            shown = " or ".join(repr(value) for value in known)
            raise UnsupportedModel(f"{path}: Marian's option {name} is {found!r}; expected {shown}")
    weights = _weights(path / config["file"])
    source, target = (_embedding(path, weights, side) for side in ("encoder", "decoder"))
    heads, inner = options["transformer-heads"], options["transformer-dim-ffn"]
    sizes = transformers.MarianConfig(
        vocab_size=len(source) + 1,
        decoder_vocab_size=len(target) + 1,
        share_encoder_decoder_embeddings=False,
        tie_word_embeddings=False,
        d_model=source.shape[1],
        encoder_layers=options["enc-depth"],
        decoder_layers=options["dec-depth"],
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=inner,
        decoder_ffn_dim=inner,
        activation_function=options["transformer-ffn-activation"],
        scale_embedding=True,
        max_position_embeddings=POSITIONS,
        pad_token_id=min(len(source), len(target)),  # masked, and a row of both tables
        eos_token_id=END,
        decoder_start_token_id=len(target),
        forced_eos_token_id=None,
        attn_implementation="eager",
    )
    model = transformers.MarianMTModel(sizes).eval()
    taken = _Taken(path, weights)
    with torch.no_grad():
        for side, table in ((model.model.encoder, source), (model.model.decoder, target)):
            side.embed_tokens.weight.copy_(_with_zero_row(table))
        model.lm_head.weight.copy_(_with_zero_row(_output(path, weights, target)))
        model.final_logits_bias[0, -1] = NEVER
        if (bias := weights.get("decoder_ff_logit_out_b")) is not None:
            model.final_logits_bias[0, :-1] = bias.reshape(-1)
        for side, name in ((model.model.encoder, "encoder"), (model.model.decoder, "decoder")):
            for i, layer in enumerate(side.layers, start=1):
                taken.layer(layer, f"{name}_l{i}")
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.eps = EPSILON
    stretch(model, POSITIONS)
    model.generation_config.suppress_tokens = _suppressed(path)
    return model


def stretch(model: Any, positions: int) -> None:
    """Give both sides Marian's sinusoids for at least `positions` positions; recurrent models have none."""
    if isinstance(model, ToolkitModel):
        return
    positions = max(positions, POSITIONS)
    width = model.config.d_model
    step = math.log(10000.0) / (width / 2 - 1)
    angles = torch.arange(positions)[:, None].float() * torch.exp(torch.arange(width // 2).float() * -step)
    table = torch.cat([angles.sin(), angles.cos()], dim=1)
    for side in (model.model.encoder, model.model.decoder):
        side.embed_positions.weight = torch.nn.Parameter(table, requires_grad=False)
    model.config.max_position_embeddings = positions


def describe(model: Any) -> Family:
    return recurrent.family(MODEL_TYPES[0], model) if isinstance(model, ToolkitModel) else describe_marian(model)


def Reference(model: Any) -> Any:  # noqa: N802
    return recurrent.reference_of(model) if isinstance(model, ToolkitModel) else TransformersReference(model)


def write_tokenizer(path: Path, folder: Path) -> dict[str, Any] | None:
    """The manifest's entry. Vocabularies are sentencepiece models, or lists (.yml) of the pieces of source.spm and
    target.spm as OPUS-MT has them; None for lists alone, which split no text.
    """
    lists = [found for file in sorted(path.glob("*.yml")) if (found := _pieces(file))]
    models = sorted(path.glob("*.spm"))
    if lists:
        sides = [path / "source.spm", path / "target.spm"]
        return _write_lists(lists, sides, folder) if all(side.is_file() for side in sides) else None
    if not models:
        return None
    if len(models) > 2:
        raise CheckpointError(f"{path}: has {len(models)} .spm files; leave the source's and the target's")
    target = models[1] if len(models) == 2 else None
    return write_sentencepiece(models[0], folder, eos_id=END, target_model=target)


def _suppressed(path: Path) -> list[int] | None:
    """The unknown token of the target's vocabulary, which marian-decoder never gives without --allow-unk."""
    lists = [found for file in sorted(path.glob("*.yml")) if (found := _pieces(file))]
    if lists:
        return [lists[-1][UNKNOWN]] if UNKNOWN in lists[-1] else None
    models = sorted(path.glob("*.spm"))
    unknown = unknown_of(models[-1]) if models else None
    return None if unknown is None else [unknown]


def _pieces(file: Path) -> dict[str, int]:
    """A vocabulary's ids by piece; empty for another file, such as decoder.yml."""
    import yaml

    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CheckpointError(f"{file}: not readable as YAML ({str(error).splitlines()[0]}); restore it") from error
    return found if isinstance(found, dict) and found.get("</s>") == END else {}


def _write_lists(lists: list[dict[str, int]], models: list[Path], folder: Path) -> dict[str, Any] | None:
    """By transformers' Marian tokenizer, which has these parts under other names."""
    with tempfile.TemporaryDirectory() as name:
        made = Path(name)
        source, target = lists[0], lists[-1]
        separate = source != target
        vocabularies = {"vocab.json": source} | ({"target_vocab.json": target} if separate else {})
        for file, pieces in vocabularies.items():
            whole = {"<pad>": max(pieces.values()) + 1} | pieces
            (made / file).write_text(json.dumps(whole, ensure_ascii=False), encoding="utf-8")
        for model in models:
            shutil.copyfile(model, made / model.name)
        settings = {"tokenizer_class": "MarianTokenizer", "separate_vocabs": separate}
        (made / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        return write_checkpoint_tokenizer(made, folder)


def _options(file: Path) -> dict[str, Any]:
    import yaml

    with _arrays(file) as arrays:
        if OPTIONS not in arrays.files:
            raise CheckpointError(f"{file}: has no {OPTIONS}; expected a model that Marian wrote")
        try:
            options = yaml.safe_load(bytes(arrays[OPTIONS]).split(b"\0")[0].decode("utf-8"))
        except (UnicodeDecodeError, yaml.YAMLError) as error:
            raise ValueError(f"{OPTIONS}: {error}") from error
    if not isinstance(options, dict):
        raise CheckpointError(f"{file}: its {OPTIONS} holds no options; expected a model that Marian wrote")
    return options


def _weights(file: Path) -> dict[str, torch.Tensor]:
    with _arrays(file) as arrays:
        return {name: torch.from_numpy(arrays[name].astype(np.float32)) for name in arrays.files if name != OPTIONS}


@contextmanager
def _arrays(file: Path) -> Iterator[Any]:
    """The arrays of an .npz file. Raises CheckpointError where it is damaged, also for what is read of it inside."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            yield arrays
    except DAMAGED as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{file}: can't be read as a model of Marian ({said}); restore it") from error


def _embedding(path: Path, weights: dict[str, torch.Tensor], side: str) -> torch.Tensor:
    found = weights.get("Wemb", weights.get(f"{side}_Wemb"))
    if found is None and side == "decoder":
        found = weights.get("encoder_Wemb")
    if found is None:
        raise CheckpointError(f"{path}: the weights lack Wemb and {side}_Wemb; restore the model")
    return found


def _output(path: Path, weights: dict[str, torch.Tensor], target: torch.Tensor) -> torch.Tensor:
    """[V, E]: a matrix of its own, or the target's embedding."""
    if (own := weights.get("decoder_ff_logit_out_Wt")) is not None:
        return own
    own = weights.get("decoder_ff_logit_out_W")
    return target if own is None else own.T


def _with_zero_row(table: torch.Tensor) -> torch.Tensor:
    return torch.cat([table, table.new_zeros(1, table.shape[1])])


class _Taken:
    """Copies Marian's weights into transformers' modules. Marian's matrices are [in, out], its vectors [1, n]."""

    def __init__(self, path: Path, weights: dict[str, torch.Tensor]) -> None:
        self._path, self._weights = path, weights

    def layer(self, layer: Any, name: str) -> None:
        self._attention(layer.self_attn, layer.self_attn_layer_norm, f"{name}_self")
        if hasattr(layer, "encoder_attn"):
            self._attention(layer.encoder_attn, layer.encoder_attn_layer_norm, f"{name}_context")
        for number, linear in ((1, layer.fc1), (2, layer.fc2)):
            self._linear(linear, f"{name}_ffn_W{number}", f"{name}_ffn_b{number}")
        self._norm(layer.final_layer_norm, f"{name}_ffn_ffn_ln")

    def _attention(self, module: Any, norm: Any, name: str) -> None:
        for letter, part in ATTENTION.items():
            self._linear(getattr(module, part), f"{name}_W{letter}", f"{name}_b{letter}")
        self._norm(norm, f"{name}_Wo_ln")

    def _linear(self, linear: Any, weight: str, bias: str) -> None:
        self._copy(linear.weight, weight, transposed=True)
        self._copy(linear.bias, bias)

    def _norm(self, norm: Any, name: str) -> None:
        self._copy(norm.weight, f"{name}_scale")
        self._copy(norm.bias, f"{name}_bias")

    def _copy(self, parameter: torch.Tensor, name: str, *, transposed: bool = False) -> None:
        found = self._weights.get(name)
        if found is None:
            raise CheckpointError(f"{self._path}: the weights lack {name}; restore the model")
        value = found.T if transposed else found.reshape(-1)
        if value.shape != parameter.shape:
            raise CheckpointError(
                f"{self._path}: {name} has shape {list(found.shape)}, and its options say {list(parameter.shape)}"
            )
        parameter.copy_(value)
