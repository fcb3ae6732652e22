"""Calibration: how likely an output is right, learned from outputs that were judged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import s2s

import s2s_export
from s2s_export import bundle as bundles
from s2s_export.errors import BundleError, InputError
from s2s_export.runtime import calibration

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def exported_words(tmp_path_factory):
    path = tmp_path_factory.mktemp("calibrated") / "bundle"
    s2s_export.export(ROOT / "examples" / "models" / "number-words", path)
    return path


@pytest.fixture
def words(exported_words, tmp_path):
    return Path(shutil.copytree(exported_words, tmp_path / "bundle"))


def chance(means):
    return 1 / (1 + np.exp(-(3 + 4 * means)))


def test_what_is_learned_is_near_the_truth():
    rng = np.random.default_rng(1)
    means = -rng.gamma(2, 0.3, 4000)
    found = calibration.fit(means.tolist(), (rng.random(4000) < chance(means)).tolist(), "exact", None)
    grid = np.linspace(-1.5, -0.05, 20)
    assert np.abs(calibration.apply(found.points, grid) - chance(grid)).max() < 0.1
    assert found.error < 0.03 < found.error_before
    probabilities = [probability for _, probability in found.points]
    assert probabilities == sorted(probabilities) and probabilities[0] > 0 and probabilities[-1] < 1


def test_confidence_that_says_nothing_becomes_the_share_of_right_outputs():
    means = np.linspace(-2, 0, 500).tolist()
    found = calibration.fit(means, [i % 4 == 0 for i in range(500)], "exact", None)
    assert np.abs(calibration.apply(found.points, np.array([-1.9, -1.0, -0.1])) - 0.25).max() < 0.05


def test_equal_probabilities_are_one_group():
    assert calibration.expected_error(np.full(100, 0.5), np.arange(100) < 50) == pytest.approx(0)
    assert calibration.expected_error(np.full(100, 0.9), np.arange(100) < 50) == pytest.approx(0.4)


def test_too_few_pairs():
    with pytest.raises(InputError, match="found 49 outputs to judge; a calibration needs at least 50"):
        calibration.fit([-1.0] * 49, [True] * 49, "exact", None)


def test_the_command_and_what_it_changes(words, tmp_path):
    pairs = (ROOT / "examples" / "data" / "number-words.test.tsv").read_text("utf-8").splitlines()[:80]
    (tmp_path / "pairs.tsv").write_text("\n".join(pairs) + "\n")
    before = s2s("translate", words, ">>deu<< two", "--confidence", "--json", "-q")
    assert "calibrated" not in json.loads(before.stdout)["outputs"][0]
    done = json.loads(s2s("calibrate", words, "--data", tmp_path / "pairs.tsv", "--json", "-q").stdout)
    assert done["pairs"] == 80 and done["share_right"] > 0.9 and done["error"] < 0.1
    after = json.loads(s2s("translate", words, ">>deu<< two", "--confidence", "--json", "-q").stdout)["outputs"][0]
    stored = json.loads((words / "calibration.json").read_text())["targets"]["portable"]
    assert after["calibrated"] == pytest.approx(
        float(calibration.apply(stored["points"], np.array([np.log(after["confidence"])]))[0])
    )
    assert 0.9 < after["calibrated"] < 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not readable"),
        ('{"format": "other", "format_version": 1, "targets": {}}', "format is 'other'"),
        ('{"format": "s2s-calibration", "format_version": 9, "targets": {}}', "version 9; expected at most 1"),
        ({"points": []}, "no rising pairs"),
        ({"points": [[-1, 0.5], [-2, 0.6]]}, "no rising pairs"),
        ({"points": [[-1, 1.5]]}, "no rising pairs"),
        ({"points": [[-1]]}, "no rising pairs"),
        ({"points": "x"}, "targets.portable.points"),
    ],
)
def test_a_file_that_is_no_calibration(words, content, message):
    if isinstance(content, dict):
        target = {"measure": "exact", "n_pairs": 50, "points": [[-1, 0.5]], "made_from": "x", **content}
        content = json.dumps({"format": "s2s-calibration", "format_version": 1, "targets": {"portable": target}})
    (words / "calibration.json").write_text(content)
    with pytest.raises(BundleError, match=message):
        calibration.read(bundles.read(words), None)


def test_that_of_another_model_is_not_used(words):
    opened = bundles.read(words)
    found = calibration.fit([-1.0] * 30 + [-0.1] * 30, [False] * 30 + [True] * 30, "chrf", 60.0)
    calibration.write(opened, None, found)
    calibration.write(opened, "cpu-int8", found)
    assert calibration.read(opened, None) == found == calibration.read(opened, "cpu-int8")
    assert calibration.read(opened, "cpu-fp32") is None
    text = (words / "calibration.json").read_text()
    stored = json.loads(text)["targets"]["portable"]["made_from"]
    (words / "calibration.json").write_text(text.replace(stored, "0" * 64))
    assert calibration.read(opened, None) is None
