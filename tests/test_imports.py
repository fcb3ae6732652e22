"""What must not be imported, in a fresh interpreter. Who may import whom, `lint-imports` checks (pyproject.toml)."""

from __future__ import annotations

import subprocess
import sys

import pytest

BLOCKED = ("torch", "transformers", "onnx", "safetensors", "matplotlib", "huggingface_hub")
BLOCKER = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {BLOCKED!r}:
            raise ImportError(f'{{name}} is blocked')
sys.meta_path.insert(0, Blocker())
"""


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


def test_every_module_of_the_runtime_is_importable_with_the_export_packages_blocked():
    code = "import importlib, pkgutil, s2s_export, s2s_export.runtime\n"
    code += "for module in pkgutil.walk_packages(s2s_export.runtime.__path__, 's2s_export.runtime.'):\n"
    code += "    if '._torch_' not in module.name: importlib.import_module(module.name)\n"  # the backend that is torch
    run(code + "s2s_export.load")


def test_every_module_of_the_server_is_importable_with_the_export_packages_blocked():
    code = "import importlib, pkgutil, s2s_export.serving as serving\n"
    run(
        code
        + "for m in pkgutil.walk_packages(serving.__path__, 's2s_export.serving.'): importlib.import_module(m.name)"
    )


@pytest.mark.parametrize(
    "command", ["--help", "doctor", "translate --help", "export --help", "build --list", "serve --help"]
)
def test_commands_start_without_the_export_packages(command):
    run(f"import sys; sys.argv = ['s2s'] + {command.split()!r}\nfrom s2s_export.cli import main\nmain()")


def test_a_missing_extra_is_one_sentence(tmp_path):
    code = "from s2s_export.errors import MissingExtra\nimport s2s_export\n"
    code += f"try: s2s_export.export({str(tmp_path)!r}, 'b')\nexcept MissingExtra as error: print(error)"
    assert "pip install 's2s-export[export]'" in run(code)
