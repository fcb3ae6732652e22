"""A module of one's own: English spelling to phonemes with the weights of the package g2p-en, a GRU encoder-decoder.

    pip install --no-deps g2p-en
    python examples/05_spelling_to_phonemes.py [--bundle FOLDER] [WORD...]

The package computes a word at a time in numpy. Here its weights go into three functions, and the bundle decodes batches
of words, with beams if one likes.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import s2s_export

LETTERS = ["<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz"]
CONSONANTS = (
    "B", "CH", "D", "DH", "F", "G", "HH", "JH", "K", "L", "M", "N", "NG", "P", "R", "S", "SH", "T", "TH", "UW", "V",
    "W", "Y", "Z", "ZH",
)  # fmt: skip
VOWELS = ("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW")
PHONEMES = [
    "<pad>", "<unk>", "<s>", "</s>",
    *sorted(
        [f"{vowel}{stress}" for vowel in VOWELS for stress in "012"]
        + list(CONSONANTS)
    ),
]  # fmt: skip
CONFIG = s2s_export.ModuleConfig(
    decoder_start_token_id=PHONEMES.index("<s>"),
    eos_token_id=PHONEMES.index("</s>"),
    source_vocabulary_size=len(LETTERS),
    max_target_length=21,  # <s> and 20 phonemes, as the package
    name="g2p-en",
)


class Hidden(NamedTuple):
    hidden: Tensor  # [B, 256]


class Speller(nn.Module):
    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        super().__init__()
        width, units = weights["enc_emb"].shape[1], weights["enc_w_hh"].shape[1]
        self.letters = nn.Embedding(*weights["enc_emb"].shape)
        self.phonemes = nn.Embedding(*weights["dec_emb"].shape)
        self.encoder = nn.GRU(width, units, batch_first=True)
        self.decoder = nn.GRUCell(width, units)
        self.output = nn.Linear(units, len(weights["fc_b"]))
        names = {
            "letters.weight": "enc_emb",
            "phonemes.weight": "dec_emb",
            "output.weight": "fc_w",
            "output.bias": "fc_b",
        }
        for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            short = part.replace("weight", "w").replace("bias", "b")
            names |= {f"encoder.{part}_l0": f"enc_{short}", f"decoder.{part}": f"dec_{short}"}
        self.load_state_dict({own: torch.from_numpy(weights[theirs]) for own, theirs in names.items()})

    def encode(self, input_ids: Tensor, source_mask: Tensor) -> Hidden:
        letters = self.letters(input_ids)
        packed = pack_padded_sequence(letters, source_mask.sum(1).cpu(), batch_first=True, enforce_sorted=False)
        return Hidden(self.encoder(packed)[1][0])

    def start(self, memory: Hidden) -> Hidden:
        return memory

    def step(self, token: Tensor, state: Hidden) -> tuple[Tensor, Hidden, None]:
        hidden = self.decoder(self.phonemes(token), state.hidden)
        return self.output(hidden), Hidden(hidden), None


def module() -> Speller:
    package = importlib.util.find_spec("g2p_en")
    if package is None or package.origin is None:
        raise SystemExit("the package g2p-en is not installed; pip install --no-deps g2p-en")
    with np.load(Path(package.origin).parent / "checkpoint20.npz") as weights:
        return Speller(dict(weights))


def ids_of(word: str) -> list[int]:
    return [LETTERS.index(letter) if letter in LETTERS else 1 for letter in word] + [LETTERS.index("</s>")]


def phonemes_of(ids: list[int]) -> list[str]:
    return [PHONEMES[i] for i in ids[1:] if i != CONFIG.eos_token_id]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, help="where to write the bundle, by default a temporary folder")
    parser.add_argument("words", nargs="*", default=["activationist", "bundle", "transliterate"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = arguments.bundle or Path(folder) / "g2p-en"
        s2s_export.export_module(module(), CONFIG, bundle, force=True)
        session = s2s_export.load(bundle)
        for word, found in zip(
            arguments.words, session.generate(list(map(ids_of, arguments.words)), num_beams=4), strict=True
        ):
            print(f"{word:20} {' '.join(phonemes_of(list(found[0].token_ids)))}")


if __name__ == "__main__":
    main()
