"""A hash that says exactly which images a figure was computed on."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from probjepa.data.images import Images

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
