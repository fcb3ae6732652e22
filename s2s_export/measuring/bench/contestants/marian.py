"""Marian itself (pymarian), in fp32, for models of its own kind: OPUS-MT, and those that it trained.

It reads words, not ids: the model's file is written with a vocabulary of made-up words, one for each id. Marian has no
least length, so a second file, whose end token is never likely, gives outputs of a fixed length.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ....bundle import Bundle
from ..work import Ids
from . import Absent, Choice, Entry, Job, Marks

NAME = "marian"
ENDING, ENDLESS, VOCABULARY, SIZES = "model.npz", "endless.npz", "words.yml", "sizes.json"
SIDES = ("encoder", "decoder")
END = 0  # in every vocabulary of Marian
SPECIAL = {"</s>": END, "<unk>": 1}
WORD_OF = {place: word for word, place in SPECIAL.items()}
NEVER = -1e9
ACTIVATIONS = {"relu": "relu", "silu": "swish", "swish": "swish", "gelu": "gelu"}
PARTS = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "o"}
WORKSPACE = 128  # MiB; it takes more where it needs more
LONGEST = 4096  # tokens of a source
MAXI_BATCH = 100  # of so many batches sources are sorted by length
WHY_TOKENS_DIFFER = (
    "its sinusoids and the epsilon of its norms are not those of transformers' Marian, by which scores differ by about "
    "a thousandth; a search ends where as many outputs as beams are finished, whatever their scores"
)
# What marian-decoder asks of a Transformer's options besides its sizes.
OPTIONS: dict[str, Any] = {
    "type": "transformer", "version": "v1.12.0", "skip": False, "layer-normalization": False, "right-left": False,
    "input-types": [], "tied-embeddings": False, "tied-embeddings-src": False, "output-omit-bias": False,
    "factors-combine": "sum", "factors-dim-emb": 0, "lemma-dim-emb": 0, "lemma-dependency": "",
    "enc-type": "bidirectional", "enc-cell": "gru", "enc-cell-depth": 1,
    "dec-cell": "gru", "dec-cell-base-depth": 2, "dec-cell-high-depth": 1, "dim-rnn": 1024,
    "bert-train-type-embeddings": False, "ulr": False, "ulr-dim-emb": 0, "ulr-trainable-transformation": False,
    "transformer-aan-activation": "swish", "transformer-aan-depth": 2, "transformer-aan-nogate": False,
    "transformer-decoder-autoreg": "self-attention", "transformer-decoder-dim-ffn": 0,
    "transformer-decoder-ffn-depth": 0, "transformer-depth-scaling": False, "transformer-dim-aan": 2048,
    "transformer-ffn-depth": 2, "transformer-guided-alignment-layer": "last", "transformer-no-affine": False,
    "transformer-no-bias": False, "transformer-no-projection": False, "transformer-pool": False,
    "transformer-postprocess": "dan", "transformer-postprocess-emb": "d", "transformer-postprocess-top": "",
    "transformer-preprocess": "", "transformer-rnn-projection": False, "transformer-tied-layers": [],
    "transformer-train-position-embeddings": False,
}  # fmt: skip


def entries(bundle: Bundle, choice: Choice) -> list[Entry]:
    reason = choice.reason_if_for_cpus
    if reason is None and bundle.manifest["model_type"] not in ("marian", "marian-npz"):
        reason = f"decodes Marian's models, and this is a {bundle.manifest['model_type']}"
    return [Entry(NAME, "Marian fp32", "fp32", 4.0, reason=reason)]


def prepare(job: Job, folder: str) -> None:
    _library()
    from ....exporting.checkpoint import open_checkpoint

    model = open_checkpoint(Path(job.need_checkpoint())).load_model()
    if type(model).__name__ != "MarianMTModel":
        raise Absent("only Transformers are written for it, and this model is recurrent")
    config = model.config
    if config.eos_token_id != END or not config.scale_embedding or config.activation_function not in ACTIVATIONS:
        raise Absent("the model's end token, activation or scale of embeddings is not one that Marian has")
    weights, options = _of_model(model)
    sizes = options["dim-vocabs"]
    path = Path(folder)
    weights["special:model.yml"] = np.frombuffer(json.dumps(options).encode() + b"\0", dtype=np.int8)
    np.savez(path / ENDING, **weights)
    weights["decoder_ff_logit_out_b"][0, END] = NEVER
    np.savez(path / ENDLESS, **weights)
    for side, size in zip(("source", "target"), sizes, strict=True):
        words = SPECIAL | {f"w{i}": i for i in range(len(SPECIAL), size)}
        (path / f"{side}.{VOCABULARY}").write_text(json.dumps(words), encoding="utf-8")


def _of_model(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The weights by Marian's names, and its options. The row of the decoder's first token is left out, which Marian
    has not: its decoder begins with zeros."""
    config = model.config
    n_rows = [config.vocab_size, config.decoder_vocab_size or config.vocab_size]
    if config.decoder_start_token_id == n_rows[1] - 1:
        n_rows = [n - 1 for n in n_rows]
    state = {name: value.float().numpy() for name, value in model.state_dict().items()}
    source, target = (state[f"model.{side}.embed_tokens.weight"][:n] for side, n in zip(SIDES, n_rows, strict=True))
    output = state["lm_head.weight"][: n_rows[1]]
    is_tied = n_rows[0] == n_rows[1] and np.array_equal(source, target) and np.array_equal(source, output)
    weights: dict[str, Any] = {"Wemb": source} if is_tied else {
        "encoder_Wemb": source, "decoder_Wemb": target, "decoder_ff_logit_out_W": np.ascontiguousarray(output.T),
    }  # fmt: skip
    weights["decoder_ff_logit_out_b"] = state["final_logits_bias"][:, : n_rows[1]].copy()

    def linear(theirs: str, weight: str, bias: str) -> None:
        weights[weight] = np.ascontiguousarray(state[f"{theirs}.weight"].T)
        weights[bias] = state[f"{theirs}.bias"][None]

    def norm(theirs: str, ours: str) -> None:
        weights[f"{ours}_scale"], weights[f"{ours}_bias"] = (
            state[f"{theirs}.weight"][None],
            state[f"{theirs}.bias"][None],
        )

    for side, layers in zip(SIDES, (model.model.encoder.layers, model.model.decoder.layers), strict=True):
        for i in range(len(layers)):
            theirs, ours = f"model.{side}.layers.{i}", f"{side}_l{i + 1}"
            for attention, name in (("self_attn", "self"), ("encoder_attn", "context"))[: 1 + (side == "decoder")]:
                for part, letter in PARTS.items():
                    linear(f"{theirs}.{attention}.{part}", f"{ours}_{name}_W{letter}", f"{ours}_{name}_b{letter}")
                norm(f"{theirs}.{attention}_layer_norm", f"{ours}_{name}_Wo_ln")
            for number in (1, 2):
                linear(f"{theirs}.fc{number}", f"{ours}_ffn_W{number}", f"{ours}_ffn_b{number}")
            norm(f"{theirs}.final_layer_norm", f"{ours}_ffn_ffn_ln")
    return weights, OPTIONS | {
        "dim-vocabs": n_rows, "dim-emb": config.d_model, "tied-embeddings-all": bool(is_tied),
        "enc-depth": config.encoder_layers, "dec-depth": config.decoder_layers,
        "transformer-heads": config.decoder_attention_heads, "transformer-dim-ffn": config.decoder_ffn_dim,
        "transformer-ffn-activation": ACTIVATIONS[config.activation_function],
    }  # fmt: skip


def _library() -> Any:
    try:
        import _pymarian
    except ImportError as error:
        raise Absent(f"pymarian can't be imported ({error}); pip install pymarian") from error
    return _pymarian


def open(job: Job, folder: str) -> Marian:
    from importlib.metadata import version

    return Marian(_library(), Path(folder), job.threads, {"pymarian": version("pymarian")})


class Marian:
    def __init__(self, library: Any, folder: Path, threads: int, versions: dict[str, str]) -> None:
        self.versions = versions
        self.marks = Marks()
        vocabularies = " ".join(f"{folder}/{side}.{VOCABULARY}" for side in ("source", "target"))
        self._open = lambda name: library.Translator(
            f"--models {folder}/{name} --vocabs {vocabularies} --cpu-threads {threads} --workspace {WORKSPACE} "
            f"--allow-unk --normalize 1 --max-length {LONGEST} --quiet --quiet-translation"
        )
        self._opened: dict[str, Any] = {}

    def decode(self, sources: Sequence[Ids], num_beams: int, new_tokens: int) -> list[Ids]:
        width = len(_words(sources[0])) + 1
        return self._translate(ENDLESS, sources, num_beams, new_tokens, width, len(sources), 1)

    def translate(
        self, sources: Sequence[Ids], num_beams: int, max_new_tokens: int, setting: dict[str, Any]
    ) -> list[Ids]:
        width = min(len(_words(source)) for source in sources) + 1
        found = self._translate(ENDING, sources, num_beams, max_new_tokens, width, setting["mini_batch"], MAXI_BATCH)
        return [ids[:max_new_tokens] for ids in found]

    def _translate(
        self, file: str, sources: Sequence[Ids], num_beams: int, new_tokens: int, width: int, mini: int, maxi: int
    ) -> list[Ids]:
        """width: of a source with its end token, to which Marian's limit of an output's length is relative."""
        if file not in self._opened:
            self._opened[file] = self._open(file)
        options = {
            "beam-size": num_beams, "max-length-factor": (new_tokens - 0.5) / width,
            "mini-batch": mini, "maxi-batch": maxi, "maxi-batch-sort": "src",
        }  # fmt: skip
        lines = self._opened[file].translate([" ".join(_words(source)) for source in sources], **options)
        return [[SPECIAL[word] if word in SPECIAL else int(word[1:]) for word in line.split()] for line in lines]


def _words(source: Ids) -> list[str]:
    """Without the end token, which Marian adds."""
    ids = source[:-1] if source and source[-1] == END else source
    return [WORD_OF.get(i, f"w{i}") for i in ids]


def settings(cores: int) -> list[dict[str, Any]]:
    """Settings to try: workers of one thread, and how many sentences they decode at once."""
    return [{"threads": cores, "mini_batch": size} for size in (16, 32, 64)]
