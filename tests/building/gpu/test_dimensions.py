"""Ranges fitted to a model, and caches that serve several numbers of beams."""

from __future__ import annotations

import pytest
from small import recipe

from s2s_export import bundle, recipes
from s2s_export.building.gpu import dimensions, options
from s2s_export.errors import InvalidOption, UnknownOption
from s2s_export.recipes import Range


def test_slots_divide_by_the_beams_that_are_served(bundled):
    fitted = dimensions.fit(bundle.read(bundled("t5")), recipe())
    assert fitted.slots >= 24 * 8
    assert all(fitted.slots % beams == 0 for beams in (1, 2, 3, 4, 5, 6, 8))
    assert fitted.ranges["C"] == Range(fitted.slots // 8, fitted.slots // 4, fitted.slots)
    assert [fitted.beams_for(wanted) for wanted in (1, 4, 7, 8)] == [1, 4, 8, 8]
    with pytest.raises(InvalidOption, match="9 beams; expected at most 8"):
        fitted.beams_for(9)


@pytest.mark.parametrize("most", range(1, 17))
def test_any_largest_number_of_beams_is_served(bundled, most):
    wanted = recipe(ranges={"K": Range(1, 1, most), "T": Range(1, 64, 256)})
    fitted = dimensions.fit(bundle.read(bundled("t5")), wanted)
    assert fitted.slots % most == 0
    assert 256 * most <= fitted.slots < 256 * most + 240 * most
    assert all(beams <= fitted.beams_for(beams) <= most for beams in range(1, most + 1))


def test_a_recurrent_model_has_no_slots(bundled):
    fitted = dimensions.fit(bundle.read(bundled("gru")), recipe())
    assert fitted.slots == 0
    assert "C" not in fitted.ranges


def test_a_range_beyond_the_model_is_cut_and_told(bundled):
    fitted = dimensions.fit(bundle.read(bundled("marian")), recipe(ranges={"S": Range(1, 64, 512)}))
    assert fitted.ranges["S"] == Range(1, 48, 48)
    assert "ranges.S ends at 48 instead of 512" in fitted.notes[0]


def test_a_range_that_the_model_cannot_serve_is_refused(bundled):
    wanted = recipe(ranges={"S": Range(60, 64, 512), "T": Range(50, 50, 50)})
    with pytest.raises(
        InvalidOption, match="ranges.S begins at 60, but the model's limit is 48.*ranges.T begins at 50"
    ):
        dimensions.fit(bundle.read(bundled("marian")), wanted)


def test_options_are_checked_together_and_name_their_neighbour():
    assert options.read(recipe(options={"attention": True})).attention
    with pytest.raises(UnknownOption, match=r"'atention'; did you mean 'attention'\?"):
        options.read(recipe(options={"atention": True}))
    with pytest.raises(InvalidOption, match=r"n_samples is 0.*overflow is 'fp64'.*margin is 0\.5"):
        options.read(recipe(options={"overflow": "fp64", "margin": 0.5, "n_samples": 0}))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("worksace_mib = 5", r"'worksace_mib'; did you mean 'workspace_mib'\?"),
        ("[ranges]\nQ = { min = 1, opt = 1, max = 1 }", r"ranges\.Q, expected one of B \(sources\)"),
        ("[ranges]\nB = { min = 4, opt = 1, max = 8 }", "expected min <= opt <= max"),
        ("workspace_mib = 0", "workspace_mib is 0"),
    ],
)
def test_wrong_recipes_name_what_is_meant(tmp_path, line, message):
    file = tmp_path / "mine.toml"
    file.write_text(f'flavour = "tensorrt-rtx"\nprecision = "fp16"\n{line}\n')
    with pytest.raises((UnknownOption, InvalidOption), match=message):
        recipes.load(str(file))


def test_an_unknown_target_names_its_neighbour():
    with pytest.raises(UnknownOption, match="did you mean 'rtx-fp16'"):
        recipes.load("rtx-pf16")


@pytest.mark.parametrize("name", [n for n in recipes.names() if not n.startswith("cpu-")])
def test_the_targets_of_the_project_are_valid(name):
    target = recipes.load(name)
    options.read(target)
    assert target.description
    assert target.flavour in ("cuda", "cuda-native") or target.compute_capabilities
