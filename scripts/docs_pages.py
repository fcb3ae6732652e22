"""Pages of the documentation's site that are made from something else, and links that leave docs/.

A hook of mkdocs (mkdocs.yml). Made are a page for each command (from click), a page for each model family (from the
family's file), and the pages of CONTRIBUTING.md, CHANGELOG.md and LOG.md.
"""

from __future__ import annotations

import ast
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import click  # noqa: E402 (after its folder is on the path)
from mkdocs.config.defaults import MkDocsConfig  # noqa: E402
from mkdocs.structure.files import File, Files  # noqa: E402

from s2s_export.cli import s2s  # noqa: E402

# Files of the checkout that are pages of the site.
PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changes.md", "LOG.md": "log.md"}
FAMILIES = ROOT / "s2s_export" / "exporting" / "families"
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    made = {page: _of_checkout(name) for name, page in PAGES.items()}
    context = click.Context(s2s)
    commands = {name: s2s.get_command(context, name) for name in s2s.list_commands(context)}
    made |= {f"commands/{name}.md": _command(name, command) for name, command in commands.items() if command}
    made |= {f"families/{path.stem}.md": _family(path) for path in sorted(FAMILIES.glob("[!_]*.py"))}
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    config["nav"] = _with_all(config["nav"], sorted(made))
    return files


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    """A link to a file of the checkout that is no page keeps its text only."""

    def mend(match: re.Match[str]) -> str:
        bang, text, target = match.groups()
        path, _, anchor = target.partition("#")
        if bang or not path or "://" in path or path.startswith("mailto:"):
            return match.group(0)
        at = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), path))
        if not at.startswith(".."):
            return match.group(0)
        name = PAGES.get(at.removeprefix("../"))
        if name is None:
            return text if "`" in text else f"`{text}`" if "/" in text else text
        here = posixpath.relpath(name, posixpath.dirname(page.file.src_uri) or ".")
        return f"[{text}]({here}{'#' + anchor if anchor else ''})"

    return LINK.sub(mend, markdown)


def _with_all(nav: Any, names: list[str]) -> Any:
    """The navigation, with the made pages of a folder in the place of `folder/*`."""
    if isinstance(nav, dict):
        return {title: _with_all(below, names) for title, below in nav.items()}
    if not isinstance(nav, list):
        return nav
    found: list[Any] = []
    for entry in nav:
        if isinstance(entry, str) and entry.endswith("/*"):
            folder = entry.removesuffix("*")
            title = folder.strip("/").capitalize()
            found.append({title: [{_title(n): n} for n in names if n.startswith(folder)]})
        else:
            found.append(_with_all(entry, names))
    return found


def _title(name: str) -> str:
    stem = Path(name).stem
    return f"s2s {stem}" if name.startswith("commands/") else stem


def _of_checkout(name: str) -> str:
    """A file at the top of the checkout; its links into docs/ become links between pages."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.sub(r"\]\(docs/", "](", text)


def _command(name: str, command: click.Command) -> str:
    """What `s2s NAME --help` says, as a page."""
    context = click.Context(command, info_name=f"s2s {name}")
    usage = command.get_usage(context).removeprefix("Usage: ")
    lines = [f"# s2s {name}", "", "```text", *usage.splitlines(), "```", "", _plain(command.help or ""), ""]
    lines += ["| option | |", "|---|---|"]
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
        if record is not None:
            lines.append(f"| `{_cell(record[0])}` | {_cell(record[1])} |")
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in text.replace("\b", "").split("\n\n"))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _family(path: Path) -> str:
    """The docstring of a family's file, and the model types that it reads."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    text = (ast.get_docstring(module) or "").strip()
    first, _, rest = text.partition("\n\n")
    types: tuple[str, ...] = ()
    for node in module.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "MODEL_TYPES":
            types = ast.literal_eval(node.value)
    named = ", ".join(f"`{name}`" for name in types)
    lines = [f"# {path.stem}", "", first, "", rest, "", f"Reads checkpoints whose `model_type` is {named}:", ""]
    lines += ["```console", "$ s2s export CHECKPOINT BUNDLE", "```", ""]
    lines.append("What was tried, and how far the graphs are from transformers: [all families](../families.md).")
    return "\n".join(lines) + "\n"
