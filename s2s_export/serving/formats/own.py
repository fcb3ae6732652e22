"""Our own format, in which nothing that a model can do is lost.

POST /v1/s2s/generate takes a line of `s2s generate`: "text" or "input_ids", any generation option by its Hugging Face
name, "source_lang" and "target_lang". Beside these: "model", "alignments": true, and "stream": true for server-sent
events {"text": piece} with the whole result as the last one.
GET /v1/s2s/model?model=NAME describes a model; without a name, all of them and the server's figures.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import Response

from ...runtime import alignments as alignment_records
from ...runtime.cases import Case, describe, finished, read_case, to_json
from ...runtime.decoding import Hypothesis
from .. import languages, translating
from ..calls import Call, Endpoint, Format, flag_in, json_response, plain_error, text_in
from ..failures import Refused
from ..models import Model
from . import _events


async def generate(call: Call) -> Response:
    fields = call.object()
    model = call.state.models.named(text_in(fields, "model"))
    aligned, streams = flag_in(fields, "alignments"), flag_in(fields, "stream")
    for name in ("model", "alignments", "stream"):
        fields.pop(name, None)
    if not model.session.kind.has_ids or "audio" in fields:  # a line of `s2s generate` names a file of this machine
        raise Refused(
            400, "this server decodes 'text' and 'input_ids' only; give one of them to a model that reads text"
        )
    call.state.limits.check_given(fields)
    if "source_lang" in fields or "target_lang" in fields:
        _own_codes(model, fields)
    texts = [fields["text"]] if isinstance(fields.get("text"), str) else []
    call.state.limits.check_texts(texts)
    line = to_json(fields).encode("utf-8")
    case = await translating.off_loop(len(line), lambda: read_case(model.session, line, 1))
    if case.error is not None or case.options is None:
        raise Refused(400, case.error or "the line can't be decoded")
    call.state.limits.check_options(case.options)
    if not streams:
        wanted = aligned or case.finishing.wants_alignments
        [hypotheses] = await translating.decode(call, model, [case.source], case.options, alignments=wanted)
        outcome = finished(model.session, case.finishing, case.text, case.source, hypotheses)
        if isinstance(outcome, str):
            raise Refused(400, outcome)
        return json_response(_result(model, case, outcome, aligned))
    if aligned:
        raise Refused(400, "'stream' and 'alignments' were both asked for; expected one of them")
    if not model.session.has_tokenizer:
        raise Refused(
            400, f"the model '{model.name}' has no tokenizer, so there is no text to stream; leave out 'stream'"
        )
    return await _events.respond(_stream(call, model, case), lambda failure: {"error": failure.message})


async def _stream(call: Call, model: Model, case: Case) -> AsyncIterator[Any]:
    assert case.options is not None
    async for part in translating.stream(call, model, case.source, case.options):
        yield {"text": part} if isinstance(part, str) else _result(model, case, part, False)


def _own_codes(model: Model, fields: dict[str, Any]) -> None:
    """Languages as the tokenizer has them, from codes such as "fr". Wrong types are left to `read_case`."""
    given = {name: fields.get(name) for name in ("source_lang", "target_lang")}
    if all(code is None or isinstance(code, str) for code in given.values()):
        fields.update(model.languages.codes(given["source_lang"], given["target_lang"]))


def _result(model: Model, case: Case, hypotheses: list[Hypothesis], aligned: bool) -> dict[str, Any]:
    outputs = []
    for hypothesis in hypotheses:
        outputs.append({**describe(hypothesis), **case.finishing.details(model.session, hypothesis)})
        if aligned and hypothesis.alignment is not None:
            record = alignment_records.describe(model.session, case.source, hypothesis)
            outputs[-1]["alignment"] = {key: record[key] for key in ("source_tokens", "target_tokens", "weights")}
    return {"id": case.id, "outputs": outputs, "backend": model.session.backend.name, "model": model.name}


async def model(call: Call) -> Response:
    name = call.request.query_params.get("model")
    models = call.state.models
    if name is not None:
        return json_response(_card(models.named(name)))
    return json_response({"models": [_card(each) for each in models], "figures": call.state.metrics.figures(models)})


def _card(model: Model) -> dict[str, Any]:
    session = model.session
    manifest = session.bundle.manifest
    engines = session.bundle.path / "engines"
    return {
        "name": model.name,
        "family": manifest["family"],
        "model_type": manifest["model_type"],
        "precision": manifest["precision"],
        "sizes": manifest["sizes"],
        "limits": manifest["limits"],
        "source_kind": session.kind.name,
        "generation": manifest["generation"],
        "backend": session.backend.name,
        "built_targets": sorted(path.name for path in engines.iterdir()) if engines.is_dir() else [],
        "workers": model.batcher.workers,
        "joins_batches": model.batcher.why_whole is None,
        "has_alignments": session.has_attention,
        "has_text": model.is_text_to_text,
        "source_languages": _named(model.languages.sources),
        "target_languages": _named(model.languages.targets),
        "bytes": session.bundle.n_bytes,
    }


def _named(codes: Any) -> list[dict[str, str]]:
    return [{"code": code, "name": languages.name_of(code)} for code in codes]


FORMAT = Format(
    name="s2s",
    endpoints=(Endpoint("POST", "/v1/s2s/generate", generate, decodes=True), Endpoint("GET", "/v1/s2s/model", model)),
    prefixes=("/v1/s2s/",),
    error=plain_error,
)
