"""What Triton's python backend runs: model.py of a repository that `s2s triton` wrote imports one of the two classes.

A request has rows of `text` (BYTES), of `input_ids` (INT64) or of `audio` (FP32 samples at 16 kHz), as the bundle reads
them. Options are those of a line of `s2s generate` (for sound, those of `Session.transcribe`): in the request's
parameters, or as JSON in the tensor `options`, a row for all or one for each. Answers: `text` and `score` with the
shape [rows, n-best], and `result`, for each row the JSON of a result line. A request with a row that fails is answered
with an error, which does not touch others.

`triton_python_backend_utils` exists only inside Triton.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError, explain, is_failure
from ...runtime.cases import Case, case_of, decode_each, finished, result_of, to_json
from ...runtime.session import Session, load
from ...runtime.speech import formats
from .. import languages
from . import STREAM_SUFFIX

# Parameters of the protocol and of its clients, which are no options.
OWN = frozenset(
    ("binary_data_output", "sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "classification",
     "headers", "triton_enable_empty_final_response")
)  # fmt: skip
WARM_UP_LENGTHS = (8, 32)  # source tokens
LOADING = ("backend", "target", "threads", "shortlist", "search")


@dataclass(frozen=True)
class Row:
    """A source of a request with its options, by names."""

    content: Any
    fields: dict[str, Any]


class _Model:
    """What both classes have. Methods are those that Triton calls."""

    def initialize(self, args: Mapping[str, Any]) -> None:
        self._session = _open(args)
        self._languages = languages.OfModel(args["model_name"].removesuffix(STREAM_SUFFIX), self._session)

    def finalize(self) -> None:
        del self._session


class BatchingModel(_Model):
    """Decodes all requests of a batch together."""

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        import triton_python_backend_utils as triton  # type: ignore[import-not-found]

        read = [_rows(self._session, self._languages, request) for request in requests]
        found = answer(self._session, [rows for rows in read if not isinstance(rows, str)])
        answers = iter(found)
        responses = []
        for rows in read:
            outcome = rows if isinstance(rows, str) else next(answers)
            if isinstance(outcome, str):
                responses.append(triton.InferenceResponse(error=_error(triton, outcome)))
            else:
                tensors = [triton.Tensor(name, values) for name, values in _tensors(outcome).items()]
                responses.append(triton.InferenceResponse(output_tensors=tensors))
        return responses


class StreamingModel(_Model):
    """Answers a request in several responses: `text` piece by piece, then the whole as `result`."""

    def execute(self, requests: Sequence[Any]) -> None:
        import triton_python_backend_utils as triton

        for request in requests:
            sender = request.get_response_sender()
            try:
                for text, result in pieces(self._session, _rows(self._session, self._languages, request)):
                    if request.is_cancelled():
                        break
                    values = {"text": _bytes([text]), "result": _bytes([result])}
                    sender.send(
                        triton.InferenceResponse(output_tensors=[triton.Tensor(*entry) for entry in values.items()])
                    )
            except BaseException as error:
                if not is_failure(error):
                    raise
                sender.send(triton.InferenceResponse(error=_error(triton, explain(error))))
            sender.send(flags=triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _open(args: Mapping[str, Any]) -> Session:
    given = {name: entry["string_value"] for name, entry in json.loads(args["model_config"])["parameters"].items()}
    folder = Path(args["model_repository"])  # of this model
    loading = {name: json.loads(given[name]) for name in LOADING if name in given}
    session = load(folder / given["bundle"], workers=1, **{"threads": 1, **loading})
    limit = session.bundle.max_source_length or WARM_UP_LENGTHS[-1]
    session.warm_up([min(length, limit) for length in WARM_UP_LENGTHS])
    return session


def _rows(session: Session, spoken: languages.OfModel, request: Any) -> list[Row] | str:
    """The rows of a request, or what is wrong with it."""
    import triton_python_backend_utils as triton

    tensors = {
        name: tensor.as_numpy()
        for name in ("text", session.kind.field, "options")
        if (tensor := triton.get_input_tensor_by_name(request, name)) is not None
    }
    try:
        return rows_of(spoken, tensors, json.loads(request.parameters() or "{}"))
    except BaseException as error:
        if not is_failure(error):
            raise
        return explain(error)


def rows_of(spoken: languages.OfModel, tensors: Mapping[str, Any], parameters: Mapping[str, Any]) -> list[Row]:
    """tensors: [rows, ...] or, of a model without batches, one row. parameters: the request's. Raises InputError."""
    options = tensors.get("options")
    fields = [_object(raw) for raw in options.ravel()] if options is not None else [{}]
    of_all = {name: value for name, value in parameters.items() if name not in OWN}
    [(name, values)] = [(name, values) for name, values in tensors.items() if name != "options"]
    contents: list[Any]
    if name == "text":
        contents = [_decoded(raw) for raw in values.ravel()]
    else:
        contents = list(values if values.ndim == 2 else values[None])
    if len(fields) not in (1, len(contents)):
        raise InputError(
            f"'options' has {len(fields)} rows, but '{name}' has {len(contents)}; expected one, or as many"
        )
    fields = fields * len(contents) if len(fields) == 1 else fields
    fields = [_with_own_codes(spoken, {**of_all, **own}) for own in fields]
    return [Row(content, own) for content, own in zip(contents, fields, strict=True)]


def _with_own_codes(spoken: languages.OfModel, fields: dict[str, Any]) -> dict[str, Any]:
    """Languages as the tokenizer has them, from codes such as "fr". Wrong types are left to the line's own check."""
    given = {name: fields[name] for name in ("source_lang", "target_lang") if name in fields}
    if not all(isinstance(code, str) for code in given.values()):
        return fields
    codes = spoken.codes(given.get("source_lang"), given.get("target_lang"))
    return {**fields, **{name: codes[name] for name in given}}


def answer(session: Session, requests: Sequence[Sequence[Row]]) -> list[list[dict[str, Any]] | str]:
    """The result of every row of each request, or what is wrong with the request. Rows with equal options are decoded
    together, whichever request they are of."""
    places = [(i, j) for i, rows in enumerate(requests) for j in range(len(rows))]
    results: dict[tuple[int, int], dict[str, Any]] = {}
    if session.speech is not None:
        for i, j in places:
            results[i, j] = _transcribed(session, requests[i][j])
    else:
        cases = {(i, j): _case(session, requests[i][j], j) for i, j in places}
        groups: dict[Any, list[tuple[int, int]]] = {}
        for place, case in cases.items():
            if case.key is None:
                results[place] = {"error": case.error}
            else:
                groups.setdefault(case.key, []).append(place)
        for (options, alignments), members in groups.items():
            # A row's number in its request: what is drawn for it must not depend on who shares the batch.
            found = decode_each(
                session, [cases[place].source for place in members], options,
                batch_size=len(members), alignments=alignments, source_numbers=[j for _, j in members],
            )  # fmt: skip
            for index, outcome in found:
                case = cases[members[index]]
                outcome = finished(session, case.finishing, case.text, case.source, outcome)
                results[members[index]] = result_of(session, outcome, case.finishing)
    answers: list[list[dict[str, Any]] | str] = []
    for i, rows in enumerate(requests):
        of_request = [results[i, j] for j in range(len(rows))]
        wrong = [(j, result["error"]) for j, result in enumerate(of_request) if "error" in result]
        where = f"row {wrong[0][0]}: " if wrong and len(rows) > 1 else ""
        answers.append(f"{where}{wrong[0][1]}" if wrong else of_request)
    return answers


def pieces(session: Session, rows: list[Row] | str) -> Iterator[tuple[str, str]]:
    """Text that is final, and "" or, with the last one, the JSON of the whole result. Raises InputError."""
    if isinstance(rows, str):
        raise InputError(rows)
    if len(rows) != 1:
        raise InputError(f"the request has {len(rows)} rows; expected one, as its answer is streamed")
    if session.speech is not None:
        found = session.transcribe(rows[0].content, **rows[0].fields)
        for segment in found:
            yield segment.text, ""
        yield "", to_json(json.loads(formats.WRITERS["json"](found.so_far(), formats.Lines())))
        return
    case = _case(session, rows[0], 0)
    if case.options is None or case.source is None:
        raise InputError(case.error or "the row can't be decoded")
    said = []
    for part in session.stream_ids(case.source, case.options):
        said.append(part)
        yield part, ""
    yield "", to_json({"outputs": [{"text": "".join(said)}], "backend": session.backend.name})


def _case(session: Session, row: Row, number: int) -> Case:
    if isinstance(row.content, str):
        return case_of(session, {**row.fields, "text": row.content}, number)
    content = row.content.tolist() if session.kind.has_ids else row.content
    return case_of(session, row.fields, number, content=content)


def _transcribed(session: Session, row: Row) -> dict[str, Any]:
    try:
        transcript = session.transcribe(row.content, **row.fields).finish()
        found: dict[str, Any] = json.loads(formats.WRITERS["json"](transcript, formats.Lines()))
        return found
    except BaseException as error:
        if not is_failure(error):
            raise
        return {"error": explain(error)}


def _tensors(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of the results of a request's rows. Rows with fewer outputs than others are filled up with empty texts."""
    texts = [[output.get("text") or "" for output in _outputs(result)] for result in results]
    scores = [[output.get("score") or 0.0 for output in _outputs(result)] for result in results]
    width = max(1, *map(len, texts))
    for of_row, score in zip(texts, scores, strict=True):
        score += [float("-inf")] * (width - len(of_row))
        of_row += [""] * (width - len(of_row))
    return {
        "text": np.stack([_bytes(of_row) for of_row in texts]),
        "score": np.array(scores, dtype=np.float32),
        "result": _bytes([to_json(dict(result)) for result in results])[:, None],
    }


def _outputs(result: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    outputs: Sequence[Mapping[str, Any]] = result.get("outputs", [result])
    return outputs


def _bytes(texts: Sequence[str]) -> Any:
    array = np.empty(len(texts), dtype=object)
    array[:] = [text.encode("utf-8", errors="replace") for text in texts]
    return array


def _decoded(raw: Any) -> str:
    try:
        return bytes(raw).decode("utf-8") if not isinstance(raw, str) else raw
    except UnicodeDecodeError:
        raise InputError("'text' is not UTF-8; convert it") from None


def _object(raw: Any) -> dict[str, Any]:
    try:
        found = json.loads(_decoded(raw) or "{}")
    except (ValueError, RecursionError) as error:
        raise InputError(f"'options' is not JSON ({error}); expected an object of generation options") from None
    if not isinstance(found, dict):
        raise InputError(f"'options' is {type(found).__name__}; expected a JSON object of generation options")
    return found


def _error(triton: Any, message: str) -> Any:
    code = getattr(triton.TritonError, "INVALID_ARG", None)
    return triton.TritonError(message) if code is None else triton.TritonError(message, code)
