"""Where somebody speaks: Silero's network where its file is installed, else how loud the sound is.

Silero's VAD (MIT) comes in the package silero-vad, of which the ONNX file alone is used, so that
`pip install --no-deps silero-vad` is enough; and in faster-whisper.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
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
AT_ONCE = 4096  # frames of which loudness is computed
FILES = (("silero_vad", "data/silero_vad.onnx"),)
QUIETEST = 1e-3  # RMS, -60 dB of full scale: below it a frame is silence whatever else the sound holds
BELOW_LOUDEST = 0.02  # of the RMS of loud frames (their 95th percentile): 34 dB below speech
LEAST_DIVISION = int(0.098 * SAMPLE_RATE)  # silence in which speech that is too long may be divided; faster-whisper's

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
    found = np.empty(-(-len(samples) // FRAME), np.float32)
    for i in range(len(found)):
        begin, end = i * FRAME - CONTEXT, (i + 1) * FRAME
        part = samples[max(0, begin) : end]
        if len(part) < FRAME + CONTEXT:  # zeros before the first frame and behind the last
            part = np.pad(part, (max(0, -begin), max(0, end - len(samples))))
        output, state = session.run(None, {"input": part[None], "state": state, "sr": rate})
        found[i] = output[0, 0]
    return found


def _rms(samples: Floats) -> NDArray[np.float32]:
    found = np.empty(-(-len(samples) // FRAME), np.float32)
    for i in range(0, len(found), AT_ONCE):  # so that hours of sound are not copied
        part = samples[i * FRAME : (i + AT_ONCE) * FRAME]
        framed = np.pad(part, (0, -len(part) % FRAME)).reshape(-1, FRAME)
        found[i : i + AT_ONCE] = np.sqrt(np.square(framed).mean(axis=1))
    return found


def _loudness(samples: Floats) -> Floats:
    rms = _rms(samples)
    if not len(rms):
        return rms
    least = max(QUIETEST, BELOW_LOUDEST * float(np.percentile(rms, 95)))
    return (rms >= least).astype(np.float32)


def cut(probability: Floats, n_samples: int, rules: Rules) -> list[Region]:
    """Frames -> regions of samples. Two regions share the silence between them where both would take it as padding."""
    least, padding = rules.least_speech * SAMPLE_RATE, int(rules.padding * SAMPLE_RATE)
    spoken = [(a, b) for a, b in _spoken(probability.tolist(), n_samples, rules) if b - a >= least]
    if not spoken:
        return []
    silences = [b - a for (_, a), (b, _) in itertools.pairwise(spoken)]
    before = [spoken[0][0], *(silence // 2 for silence in silences)]
    behind = [*(silence - silence // 2 for silence in silences), n_samples - spoken[-1][1]]
    shared = zip(spoken, before, behind, strict=True)
    return [(a - min(padding, n_before), b + min(padding, n_behind)) for (a, b), n_before, n_behind in shared]


def _spoken(probability: Sequence[float], n_samples: int, rules: Rules) -> list[Region]:
    """Without padding. Speech that is too long ends at its last short silence, or else where it gets too long."""
    gap = rules.least_silence * SAMPLE_RATE
    longest = rules.most_speech * SAMPLE_RATE - FRAME - 2 * rules.padding * SAMPLE_RATE
    found: list[Region] = []
    start: int | None = None
    silence: int | None = None  # where the silence began that we are in
    division: tuple[int, int | None] | None = None  # the last short silence, and where speech went on behind it
    for i, p in enumerate(probability):
        at = i * FRAME
        if p >= rules.threshold:
            silence = None
            if division is not None and division[1] is None:
                division = division[0], at
            if start is None:
                start = at
        if start is not None and at - start > longest:
            end, goes_on = division or (at, at if p >= rules.threshold else None)
            found.append((start, end))
            start, silence, division = goes_on, None, None
        if start is not None and p < rules.threshold - 0.15:
            silence = at if silence is None else silence
            if at - silence > LEAST_DIVISION:
                division = silence, None
            if at - silence >= gap:
                found.append((start, silence))
                start = silence = division = None
    if start is not None:
        found.append((start, n_samples if silence is None else silence))
    return found


def chunks(parts: Sequence[Region], most: int) -> list[list[Region]]:
    """Regions put together as long as they have at most `most` samples; longer ones are divided."""
    found: list[list[Region]] = []
    room = 0
    for start, end in parts:
        while start < end:
            if found and end - start <= room:
                found[-1].append((start, end))
                room -= end - start
                break
            stop = min(end, start + most)
            found.append([(start, stop)])
            room, start = most - (stop - start), stop
    return found
