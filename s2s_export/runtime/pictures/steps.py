"""What a model's image processor does to a picture, as data: manifest.json has it in `source.preprocessing`.

    {"steps": [{"name": "resize", "height": 384, "width": 384, "resample": 3}], "factor": 0.00392,
     "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}

`steps` change the picture's size, in order; then it is multiplied by `factor`, and mean and standard deviation are
taken out, where they are not null. The arithmetic is that of transformers' image processors for Pillow, rounding
included: sizes are cut down to whole pixels, and resampling is Pillow's, on 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ...errors import InputError
from ...schema import Check, all_of, list_of, null_or, number, record, text, wrong
from ..decoding.state import Floats
from .files import Pixels, check_size, require_pillow

Step = Callable[..., Pixels]
STEPS: dict[str, Step] = {}
NAME = "the picture, resized as the model needs it"
CHANNELS = 3  # of a picture in colour, which every picture is made


def _of_channels(value: Any, where: str) -> str | None:
    is_one_each = isinstance(value, list) and len(value) == CHANNELS
    return list_of(number)(value, where) if is_one_each else wrong(value, where, f"a list of {CHANNELS} numbers")


def _together(value: Any, where: str) -> str | None:
    one_alone = (value["mean"] is None) != (value["std"] is None)
    return f"{where} has one of mean and std, expected both or none" if one_alone else None


_PREPROCESSING: Check = record(
    {
        "steps": list_of(record({"name": text})),
        "factor": null_or(number),
        "mean": null_or(_of_channels),
        "std": null_or(_of_channels),
    }
)
CHECK: Check = null_or(all_of(_PREPROCESSING, _together))


def _step(function: Step) -> Step:
    STEPS[function.__name__] = function
    return function


def resized(picture: Pixels, preprocessing: Mapping[str, Any]) -> Pixels:
    """picture: uint8 [height, width, 3]. Returns uint8 [3, height, width] after all steps. Raises InputError."""
    for step in preprocessing["steps"]:
        picture = STEPS[step["name"]](picture, **{name: value for name, value in step.items() if name != "name"})
    return np.ascontiguousarray(picture.transpose(2, 0, 1))


def normalized(picture: Pixels, preprocessing: Mapping[str, Any]) -> Floats:
    """uint8 [3, height, width] -> float32, computed in the same order and types as transformers does."""
    factor, mean, std = (preprocessing[name] for name in ("factor", "mean", "std"))
    values = picture.astype(np.float32) if factor is None else (picture.astype(np.float64) * factor).astype(np.float32)
    if mean is not None:
        values = (values - np.array(mean, np.float32)[:, None, None]) / np.array(std, np.float32)[:, None, None]
    found: Floats = values
    return found


@_step
def align_long_axis(picture: Pixels, height: int, width: int) -> Pixels:
    """Turned by 90 degrees if it lies and height x width stands, or the other way round."""
    rows, columns = picture.shape[:2]
    if (width < height and columns > rows) or (width > height and columns < rows):
        return np.rot90(picture, 3)
    return picture


@_step
def resize(picture: Pixels, height: int, width: int, resample: int) -> Pixels:
    """resample: Pillow's number of a filter."""
    check_size(height, width, NAME)
    require_pillow("resizing a picture")
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(picture))
    return np.asarray(image.resize((width, height), resample=Image.Resampling(resample)))


@_step
def resize_shorter(picture: Pixels, edge: int, resample: int) -> Pixels:
    """So that the shorter side has `edge` pixels."""
    rows, columns = picture.shape[:2]
    longer = int(edge * max(rows, columns) / min(rows, columns))
    height, width = (longer, edge) if columns <= rows else (edge, longer)
    return resize(picture, height, width, resample)


@_step
def thumbnail(picture: Pixels, height: int, width: int, resample: int) -> Pixels:
    """Made smaller, with its proportions, so that it fits into height x width."""
    rows, columns = picture.shape[:2]
    height, width = min(rows, height), min(columns, width)
    if (height, width) == (rows, columns):
        return picture
    if rows > columns:
        width = int(columns * height / rows)
    elif columns > rows:
        height = int(rows * width / columns)
    if not height or not width:
        raise InputError(f"the picture has {columns} x {rows} pixels, too narrow to be made smaller; cut it into parts")
    return resize(picture, height, width, resample)


@_step
def pad(picture: Pixels, height: int, width: int) -> Pixels:
    """Zeros around it."""
    below, right = height - picture.shape[0], width - picture.shape[1]
    if below < 0 or right < 0:
        raise InputError(f"{NAME}: has {list(picture.shape[:2])} pixels; expected at most {height} x {width}; cut it")
    top, left = below // 2, right // 2
    return np.pad(picture, ((top, below - top), (left, right - left), (0, 0)))


@_step
def center_crop(picture: Pixels, height: int, width: int) -> Pixels:
    """The middle of it, with zeros around one that is smaller."""
    rows, columns = picture.shape[:2]
    top, left = (rows - height) // 2, (columns - width) // 2
    if top >= 0 and left >= 0 and top + height <= rows and left + width <= columns:
        return picture[top : top + height, left : left + width]
    all_rows, all_columns = max(height, rows), max(width, columns)
    above, before = -((rows - all_rows) // 2), -((columns - all_columns) // 2)  # rounded up
    whole = np.zeros((all_rows, all_columns, picture.shape[2]), np.uint8)
    whole[above : above + rows, before : before + columns] = picture
    top, left = top + above, left + before
    return whole[max(0, top) : top + height, max(0, left) : left + width]
