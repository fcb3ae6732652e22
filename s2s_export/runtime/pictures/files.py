"""Pictures of any kind -> one uint8 array [height, width, 3], red, green and blue from 0 to 255.

Pillow reads files. As in transformers' `load_image` and `convert_to_rgb`, a picture is turned as its EXIF data say,
what is transparent becomes white, and of an animation the first frame is taken. 16 bits a sample become 8.
"""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError, MissingExtra

Picture: TypeAlias = (
    Any  # a file's name, a file's bytes, a PIL image, or an array [height, width] or [height, width, n]
)
Pixels: TypeAlias = NDArray[np.uint8]
MOST_PIXELS = 89_478_485  # of one picture, Pillow's own limit: 256 MB of RGB
WIDE_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")  # Pillow's names of grey pictures with more than 8 bits


def read(picture: Picture) -> Pixels:
    """Raises InputError for what is no picture, and MissingExtra where Pillow is needed and not installed."""
    if isinstance(picture, np.ndarray):
        return _of_array(picture)
    if isinstance(picture, (str, os.PathLike)):
        path = Path(picture)
        try:
            raw = path.read_bytes()
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: can't be read ({getattr(error, 'strerror', None) or error})") from None
        return decode(raw, str(path))
    if isinstance(picture, (bytes, bytearray, memoryview)):
        return decode(bytes(picture), "the picture")
    require_pillow("reading a picture")
    from PIL import Image

    if not isinstance(picture, Image.Image):
        raise InputError(
            f"the picture is {type(picture).__name__}; expected a file's name or bytes, a PIL image, or an array"
        )
    return _of_image(picture, "the picture")


def require_pillow(what: str) -> None:
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise MissingExtra("pillow", "vision", what) from None


def decode(raw: bytes, name: str) -> Pixels:
    """The picture of a file's bytes; name stands in messages."""
    require_pillow(f"reading {name}")
    from PIL import Image, UnidentifiedImageError

    if not raw:
        raise InputError(f"{name}: is empty; expected a picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures, which `_of_image` refuses, and of odd metadata
            with Image.open(io.BytesIO(raw)) as image:
                return _of_image(image, name)
    except UnidentifiedImageError:
        raise InputError(f"{name}: is no picture that Pillow can read; expected PNG, JPEG, WebP, TIFF, ...") from None
    except Image.DecompressionBombError:
        raise InputError(f"{name}: has more than {2 * MOST_PIXELS} pixels; make it smaller") from None
    except InputError:
        raise
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, ValueError, struct.error and others
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InputError(f"{name}: is a damaged picture ({reason}); restore the file") from None


def check_size(height: int, width: int, name: str) -> None:
    if height * width > MOST_PIXELS:
        raise InputError(f"{name}: has {width} x {height} pixels; expected at most {MOST_PIXELS}; make it smaller")
    if not height or not width:
        raise InputError(f"{name}: has {width} x {height} pixels; expected at least one")


def _of_image(image: Any, name: str) -> Pixels:
    from PIL import Image, ImageOps

    check_size(image.height, image.width, name)
    image = ImageOps.exif_transpose(image)
    if image.mode in WIDE_MODES:
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise InputError(f"{name}: has values from {values.min()} to {values.max()}; save it with 8 or 16 bits")
        return _of_array(values.astype(np.uint16))
    if image.mode == "F":
        raise InputError(f"{name}: holds floating-point pixels, whose range is unknown; save it with 8 or 16 bits")
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return np.asarray(image.convert("RGB"))


def _of_array(array: NDArray[Any]) -> Pixels:
    """[height, width] grey, [height, width, 1, 3 or 4] with channels last: uint8, wider integers, or floats 0 to 1."""
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4) or array.dtype.kind not in "buif":
        raise InputError(
            f"the picture is an array {list(array.shape)} of {array.dtype}; expected numbers [height, width] or "
            "[height, width, channels] with 1, 3 or 4 channels"
        )
    check_size(array.shape[0], array.shape[1], "the picture")
    eight = _eight_bits(array.reshape(*array.shape[:2], channels))
    if channels == 4:
        alpha = eight[..., 3:].astype(np.float64) / 255
        return np.round(alpha * eight[..., :3] + (1 - alpha) * 255).astype(np.uint8)
    return np.repeat(eight, 3, axis=2) if channels == 1 else eight


def _eight_bits(array: NDArray[Any]) -> Pixels:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    low, high = array.min(), array.max()
    top = 1 if array.dtype.kind == "f" else 65535
    if not (low >= 0 and high <= top):  # NaN as well
        raise InputError(f"the picture has values from {low} to {high}; expected 0 to 255, 65535, or 1 for floats")
    if array.dtype.kind == "f":
        return np.round(array * 255).astype(np.uint8)
    return array.astype(np.uint8) if high <= 255 and array.dtype != np.uint16 else (array // 257).astype(np.uint8)
