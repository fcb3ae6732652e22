"""Where somebody speaks: Silero's network where its file is installed, else how loud the sound is.

Silero's VAD (MIT) comes in the package silero-vad, of which the ONNX file alone is used, so that
`pip install --no-deps silero-vad` is enough; and in faster-whisper.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..audio.log_mel import SAMPLE_RATE
from ..decoding.state import Floats

FRAME = 512  # samples of one decision
CONTEXT = 64  # samples before a frame that Silero's network sees too
STATE = 128
FILES = (("silero_vad", "data/silero_vad.onnx"),)
QUIETEST = 1e-3  # RMS, -60 dB of full scale: below it a frame is silence whatever else the sound holds
BELOW_LOUDEST = 0.02  # of the RMS of loud frames (their 95th percentile): 34 dB below speech

Region = tuple[int, int]  # first sample, and the one behind the last


@dataclass(frozen=True)
class Rules:
    """How decisions become regions. Seconds; the values are faster-whisper's.

    threshold: probability from which a frame is speech; it ends below threshold - 0.15.
    """

    threshold: float = 0.5
    least_speech: float = 0.0
    least_silence: float = 2.0
    padding: float = 0.4
    most_speech: float = float("inf")


def regions(samples: Floats, rules: Rules = Rules()) -> list[Region]:
    """The parts of samples [L] in which somebody speaks, padded, in order, without overlaps."""
    return cut(probabilities(samples), len(samples), rules)


def probabilities(samples: Floats) -> Floats:
    """Of speech, for each frame of 32 ms; 0 or 1 where only loudness decides."""
    path = silero()
    return _loudness(samples) if path is None else _silero(samples, path)


def is_silent(samples: Floats) -> bool:
    """Whether no frame is louder than -60 dB of full scale."""
    return bool(_rms(samples).max(initial=0.0) < QUIETEST)


def loud_seconds(samples: Floats) -> float:
    """How long the sound is that is no quieter than 34 dB below its loudest parts."""
    return float(_loudness(samples).sum()) * FRAME / SAMPLE_RATE


def silero() -> Path | None:
    """The file of Silero's network."""
    for package, name in FILES:
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            if (path := Path(folder) / name).is_file():
                return path
    return None


@functools.lru_cache(maxsize=1)
def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])


def _silero(samples: Floats, path: Path) -> Floats:
    session = _session(path)
    state = np.zeros((2, 1, STATE), np.float32)
    rate = np.array(SAMPLE_RATE, np.int64)
    n_frames = -(-len(samples) // FRAME)
    padded = np.pad(samples, (CONTEXT, n_frames * FRAME - len(samples)))
    found = np.empty(n_frames, np.float32)
    for i in range(n_frames):
        part = padded[None, i * FRAME : (i + 1) * FRAME + CONTEXT]
        output, state = session.run(None, {"input": part, "state": state, "sr": rate})
        found[i] = output[0, 0]
    return found


def _rms(samples: Floats) -> NDArray[np.float32]:
    n_frames = -(-len(samples) // FRAME)
    framed = np.pad(samples, (0, n_frames * FRAME - len(samples))).reshape(n_frames, FRAME)
    found: NDArray[np.float32] = np.sqrt(np.square(framed).mean(axis=1))
    return found


def _loudness(samples: Floats) -> Floats:
    rms = _rms(samples)
    if not len(rms):
        return rms
    least = max(QUIETEST, BELOW_LOUDEST * float(np.percentile(rms, 95)))
    return (rms >= least).astype(np.float32)


def cut(probability: Floats, n_samples: int, rules: Rules) -> list[Region]:
    """Frames -> regions of samples."""
    found: list[list[int]] = []
    is_on, last = False, 0
    gap = int(rules.least_silence * SAMPLE_RATE)
    longest = rules.most_speech * SAMPLE_RATE
    for i, p in enumerate(probability.tolist()):
        at = i * FRAME
        if p >= rules.threshold:
            if not is_on:
                found.append([at, at + FRAME])
                is_on = True
            last = at + FRAME
            found[-1][1] = last
        elif is_on and p < rules.threshold - 0.15 and at - last >= gap:
            is_on = False
        if is_on and found[-1][1] - found[-1][0] >= longest:
            is_on = False
    padding = int(rules.padding * SAMPLE_RATE)
    padded: list[Region] = []
    for start, end in found:
        if end - start < rules.least_speech * SAMPLE_RATE:
            continue
        start, end = max(0, start - padding), min(n_samples, end + padding)
        if padded and start <= padded[-1][1] and end - padded[-1][0] <= longest + 2 * padding:
            padded[-1] = (padded[-1][0], end)
        else:
            padded.append((max(start, padded[-1][1] if padded else 0), end))
    return padded


def chunks(parts: Sequence[Region], most: int) -> list[Region]:
    """Neighbouring regions joined as long as they span at most `most` samples; longer ones are divided."""
    found: list[Region] = []
    for start, end in parts:
        while end - start > most:
            found.append((start, start + most))
            start += most
        if found and end - found[-1][0] <= most:
            found[-1] = (found[-1][0], end)
        elif end > start:
            found.append((start, end))
    return found
