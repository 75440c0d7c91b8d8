"""One image at a time: from bytes, a file, a Pillow image or an array to uint8 pixels (C, H, W)."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from probjepa._arrays import is_masked
from probjepa.data.fitting import SMALLEST_SIDE, Fit, central
from probjepa.errors import ConfigError, DataError, short
from probjepa.files import array_reason, regular

# The decoders that are let near a file, whatever its name: others start programs (EPS) or are seldom tested.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "JPEG2000", "AVIF")
_LONGEST = 100  # times the shorter side: of a longer image the centre square says nothing
FEW_LEVELS = 32  # grey levels: 16-bit files that are left fewer hold less than 16 bits
_ORIENTATION = 0x0112  # the Exif tag
_ALPHA_MODES = {"RGBA", "LA", "PA", "RGBa", "La"}
_GREY_MODES = {"1", "L", "I", "I;16", "I;16L", "I;16B", "I;16N", "LA", "La"}


class Unreadable(Exception):
    """This one image is broken or missing: ``on_error="skip"`` may leave it out. The text is the reason."""


# What a reader hands over for one row. An Unreadable stands for a row that the reader itself could not get.
Payload = bytes | Path | Image.Image | npt.NDArray[Any] | Unreadable


def as_payload(value: Any, base: Path | None = None) -> Payload:
    """Return what a row of a table or a dataset holds in the form that the decoder takes.

    Parameters
    ----------
    value
        bytes, a Hugging Face ``{"bytes": …, "path": …}``, a path, a Pillow image, an array, a tensor,
        nested lists of numbers, or one of these as Arrow's scalar
    base
        the folder of the table that holds it: a path is relative to it and does not leave it
    """
    if hasattr(value, "as_py"):  # a row of Arrow's arrays
        value = value.as_py()
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if value is None:
        return Unreadable("holds no image")
    if isinstance(value, Image.Image):
        return _own(value)
    if isinstance(value, bytes):
        return value
    if isinstance(value, str | Path):
        path = Path(value)
        if base is None:
            return path
        if path.is_absolute() and path.is_relative_to(base.absolute()):
            return Unreadable(f"names the file '{short(path)}' by its whole path, not from '{base}' on")
        if path.is_absolute() or ".." in path.parts:
            return Unreadable(f"names the file '{short(path)}', which is not below '{base}'")
        return base / path
    if hasattr(value, "detach"):  # a torch tensor; numpy has no bfloat16, so floats go through float32
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value
        return np.asarray(value)
    if is_masked(value):
        return Unreadable("has masked pixels: fill them")
    try:
        return _dense(value)
    except (ValueError, TypeError):
        return Unreadable(f"holds a {type(value).__name__} that is not an image")


def _own(image: Image.Image) -> Image.Image | Unreadable:
    """A picture that needs no file object that other rows may be read from, too, in another thread."""
    file = getattr(image, "fp", None)
    if file is not None and not isinstance(file, io.BytesIO) and not getattr(image, "filename", ""):
        try:
            image.load()
        except Exception as error:
            return Unreadable(_reason(error))
    return image


def _dense(value: Any) -> npt.NDArray[Any]:
    """Nested lists, or the object arrays of arrays that pandas makes of them, as one numeric array."""
    if isinstance(value, np.ndarray) and value.dtype == object:
        return np.stack([_dense(row) for row in value])
    array = np.asarray(value)
    if array.dtype.kind not in "buif":
        raise TypeError
    return array


def array_layout(shape: tuple[int, ...]) -> str | None:
    """Return the layout of one image's shape, "HW", "HWC" or "CHW", or None where it has none.

    A side has at least 8 pixels and there are at most 4 channels, so the two cannot be confused.
    """
    if len(shape) == 2:
        return "HW"
    if len(shape) == 3 and shape[-1] <= 4 and min(shape[:2]) >= SMALLEST_SIDE:
        return "HWC"
    if len(shape) == 3 and shape[0] <= 4 and min(shape[1:]) >= SMALLEST_SIDE:
        return "CHW"
    return None


def array_to_uint8(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return pixel values as uint8: integers within 0..255 as they are, floats within [0, 1] times 255.

    Raises
    ------
    Unreadable
        for NaN or Inf
    DataError
        for values outside those ranges, which is a question of the whole set and never skipped
    """
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind not in "uif":
        raise Unreadable(f"holds {array.dtype} values, not numbers")
    is_float = array.dtype.kind == "f"
    if is_float and not np.isfinite(array).all():
        raise Unreadable("holds NaN or Inf")
    low, high, top = float(array.min()), float(array.max()), 1 if is_float else 255
    if low < 0 or high > top:
        kind = "floats" if is_float else "integers"
        raise DataError(
            f"{kind} from {low:g} to {high:g}: pass uint8 in 0..255 or floats in [0, 1]"
            + (" (a model itself, model(x), takes floats that are normalised already)" if is_float else "")
        )
    return np.rint(array * 255).astype(np.uint8) if is_float else array.astype(np.uint8)


def _from_array(array: npt.NDArray[Any]) -> Image.Image:
    layout = array_layout(array.shape)
    if layout is None or min(array.shape) == 0:
        raise DataError(
            f"an image of shape {tuple(array.shape)}: pass (H, W), (H, W, C) or (C, H, W), "
            f"sides of at least {SMALLEST_SIDE} and at most 4 channels"
        )
    pixels = array_to_uint8(array)
    if layout == "CHW":
        pixels = pixels.transpose(1, 2, 0)
    if layout != "HW" and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(pixels))


@dataclass(frozen=True)
class Decoder:
    """Decode one payload to uint8 pixels.

    Parameters
    ----------
    size
        the shorter side is resized to this (bilinear, antialiased), then the centre (size, size) is kept;
        None keeps the image as it is
    fit
        another way to come to that square, of side ``size``
    channels
        with ``convert``, the channels every image is brought to
    convert
        allow grey ↔ RGB (repetition, ITU-R 601 luma) and drop an alpha channel
    levels
        (256,) which values the 16-bit images seen so far hold as 8 bits, counted up to ``FEW_LEVELS``
    animated
        the formats of files seen so far that hold several frames, of which the first alone is decoded

    Raises
    ------
    ConfigError
        for other channels than 1 and 3
    """

    size: int | None = None
    channels: int | None = None
    convert: bool = False
    fit: Fit | None = None
    levels: npt.NDArray[np.bool_] = field(
        default_factory=lambda: np.zeros(256, np.bool_), repr=False, compare=False
    )
    animated: set[str] = field(default_factory=set, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.channels not in (None, 1, 3):
            raise ConfigError(f"channels is {self.channels}: pass 1 (grey) or 3 (RGB)")

    def __call__(self, payload: Payload) -> npt.NDArray[np.uint8]:
        """Return the pixels (C, H, W), C = 1 or 3.

        Raises
        ------
        Unreadable
            for a broken or too small image
        DataError
            for what a setting has to decide: an alpha channel, a value range
        """
        try:
            image = self._open(payload)
            deep = _is_deep(image)
            image = self._mode(_oriented(image))
        except (Unreadable, DataError):
            raise
        except Exception as error:  # decoders raise many types on broken input, each means the same here
            raise Unreadable(_reason(error)) from error
        self._check_sides(image.size)
        if self.fit is not None:
            image = self.fit.image(image)
        elif self.size is not None:
            image = _fit(image, self.size)
        pixels = np.asarray(image)
        if deep and self.levels.sum() < FEW_LEVELS:
            self.levels[np.unique(pixels)] = True
        return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def header(self, payload: Payload) -> tuple[int, int, int]:
        """Return the shape (C, H, W) that decoding gives, from the file's header where it has one."""
        try:
            image = self._open(payload)
            if _is_deep(image) and self.levels.sum() < FEW_LEVELS:
                self(payload)
            # a TIFF has the size that it is shown with; a tag may hold anything
            turned = image.format != "TIFF" and image.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
        except (Unreadable, DataError):
            raise
        except Exception as error:
            raise Unreadable(_reason(error)) from error
        self._check_alpha(image)
        width, height = image.size[::-1] if turned else image.size
        self._check_sides((width, height))
        channels = 1 if image.mode in _GREY_MODES else 3
        if self.convert and self.channels is not None:
            channels = self.channels
        return (channels, height, width) if self.size is None else (channels, self.size, self.size)

    def _open(self, payload: Payload) -> Image.Image:
        image = _open(payload)
        # an MPO's second picture is a preview or a gain map; the frame of an open image is its user's choice
        is_file = isinstance(payload, bytes | Path) and image.format not in (None, "MPO")
        if is_file and getattr(image, "is_animated", False):
            self.animated.add(str(image.format))
        return image

    def _check_sides(self, size: tuple[int, int]) -> None:
        shorter, longer = sorted(size)
        if shorter < SMALLEST_SIDE:
            raise Unreadable(f"is {size[0]}×{size[1]} pixels: the smallest side allowed is {SMALLEST_SIDE}")
        if self.size is not None and longer > _LONGEST * shorter:
            raise Unreadable(
                f"is {size[0]}×{size[1]} pixels, more than {_LONGEST} times as long as wide: crop it"
            )

    def _check_alpha(self, image: Image.Image) -> None:
        if not self.convert and (image.mode in _ALPHA_MODES or "transparency" in image.info):
            raise DataError(
                f"has an alpha channel (mode {image.mode}): pass --convert (convert=True) to drop it"
            )

    def _mode(self, image: Image.Image) -> Image.Image:
        self._check_alpha(image)
        if image.mode in ("RGBa", "La"):  # premultiplied: undone before the alpha is dropped
            image = image.convert({"RGBa": "RGBA", "La": "LA"}[image.mode])
        if image.mode == "F":
            raise Unreadable("has 32-bit float pixels: save it with 8 or 16 bits a channel")
        if image.mode.startswith("I"):
            image = _sixteen_bits(image)
        mode = "L" if image.mode in _GREY_MODES else "RGB"
        if self.convert and self.channels is not None:
            mode = "L" if self.channels == 1 else "RGB"
        if mode == "L" and image.mode not in _GREY_MODES:
            image = image.convert("RGB")  # palette and alpha modes have no direct way to luma without it
        return image if image.mode == mode else image.convert(mode)


def _open(payload: Payload) -> Image.Image:
    if isinstance(payload, Unreadable):
        raise payload
    if isinstance(payload, Image.Image):
        return payload
    if isinstance(payload, np.ndarray):
        return _from_array(payload)
    content = regular(payload).read_bytes() if isinstance(payload, Path) else payload
    if content.startswith(b"\x93NUMPY"):  # an array in a column of bytes
        return _from_array(np.load(io.BytesIO(content), allow_pickle=False))
    image = Image.open(io.BytesIO(content), formats=_formats())
    most = Image.MAX_IMAGE_PIXELS
    # beyond it Pillow warns alone; a filter of warnings would be that of all threads
    if most is not None and image.width * image.height > most:
        raise Image.DecompressionBombError
    return image


@cache
def _formats() -> tuple[str, ...]:
    """Those of the allowed decoders that this Pillow was built with."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def is_image(source: Path | bytes) -> bool:
    """Whether a file, or what one holds, starts as an image does, whatever its name."""
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else regular(source)
        with Image.open(file, formats=_formats()):
            return True
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        return True
    except Exception:  # of a broken file, whatever the decoders raise
        return False


def _is_deep(image: Image.Image) -> bool:
    """Whether the pixels of an image, not yet loaded, have 16 bits a channel."""
    return image.mode.startswith("I") or any(";16" in str(tile) for tile in getattr(image, "tile", ()))


def _oriented(image: Image.Image) -> Image.Image:
    image.load()
    return ImageOps.exif_transpose(image) if image.getexif().get(_ORIENTATION, 1) != 1 else image


def _sixteen_bits(image: Image.Image) -> Image.Image:
    """16-bit grey to 8 bits: 65535 becomes 255 (Pillow's own conversion would clip at 255)."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise Unreadable("has 32-bit integer pixels: save it with 8 or 16 bits a channel")
    scaled = values.astype(np.float32)
    scaled /= 257
    return Image.fromarray(np.rint(scaled, out=scaled).astype(np.uint8))


def _fit(image: Image.Image, size: int) -> Image.Image:
    if image.size == (size, size):
        return image
    box = central(*image.size)
    width, height = box[2] - box[0], box[3] - box[1]
    scale = size / min(width, height)
    width, height = max(size, round(width * scale)), max(size, round(height * scale))
    image = image.resize((width, height), Image.Resampling.BILINEAR, box)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "is not an image that Pillow can read"
    if isinstance(error, Image.DecompressionBombWarning | Image.DecompressionBombError):
        return f"is larger than the {Image.MAX_IMAGE_PIXELS} pixels that Pillow takes for safe: shrink it"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read ({error.strerror})"
    return f"cannot be decoded ({array_reason(error)})"
