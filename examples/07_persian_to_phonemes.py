"""A module of one's own: Persian spelling to phonemes with the package g2p-fa, a two-layer LSTM encoder-decoder.

    pip install --no-deps g2p-fa
    python examples/07_persian_to_phonemes.py [--bundle FOLDER] [WORD...]

The package's modules are used as they are, inside three functions. It pads every word to 30 letters and lets the
encoder read the padding, so a source here is all 30 ids.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import s2s_export

LETTERS = "ءآئابتثجحخدذرزسشصضطظعغفقلمنهوُِپچژکگی"
PHONEMES = "bdefhijklmnopqstuvxzæɒɡɾʃʒʔʰː"
PAD, START, END, FIRST = 0, 1, 2, 3
LENGTH = 30
CONFIG = s2s_export.ModuleConfig(
    decoder_start_token_id=START, eos_token_id=END, pad_token_id=PAD, source_vocabulary_size=41,
    max_source_length=LENGTH, max_target_length=LENGTH, name="g2p-fa",
)  # fmt: skip


class States(NamedTuple):
    hidden: Tensor  # [B, layers, units]
    cell: Tensor


class Speller(nn.Module):
    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def encode(self, input_ids: Tensor, source_mask: Tensor) -> States:
        return States(*(state.transpose(0, 1) for state in self.encoder(input_ids.T)))

    def start(self, memory: States) -> States:
        return memory

    def step(self, token: Tensor, state: States) -> tuple[Tensor, States, None]:
        hidden, cell = (value.transpose(0, 1).contiguous() for value in state)
        logits, hidden, cell = self.decoder(token, hidden, cell)
        return logits, States(hidden.transpose(0, 1), cell.transpose(0, 1)), None


def module() -> Speller:
    package = importlib.util.find_spec("g2p_fa")
    if package is None or package.origin is None:
        raise SystemExit("the package g2p-fa is not installed; pip install --no-deps g2p-fa")
    folder = Path(package.origin).parent
    classes = _module_of(folder / "model.py")
    sizes = _module_of(folder / "hparams.py").hparams
    common = (sizes["HID_DIM"], sizes["N_LAYERS"])
    encoder = classes.Encoder(sizes["INPUT_DIM"], sizes["ENC_EMB_DIM"], *common, sizes["ENC_DROPOUT"])
    decoder = classes.Decoder(sizes["OUTPUT_DIM"], sizes["DEC_EMB_DIM"], *common, sizes["DEC_DROPOUT"])
    speller = Speller(encoder, decoder)
    speller.load_state_dict(torch.load(folder / "data" / "weights", map_location="cpu", weights_only=True))
    return speller


def _module_of(path: Path) -> Any:
    """A file of the package, without what the package imports for training."""
    spec = importlib.util.spec_from_file_location(f"g2p_fa_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found
    spec.loader.exec_module(found)
    return found


def ids_of(word: str) -> list[int]:
    ids = [START, *(LETTERS.find(letter) + FIRST for letter in word), END]
    return ids + [PAD] * (LENGTH - len(ids))


def phonemes_of(ids: list[int]) -> str:
    return "".join(PHONEMES[i - FIRST] for i in ids[1:] if i != END)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, help="where to write the bundle, by default a temporary folder")
    parser.add_argument("words", nargs="*", default=["سلام", "کتاب", "زبان"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = arguments.bundle or Path(folder) / "g2p-fa"
        s2s_export.export_module(module(), CONFIG, bundle, force=True)
        session = s2s_export.load(bundle)
        for word, found in zip(
            arguments.words, session.generate(list(map(ids_of, arguments.words)), num_beams=4), strict=True
        ):
            print(f"{word:20} {phonemes_of(list(found[0].token_ids))}")


if __name__ == "__main__":
    main()
