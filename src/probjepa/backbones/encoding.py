"""In which arithmetic an encoder encodes: float32, or bf16 where its error has been looked at."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from probjepa.errors import ConfigError, short, unknown_name
from probjepa.provenance import computes_bf16
from probjepa.terminal import say

PRECISIONS = ("float32", "bf16", "auto")
MOST_ERROR = 0.01
KEY = b"probjepa.encoding"  # of a table's metadata
_FIRST = 64  # images that are looked at
_GAIN = 1.05  # times as fast; a smaller gain may be the clock's
Map = Callable[[Tensor], Tensor]


class Encoding:
    """How an encoder computes where it encodes: the encoder alone, all that reads its embeddings is float32.

    In bf16 it runs under autocast, on images in channels-last order. The first images, 64 at most, are then
    encoded in float32, too, and a line on stderr says bf16's error: the median over them of
    ‖h_bf16 − h‖ / ‖h − h̄‖, where h̄ is the mean of their h. It is relative to how far embeddings lie apart:
    that is what distances and densities read, and a part that all embeddings share would hide it. Of one
    image it cannot be told, and is infinite.

    Parameters
    ----------
    asked
        "float32", the same on every machine; "bf16", whatever its error; or "auto", which the first images
        turn into "bf16" where its error is below 0.01 and it is faster, and else into "float32"
    device
        that the encoder is on

    Attributes
    ----------
    precision
        what is used: "auto" until the first images are encoded
    error
        bf16's, where it was looked at

    Raises
    ------
    ConfigError
        for another precision, or bf16 on a device without units for it; at the first images, for an encoder
        that fails in bf16
    """

    def __init__(self, asked: str = "float32", device: str = "cpu") -> None:
        if asked not in PRECISIONS:
            raise unknown_name("precision", asked, PRECISIONS)
        if asked == "bf16" and not computes_bf16(device):
            raise ConfigError(
                f"this {device} has no units for bf16 (a CPU's are AVX512-BF16 and AMX), so that it would be "
                "slower than float32: take the precision float32 or auto"
            )
        self.asked = self.precision = asked
        self.error: float | None = None
        self._settled = asked == "float32"

    def __call__(self, forward: Map, prepare: Map, images: Tensor) -> Tensor:
        """Embeddings (N, D) float32 of uint8 images, which ``forward`` takes as they are or prepared."""
        if not self._settled and len(images):
            say(self._settle(forward, prepare, images[:_FIRST]), error=True)
            self._settled = True
        return _encoded(forward, prepare, images, self.precision == "bf16")

    def note(self) -> tuple[bytes, str]:
        """Return what a table's metadata say of it, a key and JSON."""
        return KEY, json.dumps(self.record())

    def record(self) -> dict[str, Any]:
        """Return the precision that was used and, of bf16, its error if it can be told."""
        told = self.precision == "bf16" and self.error is not None and math.isfinite(self.error)
        return {"precision": self.precision} | ({"bf16_error": self.error} if told else {})

    def _settle(self, forward: Map, prepare: Map, images: Tensor) -> str:
        """Look at the first images, and say in a line what is used and why."""
        if auto := self.asked == "auto":
            self.precision = "float32"
            if not computes_bf16(images.device.type):
                return f"auto: float32, for this {images.device.type} has no units for bf16"
        h = timed(forward, prepare, images, False)[1]
        try:
            found = timed(forward, prepare, images, True)[1]
        except Exception as error:  # whatever a user's own module makes of it
            if not auto:
                raise ConfigError(f"the encoder fails in bf16: {short(error)}") from error
            return f"auto: float32, for the encoder fails in bf16: {short(error)}"
        spread = (h - h.mean(0)).norm(dim=1)
        errors = (found - h).norm(dim=1) / spread
        self.error = float(errors.nan_to_num(math.inf, math.inf).median())
        said = f"error {self.error:.2g} of the embeddings' spread (median of the first {len(h)} images)"
        near = self.error < MOST_ERROR
        if not auto:
            return f"bf16: {said}" + f", above {MOST_ERROR:g}" * (not near)
        if not near:
            return f"auto: float32, for bf16 has an {said}, and {MOST_ERROR:g} is the limit"
        gain = timed(forward, prepare, images, False)[0] / timed(forward, prepare, images, True)[0]
        if gain < _GAIN:
            return f"auto: float32, for bf16 is {gain:.2g} times as fast; {said}"
        self.precision = "bf16"
        return f"auto: bf16, {gain:.2g} times as fast as float32; {said}"


def timed(forward: Map, prepare: Map, images: Tensor, bf16: bool) -> tuple[float, Tensor]:
    """Return how many seconds a batch takes, and its embeddings on the CPU."""
    start = time.perf_counter()
    h = _encoded(forward, prepare, images, bf16).cpu()
    return time.perf_counter() - start, h


def _encoded(forward: Map, prepare: Map, images: Tensor, bf16: bool) -> Tensor:
    if not bf16:
        return forward(images).float()
    prepared = prepare(images).contiguous(memory_format=torch.channels_last)
    with torch.autocast(images.device.type, torch.bfloat16):
        return forward(prepared).float()
