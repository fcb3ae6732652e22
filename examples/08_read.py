"""Trains a small reader of numbers on pictures that Pillow draws, exports it, and reads new ones. Two minutes on a CPU.

    python examples/08_read.py [FOLDER]       # where checkpoint, bundle and pictures go; ./numbers if it is left out

The encoder is a ViT whose patches are columns of the picture, the decoder GPT-2's. The bundle then needs neither
PyTorch nor transformers.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image, ImageDraw, ImageFont
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import s2s_export

HEIGHT, WIDTH, PATCH = 24, 64, 4  # pixels
VOCABULARY = ["<s>", "<pad>", "</s>", *"0123456789"]
START, PADDING, END = 0, 1, 2
LONGEST = 4  # digits
N_STEPS, BATCH = 800, 48
MARGIN = 4  # pixels at the left, at most


def draw(number: str, rng: np.random.Generator) -> Any:
    """A picture of a number: any size that is legible, anywhere, on a background that is not quite even."""
    image = Image.new("RGB", (WIDTH, HEIGHT), tuple(int(v) for v in rng.integers(200, 256, 3)))
    font = ImageFont.load_default(size=int(rng.integers(16, 21)))
    place = (int(rng.integers(0, MARGIN + 1)), int(rng.integers(-2, 4)))
    ImageDraw.Draw(image).text(place, number, font=font, fill=tuple(int(v) for v in rng.integers(0, 90, 3)))
    noise = rng.normal(0, 6, (HEIGHT, WIDTH, 1))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def random_number(rng: np.random.Generator) -> str:
    return "".join(str(digit) for digit in rng.integers(0, 10, int(rng.integers(1, LONGEST + 1))))


def model() -> Any:
    encoder = transformers.ViTConfig(
        image_size=(HEIGHT, WIDTH), patch_size=(HEIGHT, PATCH), hidden_size=64, num_hidden_layers=2,
        num_attention_heads=4, intermediate_size=128, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        initializer_range=0.1,
    )  # fmt: skip
    special = {"pad_token_id": PADDING, "bos_token_id": START, "eos_token_id": END, "decoder_start_token_id": START}
    decoder = transformers.GPT2Config(
        vocab_size=len(VOCABULARY), n_embd=64, n_layer=2, n_head=4, n_positions=16, initializer_range=0.1,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, is_decoder=True, add_cross_attention=True, **special,
    )  # fmt: skip
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.update({**special, "tie_word_embeddings": False})
    made = transformers.VisionEncoderDecoderModel(config)
    made.generation_config = transformers.GenerationConfig(max_length=LONGEST + 3, **special)
    return made


def batch(rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    numbers = [random_number(rng) for _ in range(BATCH)]
    pixels = np.stack([np.asarray(draw(number, rng), dtype=np.float32) for number in numbers]) / 255
    labels = np.full((BATCH, LONGEST + 1), -100)
    for row, number in zip(labels, numbers, strict=True):
        ids = [VOCABULARY.index(digit) for digit in number] + [END]
        row[: len(ids)] = ids
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2) * 2 - 1), torch.from_numpy(labels)


def train(reader: Any, rng: np.random.Generator) -> None:
    optimizer = torch.optim.AdamW(reader.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=N_STEPS)
    for step in range(1, N_STEPS + 1):
        pixels, labels = batch(rng)
        loss = reader(pixel_values=pixels, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)


def save(reader: Any, folder: Path) -> None:
    reader.eval().save_pretrained(folder)
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": HEIGHT, "width": WIDTH},
                "image_mean": [0.5] * 3, "image_std": [0.5] * 3}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    letters = Tokenizer(models.WordLevel({token: i for i, token in enumerate(VOCABULARY)}, unk_token="<pad>"))
    letters.pre_tokenizer, letters.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=letters, **special).save_pretrained(folder)


def main(folder: Path) -> None:
    torch.manual_seed(0)
    begin, reader = time.perf_counter(), model()
    train(reader, np.random.default_rng(0))
    print(f"trained in {time.perf_counter() - begin:.0f} s")
    save(reader, folder / "checkpoint")
    s2s_export.export(folder / "checkpoint", folder / "bundle", force=True)
    rng = np.random.default_rng(1)
    numbers = [random_number(rng) for _ in range(200)]
    pictures = [draw(number, rng) for number in numbers]
    session = s2s_export.load(folder / "bundle")
    found = session.read(pictures)
    n_right = sum(a == b for a, b in zip(found, numbers, strict=True))
    pixels = session.kind.prepare([session.check_source(picture) for picture in pictures])["pixel_values"]
    tokens = reader.generate(pixel_values=torch.from_numpy(pixels)).tolist()
    texts = [session.tokenizer.decode(ids) for ids in tokens]
    n_equal = sum(a == b for a, b in zip(found, texts, strict=True))
    for number, picture in list(zip(numbers, pictures, strict=True))[:3]:
        picture.save(folder / f"{number}.png")
        print(f"{number}.png reads {session.read(folder / f'{number}.png')}")
    print(f"{n_right} of {len(numbers)} new pictures read right, {n_equal} as transformers reads them")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "numbers"))
