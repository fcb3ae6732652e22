"""The complete example of docs/own-module.md runs as written."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "docs" / "own-module.md"


@pytest.mark.slow
def test_the_example_runs(tmp_path):
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[0]
    (tmp_path / "mine.py").write_text(code)
    done = subprocess.run([sys.executable, "mine.py"], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    error, *hypotheses = done.stdout.splitlines()
    assert float(error) < 2e-5 and len(hypotheses) == 2 and all(line.startswith("[([1, ") for line in hypotheses)
    assert (tmp_path / "my-bundle" / "manifest.json").is_file()
