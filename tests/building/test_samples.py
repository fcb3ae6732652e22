"""Where samples come from, and which rows of them count."""

from __future__ import annotations

import numpy as np
import pytest
from small import recipe

from s2s_export import bundle
from s2s_export.building import samples
from s2s_export.building.gpu import agreement, options
from s2s_export.building.gpu.running import Trace
from s2s_export.errors import InvalidOption


def trace(logits, is_open):
    return Trace(None, None, np.asarray(logits, np.float32), np.asarray(is_open))


def test_rows_after_the_end_do_not_count():
    expected = trace([[[[3.0, 1.0], [0.0, 9.0]]]], [[[True, False]]])
    found = trace([[[[3.0, 1.5], [9.0, 0.0]]]], [[[True, True]]])
    result = agreement.compare([expected], [found])
    assert result["rows"] == 1
    assert result["best_token"] == 1.0
    assert result["max_error"] == pytest.approx(0.5)


def test_random_ids_where_there_is_no_tokenizer(bundled):
    opened = bundle.read(bundled("marian"))
    found, origin = samples.sources(opened, 8)
    assert origin == "8 sources of random ids"
    assert all(1 <= len(ids) <= 48 for ids in found)
    assert samples.sources(opened, 8)[0] == found


def test_a_file_needs_a_tokenizer_and_must_exist(bundled, tmp_path):
    file = tmp_path / "lines.txt"
    file.write_text("one\ttwo\n")
    with pytest.raises(InvalidOption, match="the bundle has no tokenizer"):
        samples.sources(bundle.read(bundled("marian")), 8, str(file))
    with pytest.raises(InvalidOption, match="samples is 'nowhere', expected the path of a file"):
        options.read(recipe(options={"samples": "nowhere"}))
    assert options.read(recipe(options={"samples": str(file)})).samples == str(file)
