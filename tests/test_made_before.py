"""A bundle and an engine that an earlier version made, at commit 404421f, before the package was laid out anew.

data/made_before has them with what that version decoded: a random Marian model of 60 tokens, its portable graphs, and
the target cpu-fp32 with ONNX Runtime's kernels.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import s2s_export

MADE = Path(__file__).parent / "data" / "made_before"
EXPECTED = json.loads((MADE / "expected.json").read_text())


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """The engine may only run on the ONNX Runtime that it was built for: the copy says that it was this one."""
    path = shutil.copytree(MADE / "bundle", tmp_path / "bundle")
    file = path / "engines" / "cpu-fp32" / "engine.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "onnxruntime": onnxruntime.__version__}))
    return path


@pytest.mark.parametrize("target", ["portable", "cpu-fp32"])
def test_it_opens_and_decodes_the_same(bundle: Path, target: str) -> None:
    session = s2s_export.load(bundle, target=target, threads=1)
    found = session.generate(EXPECTED["sources"], num_beams=3, num_return_sequences=2)
    for ours, before in zip(found, EXPECTED["outputs"], strict=True):
        assert [h.token_ids for h in ours] == [h["token_ids"] for h in before]
        np.testing.assert_allclose([h.score for h in ours], [h["score"] for h in before], atol=1e-5)
