"""LibreTranslate's API, of version 1.9: what its clients and web page send. Bodies are JSON or forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import Response

from .. import languages, translating
from ..calls import Call, Endpoint, Format, integer_in, json_response, keys_in_headers, plain_error, text_in, texts_in
from ..failures import Refused

FORMATS = ("text", "html")


def _required(fields: Mapping[str, Any], name: str) -> Any:
    value = fields.get(name)
    if value is None or value == "":
        raise Refused(400, f"Invalid request: missing {name} parameter")  # LibreTranslate's own words
    return value


async def translate(call: Call) -> Response:
    fields = call.fields()
    q = _required(fields, "q")
    source, target = (str(_required(fields, name)) for name in ("source", "target"))
    kind = text_in(fields, "format", "text") or "text"
    if kind not in FORMATS:
        raise Refused(400, f"'format' is '{kind[:40]}'; expected {' or '.join(FORMATS)}")
    n_alternatives = integer_in(fields, "alternatives", 0)
    if n_alternatives < 0:
        raise Refused(400, f"'alternatives' is {n_alternatives}; expected a whole number from 0")
    texts = [q] if isinstance(q, str) else texts_in(q, "q")
    is_auto = source == translating.AUTO
    _known(call, None if is_auto else source, target)
    options: dict[str, Any] = {}
    if n_alternatives and kind == "text":
        n = min(n_alternatives + 1, call.state.limits.max_beams)
        options = {"num_beams": max(n, 4) if call.state.limits.max_beams >= 4 else n, "num_return_sequences": n}
    ask = translating.Ask(None if is_auto else source, target, markup=kind, options=options)
    found = await translating.translate(call, texts, ask)
    answer: dict[str, Any] = {"translatedText": [each.text for each in found]}
    if is_auto:
        answer["detectedLanguage"] = [_detected(each.source, each.confidence) for each in found]
    if n_alternatives:
        answer["alternatives"] = [each.alternatives[:n_alternatives] for each in found]
    return json_response(answer if not isinstance(q, str) else {key: value[0] for key, value in answer.items()})


def _known(call: Call, source: str | None, target: str) -> None:
    """Raises Refused in LibreTranslate's own words."""
    pairs = call.state.models.sources()
    if source is not None and languages.base(source) not in pairs:
        raise Refused(400, f"{source[:40]} is not supported")
    into = {code for codes in pairs.values() for code in codes} | set(pairs)
    if languages.base(target) not in into:
        raise Refused(400, f"{target[:40]} is not supported")


def _detected(code: str, confidence: float) -> dict[str, Any]:
    return {"confidence": round(100 * confidence, 1), "language": code}


async def detect(call: Call) -> Response:
    q = _required(call.fields(), "q")
    texts = texts_in([q] if isinstance(q, str) else q, "q")
    call.state.limits.check_texts(texts)
    text = "\n".join(texts)
    code, confidence = await translating.off_loop(len(text), lambda: translating.detect(call, text), "detect")
    return json_response([_detected(code, confidence)])


async def list_languages(call: Call) -> Response:
    pairs = call.state.models.sources()
    codes = list(dict.fromkeys([*pairs, *(code for into in pairs.values() for code in into)]))
    return json_response(
        [{"code": code, "name": languages.name_of(code), "targets": pairs.get(code, [])} for code in codes]
    )


async def settings(call: Call) -> Response:
    """What LibreTranslate's own web page reads first."""
    pairs = call.state.models.sources()
    first = next(iter(pairs), "en")
    target = next(iter(pairs.get(first, [])), first)
    return json_response(
        {
            "apiKeys": bool(call.state.api_keys),
            "charLimit": call.state.limits.max_characters,
            "filesTranslation": False,
            "frontendTimeout": 500,
            "keyRequired": bool(call.state.api_keys),
            "language": {
                "source": {"code": first, "name": languages.name_of(first)},
                "target": {"code": target, "name": languages.name_of(target)},
            },
            "suggestions": False,
            "supportedFilesFormat": [],
        }
    )


async def translate_file(call: Call) -> Response:
    raise Refused(501, "files are not translated here; send their text to /translate", "not_supported")


def _keys(call: Call) -> Sequence[str]:
    """In the headers, or as the field `api_key`."""
    try:
        key = call.fields().get("api_key")
    except Refused:
        key = None
    return [*keys_in_headers(call), *([key] if isinstance(key, str) and key else [])]


FORMAT = Format(
    name="LibreTranslate",
    endpoints=(
        Endpoint("POST", "/translate", translate, decodes=True),
        Endpoint("POST", "/detect", detect),
        Endpoint("GET", "/languages", list_languages, is_open=True),
        Endpoint("GET", "/frontend/settings", settings, is_open=True),
        Endpoint("POST", "/translate_file", translate_file),
    ),
    prefixes=("/translate", "/detect", "/languages", "/frontend/"),
    error=plain_error,
    keys=_keys,
    no_key=400,
    wrong_key=403,
)
