"""The plugins' sources are found in a checkout and in a wheel, and hold what a plugin must."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from s2s_export import plugin_sources
from s2s_export.errors import BuildError

ROOT = plugin_sources.folder()


def test_wheel_layout(tmp_path: Path) -> None:
    """As installed: the package with `plugins` under `_data`, and nothing beside it."""
    package = tmp_path / "s2s_export"
    package.mkdir()
    for name in ("__init__.py", "errors.py", "plugin_sources.py", "version.py"):
        shutil.copy(Path(plugin_sources.__file__).with_name(name), package / name)
    shutil.copytree(ROOT, package / "_data" / "plugins", ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from s2s_export import plugin_sources as p; "
        "print(p.folder()); print(sorted(p.module().operations()))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    folder, operations = result.stdout.splitlines()
    assert folder == str(package / "_data" / "plugins")
    assert operations == str(["BeamSelfAttention", "BeamSelfAttentionBias", "CrossAttention", "CrossAttentionBias"])


def test_missing_sources_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin_sources, "__file__", str(tmp_path / "s2s_export" / "plugin_sources.py"))
    with pytest.raises(BuildError, match=r"no plugin sources in .*; reinstall s2s-export, or build without plugins"):
        plugin_sources.folder()


@pytest.mark.parametrize("folder", sorted(path.parent.name for path in ROOT.glob("*/launcher.cu")))
def test_every_folder_is_whole(folder: str) -> None:
    there = {path.name for path in (ROOT / folder).iterdir()}
    shared = {path.name for path in (ROOT / "transformer").iterdir()} if folder == "transformer_int8" else set()
    assert {"launcher.cu", "README.md"} <= there
    assert {"parameters.h", "reference.py", "tolerances.py"} <= there | shared
    assert f"({folder}/README.md)" in (ROOT / "README.md").read_text()
