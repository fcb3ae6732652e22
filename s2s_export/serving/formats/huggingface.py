"""Hugging Face's inference API: POST /models/NAME with {"inputs": text or texts, "parameters": {..}}.

parameters: `src_lang`, `tgt_lang`, and generation options by their names, also within `generate_parameters`. A text of
several sentences is cut and put together again. With a target language, or for a model with one target language, the
answer is [{"translation_text": ..}]; it is [{"generated_text": ..}] for other models.
"""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from .. import transcribing, translating
from ..calls import Call, Endpoint, Format, json_response, plain_error, texts_in
from ..failures import Refused
from ..models import Model

LANGUAGES = {"src_lang": "source", "tgt_lang": "target"}
PASSED_OVER = ("clean_up_tokenization_spaces", "truncation")


async def infer(call: Call) -> Response:
    model = call.state.models.named(str(call.path["model"]))
    brings_sound = call.request.headers.get("content-type", "").startswith("audio/")
    if brings_sound and model.session.speech is None:
        raise Refused(400, f"the model '{model.name}' reads text, not audio; send JSON")
    if model.session.speech is not None:
        if not brings_sound:
            raise Refused(400, f"the model '{model.name}' reads sound; send the file with a Content-Type of audio/...")
        found_text = await transcribing.transcribe(model, call.body, {})
        return json_response({"text": found_text.text})
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
    nested = value.get("generate_parameters")
    if nested is not None and not isinstance(nested, dict):
        raise Refused(400, "'generate_parameters' is no object; expected options with their values")
    found = {name: each for name, each in {**value, **(nested or {})}.items() if each is not None}
    for name in ("generate_parameters", *PASSED_OVER):
        found.pop(name, None)
    return found


FORMAT = Format(
    name="Hugging Face",
    endpoints=(Endpoint("POST", "/models/{model}", infer),),
    prefixes=("/models/",),
    error=plain_error,
)
