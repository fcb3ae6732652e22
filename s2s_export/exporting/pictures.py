"""What a checkpoint's image processor does to a picture, from its preprocessor_config.json, as the manifest has it.

transformers' classes differ in what they do where the file is silent, and in the order in which they do it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, UnsupportedModel
from ..schema import Unreadable, read_json, shown

FILES = (("preprocessor_config.json", None), ("processor_config.json", "image_processor"))
BILINEAR, BICUBIC = 2, 3  # Pillow's numbers of filters, of which it has six
MAX_PATCHES, PATCH = 2048, 16  # what transformers' Pix2StructImageProcessor takes where the file is silent
HALF = [0.5, 0.5, 0.5]
Settings = Mapping[str, Any]
Steps = list[dict[str, Any]]


def preprocessing_of(folder: Path, shape: tuple[int, int, int]) -> dict[str, Any] | None:
    """None for a checkpoint without such a file. shape: (channels, height, width) that the model takes.

    Raises CheckpointError and UnsupportedModel.
    """
    settings = _settings(folder)
    if settings is None:
        return None
    named = str(settings.get("image_processor_type") or settings.get("feature_extractor_type") or "")
    name = named
    for ending in ("Fast", "Pil", "ImageProcessor", "FeatureExtractor"):
        name = name.removesuffix(ending)
    if name not in PROCESSORS:
        known = ", ".join(f"{known}ImageProcessor" for known in PROCESSORS)
        raise UnsupportedModel(f"{folder}: pictures are prepared by a '{named}'; expected {known}")
    defaults, steps_of = PROCESSORS[name]
    full = {**COMMON, **defaults, **{key: value for key, value in settings.items() if value is not None}}
    steps = steps_of(full)
    _check_shape(folder, steps, shape)
    is_normalized = bool(full["do_normalize"])
    return {
        "steps": steps,
        "factor": float(full["rescale_factor"]) if full["do_rescale"] else None,
        "mean": _channels(full["image_mean"], shape[0], "image_mean") if is_normalized else None,
        "std": _channels(full["image_std"], shape[0], "image_std") if is_normalized else None,
    }


def patching_of(folder: Path, patch_size: int) -> dict[str, Any] | None:
    """How a picture becomes patches of its own proportions; None for a checkpoint that does not say.

    patch_size: how many numbers of a patch the model takes. Raises CheckpointError and UnsupportedModel.
    """
    settings = _settings(folder)
    if settings is None:
        return None
    name = str(settings.get("image_processor_type") or settings.get("feature_extractor_type") or "")
    if not name.startswith("Pix2Struct"):
        raise UnsupportedModel(f"{folder}: pictures are prepared by a '{name}'; expected Pix2StructImageProcessor")
    most, size = settings.get("max_patches", MAX_PATCHES), _size(settings.get("patch_size", PATCH), "patch_size")
    if not isinstance(most, int) or isinstance(most, bool) or most < 1:
        raise CheckpointError(f"{folder}: preprocessor_config.json has max_patches {shown(most)}; expected 1 or more")
    if 3 * size.get("height", 0) * size.get("width", 0) != patch_size:
        raise CheckpointError(
            f"{folder}: preprocessor_config.json makes patches of {shown(size)}, but the model takes {patch_size} "
            "numbers of a patch; set patch_size to the model's"
        )
    return {
        "max_patches": most,
        "patch_height": size["height"],
        "patch_width": size["width"],
        "normalize": bool(settings.get("do_normalize", True)),
        "has_header": bool(settings.get("is_vqa", False)),
    }


def _settings(folder: Path) -> dict[str, Any] | None:
    for name, key in FILES:
        path = folder / name
        if not os.path.lexists(path):
            continue
        try:
            found = read_json(path)
        except Unreadable as error:
            raise CheckpointError(f"{path}: not readable as JSON ({error}); restore the checkpoint") from error
        found = found.get(key) if key is not None and isinstance(found, dict) else found
        if isinstance(found, dict):
            return found
        if key is None:
            raise CheckpointError(f"{path}: holds no JSON object; restore the checkpoint")
    return None


def _size(value: Any, name: str) -> dict[str, int]:
    """A size as transformers has it: {height, width} or {shortest_edge}, a number for a square, or [height, width]."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = {"height": value, "width": value}
    elif isinstance(value, list) and len(value) == 2:
        value = {"height": value[0], "width": value[1]}
    found = {key: n for key, n in value.items() if n is not None} if isinstance(value, dict) else {}
    if set(found) not in ({"height", "width"}, {"shortest_edge"}) or not all(
        isinstance(n, int) and n > 0 for n in found.values()
    ):
        raise CheckpointError(
            f"preprocessor_config.json: {name} is {shown(value)}; expected height and width, or shortest_edge"
        )
    return found


def _resample(settings: Settings) -> int:
    value = settings["resample"]
    if not isinstance(value, int) or not 0 <= value <= 5:
        raise CheckpointError(f"preprocessor_config.json: resample is {shown(value)}; expected a filter from 0 to 5")
    return value


def _plain(settings: Settings) -> Steps:
    """Resized, then cut."""
    steps: Steps = []
    if settings["do_resize"]:
        size = _size(settings["size"], "size")
        named = {"name": "resize_shorter", "edge": size["shortest_edge"]} if "shortest_edge" in size else (
            {"name": "resize", **size}
        )  # fmt: skip
        steps.append({**named, "resample": _resample(settings)})
    if settings["do_center_crop"]:
        steps.append({"name": "center_crop", **_size(settings["crop_size"], "crop_size")})
    if settings["do_pad"]:
        raise UnsupportedModel("preprocessor_config.json: do_pad is set, which no model of this kind needs; remove it")
    return steps


def _donut(settings: Settings) -> Steps:
    """Turned, resized by its shorter side, made to fit, filled up. A list of two is its old form, width first."""
    given = settings["size"]
    size = _size(given[::-1] if isinstance(given, list) else given, "size")
    if "shortest_edge" in size:
        raise CheckpointError("preprocessor_config.json: size has shortest_edge; expected height and width")
    resample = _resample(settings)
    steps: Steps = []
    if settings["do_align_long_axis"]:
        steps.append({"name": "align_long_axis", **size})
    if settings["do_resize"]:
        steps.append({"name": "resize_shorter", "edge": min(size.values()), "resample": resample})
    if settings["do_thumbnail"]:
        steps.append({"name": "thumbnail", **size, "resample": resample})
    if settings["do_pad"]:
        steps.append({"name": "pad", **size})
    if settings["do_center_crop"]:
        steps.append({"name": "center_crop", **_size(settings["crop_size"], "crop_size")})
    return steps


COMMON: Settings = {
    "do_resize": True, "do_center_crop": False, "do_pad": False, "do_rescale": True, "rescale_factor": 1 / 255,
    "do_normalize": True, "image_mean": HALF, "image_std": HALF, "crop_size": 224,
}  # fmt: skip
PROCESSORS: dict[str, tuple[Settings, Callable[[Settings], Steps]]] = {
    "ViT": ({"size": 224, "resample": BILINEAR}, _plain),
    "DeiT": ({"size": 256, "resample": BICUBIC, "do_center_crop": True}, _plain),
    "Beit": ({"size": 224, "resample": BICUBIC}, _plain),
    "Donut": (
        {"size": {"height": 2560, "width": 1920}, "resample": BILINEAR, "do_thumbnail": True, "do_pad": True,
         "do_align_long_axis": False},
        _donut,
    ),
}  # fmt: skip


def _channels(value: Any, n_channels: int, name: str) -> list[float]:
    values = value if isinstance(value, list) else [value] * n_channels
    if len(values) != n_channels or not all(isinstance(v, (int, float)) for v in values):
        raise CheckpointError(f"preprocessor_config.json: {name} is {shown(value)}; expected {n_channels} numbers")
    return [float(v) for v in values]


def _check_shape(folder: Path, steps: Steps, shape: tuple[int, int, int]) -> None:
    """The steps that fix both sides must end with the model's size."""
    fixed = [(step["height"], step["width"]) for step in steps if step["name"] in ("resize", "pad", "center_crop")]
    if shape[0] != 3:
        raise UnsupportedModel(f"{folder}: the model takes {shape[0]} channels; expected 3, red, green and blue")
    if fixed and fixed[-1] != shape[1:]:
        raise CheckpointError(
            f"{folder}: preprocessor_config.json makes pictures of {fixed[-1][0]} x {fixed[-1][1]} pixels, but the "
            f"model takes {shape[1]} x {shape[2]}; set the size of one of them to the other's"
        )
