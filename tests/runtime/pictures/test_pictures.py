"""Pictures: what image processors of transformers do to them, and pictures of every kind and of none."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from PIL import Image
from tiny_pictures import picture

from s2s_export.errors import InputError, MissingExtra
from s2s_export.exporting.pictures import preprocessing_of
from s2s_export.runtime.pictures import files, steps

STANDARD = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
DONUT = {"image_processor_type": "DonutImageProcessor", "size": {"height": 32, "width": 24}}
SETTINGS: list[tuple[dict[str, Any], tuple[int, int]]] = [
    ({"image_processor_type": "ViTImageProcessor"}, (224, 224)),
    *(({"image_processor_type": "ViTImageProcessor", "size": {"height": 20, "width": 30}, "resample": n, **STANDARD},
       (20, 30)) for n in range(6)),
    ({"image_processor_type": "ViTImageProcessor", "size": 16, "do_normalize": False}, (16, 16)),
    ({"image_processor_type": "ViTImageProcessor", "size": 16, "do_rescale": False}, (16, 16)),
    ({"image_processor_type": "ViTImageProcessor", "size": 16, "rescale_factor": 0.01}, (16, 16)),
    ({"image_processor_type": "DeiTImageProcessor", "size": 30, "crop_size": 24}, (24, 24)),
    ({"image_processor_type": "DeiTImageProcessor", "size": 19, "crop_size": 24}, (24, 24)),
    ({"image_processor_type": "DeiTImageProcessor", "size": {"shortest_edge": 24}, "crop_size": 24}, (24, 24)),
    ({"image_processor_type": "DeiTImageProcessor", "do_resize": False, "crop_size": 25}, (25, 25)),
    ({"image_processor_type": "BeitImageProcessor", "size": {"height": 17, "width": 23}}, (17, 23)),
    (DONUT, (32, 24)),
    ({**DONUT, "do_align_long_axis": True, "resample": 3}, (32, 24)),
    ({**DONUT, "size": {"height": 24, "width": 32}, "do_align_long_axis": True}, (24, 32)),
    ({**DONUT, "do_resize": False}, (32, 24)),
]  # fmt: skip
SIZES = [(40, 60), (60, 40), (33, 33), (7, 90), (90, 7), (1, 1)]


@pytest.mark.parametrize(("settings", "size"), SETTINGS, ids=range(len(SETTINGS)))
def test_pixels_are_those_of_transformers(tmp_path: Path, settings: dict[str, Any], size: tuple[int, int]) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    preprocessing = preprocessing_of(tmp_path, (3, *size))
    assert preprocessing is not None
    name = settings["image_processor_type"]
    processor = getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)
    reference = processor.from_pretrained(tmp_path)
    n_compared = 0
    for seed, (height, width) in enumerate(SIZES):
        made = picture(seed, height, width)
        try:
            wanted = np.asarray(reference(Image.fromarray(made))["pixel_values"][0])
        except ValueError:  # a side of no pixels
            with pytest.raises(InputError, match="too narrow"):
                steps.resized(made, preprocessing)
            continue
        found = steps.normalized(steps.resized(made, preprocessing), preprocessing)
        assert found.dtype == np.float32 and found.shape == wanted.shape
        assert np.abs(found - wanted).max() < 1e-5 * max(1, np.abs(wanted).max())
        n_compared += 1
    assert n_compared >= 4


def encoded(image: Any, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


MADE = picture(3, 20, 28)
RGB = Image.fromarray(MADE)


def test_pictures_of_every_kind() -> None:
    grey = RGB.convert("L")
    wide = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    clear = RGB.convert("RGBA")
    clear.putalpha(Image.new("L", RGB.size, 0))
    frames = {"save_all": True, "append_images": [Image.new("RGB", RGB.size)]}
    threes = np.repeat(np.asarray(grey)[..., None], 3, axis=2)
    for raw, wanted in (
        (encoded(RGB), MADE),
        (encoded(RGB, "TIFF"), MADE),
        (encoded(RGB, "WEBP", lossless=True), MADE),
        (encoded(RGB, "TIFF", **frames), MADE),
        (encoded(grey), threes),
        (encoded(wide), threes),
        (encoded(clear), np.full_like(MADE, 255)),
        (encoded(RGB.convert("1")), np.asarray(RGB.convert("1").convert("RGB"))),
        (encoded(RGB.convert("P")), np.asarray(RGB.convert("P").convert("RGB"))),
        (encoded(RGB.convert("CMYK"), "TIFF"), np.asarray(RGB.convert("CMYK").convert("RGB"))),
        (encoded(RGB.convert("YCbCr"), "JPEG", quality=100), None),
    ):
        found = files.read(raw)
        assert found.dtype == np.uint8 and found.shape == MADE.shape
        assert wanted is None or (found == wanted).all()
    assert (files.read(RGB) == MADE).all() and (files.read(MADE) == MADE).all()


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_turned_photograph_stands_upright(turn: int) -> None:
    exif = Image.Exif()
    exif[274] = turn
    raw = encoded(RGB, "JPEG", exif=exif, quality=100)
    plain = files.read(encoded(RGB, "JPEG", quality=100))
    found = files.read(raw)
    turned = {1: plain, 2: plain[:, ::-1], 3: plain[::-1, ::-1], 4: plain[::-1], 5: plain.transpose(1, 0, 2),
              6: np.rot90(plain, 3), 7: plain[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(plain)}[turn]  # fmt: skip
    assert (found == turned).all()


def test_arrays() -> None:
    grey = MADE[..., 0]
    threes = np.repeat(grey[..., None], 3, axis=2)
    for array, wanted in (
        (grey, threes),
        (grey[..., None], threes),
        (grey.astype(np.uint16) * 257, threes),
        (grey.astype(np.int64), threes),
        (MADE / 255, MADE),
        (grey > 100, np.where(threes > 100, 255, 0)),
        (np.dstack([MADE, np.full_like(grey, 0)]), np.full_like(MADE, 255)),
    ):
        assert (files.read(array) == wanted).all()
    for array, message in (
        (np.zeros((3, 20, 28), np.uint8), r"array \[3, 20, 28\] of uint8; expected numbers \[height, width\]"),
        (np.zeros((4, 4, 2), np.uint8), "with 1, 3 or 4 channels"),
        (np.full((4, 4), np.nan), "values from nan to nan"),
        (np.full((4, 4), -1), "values from -1 to -1; expected 0 to 255"),
        (np.array([["a"]]), "expected numbers"),
        (np.zeros((0, 4), np.uint8), "4 x 0 pixels; expected at least one"),
    ):
        with pytest.raises(InputError, match=message):
            files.read(array)


def test_what_is_no_picture(tmp_path: Path) -> None:
    whole = encoded(RGB)
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    for given, message in (
        (b"", "is empty; expected a picture"),
        (b"GIF89a", "is no picture that Pillow can read|is a damaged picture"),
        (whole[: len(whole) // 2], "is a damaged picture"),
        (text, "text.png: is no picture that Pillow can read"),
        (tmp_path / "none.png", r"none.png: can't be read \(No such file"),
        (tmp_path, r"can't be read \(Is a directory"),
        (7, "the picture is int; expected a file's name or bytes"),
        (encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "floating-point pixels"),
        (encoded(Image.new("1", (20000, 20000))), "more than|20000 x 20000 pixels; expected at most"),
        (encoded(Image.new("1", (12000, 9000))), "12000 x 9000 pixels; expected at most 89478485"),
    ):
        with pytest.raises(InputError, match=message):
            files.read(given)


def test_a_narrow_picture_is_not_blown_up() -> None:
    preprocessing = {"steps": [{"name": "resize_shorter", "edge": 1920, "resample": 2}]}
    with pytest.raises(InputError, match="resized as the model needs it: has 38400000 x 1920 pixels"):
        steps.resized(np.zeros((1, 20000, 3), np.uint8), preprocessing)


def test_without_pillow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = encoded(RGB)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtra, match=r"s2s-export\[vision\]"):
        files.read(raw)
    with pytest.raises(MissingExtra, match="resizing a picture"):
        steps.resized(MADE, {"steps": [{"name": "resize", "height": 4, "width": 4, "resample": 2}]})
    assert (files.read(MADE) == MADE).all()  # an array needs no Pillow


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": [0.5, 0.5]}, r"x\.mean is a list, expected a list of 3 numbers"),
        ({"std": [1, 1, "a"]}, r"x\.std\[2\] is 'a', expected a number"),
        ({"std": None}, "x has one of mean and std, expected both or none"),
        ({"steps": {}}, r"x\.steps is an object, expected a list"),
        ({"factor": "1"}, r"x\.factor is '1', expected a number"),
    ],
    ids=str,
)
def test_preprocessing_is_checked(changes: dict[str, object], message: str) -> None:
    given = {"steps": [{"name": "resize"}], "factor": None, "mean": [0, 0, 0], "std": [1, 1, 1]}
    assert steps.CHECK(given, "x") is None
    assert steps.CHECK(None, "x") is None
    assert re.fullmatch(message, steps.CHECK({**given, **changes}, "x") or "")
