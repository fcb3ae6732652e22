"""Tiny random encoders of every family that `s2s encode` runs, with each kind of head, and tokenizers for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

WORDS = (
    "the", "a", "cat", "dog", "house", "sat", "ran", "is", "was", "on", "in", "red", "small", "very", "good", "bad",
    "not", "i", "you", "he", "it", ".", ",", "!", "?",
)  # fmt: skip
LABELS = {0: "bad", 1: "good", 2: "neither"}


def _config(name: str, **options: Any) -> Any:
    sizes: dict[str, Any] = dict(
        vocab_size=61, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40,
        max_position_embeddings=48, initializer_range=0.3, pad_token_id=0, type_vocab_size=2,
    )  # fmt: skip
    return getattr(transformers, f"{name}Config")(**(sizes | options))


def _distilbert(**options: Any) -> Any:
    return transformers.DistilBertConfig(
        vocab_size=61, dim=24, n_layers=2, n_heads=3, hidden_dim=40, max_position_embeddings=48, pad_token_id=0,
        initializer_range=0.3, **options,
    )  # fmt: skip


def _modernbert(**options: Any) -> Any:
    return _config(
        "ModernBert", num_hidden_layers=4, intermediate_size=20, local_attention=6, bos_token_id=1, eos_token_id=2,
        cls_token_id=1, sep_token_id=2, **options,
    )  # fmt: skip


_DEBERTA: dict[str, Any] = dict(
    relative_attention=True, position_biased_input=False, pos_att_type=["p2c", "c2p"], max_relative_positions=-1,
    type_vocab_size=0,
)  # fmt: skip
CONFIGS: dict[str, Callable[[], Any]] = {
    "bert": lambda: _config("Bert"),
    "bert-relu": lambda: _config("Bert", hidden_act="relu", num_attention_heads=2),
    "roberta": lambda: _config("Roberta", pad_token_id=1, bos_token_id=0, eos_token_id=2),
    "xlm-roberta": lambda: _config("XLMRoberta", pad_token_id=1, bos_token_id=0, eos_token_id=2, type_vocab_size=1),
    "camembert": lambda: _config("Camembert", pad_token_id=1, bos_token_id=0, eos_token_id=2, type_vocab_size=1),
    "distilbert": _distilbert,
    "mpnet": lambda: _config("MPNet", pad_token_id=1, bos_token_id=0, eos_token_id=2),
    "deberta-v2": lambda: _config("DebertaV2", **_DEBERTA, share_att_key=True, position_buckets=8,
                                  norm_rel_ebd="layer_norm"),
    "deberta-v2-own-keys": lambda: _config("DebertaV2", **_DEBERTA, share_att_key=False),
    "deberta-v2-one-term": lambda: _config("DebertaV2", **(_DEBERTA | {
        "pos_att_type": ["c2p"], "position_biased_input": True, "type_vocab_size": 2})),
    "electra": lambda: _config("Electra", embedding_size=12),
    "electra-equal": lambda: _config("Electra", embedding_size=24, hidden_act="relu"),
    "albert": lambda: _config("Albert", embedding_size=12, num_hidden_layers=3, hidden_act="gelu_new"),
    "albert-groups": lambda: _config("Albert", embedding_size=24, num_hidden_layers=2, num_hidden_groups=2,
                                     inner_group_num=2),
    "modernbert": lambda: _modernbert(),
    "modernbert-biases": lambda: _modernbert(
        norm_bias=True, attention_bias=True, mlp_bias=True, classifier_bias=True, classifier_pooling="mean",
        hidden_activation="relu", classifier_activation="silu", global_attn_every_n_layers=2),
    "deberta-v2-absolute": lambda: _config("DebertaV2", relative_attention=False, position_biased_input=True),
}  # fmt: skip
HEADS = ("", "ForSequenceClassification", "ForTokenClassification")


def make(name: str, head: str = "", seed: int = 0, **options: Any) -> Any:
    """A random model. head: the end of its class's name; "" for the encoder's states."""
    torch.manual_seed(seed)
    config = CONFIGS[name]()
    if head:
        config.update({"id2label": LABELS, "label2id": {name: i for i, name in LABELS.items()}, **options})
    model = getattr(transformers, f"AutoModel{head}").from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith(("bias", "LayerNorm.weight", "layer_norm.weight", "norm.weight")):
                parameter += 0.2 * torch.randn_like(parameter)
    return model


def save(name: str, folder: Path, head: str = "", **options: Any) -> Path:
    make(name, head, **options).save_pretrained(folder)
    return folder


def save_tokenizer(folder: Path) -> None:
    """BERT's kind of tokenizer, with the 61 words of the tiny models."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    words += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"] + list("bdghk")
    vocabulary = {word: i for i, word in enumerate(words)}
    transformers.BertTokenizer(vocab=vocabulary, do_lower_case=True, model_max_length=48).save_pretrained(folder)


def save_modules(folder: Path, pooling: dict[str, Any], *, normalize: bool = False, **more: Any) -> None:
    """What sentence-transformers writes beside a checkpoint. more: max_seq_length, prompts, default_prompt_name."""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=False))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    width = {"word_embedding_dimension": 24}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(width | pooling))
    length = more.pop("max_seq_length", 32)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": length, "do_lower_case": False}))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(more))
