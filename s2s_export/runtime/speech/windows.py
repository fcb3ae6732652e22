"""Windows of sound, a batch at a time: encoded once, then decoded as often as needed.

Letters: B windows, F mel bands, T frames of a window, A alignment heads, S positions, V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import decoding
from ..backends import Backend
from ..decoding.generation_options import GenerationOptions
from ..decoding.hypothesis import Hypothesis
from ..decoding.numerics import log_softmax
from ..decoding.state import DecodeState, Floats, StepQuery
from ..decoding.watch import Watch
from .on_device import DeviceWindows
from .options import search_of
from .tokens import SpeechTokens


@dataclass(frozen=True)
class DecodedWindow:
    """One window's text.

    token_ids: without prompt and endoftext. hypotheses: the outputs of the search, best first, whole. avg_logprob: mean
    log-probability of the generated tokens, endoftext included. no_speech_prob: None unless asked for.
    attention [A, n, S]: for each generated token but the last one the attention when it was fed; None unless asked for.
    """

    token_ids: list[int]
    hypotheses: list[Hypothesis]
    avg_logprob: float
    no_speech_prob: float | None
    temperature: float
    attention: Floats | None = None


class EncodedWindows:
    """B encoded windows. A backend that can't begin twice from what it encoded (a GPU's) encodes again."""

    def __init__(self, backend: Backend, features: Sequence[Floats], values: dict[str, Any] | None) -> None:
        self._backend = backend
        self._features = features
        self._values = values
        self._first: Floats | None = None

    def __len__(self) -> int:
        return len(self._features)

    @property
    def features(self) -> Sequence[Floats]:
        return self._features

    def rows(self, indices: Sequence[int]) -> EncodedWindows:
        """Some of them."""
        if list(indices) == list(range(len(self))):
            return self
        n = len(self)
        values = None if self._values is None else {
            name: np.ascontiguousarray(value[list(indices)]) if len(value) == n else value
            for name, value in self._values.items()
        }  # fmt: skip
        found = EncodedWindows(self._backend, [self._features[i] for i in indices], values)
        if self._first is not None:
            found._first = self._first[list(indices)]
        return found

    def begin(self, n_rows: int) -> DecodeState:
        if self._values is None:
            return self._backend.begin(self._features, n_rows)
        return self._backend.start(dict(self._values), n_rows)  # type: ignore[attr-defined,no-any-return]

    def first_log_probs(self, startoftranscript: int) -> Floats:
        """[B, V] after startoftranscript alone: what language and silence are read from."""
        if self._first is None:
            start = np.full((len(self), 1), startoftranscript, dtype=np.int64)
            result = self.begin(1).step(start, np.zeros_like(start), StepQuery(dense=True))
            assert result.log_probs is not None
            self._first = result.log_probs[:, 0].copy()
        return self._first


def _stacked(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """What several batches of one window hold, as one batch. The parts are emptied, as they are large."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part.pop(name) for part in parts]) for name in list(parts[0])}


class WindowDecoder:
    """Decodes windows with one backend's graphs and the search of `decoding`."""

    def __init__(
        self,
        backend: Backend,
        speech: SpeechTokens,
        max_target_length: int,
        make: decoding.Make | None = None,
        device: DeviceWindows | None = None,
    ) -> None:
        """make: of `decoding.decode`. device: the search on the device, where the backend has one, for the windows that
        it serves."""
        self._backend = backend
        self._make = make
        self._device = device
        self.speech = speech
        self.max_target_length = max_target_length

    def encode(self, features: Sequence[Floats]) -> EncodedWindows:
        """features: B arrays [F, T].

        On a CPU one after the other: one window keeps the cores busy, and several at once have less of their caches,
        which costs an eighth of the time (4 windows of base, one core of an EPYC: 0.75 s each, and 0.66 s alone).
        """
        can_keep = hasattr(self._backend, "encode") and hasattr(self._backend, "start")
        values = None
        if can_keep:
            values = _stacked([self._backend.encode([one]) for one in features])  # type: ignore[attr-defined]
        return EncodedWindows(self._backend, features, values)

    def languages(self, encoded: EncodedWindows) -> list[dict[str, float]]:
        """The probability of each language token, of each window."""
        names, ids = list(self.speech.lang_to_id), list(self.speech.lang_to_id.values())
        scores = encoded.first_log_probs(self.speech.startoftranscript)[:, ids]
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        return [dict(zip(names, map(float, row), strict=True)) for row in shares]

    def decode(
        self,
        encoded: EncodedWindows,
        prompts: Sequence[Sequence[int]],
        options: GenerationOptions,
        *,
        timestamps: bool,
        temperature: float = 0.0,
        no_speech: bool = False,
        attention: bool = False,
        source_numbers: Sequence[int] | None = None,
    ) -> list[DecodedWindow]:
        """Decode each window behind its own prompt. Windows with the same prompt share a batch.

        temperature: above 0 tokens are drawn, with one beam. no_speech: whether `no_speech_prob` is wanted.
        """
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i, prompt in enumerate(prompts):
            groups[tuple(prompt)].append(i)
        found: list[DecodedWindow | None] = [None] * len(encoded)
        changes: dict[str, Any] = {"renormalize_logits": options.num_beams == 1 or temperature > 0}
        if temperature > 0:
            changes |= {"do_sample": True, "temperature": temperature, "num_beams": 1, "num_return_sequences": 1}
        for prompt, places in groups.items():
            begin = self.speech.timestamp_begin if timestamps else None
            chosen = search_of(options, prompt, begin, self.max_target_length, **changes)
            numbers = places if source_numbers is None else [source_numbers[place] for place in places]
            some = encoded.rows(places)
            if self._device is not None and self._device.serves(chosen):
                windows = self._on_device(self._device, some, chosen, numbers, temperature, no_speech, attention)
                for place, window in zip(places, windows, strict=True):
                    found[place] = window
                continue
            state: Any = some.begin(chosen.n_rows)
            watch = self._watch(state, prompt) if no_speech else None
            with np.errstate(all="ignore"):
                outputs = decoding.decode(
                    watch or state,
                    [()] * len(places),
                    chosen,
                    alignments="heads" if attention else False,
                    source_numbers=numbers,
                    source_lengths=[0] * len(places),
                    make=self._make,
                )
            for row, (place, hypotheses) in enumerate(zip(places, outputs, strict=True)):
                silence = None if watch is None else float(np.exp(watch.log_probs[row]))
                found[place] = self._window(hypotheses, len(prompt), silence, temperature)
        return [window for window in found if window is not None]

    def _on_device(
        self, device: DeviceWindows, encoded: EncodedWindows, options: GenerationOptions, numbers: Sequence[int],
        temperature: float, no_speech: bool, attention: bool,
    ) -> list[DecodedWindow]:  # fmt: skip
        """Windows with one prompt, as `decode` has them."""
        prompt, token = options.prompt, self.speech.nospeech
        at = prompt.index(self.speech.startoftranscript) if no_speech and token is not None else None
        outputs, logits = device.decode(encoded.features, options, numbers, at, attention)
        silences = [None] * len(outputs) if at is None else [float(np.exp(log_softmax(row)[token])) for row in logits]
        return [
            self._window(hypotheses, len(prompt), silence, temperature)
            for hypotheses, silence in zip(outputs, silences, strict=True)
        ]

    def _watch(self, state: DecodeState, prompt: Sequence[int]) -> Watch | None:
        """What notes the probability that nobody speaks, where the model has a token for that."""
        if self.speech.nospeech is None:
            return None
        at = prompt.index(self.speech.startoftranscript)
        return Watch(state, at, self.speech.nospeech, is_last=at == len(prompt) - 1)

    def _window(
        self, hypotheses: list[Hypothesis], n_prompt: int, silence: float | None, temperature: float
    ) -> DecodedWindow:
        best = hypotheses[0]
        ids = best.token_ids[n_prompt:]
        attention = None
        if best.alignment_heads is not None:
            attention = best.alignment_heads[0][:, 1:]  # row t: the attention when token t was predicted
        mean = sum(best.token_scores) / max(1, len(best.token_scores))
        if ids and ids[-1] == self.speech.endoftext:
            ids = ids[:-1]
        return DecodedWindow(ids, hypotheses, mean, silence, temperature, attention)
