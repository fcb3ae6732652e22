"""The chat template of a checkpoint and the special tokens that it names, from its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..schema import Unreadable, read_json

FILE = "chat_template.jinja"
VALUES = ("bos_token", "eos_token", "pad_token", "unk_token")


def of_checkpoint(folder: Path) -> dict[str, Any]:
    """The manifest's `chat_template` and `template_values`; nothing where the checkpoint has none."""
    try:
        config = read_json(folder / "tokenizer_config.json")
    except Unreadable:
        config = {}
    config = config if isinstance(config, dict) else {}
    template = config.get("chat_template")
    if isinstance(template, list):  # several by name
        template = next(
            (one.get("template") for one in template if isinstance(one, dict) and one.get("name") == "default"), None
        )
    file = folder / FILE
    if file.is_file():
        template = file.read_text(encoding="utf-8")
    if not isinstance(template, str):
        return {}
    values = {name: _spelled(config.get(name)) for name in VALUES}
    return {"chat_template": template, "template_values": {name: text for name, text in values.items() if text}}


def _spelled(token: Any) -> str:
    """A special token's text, which a file may have as an object."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else ""
