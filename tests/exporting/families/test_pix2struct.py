"""Pix2Struct: patches as transformers makes them, and the tokens of generate() for pictures of unequal proportions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_patches
import tiny_pictures
import torch
import transformers
from command_line import run_here
from PIL import Image

import s2s_export
from s2s_export.errors import CheckpointError, InputError, UnsupportedModel
from s2s_export.exporting.families import pix2struct
from s2s_export.exporting.pictures import patching_of
from s2s_export.runtime.pictures import patches

SIZES = [(40, 60), (33, 90), (100, 20), (7, 9), (1, 1)]
SEARCHES: tuple[dict[str, Any], ...] = (
    {}, {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2, "no_repeat_ngram_size": 2, "length_penalty": 0.4},
)  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own


def processor(**settings: Any) -> Any:
    """The processor for Pillow; older releases have one only."""
    name = "Pix2StructImageProcessorPil"
    cls = getattr(transformers, name, None) or transformers.Pix2StructImageProcessor
    return cls(**settings)


@pytest.mark.parametrize("switch", tiny_patches.SWITCHES)
def test_tokens_and_scores_are_those_of_generate(tmp_path: Path, switch: str) -> None:
    checkpoint = tiny_patches.save(tmp_path / "checkpoint", switch)
    report = s2s_export.export(checkpoint, tmp_path / "bundle")
    assert max(error.relative for error in report.parity) < 1e-5
    session = s2s_export.load(tmp_path / "bundle", threads=1)
    model = transformers.Pix2StructForConditionalGeneration.from_pretrained(checkpoint).eval()
    pictures = [tiny_pictures.picture(seed, *size) for seed, size in enumerate(SIZES)]
    images = [Image.fromarray(picture) for picture in pictures]  # whose channels are never taken for rows
    theirs = processor(patch_size={"height": 4, "width": 6}, max_patches=30)(images, return_tensors="pt")
    lengths = {session.kind.length(session.check_source(picture)) for picture in pictures}
    assert lengths == {int(n) for n in theirs["attention_mask"].sum(1)} and len(lengths) > 2
    texts = set()
    for options in SEARCHES:
        found = [hypothesis for of_one in session.generate(pictures, **options) for hypothesis in of_one]
        with torch.no_grad():
            wanted = model.generate(**theirs, return_dict_in_generate=True, output_scores=True, **options)
        for i, (hypothesis, tokens) in enumerate(zip(found, wanted.sequences.tolist(), strict=True)):
            n = len(hypothesis.token_ids)
            assert hypothesis.token_ids == tokens[:n] and len(set(tokens[n:])) <= 1
            if "num_beams" in options:
                assert abs(hypothesis.score - float(wanted.sequences_scores[i])) < 1e-4
            texts.add(tuple(hypothesis.token_ids))
    assert len(texts) > 3  # different pictures give different texts
    padded = [row.numpy() for row in theirs["flattened_patches"]]  # transformers' own patches are sources too
    both = (session.generate(sources, num_beams=3) for sources in (padded, pictures))
    assert all(a.token_ids == b.token_ids for [a], [b] in zip(*both, strict=True))


@pytest.mark.parametrize("most", [1, 7, 30, 128])
@pytest.mark.parametrize("normalize", [True, False])
def test_patches_are_those_of_transformers(most: int, normalize: bool) -> None:
    ours = {"max_patches": most, "patch_height": 4, "patch_width": 6, "normalize": normalize, "has_header": False}
    theirs = processor(patch_size={"height": 4, "width": 6}, max_patches=most, do_normalize=normalize)
    for seed, (height, width) in enumerate([*SIZES, (300, 411), (3, 500), (500, 2)]):
        picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        wanted = theirs([Image.fromarray(picture)], return_tensors="np")
        found = patches.flattened(picture, ours)
        n = int(np.asarray(wanted["attention_mask"]).sum())
        assert len(found) == n
        scale = 1 if normalize else 255
        assert np.abs(found - np.asarray(wanted["flattened_patches"])[0, :n]).max() < 1e-5 * scale


def test_a_picture_in_one_colour() -> None:
    """Its deviation is zero, in place of which transformers takes a small number."""
    picture = np.full((9, 14, 3), 77, np.uint8)
    ours = {"max_patches": 8, "patch_height": 4, "patch_width": 6, "normalize": True, "has_header": False}
    assert np.abs(patches.flattened(picture, ours)[:, 2:]).max() < 1e-5


def test_what_can_not_be_read_is_said(tmp_path: Path) -> None:
    asking = tiny_patches.save(tmp_path / "checkpoint", is_vqa=True)
    session = s2s_export.load(s2s_export.export(asking, tmp_path / "bundle").path)
    picture = tiny_pictures.picture(0)
    with pytest.raises(InputError, match="have their question drawn above them"):
        session.check_source(picture)
    good = session.kind.random(np.random.default_rng(0), 6)
    assert session.check_source(good).shape == (6, 74)
    for place, value, message in (
        ((0, 0), 0.0, "the patches are 6, in rows and columns from 0 to"),
        ((2, 1), 40.0, "rows and columns from 1 to 40; expected 1 to 39 patches"),
        ((3, 1), 1.5, "expected 1 to 39 patches in whole rows"),
        ((3, 9), np.nan, "the patches hold NaN"),
    ):
        bad = good.copy()
        bad[place] = value
        with pytest.raises(InputError, match=message):
            session.check_source(bad)
    with pytest.raises(InputError, match="the patches are 0"):
        session.check_source(np.zeros((4, 74), np.float32))
    (asking / "preprocessor_config.json").unlink()
    session = s2s_export.load(s2s_export.export(asking, tmp_path / "bundle", force=True).path)
    with pytest.raises(InputError, match="had no preprocessor_config.json"):
        session.check_source(picture)
    assert session.generate([good])[0][0].token_ids


def test_settings_that_contradict_the_model(tmp_path: Path) -> None:
    folder = tiny_patches.save(tmp_path, image_processor_type="ViTImageProcessor")
    with pytest.raises(UnsupportedModel, match="prepared by a 'ViTImageProcessor'; expected Pix2Struct"):
        patching_of(folder, 72)
    for settings, message in (
        ({"patch_size": 16}, "patches of .*, but the model takes 72"),
        ({"max_patches": 0}, "max_patches 0"),
    ):
        tiny_patches.save(tmp_path, **settings)
        with pytest.raises(CheckpointError, match=message):
            patching_of(folder, 72)
    model = tiny_patches.make()
    model.config.text_config.d_kv = 7
    with pytest.raises(UnsupportedModel, match="num_heads 3 and d_kv 7; expected a product of 24"):
        pix2struct.describe(model)


def test_read_and_engines(tmp_path: Path) -> None:
    """`s2s read` of files, and the engines for a CPU."""

    from s2s_export.building.build import build

    checkpoint = tiny_patches.save(tmp_path / "checkpoint")
    tiny_pictures.write_tokenizer(checkpoint)
    bundle = s2s_export.export(checkpoint, tmp_path / "bundle").path
    names = [str(tmp_path / f"{i}.png") for i in range(3)]
    for i, name in enumerate(names):
        Image.fromarray(tiny_pictures.picture(i, *SIZES[i])).save(name)
    assert len(run_here("read", bundle, *names, "--num-beams", 2, "--quiet")[0].splitlines()) == 3
    build(bundle, "cpu-fp32")
    plain, engine = (s2s_export.load(bundle, target=target, threads=1) for target in (None, "cpu-fp32"))
    assert plain.read(names, num_beams=3) == engine.read(names, num_beams=3)
