"""A hash that says exactly which images a figure was computed on."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from probjepa.errors import DataError
from probjepa.files import regular

if TYPE_CHECKING:
    from probjepa.data.decode import Payload
    from probjepa.data.images import Images, StreamedImages

_ROWS_AT_A_TIME = 4096


def fingerprint(images: Images, *, sample: int | None = None) -> str:
    """Return the SHA-256 (64 hex digits) of a set's shape, its ids in order, and its pixels.

    Parameters
    ----------
    images
        any set; a streamed one is read batch by batch
    sample
        hash the pixels of so many evenly spaced images alone, where decoding all of them is too dear
    """
    digest = hashlib.sha256(repr(tuple(images.shape)).encode())
    for item in images.ids:
        digest.update(item.encode("utf-8", "surrogateescape") + b"\0")
    if sample is None:
        for batch, _ in images.batches(_ROWS_AT_A_TIME):
            digest.update(batch.contiguous().cpu().numpy().tobytes())
    else:
        rows = torch.linspace(0, len(images) - 1, min(sample, len(images))).round().long()
        digest.update(images.get(rows).cpu().numpy().tobytes())
    return digest.hexdigest()


def encoded_fingerprint(images: StreamedImages, most: int | None = None) -> tuple[str, int]:
    """Return the SHA-256 of the encoded bytes of a streamed set, and of how many of its first rows it is.

    It is about as fast as the disk: nothing is decoded.

    Parameters
    ----------
    images
        what is hashed, row by row
    most
        stop after so many bytes; None: hash all

    Raises
    ------
    DataError
        for a file that cannot be read any more
    """
    digest, read = hashlib.sha256(repr((images.decoder, images.shape)).encode()), 0
    for count, row in enumerate(images.rows.tolist()):
        if most is not None and read >= most:
            return digest.hexdigest(), count
        try:
            content = _encoded(images.records.read(row))
        except OSError as error:
            raise DataError(f"cannot read {images.records.where(row)} any more ({error.strerror})") from error
        digest.update(len(content).to_bytes(8, "little") + content)
        read += len(content)
    return digest.hexdigest(), len(images)


def _encoded(payload: Payload) -> bytes:
    if isinstance(payload, Path):
        return regular(payload).read_bytes()
    if isinstance(payload, bytes):
        return payload
    if isinstance(payload, Exception):  # a row that the reader itself could not get
        return str(payload).encode()
    array = np.asarray(payload)  # a picture of Pillow's, or an array
    return repr((array.shape, array.dtype)).encode() + array.tobytes()
