"""Sets brought through one codec: otherwise a detector may tell them apart by how their files were stored."""

from __future__ import annotations

import dataclasses
import io
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from probjepa.data.decode import Decoder, Payload
from probjepa.data.images import Images, ImageSet, StreamedImages
from probjepa.errors import ConfigError

S = TypeVar("S", bound=Images)


def jpeg_quality(codec: str) -> int:
    """Return the quality that a codec's name holds: "jpeg:75" → 75.

    "png" is refused, not ignored: it is lossless, so what JPEG left in the pixels of one set would still
    tell it from another, under a report that says they share a codec.

    Raises
    ------
    ConfigError
        for another codec, or a quality outside 1 to 95
    """
    kind, _, text = codec.partition(":")
    if kind == "png":
        raise ConfigError(
            "the codec 'png' is lossless and changes no pixel: pass 'jpeg:75', or re-encode nothing"
        )
    if kind != "jpeg" or not (text.isascii() and text.isdigit()) or not 1 <= int(text) <= 95:
        raise ConfigError(f"the codec is '{codec}': pass jpeg:QUALITY, 1 to 95, such as 'jpeg:75'")
    return int(text)


def through_jpeg(pixels: npt.NDArray[np.uint8], quality: int) -> npt.NDArray[np.uint8]:
    """Return one image (C, H, W) as a JPEG file of Pillow's, chroma 4:2:0, gives it back."""
    grey = len(pixels) == 1
    file = io.BytesIO()
    image = Image.fromarray(pixels[0] if grey else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    image.save(file, "JPEG", quality=quality, subsampling="4:2:0")
    decoded = np.asarray(Image.open(file))
    return decoded[None] if grey else decoded.transpose(2, 0, 1)


@dataclass(frozen=True)
class _Reencoder(Decoder):
    """A streamed set's decoder with the codec behind it."""

    inner: Decoder = dataclasses.field(default_factory=Decoder)
    quality: int = 75

    def __call__(self, payload: Payload) -> npt.NDArray[np.uint8]:
        return through_jpeg(self.inner(payload), self.quality)


def reencode(images: S, codec: str) -> S:
    """Return a set as a lossy codec leaves it, each image at the size that the set has.

    A set in memory is re-encoded now, a streamed one each time an image is read. Images that were stored
    with the same tables before are hardly changed.

    Parameters
    ----------
    images
        an ``ImageSet`` or ``StreamedImages``
    codec
        "jpeg:QUALITY", quality 1 to 95 (Pillow, 4:2:0): 75 has the tables and sampling of CIFAR-10's files

    Raises
    ------
    ConfigError
        as ``jpeg_quality``
    """
    quality = jpeg_quality(codec)
    if isinstance(images, StreamedImages):
        inner = images.decoder
        decoder = _Reencoder(inner.size, inner.channels, inner.convert, inner=inner, quality=quality)
        return cast(S, dataclasses.replace(images, decoder=decoder))
    if not isinstance(images, ImageSet):
        raise ConfigError(
            f"{images.name} is a {type(images).__name__}: open it with open_images to re-encode"
        )
    decoded = np.empty(tuple(images.images.shape), dtype=np.uint8)
    for row, pixels in enumerate(images.images.cpu().numpy()):
        decoded[row] = through_jpeg(pixels, quality)
    return cast(S, dataclasses.replace(images, images=torch.from_numpy(decoded)))
