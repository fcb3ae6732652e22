"""Callables for `ray.data.Dataset.map_batches`: each actor opens a bundle once, and decodes batch after batch.

A batch is a dict of columns. A row that fails gets an error, and costs no other row its output.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import InputError, explain, is_failure
from ..runtime.cases import case_of, decode_cases
from ..runtime.scheduling import DEFAULT_BATCH_SIZE
from ..runtime.session import Session, load

Batch = Mapping[str, Any]  # of arrays with one entry for each row
PER_ROW = ("source_lang", "target_lang")  # columns that are options of their row, where the batch has them
LOADING = ("backend", "target", "threads", "workers", "shortlist", "search", "verify")


class Translate:
    """Adds the columns `translation` and `score` (the best hypothesis), and `error`, which is None where all went well.

    bundle: a folder that every machine has, at the same place. column: the texts. batch_size: texts decoded together
    (a batch of Ray's may be larger, and is sorted by length). options: of `s2s_export.load` (backend, target, threads,
    ...) and generation options by their Hugging Face names; `target_lang` and `source_lang` may be columns too.
    Raises what `load` raises, when the actor starts.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        column: str = "text",
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        **options: Any,
    ) -> None:
        self._session = _open(bundle, options)
        self._column = column
        self._batch_size = batch_size
        self._options = {name: value for name, value in options.items() if name not in LOADING}
        self._session.options(**{name: value for name, value in self._options.items() if name != "source_lang"})

    def __call__(self, batch: Batch) -> dict[str, Any]:
        texts = _column(batch, self._column)
        own = {name: batch[name] for name in PER_ROW if name in batch}
        cases = (
            case_of(
                self._session,
                {"text": _text(text), **self._options, **{name: _text(column[i]) for name, column in own.items()}},
                i,
            )
            for i, text in enumerate(texts)
        )
        results = list(decode_cases(self._session, cases, batch_size=self._batch_size))
        outputs = [result["outputs"][0] if result.get("outputs") else None for result in results]
        return {
            **batch,
            "translation": _objects([None if output is None else output["text"] for output in outputs]),
            "score": np.array([np.nan if output is None else output["score"] for output in outputs], np.float32),
            "error": _objects([result.get("error") for result in results]),
        }


class Transcribe:
    """Adds the columns `text`, `language` and `segments` (of each: start, end, text), and `error`.

    column: names of audio files, or the files' bytes (`ray.data.read_binary_files` gives them as `bytes`). options: of
    `s2s_export.load` and of `Session.transcribe`.
    """

    def __init__(self, bundle: str | os.PathLike[str], column: str = "bytes", **options: Any) -> None:
        self._session = _open(bundle, options)
        self._column = column
        self._options = {name: value for name, value in options.items() if name not in LOADING}

    def __call__(self, batch: Batch) -> dict[str, Any]:
        found = [self._row(audio) for audio in _column(batch, self._column)]
        names = ("text", "language", "segments", "error")
        return {**batch, **{name: _objects([row.get(name) for row in found]) for name in names}}

    def _row(self, audio: Any) -> dict[str, Any]:
        try:
            transcript = self._session.transcribe(audio, **self._options).finish()
        except BaseException as error:
            if not is_failure(error):
                raise
            return {"error": explain(error)}
        segments = [{"start": part.start, "end": part.end, "text": part.text} for part in transcript.segments]
        return {"text": transcript.text, "language": transcript.language, "segments": segments}


def _open(bundle: str | os.PathLike[str], options: Mapping[str, Any]) -> Session:
    """One thread and one worker by default: an actor has the cores that Ray was told of, usually one."""
    chosen = {name: options[name] for name in LOADING if name in options}
    return load(bundle, **{"threads": 1, "workers": 1, **chosen})


def _column(batch: Batch, name: str) -> Any:
    if name not in batch:
        raise InputError(f"the dataset has no column '{name}'; found {', '.join(sorted(batch))}; name one of them")
    return batch[name]


def _text(value: Any) -> Any:
    """A plain string of numpy's; other types are told by the line's own check."""
    return str(value) if isinstance(value, str) else value


def _objects(values: list[Any]) -> Any:
    array = np.empty(len(values), dtype=object)
    for i, value in enumerate(values):
        array[i] = value
    return array
