"""Hugging Face's inference API: POST /models/NAME with {"inputs": text or texts, "parameters": {..}}.

parameters: `src_lang`, `tgt_lang`, and generation options by their names, also within `generate_parameters`. A text of
several sentences is cut and put together again. With a target language, or for a model with one target language, the
answer is [{"translation_text": ..}]; it is [{"generated_text": ..}] for other models.

A model of speech takes a file's bytes as they are, of whatever Content-Type (the client sends none, or a wrong one), or
in base64 as "inputs" of a JSON object with "parameters": `return_timestamps`, and options within
`generation_parameters`. The answer is {"text": ..}, with timestamps also "chunks".
"""

from __future__ import annotations

import base64
from typing import Any

from starlette.responses import Response

from .. import transcribing, translating
from ..calls import Call, Endpoint, Format, flag_in, json_response, plain_error, text_in, texts_in
from ..failures import Refused
from ..models import Model

LANGUAGES = {"src_lang": "source", "tgt_lang": "target"}
NESTED = ("generate_parameters", "generation_parameters", "generate_kwargs")  # objects with more options
PASSED_OVER = ("clean_up_tokenization_spaces", "truncation")


async def infer(call: Call) -> Response:
    model = call.state.models.named(str(call.path["model"]))
    if model.session.speech is not None:
        return await _heard(model, call)
    if call.request.headers.get("content-type", "").startswith("audio/"):
        raise Refused(400, f"the model '{model.name}' reads text, not audio; send JSON")
    translating.require_text(model)
    fields = call.object()
    if "inputs" not in fields:
        raise Refused(400, "the body has no 'inputs'; expected a text or a list of texts")
    texts = texts_in([fields["inputs"]] if isinstance(fields["inputs"], str) else fields["inputs"], "inputs")
    parameters = _parameters(fields.get("parameters"))
    call.state.limits.check_given(parameters)
    source, target = (parameters.pop(name, None) for name in LANGUAGES)
    for name, code in zip(LANGUAGES, (source, target), strict=True):
        if code is not None and not isinstance(code, str):
            raise Refused(400, f"'{name}' is no string; expected the code of a language")
    if target is None and len(model.languages.targets) != 1:
        return await _generated(call, model, texts, parameters)
    ask = translating.Ask(
        source or next(iter(model.languages.sources), "en"),
        target or next(iter(model.languages.targets)),
        model,
        options=parameters,
    )
    found = await translating.translate(call, texts, ask)
    return json_response([{"translation_text": each.text} for each in found])


async def _heard(model: Model, call: Call) -> Response:
    sound, parameters = call.body, dict[str, Any]()
    if sound.lstrip()[:1] == b"{":
        fields = call.object()
        try:
            sound = base64.b64decode(text_in(fields, "inputs") or "", validate=True)
        except ValueError:
            raise Refused(
                400, f"the model '{model.name}' reads sound, and 'inputs' is no base64 of a file; send the file"
            ) from None
        parameters = _parameters(fields.get("parameters"))
    times = parameters.pop("return_timestamps", None)
    words = times == "word"
    with_times = words or flag_in({"return_timestamps": times}, "return_timestamps")
    call.state.limits.check_given(parameters)
    options = {**parameters, "timestamps": "word" if words else "segment"}
    found = await transcribing.transcribe(model, sound, options)
    if not with_times:
        return json_response({"text": found.text})
    parts: list[Any] = (
        [word for segment in found.segments for word in segment.words or ()] if words else [*found.segments]
    )
    chunks = [{"text": part.word if words else part.text, "timestamp": [part.start, part.end]} for part in parts]
    return json_response({"text": found.text, "chunks": chunks})


async def _generated(call: Call, model: Model, texts: list[str], options: dict[str, Any]) -> Response:
    call.state.limits.check_texts(texts)
    chosen = model.session.options(**options)
    call.state.limits.check_options(chosen)
    n = sum(map(len, texts))
    sources = await translating.off_loop(n, lambda: [model.session.encode(text) for text in texts])
    found = await translating.decode(call, model, sources, chosen)
    return json_response([{"generated_text": hypothesis.text or ""} for of in found for hypothesis in of])


def _parameters(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Refused(400, "'parameters' is no object; expected options with their values")
    found = {name: each for name, each in value.items() if each is not None}
    for name in NESTED:
        nested = found.pop(name, {})
        if not isinstance(nested, dict):
            raise Refused(400, f"'{name}' is no object; expected options with their values")
        found |= {key: each for key, each in nested.items() if each is not None}
    for name in PASSED_OVER:
        found.pop(name, None)
    return found


FORMAT = Format(
    name="Hugging Face",
    endpoints=(Endpoint("POST", "/models/{model}", infer, takes_audio=True, decodes=True),),
    prefixes=("/models/",),
    error=plain_error,
)
