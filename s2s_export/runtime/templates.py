"""What a user's text becomes before it is a prompt: a template in which {text} stands for it, or the checkpoint's own.

The checkpoint's is the chat template that it came with, a Jinja program that the bundle holds as text. It is rendered,
with the text as the user's message, by the package jinja2 in its sandbox, and only where it was asked for.
"""

from __future__ import annotations

from typing import Any

from ..bundle import Bundle
from ..errors import InputError, MissingExtra, UsageError

CHAT = "chat"  # the name by which the checkpoint's own is asked for
PLACE = "{text}"


def filled(template: str, text: str, bundle: Bundle) -> tuple[str, bool]:
    """The prompt, and whether it has the special tokens in it, so that the tokenizer adds none.

    Raises UsageError for a template without a place for the text, or where the checkpoint had none.
    """
    if template == CHAT:
        return _chat(text, bundle), True
    if PLACE not in template:
        raise UsageError(
            f"the template is {template!r}; expected '{CHAT}', or a text in which {PLACE} stands for the source"
        )
    return template.replace(PLACE, text), False


def _chat(text: str, bundle: Bundle) -> str:
    source = bundle.manifest["source"]
    program = source.get("chat_template")
    if program is None:
        raise UsageError(
            f"{bundle.path}: its checkpoint had no chat template; give one in which {PLACE} stands for the source"
        )
    try:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise MissingExtra("jinja2", "chat", "rendering a chat template") from error

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    values: dict[str, Any] = dict(source.get("template_values") or {})
    try:
        return environment.from_string(program).render(
            messages=[{"role": "user", "content": text}], add_generation_prompt=True, **values
        )
    except (TemplateError, TypeError, ValueError, LookupError) as error:
        reason = (str(error) or repr(error)).splitlines()[0]
        raise InputError(
            f"the checkpoint's chat template can't be rendered ({reason}); give one with {PLACE} in it"
        ) from error
