"""Random configurations of every family: sizes, switches, special tokens and generation defaults are drawn.

`FAMILIES` has a function for each, which draws a configuration of transformers. Not every one is valid there: whoever
uses them asks transformers first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
import transformers

from s2s_export.exporting.graphs.layers import KNOWN_ACTIVATIONS

Options = dict[str, Any]


@dataclass(frozen=True)
class Drawn:
    """A configuration, the generation options of the checkpoint, and transformers' class that loads it."""

    config: Any
    generation: Options
    auto_class: str = "AutoModelForSeq2SeqLM"

    @property
    def reads_text(self) -> bool:
        return self.auto_class in ("AutoModelForSeq2SeqLM", "AutoModelForCausalLM")

    @property
    def is_decoder_alone(self) -> bool:
        return self.auto_class == "AutoModelForCausalLM"

    def model(self, seed: int) -> Any:
        """Weights are drawn, those too that transformers leaves at zero or one."""
        torch.manual_seed(seed)
        cls = getattr(transformers, self.auto_class)
        model = (cls.from_config if hasattr(cls, "from_config") else cls)(self.config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter += 0.2 * torch.randn_like(parameter)
            bias = getattr(model, "final_logits_bias", None)
            if bias is not None:
                bias[...] = 0.5 * torch.randn_like(bias)
        for name, value in self.generation.items():
            setattr(model.generation_config, name, value)
        return model


def draw(family: str, seed: int) -> Drawn:
    return FAMILIES[family](Random(f"{family} {seed}"))


def _activation(chance: Random, *likely: str) -> str:
    return chance.choice([*likely, *likely, *KNOWN_ACTIVATIONS])


def _heads(chance: Random, width: int) -> int:
    return chance.choice([n for n in (1, 2, 3, 4, 6, 8) if width % n == 0])


def _maybe(chance: Random, options: dict[str, Callable[[], Any]], likelihood: float = 0.5) -> Options:
    return {name: value() for name, value in options.items() if chance.random() < likelihood}


def _specials(chance: Random, vocabulary: int) -> Options:
    """Special tokens in any place."""
    pad, bos, eos, other = chance.sample(range(vocabulary), 4)
    return {
        "pad_token_id": pad, "bos_token_id": bos, "eos_token_id": eos,
        "decoder_start_token_id": chance.choice([pad, bos, eos, other]),
    }  # fmt: skip


def _generation(chance: Random, vocabulary: int, config: Any) -> Options:
    """What a generation_config.json may hold; ids that config.json has move there in part."""
    token = lambda: chance.randrange(vocabulary)  # noqa: E731
    found = _maybe(
        chance,
        {
            "num_beams": lambda: chance.choice([2, 3, 5]),
            "max_length": lambda: chance.randint(4, 14),
            "min_length": lambda: chance.randint(1, 4),
            "length_penalty": lambda: chance.choice([0.6, 2.0, -0.5]),
            "early_stopping": lambda: chance.choice([True, "never"]),
            "no_repeat_ngram_size": lambda: chance.choice([1, 2, 3]),
            "encoder_no_repeat_ngram_size": lambda: 3,
            "repetition_penalty": lambda: chance.choice([0.8, 1.4]),
            "forced_bos_token_id": token,
            "forced_eos_token_id": lambda: chance.choice([token(), [token(), token()]]),
            "bad_words_ids": lambda: [[token()], [token(), token()]],
            "suppress_tokens": lambda: [token(), token()],
            "begin_suppress_tokens": lambda: [token()],
            "renormalize_logits": lambda: True,
            "exponential_decay_length_penalty": lambda: (2, 1.3),
            "use_cache": lambda: False,
        },
        0.12,
    )  # fmt: skip
    if chance.random() < 0.2:
        found["eos_token_id"] = [config.eos_token_id if isinstance(config.eos_token_id, int) else token(), token()]
    if {"length_penalty", "early_stopping"} & found.keys():
        found.setdefault("num_beams", 2)
    if {"forced_bos_token_id", "suppress_tokens"} <= found.keys():
        del found["suppress_tokens"]
    return found


def _bart_like(name: str, **own: Callable[[Random], Any]) -> Callable[[Random], Drawn]:
    """own: the family's switches, each a function that draws its value."""

    def drawn(chance: Random) -> Drawn:
        vocabulary, width = chance.choice([37, 61, 80]), chance.choice([16, 24, 30, 48])
        options: Options = {
            "vocab_size": vocabulary,
            "d_model": width,
            "encoder_layers": chance.randint(1, 3),
            "decoder_layers": chance.randint(1, 3),
            "encoder_attention_heads": _heads(chance, width),
            "decoder_attention_heads": _heads(chance, width),
            "encoder_ffn_dim": chance.choice([20, 32, 40, 64]),
            "decoder_ffn_dim": chance.choice([20, 32, 36, 64]),
            "max_position_embeddings": chance.choice([24, 33, 64]),
            "activation_function": _activation(chance, "gelu", "relu"),
            "scale_embedding": chance.random() < 0.5,
            "tie_word_embeddings": chance.random() < 0.7,
            "init_std": chance.choice([0.15, 0.3]),
            **_specials(chance, vocabulary),
        }
        if chance.random() < 0.3:
            options |= {"forced_eos_token_id": options["eos_token_id"]}
        if chance.random() < 0.1:
            options |= {"use_cache": False}
        options |= {key: value(chance) for key, value in own.items()}
        made = getattr(transformers, f"{name}Config")(**options)
        generation = _generation(chance, vocabulary, made)
        return _moved_start(chance, Drawn(made, generation))

    return drawn


def _moved_start(chance: Random, drawn: Drawn) -> Drawn:
    """Perhaps decoder_start_token_id stands in generation_config.json alone."""
    config = drawn.config
    if chance.random() < 0.3:
        start = config.decoder_start_token_id
        config.decoder_start_token_id = chance.randrange(10)  # generation_config.json is what counts
        return Drawn(config, {**drawn.generation, "decoder_start_token_id": start}, drawn.auto_class)
    return drawn


def _marian(chance: Random) -> Drawn:
    drawn = _bart_like("Marian")(chance)
    config = drawn.config
    if chance.random() < 0.4:
        options = config.to_dict() | {"share_encoder_decoder_embeddings": False}
        if chance.random() < 0.6:
            specials = [
                config.pad_token_id,
                config.eos_token_id,
                config.decoder_start_token_id or 0,
                config.bos_token_id,
            ]
            smallest = max(specials) + 1
            options["decoder_vocab_size"] = max(smallest, config.vocab_size - 7)
        else:
            options["decoder_vocab_size"] = config.vocab_size
        return Drawn(type(config).from_dict(options), {}, drawn.auto_class)
    return drawn


def _prophetnet(chance: Random) -> Drawn:
    """transformers decodes with no other padding than 0, and no more layers in the decoder than in the encoder."""
    vocabulary, width, n_layers = chance.choice([37, 61]), chance.choice([16, 24, 48]), chance.randint(1, 3)
    specials = {**_specials(chance, vocabulary), "pad_token_id": 0}
    config = transformers.ProphetNetConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_encoder_layers=n_layers,
        num_decoder_layers=chance.randint(1, n_layers),
        num_encoder_attention_heads=_heads(chance, width),
        num_decoder_attention_heads=_heads(chance, width),
        encoder_ffn_dim=chance.choice([20, 40]),
        decoder_ffn_dim=chance.choice([20, 36]),
        max_position_embeddings=chance.choice([24, 33, 64]),
        ngram=chance.randint(1, 3),
        num_buckets=chance.choice([4, 8, 32]),
        relative_max_distance=chance.choice([12, 20, 128]),
        activation_function=_activation(chance, "gelu", "relu"),
        tie_word_embeddings=chance.random() < 0.7,
        init_std=chance.choice([0.15, 0.3]),
        **specials,
    )
    return _moved_start(chance, Drawn(config, _generation(chance, vocabulary, config)))


def _t5_like(name: str, **own: Callable[[Random], Any]) -> Callable[[Random], Drawn]:
    def drawn(chance: Random) -> Drawn:
        vocabulary = chance.choice([37, 61, 80])
        inner = _activation(chance, "relu", "gelu")
        specials = _specials(chance, vocabulary)
        options: Options = {
            "vocab_size": vocabulary,
            "d_model": chance.choice([16, 24, 30]),
            "d_kv": chance.choice([4, 6, 8, 16]),
            "d_ff": chance.choice([20, 32, 48]),
            "num_layers": chance.randint(1, 3),
            "num_decoder_layers": chance.choice([None, 1, 2, 3]),
            "num_heads": chance.choice([1, 2, 3, 5]),
            "relative_attention_num_buckets": chance.choice([4, 8, 12, 32]),
            "relative_attention_max_distance": chance.choice([9, 12, 20, 128]),
            "layer_norm_epsilon": chance.choice([1e-6, 1e-3]),
            "feed_forward_proj": chance.choice([inner, f"gated-{inner}"]),
            "tie_word_embeddings": chance.random() < 0.6,
            "initializer_factor": chance.choice([0.7, 1.0, 1.5]),
            **specials,
        }
        options |= {key: value(chance) for key, value in own.items()}
        made = getattr(transformers, f"{name}Config")(**options)
        return _moved_start(chance, Drawn(made, _generation(chance, vocabulary, made)))

    return drawn


def _switch(chance: Random) -> Drawn:
    drawn = _t5_like(
        "SwitchTransformers",
        num_decoder_layers=lambda c: c.randint(1, 3),
        num_experts=lambda c: c.choice([2, 3, 5]),
        expert_capacity=lambda c: c.choice([2, 4, 64]),
        num_sparse_encoder_layers=lambda c: c.choice([0, 1, 1]),
        num_sparse_decoder_layers=lambda c: c.choice([0, 1, 1]),
        router_bias=lambda c: c.random() < 0.5,
        dense_act_fn=lambda c: _activation(c, "relu"),
    )(chance)
    return drawn


BERT_LIKE = {"Bert": {}, "Roberta": {}, "XLMRoberta": {}, "Camembert": {}}


def _pair(chance: Random) -> Drawn:
    vocabulary, target_vocabulary = chance.choice([37, 61]), chance.choice([41, 61])
    specials = _specials(chance, 37)
    start = specials.pop("decoder_start_token_id")

    def side(vocabulary: int) -> Options:
        width = chance.choice([16, 24, 40])
        return dict(
            vocab_size=vocabulary, hidden_size=width, num_hidden_layers=chance.randint(1, 3),
            num_attention_heads=_heads(chance, width), intermediate_size=chance.choice([20, 32]),
            max_position_embeddings=chance.choice([64, 80]), initializer_range=chance.choice([0.15, 0.3]),
            layer_norm_eps=chance.choice([1e-12, 1e-5]), type_vocab_size=chance.choice([1, 2]), **specials,
        )  # fmt: skip

    source = getattr(transformers, f"{chance.choice(list(BERT_LIKE))}Config")(
        **side(vocabulary), hidden_act=_activation(chance, "gelu")
    )
    target = _text_decoder(chance, side(target_vocabulary))
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(source, target)
    config.update({"decoder_start_token_id": start, **specials, "tie_word_embeddings": False})
    generation = {"decoder_start_token_id": start, **specials, **_generation(chance, target_vocabulary, target)}
    return Drawn(config, generation)


def _text_decoder(chance: Random, sizes: Options) -> Any:
    name = chance.choice([*BERT_LIKE, "GPT2", "GPT2", "Bart", "MBart", "TrOCR"])
    common: Options = {"is_decoder": True, "add_cross_attention": True}
    if name in BERT_LIKE:
        return getattr(transformers, f"{name}Config")(
            **sizes, **common, hidden_act=_activation(chance, "gelu"), tie_word_embeddings=chance.random() < 0.6
        )
    specials = {key: value for key, value in sizes.items() if key.endswith("token_id")}
    if name == "GPT2":
        return transformers.GPT2Config(
            vocab_size=sizes["vocab_size"], n_embd=sizes["hidden_size"], n_layer=sizes["num_hidden_layers"],
            n_head=sizes["num_attention_heads"], n_positions=sizes["max_position_embeddings"], **specials, **common,
            n_inner=chance.choice([None, 24]), activation_function=_activation(chance, "gelu_new"),
            scale_attn_by_inverse_layer_idx=chance.random() < 0.4, scale_attn_weights=chance.random() < 0.7,
            reorder_and_upcast_attn=chance.random() < 0.2, tie_word_embeddings=chance.random() < 0.6,
            initializer_range=0.3,
        )  # fmt: skip
    own = {"use_learned_position_embeddings": chance.random() < 0.5, "layernorm_embedding": chance.random() < 0.5}
    return getattr(transformers, f"{name}Config")(
        vocab_size=sizes["vocab_size"], d_model=sizes["hidden_size"], decoder_layers=sizes["num_hidden_layers"],
        decoder_attention_heads=sizes["num_attention_heads"], decoder_ffn_dim=sizes["intermediate_size"],
        max_position_embeddings=sizes["max_position_embeddings"], scale_embedding=chance.random() < 0.5,
        activation_function=_activation(chance, "gelu"), init_std=0.3, **specials, **common,
        **(own if name == "TrOCR" else {}),
    )  # fmt: skip


def _side(chance: Random, specials: Options) -> Options:
    """Sizes of a text decoder for an encoder of another kind."""
    width = chance.choice([16, 24, 40])
    return dict(
        vocab_size=61, hidden_size=width, num_hidden_layers=chance.randint(1, 3),
        num_attention_heads=_heads(chance, width), intermediate_size=chance.choice([20, 32]),
        max_position_embeddings=64, initializer_range=0.3, layer_norm_eps=1e-5, type_vocab_size=1, **specials,
    )  # fmt: skip


def _vision(chance: Random) -> Drawn:
    specials = _specials(chance, 41)
    start = specials.pop("decoder_start_token_id")
    width = chance.choice([24, 32])
    flat: Options = dict(
        image_size=chance.choice([16, (16, 22), (20, 12)]), patch_size=chance.choice([4, 5]), hidden_size=width,
        num_hidden_layers=chance.randint(1, 3), num_attention_heads=_heads(chance, width), qkv_bias=_bool(chance),
        intermediate_size=chance.choice([20, 40]), initializer_range=0.2, hidden_act=_activation(chance, "gelu"),
        layer_norm_eps=chance.choice([1e-12, 1e-5]),
    )  # fmt: skip
    name = chance.choice(["ViT", "DeiT", "Beit", "Swin", "DonutSwin"])
    if name == "Beit":
        flat |= {
            "use_relative_position_bias": _bool(chance), "use_shared_relative_position_bias": _bool(chance),
            "use_absolute_position_embeddings": _bool(chance), "use_mean_pooling": _bool(chance),
            "layer_scale_init_value": chance.choice([0.0, 0.7]),
        }  # fmt: skip
    if name.endswith("Swin"):
        n = chance.choice([1, 2, 3])
        flat = dict(
            image_size=chance.choice([16, (24, 32), (21, 33), (32, 22)]), patch_size=chance.choice([1, 2]),
            embed_dim=chance.choice([12, 24]), depths=[chance.choice([1, 2]) for _ in range(n)],
            num_heads=[chance.choice([1, 2, 3]) for _ in range(n)], window_size=chance.choice([2, 3, 4]),
            initializer_range=0.2, mlp_ratio=chance.choice([2.0, 4.0]), qkv_bias=_bool(chance),
            hidden_act=_activation(chance, "gelu"), use_absolute_embeddings=chance.random() < 0.2,
        )  # fmt: skip
    source = getattr(transformers, f"{name}Config")(**flat)
    return _with_decoder(chance, "Vision", source, start, specials)


def _with_decoder(chance: Random, kind: str, source: Any, start: int, specials: Options) -> Drawn:
    target = _text_decoder(chance, _side(chance, specials))
    config = getattr(transformers, f"{kind}EncoderDecoderConfig").from_encoder_decoder_configs(source, target)
    config.update({"decoder_start_token_id": start, **specials, "tie_word_embeddings": False})
    generation = {"decoder_start_token_id": start, **specials, **_generation(chance, 61, target)}
    generation.pop("encoder_no_repeat_ngram_size", None)
    return Drawn(config, {"max_length": 16, **generation}, f"{kind}EncoderDecoderModel")


def _speech(chance: Random) -> Drawn:
    specials = _specials(chance, 41)
    start = specials.pop("decoder_start_token_id")
    width = chance.choice([24, 32])
    source = getattr(transformers, chance.choice(["Wav2Vec2Config", "HubertConfig"]))(
        hidden_size=width, num_hidden_layers=chance.randint(1, 3), num_attention_heads=_heads(chance, width),
        intermediate_size=chance.choice([20, 40]), conv_dim=(16, 16, 12), conv_kernel=(10, 5, 3),
        conv_stride=(5, 4, chance.choice([2, 4])), num_feat_extract_layers=3, initializer_range=0.3,
        num_conv_pos_embeddings=chance.choice([7, 8, 16]), num_conv_pos_embedding_groups=chance.choice([1, 4]),
        apply_spec_augment=False, feat_extract_norm=chance.choice(["group", "layer"]), conv_bias=_bool(chance),
        do_stable_layer_norm=_bool(chance), feat_extract_activation=_activation(chance, "gelu"),
        hidden_act=_activation(chance, "gelu"),
    )  # fmt: skip
    return _with_decoder(chance, "Speech", source, start, specials)


def _moonshine(chance: Random) -> Drawn:
    heads = chance.choice([1, 2, 4])
    specials = _specials(chance, 37)
    config = transformers.MoonshineConfig(
        vocab_size=37, hidden_size=heads * chance.choice([8, 10, 16]), intermediate_size=chance.choice([32, 48]),
        encoder_num_hidden_layers=chance.randint(1, 3), decoder_num_hidden_layers=chance.randint(1, 3),
        encoder_num_attention_heads=heads, decoder_num_attention_heads=heads, max_position_embeddings=64,
        initializer_range=0.3, attention_bias=_bool(chance), encoder_hidden_act=_activation(chance, "gelu"),
        decoder_hidden_act=_activation(chance, "silu"), pad_head_dim_to_multiple_of=chance.choice([None, 8]),
        tie_word_embeddings=_bool(chance), **specials,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0,
                         "partial_rotary_factor": chance.choice([0.5, 0.62, 0.9, 1.0])},
    )  # fmt: skip
    return Drawn(config, {"max_length": 16}, "MoonshineForConditionalGeneration")


def _speech_to_text(chance: Random) -> Drawn:
    width, specials = chance.choice([16, 24, 48]), _specials(chance, 37)
    n = chance.choice([1, 2, 3])
    config = transformers.Speech2TextConfig(
        vocab_size=37, d_model=width, encoder_layers=chance.randint(1, 3), decoder_layers=chance.randint(1, 3),
        encoder_attention_heads=_heads(chance, width), decoder_attention_heads=_heads(chance, width),
        encoder_ffn_dim=chance.choice([20, 32]), decoder_ffn_dim=chance.choice([20, 32]), num_conv_layers=n,
        conv_kernel_sizes=[chance.choice([3, 5]) for _ in range(n)], conv_channels=chance.choice([16, 32]),
        input_feat_per_channel=chance.choice([8, 12]), input_channels=1, scale_embedding=_bool(chance),
        max_source_positions=400, max_target_positions=64, activation_function=_activation(chance, "relu"),
        init_std=0.3, tie_word_embeddings=_bool(chance), **specials,
    )  # fmt: skip
    return Drawn(config, {"max_length": 16}, "Speech2TextForConditionalGeneration")


def _pix2struct(chance: Random) -> Drawn:
    heads, size = chance.choice([1, 2, 3]), chance.choice([4, 8])
    pad, end, start = chance.sample(range(61), 3)
    config = transformers.Pix2StructConfig(
        vision_config=dict(
            hidden_size=heads * size, patch_embed_hidden_size=48, d_ff=chance.choice([20, 40]),
            d_kv=chance.choice([4, 8]), num_hidden_layers=chance.randint(1, 3), num_attention_heads=heads, seq_len=64,
            dense_act_fn=_activation(chance, "gelu_new"), layer_norm_eps=chance.choice([1e-6, 1e-3]),
        ),
        text_config=dict(
            vocab_size=61, hidden_size=heads * size, d_kv=size, d_ff=chance.choice([20, 36]),
            num_layers=chance.randint(1, 3), num_heads=heads, dense_act_fn=_activation(chance, "gelu_new"),
            relative_attention_num_buckets=chance.choice([4, 8, 32]), pad_token_id=pad, eos_token_id=end,
            relative_attention_max_distance=chance.choice([9, 20, 128]), decoder_start_token_id=start,
        ),
        initializer_range=0.2, tie_word_embeddings=_bool(chance),
    )  # fmt: skip
    return Drawn(config, {"max_length": 16}, "Pix2StructForConditionalGeneration")


def _t5gemma_side(chance: Random, vocabulary: int, specials: Options) -> Options:
    heads = chance.choice([2, 4, 6])
    return dict(
        vocab_size=vocabulary, hidden_size=heads * chance.choice([4, 6, 8]), head_dim=chance.choice([4, 6, 8]),
        intermediate_size=chance.choice([20, 40]), num_hidden_layers=chance.randint(1, 3), num_attention_heads=heads,
        num_key_value_heads=chance.choice([n for n in (1, 2, 3, 4, 6) if heads % n == 0]), max_position_embeddings=64,
        query_pre_attn_scalar=chance.choice([4, 6, 16]), sliding_window=chance.choice([2, 3, 5, 4096]),
        final_logit_softcapping=chance.choice([None, 5.0, 30.0]),
        attn_logit_softcapping=chance.choice([None, 2.0, 50.0]), attention_bias=chance.random() < 0.5,
        hidden_activation=_activation(chance, "gelu_pytorch_tanh"), rms_norm_eps=chance.choice([1e-6, 1e-3]),
        **specials,
    )  # fmt: skip


def _t5gemma(chance: Random) -> Drawn:
    vocabulary = chance.choice([37, 61])
    specials = _specials(chance, vocabulary)
    start = specials.pop("decoder_start_token_id")
    encoder, decoder = (_t5gemma_side(chance, vocabulary, specials) for _ in range(2))
    for name in ("head_dim", "num_attention_heads", "num_key_value_heads", "attention_bias"):
        if chance.random() < 0.7:
            decoder[name] = encoder[name]
    if decoder["num_attention_heads"] % decoder["num_key_value_heads"]:
        decoder["num_key_value_heads"] = decoder["num_attention_heads"]
    config = transformers.T5GemmaConfig(
        encoder=encoder, decoder=decoder, vocab_size=vocabulary, decoder_start_token_id=start, initializer_range=0.3,
        tie_word_embeddings=chance.random() < 0.6, **specials,
    )  # fmt: skip
    return _moved_start(chance, Drawn(config, _generation(chance, vocabulary, config)))


def _t5gemma2(chance: Random) -> Drawn:
    vocabulary = chance.choice([37, 61])
    specials = _specials(chance, vocabulary - 4)
    start = specials.pop("decoder_start_token_id")
    side = _t5gemma_side(chance, vocabulary, specials) | {"sliding_window_pattern": chance.choice([1, 2, 3])}
    picture: Options = dict(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=8, patch_size=4
    )
    encoder = {"text_config": dict(side), "vision_config": picture, "mm_tokens_per_image": 4}
    decoder = dict(side) | {"num_hidden_layers": chance.randint(1, 3)}
    config = transformers.T5Gemma2Config(
        encoder=encoder, decoder=decoder, eoi_token_index=vocabulary - 2, image_token_index=vocabulary - 1,
        decoder_start_token_id=start, initializer_range=0.3, **specials,
    )  # fmt: skip
    return _moved_start(chance, Drawn(config, _generation(chance, vocabulary, config)))


def _decoder(name: str, **own: Callable[[Random], Any]) -> Callable[[Random], Drawn]:
    def drawn(chance: Random) -> Drawn:
        vocabulary, heads = chance.choice([37, 61]), chance.choice([2, 4, 6])
        specials = _specials(chance, vocabulary)
        del specials["decoder_start_token_id"]
        options: Options = dict(
            vocab_size=vocabulary, hidden_size=heads * chance.choice([4, 8]), num_hidden_layers=chance.randint(1, 3),
            num_attention_heads=heads, num_key_value_heads=chance.choice([n for n in (1, 2, 3, 6) if heads % n == 0]),
            intermediate_size=chance.choice([20, 40]), max_position_embeddings=64, initializer_range=0.3,
            tie_word_embeddings=chance.random() < 0.5, **specials,
        )  # fmt: skip
        if chance.random() < 0.4:
            options["pad_token_id"] = None
        if chance.random() < 0.3:
            options["bos_token_id"] = None
        if chance.random() < 0.2:
            options["eos_token_id"] = chance.sample(range(vocabulary), 2)
        for key, value in own.items():
            if (found := value(chance)) is not None:
                options[key] = found
        made = getattr(transformers, f"{name}Config")(**options)
        generation = _generation(chance, vocabulary, made)
        for unfit in ("forced_bos_token_id", "max_length", "encoder_no_repeat_ngram_size"):
            generation.pop(unfit, None)
        return Drawn(made, generation, "AutoModelForCausalLM")

    return drawn


def _gpt2(chance: Random) -> Drawn:
    drawn = _decoder("Llama")(chance)
    config = drawn.config
    made = transformers.GPT2Config(
        vocab_size=config.vocab_size, n_embd=config.hidden_size, n_layer=config.num_hidden_layers,
        n_head=config.num_attention_heads, n_positions=64, n_inner=chance.choice([None, 24]),
        activation_function=_activation(chance, "gelu_new"), scale_attn_by_inverse_layer_idx=chance.random() < 0.5,
        scale_attn_weights=chance.random() < 0.7, reorder_and_upcast_attn=chance.random() < 0.2,
        tie_word_embeddings=config.tie_word_embeddings, initializer_range=0.3, pad_token_id=config.pad_token_id,
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id,
    )  # fmt: skip
    return Drawn(made, drawn.generation, drawn.auto_class)


def _rope(chance: Random) -> Options | None:
    theta = chance.choice([100.0, 10000.0])
    return chance.choice(
        [
            None,
            {"rope_type": "default", "rope_theta": theta},
            {"rope_type": "linear", "rope_theta": theta, "factor": 4.0},
            {"rope_type": "llama3", "rope_theta": theta, "factor": 4.0, "low_freq_factor": 1.0,
             "high_freq_factor": 4.0, "original_max_position_embeddings": 16},
            {"rope_type": "yarn", "rope_theta": theta, "factor": 4.0, "original_max_position_embeddings": 16},
        ]
    )  # fmt: skip


def _partial(chance: Random) -> Options | None:
    part = chance.choice([None, 0.5, 1.0])
    return None if part is None else {"rope_type": "default", "rope_theta": 1000.0, "partial_rotary_factor": part}


def _bool(chance: Random) -> bool:
    return chance.random() < 0.5


def _any(*values: Any) -> Callable[[Random], Any]:
    return lambda chance: chance.choice(values)


def _act(*likely: str) -> Callable[[Random], str]:
    return lambda chance: _activation(chance, *likely)


FAMILIES: dict[str, Callable[[Random], Drawn]] = {
    "bart": _bart_like("Bart"),
    "mbart": _bart_like("MBart"),
    "marian": _marian,
    "m2m_100": _bart_like("M2M100"),
    "pegasus": _bart_like("Pegasus"),
    "plbart": _bart_like("PLBart"),
    "mvp": _bart_like("Mvp"),
    "prophetnet": _prophetnet,
    "blenderbot": _bart_like("Blenderbot"),
    "blenderbot-small": _bart_like("BlenderbotSmall"),
    "led": _bart_like(
        "LED", max_encoder_position_embeddings=_any(32, 48), max_decoder_position_embeddings=_any(30, 40),
        attention_window=_any(2, 4, 8),
    ),
    "bigbird_pegasus": _bart_like(
        "BigBirdPegasus", attention_type=_any("block_sparse", "original_full"), block_size=_any(2, 4),
        num_random_blocks=_any(1, 2), use_bias=_bool,
    ),
    "fsmt": _bart_like(
        "FSMT", langs=_any(["en", "de"]), src_vocab_size=_any(80, 90), tgt_vocab_size=_any(80, 95),
    ),
    "t5": _t5_like("T5", scale_decoder_outputs=_any(True, False)),
    "mt5": _t5_like("MT5"),
    "umt5": _t5_like("UMT5"),
    "longt5": _t5_like(
        "LongT5", local_radius=_any(1, 2, 3, 127), global_block_size=_any(2, 4, 16),
        encoder_attention_type=_any("local", "transient-global"),
    ),
    "switch_transformers": _switch,
    "encoder-decoder": _pair,
    "vision-encoder-decoder": _vision,
    "speech-encoder-decoder": _speech,
    "moonshine": _moonshine,
    "speech_to_text": _speech_to_text,
    "pix2struct": _pix2struct,
    "t5gemma": _t5gemma,
    "t5gemma2": _t5gemma2,
    "gpt2": _gpt2,
    "llama": _decoder("Llama", attention_bias=_bool, mlp_bias=_bool, head_dim=_any(None, 6, 8), rope_parameters=_rope,
                      hidden_act=_act("silu"), rms_norm_eps=_any(1e-6, 1e-3), pretraining_tp=_any(1, 2)),
    "mistral": _decoder("Mistral", head_dim=_any(None, 6), sliding_window=_any(None, 2, 5), rope_parameters=_rope,
                        hidden_act=_act("silu")),
    "qwen2": _decoder("Qwen2", use_sliding_window=_bool, sliding_window=_any(2, 4), max_window_layers=_any(0, 1, 2),
                      rope_parameters=_rope, hidden_act=_act("silu")),
    "qwen3": _decoder("Qwen3", head_dim=_any(4, 8), attention_bias=_bool, use_sliding_window=_bool,
                      sliding_window=_any(2, 4), max_window_layers=_any(0, 1, 2), rope_parameters=_rope),
    "gemma": _decoder("Gemma", head_dim=_any(4, 8), attention_bias=_bool, hidden_act=_act("gelu_pytorch_tanh")),
    "gemma2": _decoder("Gemma2", head_dim=_any(4, 8), attention_bias=_bool, query_pre_attn_scalar=_any(4, 16),
                       sliding_window=_any(2, 4, 64), final_logit_softcapping=_any(30.0, 5.0),
                       attn_logit_softcapping=_any(50.0, 2.0), hidden_activation=_act("gelu_pytorch_tanh")),
    "phi": _decoder("Phi", hidden_size=_any(24, 48), num_attention_heads=_any(2, 3), num_key_value_heads=_any(1, None),
                    qk_layernorm=_bool, hidden_act=_act("gelu_new"), rope_parameters=_partial),
    "phi3": _decoder("Phi3", sliding_window=_any(None, 3), rope_parameters=_partial, hidden_act=_act("silu")),
}  # fmt: skip


def _encoder(name: str, **own: Callable[[Random], Any]) -> Callable[[Random], Any]:
    def drawn(chance: Random) -> Any:
        width = chance.choice([16, 24, 40])
        specials = _specials(chance, 37)
        options: Options = dict(
            vocab_size=37, hidden_size=width, num_hidden_layers=chance.randint(1, 3),
            num_labels=chance.choice([1, 2, 5]), num_attention_heads=_heads(chance, width),
            intermediate_size=chance.choice([20, 40]), initializer_range=0.3,
            max_position_embeddings=chance.choice([64, 80]), hidden_act=_activation(chance, "gelu"),
            layer_norm_eps=chance.choice([1e-12, 1e-5, 1e-3]), type_vocab_size=chance.choice([1, 2, 3]),
            pad_token_id=specials["pad_token_id"], bos_token_id=specials["bos_token_id"],
        )  # fmt: skip
        options |= {key: value(chance) for key, value in own.items()}
        return getattr(transformers, f"{name}Config")(**options)

    return drawn


def _distilbert(chance: Random) -> Any:
    width = chance.choice([16, 24])
    return transformers.DistilBertConfig(
        vocab_size=37, dim=width, n_layers=chance.randint(1, 3), n_heads=_heads(chance, width), hidden_dim=32,
        max_position_embeddings=64, pad_token_id=chance.randrange(37), initializer_range=0.3,
        activation=_activation(chance, "gelu"), sinusoidal_pos_embds=_bool(chance),
    )  # fmt: skip


ENCODERS: dict[str, Callable[[Random], Any]] = {
    "bert": _encoder("Bert"),
    "roberta": _encoder("Roberta", pad_token_id=_any(0, 1, 5)),
    "xlm-roberta": _encoder("XLMRoberta", pad_token_id=_any(0, 1, 5)),
    "camembert": _encoder("Camembert", pad_token_id=_any(0, 1)),
    "mpnet": _encoder("MPNet", pad_token_id=_any(1), relative_attention_num_buckets=_any(32)),
    "electra": _encoder("Electra", embedding_size=_any(12, 24, 40)),
    "albert": _encoder("Albert", embedding_size=_any(12, 24), num_hidden_layers=_any(2, 4),
                       num_hidden_groups=_any(1, 2), inner_group_num=_any(1, 2), classifier_dropout_prob=_any(0.1)),
    "modernbert": _encoder(
        "ModernBert", norm_bias=_bool, attention_bias=_bool, mlp_bias=_bool, classifier_bias=_bool,
        classifier_pooling=_any("cls", "mean"), hidden_activation=_act("gelu"), classifier_activation=_act("gelu"),
        global_attn_every_n_layers=_any(1, 2, 3), local_attention=_any(2, 6, 128), norm_eps=_any(1e-5, 1e-3),
        eos_token_id=_any(2), cls_token_id=_any(1), sep_token_id=_any(2), num_hidden_layers=_any(2, 3, 4),
        num_attention_heads=_any(1, 2, 4),
    ),
    "deberta-v2": _encoder(
        "DebertaV2", relative_attention=_bool, position_biased_input=_bool, share_att_key=_bool,
        pos_att_type=_any(["p2c", "c2p"], ["c2p"], ["p2c"], []), max_relative_positions=_any(-1, 5, 40),
        position_buckets=_any(-1, 4, 8), norm_rel_ebd=_any("none", "layer_norm"), type_vocab_size=_any(0, 2),
        pooler_hidden_act=_act("gelu"),
    ),
    "distilbert": _distilbert,
}  # fmt: skip
