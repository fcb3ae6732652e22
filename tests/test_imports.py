"""What must not be imported is tested in a fresh interpreter; and imports run one way."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "s2s_export"
BLOCKED = ("torch", "transformers", "onnx", "safetensors", "matplotlib", "huggingface_hub")
BLOCKER = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {BLOCKED!r}:
            raise ImportError(f'{{name}} is blocked')
sys.meta_path.insert(0, Blocker())
"""
# What runs on the device, and what it may not import: the half that runs at export.
DEVICE = ("runtime", "bundle.py", "recipes.py", "errors.py")
EXPORT = {"exporting", "building", "reference", "training", "cli"}


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", BLOCKER + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_copied_bundle_decodes_with_the_export_packages_blocked(exported):
    path = exported("marian")[1]
    out = run(
        f"import s2s_export; s = s2s_export.load({str(path)!r});"
        "print(s.generate([[5, 6, 7]], num_beams=3, max_new_tokens=5)[0][0].token_ids)"
    )
    assert out.startswith("[60, ")


@pytest.mark.parametrize("command", ["--help", "doctor", "translate --help", "export --help", "build --list"])
def test_commands_start_without_the_export_packages(command):
    run(f"import sys; sys.argv = ['s2s'] + {command.split()!r}\nfrom s2s_export.cli import main\nmain()")


def test_a_missing_extra_is_one_sentence(tmp_path):
    code = "from s2s_export.errors import MissingExtra\nimport s2s_export\n"
    code += "try: s2s_export.export('a', 'b')\nexcept MissingExtra as error: print(error)"
    assert "pip install 's2s-export[export]'" in run(code)


def imported(path: Path) -> set[str]:
    """Names of this package's own modules that a file imports, at its top or inside its functions."""
    depth = len(path.relative_to(PACKAGE).parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level == depth:
                found |= {module.split(".")[0]} if module else {alias.name for alias in node.names}
            elif node.level == 0 and module.split(".")[0] == "s2s_export":
                rest = module.split(".")[1:]
                found |= {rest[0]} if rest else {alias.name for alias in node.names}
    return found


def files(name: str) -> list[Path]:
    place = PACKAGE / name
    return sorted(place.rglob("*.py")) if place.is_dir() else [place]


@pytest.mark.parametrize("name", DEVICE)
def test_the_device_half_imports_nothing_of_the_export_half(name):
    for path in files(name):
        assert not imported(path) & EXPORT, path
