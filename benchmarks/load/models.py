"""What is served: models with random weights that copy their source, so that every system does the same work and every
answer can be checked; with an engine for our server and a conversion for CTranslate2.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import s2s_export
from s2s_export.building.build import build
from s2s_export.measuring.bench.contestants import Job, ctranslate2
from s2s_export.measuring.bench.random_models import MAKERS

TARGET = "cpu-int8"
SIZES = {"opus": False, "small": True}  # whether the maker makes a small one
SOURCES = "sources.json"
N_TRIED = 256
MOST_NEW_TOKENS = 64  # of every request: those of equal options may be decoded together
LENGTHS = (4, 48)  # of sources, in tokens with the end token
FIRST_WORD = 3  # ids below may be special


@dataclass(frozen=True)
class Served:
    """A prepared model. vocabulary: without the padding token, which is last."""

    name: str
    folder: Path

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle"

    @property
    def converted(self) -> Path:
        return self.folder / "ctranslate2"

    @property
    def vocabulary(self) -> int:
        return int(json.loads((self.checkpoint / "config.json").read_text())["vocab_size"]) - 1

    def job(self) -> Job:
        options = {"compute_type": "int8", "device": "cpu"}
        return Job(ctranslate2.NAME, str(self.bundle), str(self.checkpoint), 1, options)

    def sources(self) -> list[list[int]]:
        found: list[list[int]] = json.loads((self.folder / SOURCES).read_text())
        return found


def prepare(folder: Path, name: str) -> Served:
    """Make what is not there yet."""
    served = Served(name, folder / name)
    if not served.checkpoint.exists():
        MAKERS["opus-mt"](served.checkpoint, SIZES[name])
    if not served.bundle.exists():
        s2s_export.export(served.checkpoint, served.bundle, force=True)
    build(served.bundle, TARGET)
    if not served.converted.exists():
        served.converted.mkdir()
        ctranslate2.prepare(served.job(), str(served.converted))
    if not (served.folder / SOURCES).exists():
        (served.folder / SOURCES).write_text(json.dumps(_copied(served)))
    return served


def _copied(served: Served) -> list[list[int]]:
    """Random sources of mixed lengths, each with the end token, that both systems copy when they decode it alone: in
    int8 a few come out otherwise."""
    chance = random.Random(1)
    sources = [
        [*(chance.randrange(FIRST_WORD, served.vocabulary) for _ in range(chance.randint(*LENGTHS) - 1)), 0]
        for _ in range(N_TRIED)
    ]
    session = s2s_export.load(served.bundle, "onnxruntime", TARGET, threads=1)
    theirs = ctranslate2.open(served.job(), str(served.converted))
    found = []
    for source in sources:
        [[ours]] = session.generate([source], num_beams=4, max_new_tokens=MOST_NEW_TOKENS)
        if ours.token_ids[1:] == source and theirs.decode([source], 4, len(source) - 1)[0] == source[:-1]:
            found.append(source)
    return found
