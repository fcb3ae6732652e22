"""DeepL's API v2: translate, languages, usage. What is not supported (glossaries, formality) is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse, Response

from .. import languages, translating
from ..calls import Call, Endpoint, Format, flag_in, json_response, text_in, texts_in
from ..failures import Failure, Refused

SPLIT = {"0": (False, False), "1": (True, True), "nonewlines": (True, False)}  # (sentences, lines)
LISTS = ("text", "splitting_tags", "non_splitting_tags", "ignore_tags")
UNSUPPORTED = ("glossary_id", "style_id", "custom_instructions", "context", "translation_memory_id")
SETTLED = {"formality": ("default", "prefer_more", "prefer_less")}  # what a model without such a choice can do


async def translate(call: Call) -> Response:
    fields = call.fields(*LISTS)
    for name in UNSUPPORTED:
        if fields.get(name):
            raise Refused(400, f"'{name}' is not supported by this server; leave it out", "not_supported")
    for name, fine in SETTLED.items():
        if fields.get(name) not in (None, *fine):
            raise Refused(
                400, f"'{name}' is not supported by this server; leave it out, or use one of {', '.join(fine)}"
            )
    if "text" not in fields:
        raise Refused(400, "Parameter 'text' not specified.")
    texts = texts_in(fields["text"], "text")
    target = text_in(fields, "target_lang")
    if not target:
        raise Refused(400, "Value for 'target_lang' not specified.")
    ask = _ask(fields, target)
    _check_target(call, target)
    found = await translating.translate(call, texts, ask)
    answer = [
        {
            "detected_source_language": languages.base(each.source).upper(),
            "text": each.text,
            **({"billed_characters": each.n_characters} if flag_in(fields, "show_billed_characters") else {}),
        }
        for each in found
    ]
    return json_response({"translations": answer})


def _ask(fields: Mapping[str, Any], target: str) -> translating.Ask:
    handling = text_in(fields, "tag_handling") or "text"
    if handling not in ("text", "xml", "html"):
        raise Refused(400, f"'tag_handling' is '{handling[:40]}'; expected xml or html")
    split = str(fields.get("split_sentences", "1" if handling == "text" else "nonewlines")).lower()
    split = {"true": "1", "false": "0"}.get(split, split)
    if split not in SPLIT:
        raise Refused(400, f"'split_sentences' is '{split[:40]}'; expected 0, 1 or nonewlines")
    sentences, lines = SPLIT[split]
    source = text_in(fields, "source_lang")
    return translating.Ask(
        source or None, target, markup=handling, sentences=sentences, lines=lines,
        splitting=_names(fields, "splitting_tags"), ignored=_names(fields, "ignore_tags"),
    )  # fmt: skip


def _names(fields: Mapping[str, Any], name: str) -> list[str]:
    """A list of strings, or names with commas between them, as in forms."""
    value = fields.get(name) or []
    parts = texts_in(value if isinstance(value, list) else [value], name)
    return [tag.strip() for part in parts for tag in part.split(",") if tag.strip()]


def _check_target(call: Call, target: str) -> None:
    if languages.base(target) not in {code for into in call.state.models.sources().values() for code in into}:
        raise Refused(400, f"Value for 'target_lang' not supported: {target[:40]}")


async def list_languages(call: Call) -> Response:
    """The kind of list is in the query, or in the body of the GET, as DeepL's Python client sends it."""
    kind = call.request.query_params.get("type") or text_in(call.fields(), "type", "source")
    if kind not in ("source", "target"):
        raise Refused(400, f"'type' is '{str(kind)[:40]}'; expected source or target")
    pairs = call.state.models.sources()
    codes = list(pairs) if kind == "source" else list(dict.fromkeys(code for into in pairs.values() for code in into))
    more = {"supports_formality": False} if kind == "target" else {}
    return json_response([{"language": code.upper(), "name": languages.name_of(code), **more} for code in codes])


async def usage(call: Call) -> Response:
    """Nothing is billed, so nothing is counted for a key."""
    return json_response({"character_count": 0, "character_limit": 1_000_000_000_000})


def error(failure: Failure) -> Response:
    status = 503 if failure.status == 504 else failure.status  # DeepL's clients know no 504
    return JSONResponse({"message": failure.message}, status, failure.headers)


FORMAT = Format(
    name="DeepL",
    endpoints=(
        Endpoint("POST", "/v2/translate", translate, decodes=True),
        Endpoint("GET", "/v2/languages", list_languages),
        Endpoint("POST", "/v2/languages", list_languages),
        Endpoint("GET", "/v2/usage", usage),
        Endpoint("POST", "/v2/usage", usage),
    ),
    prefixes=("/v2/translate", "/v2/languages", "/v2/usage", "/v2/glossaries", "/v2/document"),
    error=error,
    no_key=403,
    wrong_key=403,
)
