"""The documentation: it builds strictly, names commands, options and messages that there are, and its code runs.

A fenced block is run unless a comment before it says why not: `<!-- not run: REASON -->`. Blocks of a page are run in
order in one folder, which has what pages take for granted: the checkout's examples, a bundle, lines of text.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from s2s_export.cli import s2s

CONTEXT = click.Context(s2s)
COMMANDS = {name: s2s.get_command(CONTEXT, name) for name in s2s.list_commands(CONTEXT)}
ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(
    r"(?:<!-- not run: (?P<why>[^>]+?) -->\n\n?)?^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
SHELL, PYTHON = ("console", "sh", "bash"), ("python",)
ELSEWHERE = {"CONTRIBUTING.md": "tests/test_adding.py runs its examples"}
# What is typed in a shell and not run here, by how it begins.
NOT_RUN = {
    "pip ": "installs, which every run of scripts/test does",
    "scripts/": "run by CI, by their own tests, or for minutes",
    "benchmarks/": "runs for half an hour",
    "scp ": "needs another machine",
    "s2s serve ": "runs until it is stopped; tests/serving starts it",
    "s2s transcribe ": "needs a trained Whisper; tests/runtime/speech has it",
    "s2s read ": "needs a model that reads pictures; examples/08_read.py trains one",
    "s2s encode ": "needs an encoder alone; tests/cli/test_encode.py has some",
    "s2s train ": "trains for minutes; tests/training",
}


@dataclass(frozen=True)
class Block:
    page: Path
    language: str
    code: str
    why_not: str | None

    def commands(self) -> list[str]:
        """What is typed: lines after "$ " with what continues them, or all lines where none is marked so."""
        lines = self.code.replace("\\\n", " ").splitlines()
        typed = [line[2:] for line in lines if line.startswith("$ ")]
        typed = typed or [line for line in lines if self.language != "console" and line and not line.startswith("#")]
        return [line for line in typed if not line.startswith(tuple(NOT_RUN))]


def blocks(page: Path) -> list[Block]:
    found = FENCE.finditer(page.read_text(encoding="utf-8"))
    return [Block(page, match["language"], match["code"], match["why"]) for match in found]


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_block_has_a_language(page):
    fences = re.findall(r"^```(\w*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert all(fences[::2]) and not any(fences[1::2])


def typed_commands(page: Path) -> list[str]:
    """Every line of a page that calls s2s, in fenced and in indented blocks."""
    lines = page.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    found = [re.match(r"(?:    )?(?:\$ )?(?:seq .*xargs.* )?(s2s [a-z]+ .*)", line) for line in lines]
    return [match[1] for match in found if match]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_and_options_are_there(page):
    for line in typed_commands(page):
        line = re.split(r"  #| \| | > | < |<<<", line)[0]
        _, name, *arguments = shlex.split(line, comments=True)
        parameters = COMMANDS[name].get_params(click.Context(COMMANDS[name]))
        known = {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}
        given = {argument.partition("=")[0] for argument in arguments if argument.startswith("-") and argument != "-"}
        assert given <= known, line


def test_messages_are_those_of_the_code():
    """What docs/troubleshooting.md quotes in bold stands in the package."""
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "s2s_export").rglob("*.py"))
    sources = re.sub(r'"\s*\n\s*f?"', "", sources)  # a sentence over several lines
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = [
        part for bold in re.findall(r"^\*\*(.+?)\*\*", page, re.MULTILINE) for part in re.findall(r"`([^`]+)`", bold)
    ]
    assert len(quoted) >= 20
    assert [message for message in quoted if message not in sources] == []


def test_the_site_is_built_strictly(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install 's2s-export[dev]'")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"],
        cwd=ROOT, capture_output=True, text=True, timeout=300, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    made = {path.relative_to(tmp_path / "site").as_posix() for path in (tmp_path / "site").rglob("*.html")}
    assert {f"commands/{name}.html" for name in COMMANDS} <= made and "families/marian.html" in made
    outside = [
        (path, url)
        for path in made
        for url in re.findall(r'(?:src|href)="(https?://[^"]+)"', (tmp_path / "site" / path).read_text("utf-8"))
        if re.search(r"\.(js|css|woff2?)(\?|$)", url)
    ]
    assert outside == [], "a page loads something from elsewhere"


# Running them

WITH_CODE = [page for page in PAGES if named(page) not in ELSEWHERE and any(b.why_not is None for b in blocks(page))]


def prepare(folder: Path, page: Path, bundle: Path) -> None:
    """What a page takes for granted."""
    for name in ("examples", "scripts", "engines"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("CHECKPOINT", "checkpoint", "opus-mt-en-de"):
        (folder / name).symlink_to(ROOT / "examples" / "models" / "number-words")
    typed = "\n".join(
        line for block in blocks(page) for line in (block.commands() if block.language in SHELL else [block.code])
    )
    for name in ("BUNDLE", "bundle", "en-mul", "en-de", "number-words.bundle"):
        if not re.search(rf"s2s export \S+ {name}\s|s2s_export.export\(\S+ \"{name}\"", typed + "\n"):
            shutil.copytree(bundle, folder / name)
    (folder / "numbers.txt").write_text("dix-sept\nsiebzehn\n")
    (folder / "glossary.tsv").write_text("seventeen\tsiebenzehn\n")
    (folder / "lines.txt").write_text(">>deu<< one\n>>fra<< two\n")
    (folder / "cases.jsonl").write_text('{"id": 1, "text": ">>deu<< one", "num_beams": 2}\n')
    pairs = (ROOT / "examples" / "data" / "number-words.test.tsv").read_text("utf-8").splitlines()[:50]
    for name in ("PAIRS.tsv", "pairs.tsv"):
        (folder / name).write_text("\n".join(pairs) + "\n")


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_CODE, ids=named)
def test_its_code_runs(page, tmp_path, tmp_path_factory):
    bundle = tmp_path_factory.getbasetemp() / "docs-bundle"
    if not bundle.exists():
        import s2s_export

        s2s_export.export(ROOT / "examples" / "models" / "number-words", bundle)
    prepare(tmp_path, page, bundle)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
    }
    for block in blocks(page):
        if block.why_not is not None or block.language not in (*SHELL, *PYTHON):
            continue
        if block.language in SHELL and not block.commands():
            continue
        script = (
            [sys.executable, "-c", block.code]
            if block.language in PYTHON
            else ["bash", "-euo", "pipefail", "-c", "\n".join(block.commands())]
        )
        done = subprocess.run(
            script, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0, f"{named(page)}:\n{block.code}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
