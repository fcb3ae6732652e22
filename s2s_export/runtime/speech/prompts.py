"""What the decoder of a speech model is told before it writes, as `generate()` of Whisper in transformers builds it:

[startofprev, earlier text ...] startoftranscript [language] [task] [notimestamps]
"""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import InvalidOption, UnknownOption
from . import languages
from .tokens import SpeechTokens

TASKS = ("transcribe", "translate")


def language_id(speech: SpeechTokens, language: str) -> int:
    """Raises InvalidOption for a model of English alone, UnknownOption for a language that the model lacks."""
    if not speech.is_multilingual or not speech.lang_to_id:
        raise InvalidOption(f"language is '{language}', but the model knows English alone; leave language out")
    token = f"<|{languages.code_of(language) or language}|>"
    if token not in speech.lang_to_id:
        raise UnknownOption(language, [name[2:-2] for name in speech.lang_to_id], "language")
    return speech.lang_to_id[token]


def task_id(speech: SpeechTokens, task: str) -> int:
    """Raises InvalidOption where the model has no such task."""
    if task not in TASKS:
        raise UnknownOption(task, TASKS, "task")
    if task not in speech.task_to_id:
        raise InvalidOption(f"task is '{task}', but the model only transcribes English; leave task out")
    return speech.task_to_id[task]


def needs_detection(speech: SpeechTokens, language: str | None, task: str | None) -> bool:
    """Whether the language must be found from the sound first."""
    if language is not None or not speech.is_multilingual or not speech.lang_to_id:
        return False
    if task is not None or not speech.forced_decoder_ids:
        return True
    return any(place == 1 and token is None for place, token in speech.forced_decoder_ids)


def beginning(
    speech: SpeechTokens, language: int | None, task: str | None, *, is_detected: bool = False, timestamps: bool
) -> list[int]:
    """From startoftranscript on.

    language: the id of its token, or None where the model has none. is_detected: nobody named it; then, and without a
    task, what the checkpoint forces follows it, as in transformers, and else "transcribe".
    """
    forced = dict(speech.forced_decoder_ids)
    prompt = [speech.startoftranscript]
    if language is not None:
        prompt.append(language)
        if task is not None or not is_detected:
            prompt.append(task_id(speech, task or "transcribe"))
            forced = {}
    elif task is not None:
        task_id(speech, task)  # refuses it
    behind = [forced[place] for place in sorted(forced) if place >= len(prompt)]
    prompt += [token for token in behind if token not in (None, speech.notimestamps)]
    return prompt if timestamps else [*prompt, speech.notimestamps]


def with_earlier(speech: SpeechTokens, earlier: Sequence[int], start: Sequence[int], most: int) -> list[int]:
    """Earlier text before a prompt: its last `most` tokens, behind startofprev."""
    if not earlier:
        return list(start)
    if speech.startofprev is None:
        raise InvalidOption("earlier text was given, but the model has no token to put before it; leave it out")
    return [speech.startofprev, *earlier[-most:], *start]
