"""Tiny random models that read pictures, by the names of their encoder and decoder and of a switch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

VOCABULARY = 61
PADDING, START, END = 1, 0, 2
HALVES = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}

FLAT: dict[str, Any] = dict(
    image_size=16, patch_size=4, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40,
    initializer_range=0.2, layer_norm_eps=1e-5,
)  # fmt: skip
WINDOWS: dict[str, Any] = dict(
    image_size=(24, 32), patch_size=2, embed_dim=12, depths=[2, 2], num_heads=[2, 3], window_size=4,
    initializer_range=0.2,
)  # fmt: skip
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViT", FLAT),
    "vit-wide": ("ViT", {**FLAT, "image_size": (16, 22), "qkv_bias": False, "hidden_act": "relu"}),
    "deit": ("DeiT", FLAT),
    "beit": ("Beit", {**FLAT, "use_relative_position_bias": True, "layer_scale_init_value": 0.7}),
    "beit-shared": ("Beit", {**FLAT, "use_shared_relative_position_bias": True, "use_mean_pooling": False}),
    "beit-both": ("Beit", {**FLAT, "use_shared_relative_position_bias": True, "use_relative_position_bias": True,
                           "use_absolute_position_embeddings": True, "layer_scale_init_value": 0.0}),
    "swin": ("Swin", WINDOWS),
    "swin-odd": ("Swin", {**WINDOWS, "image_size": (21, 33), "window_size": 5}),
    "swin-absolute": ("Swin", {**WINDOWS, "image_size": (22, 34), "use_absolute_embeddings": True}),
    "swin-one-window": ("Swin", {**WINDOWS, "image_size": 16, "window_size": 4, "qkv_bias": False}),
    "donut-swin": ("DonutSwin", WINDOWS),
    "donut-swin-odd": ("DonutSwin", {**WINDOWS, "image_size": (26, 22), "depths": [2, 2, 1], "num_heads": [2, 3, 2],
                                     "window_size": 3}),
}  # fmt: skip
BART: dict[str, Any] = dict(
    d_model=24, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=36, max_position_embeddings=32,
    init_std=0.3,
)  # fmt: skip
BERT: dict[str, Any] = dict(
    hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40, max_position_embeddings=32,
    initializer_range=0.3,
)  # fmt: skip
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "trocr": ("TrOCR", {**BART, "cross_attention_hidden_size": 24}),
    "trocr-computed": ("TrOCR", {**BART, "use_learned_position_embeddings": False, "layernorm_embedding": False,
                                 "scale_embedding": True, "activation_function": "relu"}),
    "mbart": ("MBart", BART),
    "mbart-scaled": ("MBart", {**BART, "scale_embedding": True}),
    "bart": ("Bart", BART),
    "bert": ("Bert", BERT),
    "bert-wide": ("Bert", {**BERT, "hidden_size": 32}),
    "roberta": ("Roberta", BERT),
    "gpt2": ("GPT2", {**BERT, "hidden_size": 32}),
}  # fmt: skip


def config(encoder: str, decoder: str) -> Any:
    special = {"pad_token_id": PADDING, "bos_token_id": START, "eos_token_id": END}
    name, options = ENCODERS[encoder]
    source = getattr(transformers, f"{name}Config")(**options)
    name, options = DECODERS[decoder]
    options = dict(options)
    if "cross_attention_hidden_size" in options:
        options["cross_attention_hidden_size"] = source.hidden_size
    target = getattr(transformers, f"{name}Config")(
        vocab_size=VOCABULARY, is_decoder=True, add_cross_attention=True, **special, **options
    )
    made = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(source, target)
    made.update({"decoder_start_token_id": START, **special, "tie_word_embeddings": False})
    return made


def make(encoder: str = "vit", decoder: str = "trocr", seed: int = 0) -> Any:
    """Every weight is drawn, those too that transformers leaves at zero or one."""
    torch.manual_seed(seed)
    model = transformers.VisionEncoderDecoderModel(config(encoder, decoder)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 or "position" in name or name.endswith("_token"):
                parameter += 0.2 * torch.randn_like(parameter)
    model.generation_config = transformers.GenerationConfig(
        decoder_start_token_id=START, pad_token_id=PADDING, bos_token_id=START, eos_token_id=END, max_length=20
    )
    return model


def save(folder: Path, encoder: str = "vit", decoder: str = "trocr", seed: int = 0, **processor: Any) -> Path:
    """processor: of preprocessor_config.json; a ViT's of the model's size if there is none."""
    model = make(encoder, decoder, seed)
    model.save_pretrained(folder)
    size = model.encoder.config.image_size
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": height, "width": width}, **HALVES}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor or settings))
    return folder


def write_tokenizer(folder: Path) -> None:
    """Letters, so that outputs are texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    names = ["<s>", "<pad>", "</s>", *(chr(ord("A") + i) for i in range(VOCABULARY - 3))]
    made = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.decoder = decoders.Fuse()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    fast.save_pretrained(folder)


def picture(seed: int, height: int = 40, width: int = 60) -> Any:
    """uint8 [height, width, 3]: coarse noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return np.kron(coarse, np.ones((4, 4, 1), np.uint8))[:height, :width]
