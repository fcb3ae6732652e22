"""What is transcribed in `s2s bench --audio`: sound, reference texts, settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ....errors import InputError
from ....runtime.audio import files
from ....runtime.audio.log_mel import SAMPLE_RATE
from ....runtime.decoding.state import Floats

BATCH_SIZE = 8  # windows decoded together in the batched mode; faster-whisper's default


@dataclass(frozen=True)
class Sound:
    """samples [L] at 16 kHz. reference: what is said in it, or None."""

    name: str
    samples: Floats
    reference: str | None

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE


@dataclass(frozen=True)
class Setting:
    """language: None lets each system find it. batched: parts with speech side by side, without times."""

    num_beams: int
    batched: bool
    language: str | None = None
    batch_size: int = BATCH_SIZE

    @property
    def label(self) -> str:
        return f"{self.num_beams} beam{'s' * (self.num_beams > 1)}{', batched' * self.batched}"


def sounds(names: Sequence[str]) -> list[Sound]:
    """Each file, with the text in NAME.txt beside NAME.wav as its reference. Raises InputError."""
    found = []
    for name in names:
        text = Path(name).with_suffix(".txt")
        try:
            reference = text.read_text(encoding="utf-8") if text.is_file() else None
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{text}: can't be read as the text of {Path(name).name} ({error})") from None
        found.append(Sound(Path(name).name, files.read(name), reference))
    return found


def settings(num_beams: Sequence[int], batched: bool, language: str | None) -> list[Setting]:
    return [Setting(n, side, language) for side in ((False, True) if batched else (False,)) for n in num_beams]
