"""A picture as patches of its own proportions (2210.03347, section 2.1): manifest.json has the numbers in
`source.patching`.

    {"max_patches": 2048, "patch_height": 16, "patch_width": 16, "normalize": true, "has_header": false}

The picture is resized so that as many whole patches as `max_patches` allows cover it, with its proportions kept as far
as whole patches can. The arithmetic is that of transformers' Pix2StructImageProcessor, whose resizing is torch's
(`interpolate`, bilinear, antialiased), on floats. Letters: H, W pixels, P numbers of a patch, S patches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..decoding.state import Floats
from .files import Pixels


def grid(height: int, width: int, patching: Mapping[str, Any]) -> tuple[int, int]:
    """Rows and columns of patches for a picture of H x W pixels."""
    most, rows, columns = (int(patching[name]) for name in ("max_patches", "patch_height", "patch_width"))
    scale = (most * (rows / height) * (columns / width)) ** 0.5
    return (
        max(min(int(scale * height / rows), most), 1),
        max(min(int(scale * width / columns), most), 1),
    )


def flattened(picture: Pixels, patching: Mapping[str, Any]) -> Floats:
    """uint8 [H, W, 3] -> float32 [S, 2 + P]: the row and the column of each patch, counted from 1, and its pixels."""
    rows, columns = grid(picture.shape[0], picture.shape[1], patching)
    height, width = int(patching["patch_height"]), int(patching["patch_width"])
    values: Floats = np.ascontiguousarray(picture.transpose(2, 0, 1)).astype(np.float32)  # [3, H, W]
    if patching["normalize"]:
        deviation = max(float(np.std(values)), 1.0 / math.sqrt(values.size))
        values = ((values - np.mean(values)) / np.float32(deviation)).astype(np.float32)
    values = _resized(_resized(values, columns * width), rows * height, axis=1)
    cut = values.reshape(3, rows, height, columns, width).transpose(1, 3, 2, 4, 0).reshape(rows * columns, -1)
    places = np.indices((rows, columns)).reshape(2, -1).T + 1
    found: Floats = np.concatenate([places.astype(np.float32), cut], axis=1)
    return found


def _resized(values: Floats, size: int, axis: int = 2) -> Floats:
    """One axis of [3, H, W] at another size: a triangle as wide as a new pixel, at least two old ones, over the old."""
    first, weights = _triangles(values.shape[axis], size)
    found: Floats = np.zeros([size if i == axis else n for i, n in enumerate(values.shape)], np.float32)
    shape = [-1 if i == axis else 1 for i in range(3)]
    last = values.shape[axis] - 1
    for tap in range(weights.shape[1]):
        found += np.take(values, np.minimum(first + tap, last), axis=axis) * weights[:, tap].reshape(shape)
    return found


def _triangles(before: int, after: int) -> tuple[Any, Floats]:
    """For each new pixel the first old one that it sees [after], and the weights of those from there [after, taps].

    In the precision in which torch computes each of them, so that no pixel is seen by the one and not by the other.
    """
    scale = np.float32(before) / np.float32(after)
    support = max(scale, np.float32(1.0))
    centers = (float(scale) * (np.arange(after) + 0.5)).astype(np.float32)
    first = np.maximum(((centers - support).astype(np.float64) + 0.5).astype(np.int64), 0)
    count = np.minimum(((centers + support).astype(np.float64) + 0.5).astype(np.int64), before) - first
    taps = np.arange(int(count.max()))
    distance = ((taps + first[:, None]).astype(np.float32) - centers[:, None]).astype(np.float64) + 0.5
    distance = np.abs((distance * float(np.float32(1.0) / support)).astype(np.float32))
    weights: Floats = np.where(taps < count[:, None], np.maximum(np.float32(0.0), 1 - distance), np.float32(0.0))
    return first, weights / weights.sum(axis=1, keepdims=True, dtype=np.float32)
