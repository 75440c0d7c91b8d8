"""Views of a frozen encoder's embeddings: computed once, kept, and trained on at the speed of memory."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from probjepa.backbones.frozen import evaluating
from probjepa.data import Images
from probjepa.errors import ConfigError, DataError
from probjepa.files import DAMAGES, cannot_write, write_text
from probjepa.methods.base import Method
from probjepa.training.folder import weights_fingerprint
from probjepa.training.interrupt import Interrupted, StopRequest
from probjepa.training.progress import ProgressBar
from probjepa.training.schedules import step_seed

VIEWS_FILE, STATE_FILE = "views.f16", "views.json"
_ROWS_AT_A_TIME = 256
_SECONDS = 10.0  # between notes of what is on the disk: more would wait for it
_STREAM = -2  # of the seeds of views: no process's, and not the order's


def check_frozen(frozen: object) -> None:
    """Raise ConfigError unless the encoder whose views are kept is frozen."""
    if not frozen:
        raise ConfigError(
            "cache_views keeps what a frozen encoder says: make the method with freeze=True "
            "(--set freeze=true)"
        )


class CachedViews:
    """What a frozen encoder says of K views of each of N images, float16: a set that a loader reads.

    ``get`` returns (B, K, D). The views of an image are drawn from ``seed`` and its place alone.

    Parameters
    ----------
    images
        the training images
    method
        a method on a frozen encoder
    views
        what makes the views of a batch: uint8 images, seed → list of float batches
    count
        K ≥ 2
    seed
        of the views
    folder
        where they are kept, ``views.f16`` (N·K·D numbers in order) and ``views.json``; None: in memory

    Raises
    ------
    ConfigError
        for a K below 2, an encoder that is not frozen, or a method that needs more than embeddings
    """

    def __init__(
        self,
        images: Images,
        method: Method,
        views: Callable[[Tensor, int], Any] | None,
        count: int,
        *,
        seed: int,
        folder: Path | None = None,
    ) -> None:
        if count < 2:
            raise ConfigError(f"cache_views must be 2 or more views an image (0: none), got {count}")
        check_frozen(method.frozen)
        if not method.takes_embeddings:
            raise ConfigError(
                f"the loss of {type(method).__name__} needs more than embeddings: leave cache_views out"
            )
        self.images = images
        self.shape = (len(images), count, method.embedding_dim)
        self._method, self._views, self._seed, self._folder = method, views, seed, folder
        self._values: np.ndarray[Any, np.dtype[np.float16]] | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def get(self, rows: Any) -> Tensor:
        """Return the embeddings (B, K, D), float16, of some rows."""
        assert self._values is not None
        return torch.from_numpy(np.asarray(self._values[np.asarray(rows)]))

    def make(self, stop: StopRequest, *, key: str = "", progress: bool = False) -> None:
        """Embed the views of all images, from where an interrupted run left off.

        ``key`` says what data and recipe these are: views of another key, encoder or seed are made again.

        Raises
        ------
        DataError
            if an embedding is not finite, or does not fit float16
        ArtifactError
            if the folder cannot be written; what was is kept
        Interrupted
            after a signal; what is embedded is kept, where there is a folder
        """
        n = self.shape[0]
        if isinstance(self._views, nn.Module):
            self._views.to(self._method.device)
        if self._folder is None:
            values = np.empty(self.shape, np.float16)
            for start, part in self._parts(0, stop, progress):
                values[start : start + len(part)] = part
            self._values = values
            return
        path, key = self._folder / VIEWS_FILE, self._fingerprint(key)
        done = self._done(path, key)
        if done and not self._are_first(path):
            done = 0
        if done < n:
            try:
                self._write(path, key, done, stop, progress)
            except OSError as error:
                if error.filename not in (None, str(path), str(self._folder)):  # a file of the views' own
                    raise
                raise cannot_write(path, error) from error
        self._values = np.memmap(path, np.float16, "r", shape=self.shape)

    def _write(self, path: Path, key: str, done: int, stop: StopRequest, progress: bool) -> None:
        """Write the views from a row on."""
        assert self._folder is not None
        _, count, dim = self.shape
        self._folder.mkdir(parents=True, exist_ok=True)
        if not done:  # another set's count must not stand beside the first rows of this one
            (self._folder / STATE_FILE).unlink(missing_ok=True)
        with path.open("r+b" if done else "wb") as file:
            file.truncate(done * count * dim * 2)
            file.seek(0, os.SEEK_END)
            written, noted = done, time.monotonic()
            try:
                for start, part in self._parts(done, stop, progress):
                    file.write(part.tobytes())  # not through a map: a full disk would kill the process
                    written = start + len(part)
                    if time.monotonic() - noted > _SECONDS:
                        self._note(file, key, written)
                        noted = time.monotonic()
            finally:
                self._note(file, key, written)

    def _note(self, file: Any, key: str, rows: int) -> None:
        """Note how many rows are on the disk."""
        file.flush()
        os.fsync(file.fileno())
        assert self._folder is not None
        write_text(self._folder / STATE_FILE, json.dumps({"key": key, "rows": rows}))

    def _parts(self, done: int, stop: StopRequest, progress: bool) -> Any:
        """The first row of each batch that is not done, and its embeddings (B, K, D)."""
        n = len(self)
        with ProgressBar(progress) as bar, evaluating(self._method):
            bar.start(n, done, "embedding views")
            for start in range(done, n, _ROWS_AT_A_TIME):
                if stop:
                    then = "go on with resume=True (--resume)" if self._folder else "nothing was saved"
                    raise Interrupted(
                        f"stopped at image {start:,} of {n:,}, while its views were embedded: {then}"
                    )
                rows = torch.arange(start, min(start + _ROWS_AT_A_TIME, n))
                yield start, self._embedded(self.images.get(rows).to(self._method.device), start)
                bar.advance(start + len(rows))

    def _embedded(self, images: Tensor, start: int) -> np.ndarray[Any, np.dtype[np.float16]]:
        parts: list[Tensor] = []
        assert self._views is not None
        while len(parts) < self.shape[1]:
            made = self._views(images, step_seed(self._seed, start, _STREAM - len(parts)))
            parts += [self._method.encoder(view.to(self._method.dtype)) for view in made]
        exact = torch.stack(parts[: self.shape[1]], 1)
        h = exact.to(torch.float16)
        if not bool(h.isfinite().all()):
            finite = bool(exact.isfinite().all())
            why = (
                "does not fit float16: leave cache_views out"
                if finite
                else "is NaN or Inf: check its weights"
            )
            raise DataError(
                f"an embedding that the encoder gave of images {start:,} to {start + len(images) - 1:,} {why}"
            )
        return h.cpu().numpy()

    def _done(self, path: Path, key: str) -> int:
        """How many rows of the file are this set's."""
        try:
            state = json.loads((path.parent / STATE_FILE).read_text())
            rows = int(state["rows"]) if state["key"] == key else 0
            size = path.stat().st_size
        except (OSError, *DAMAGES):
            return 0
        return rows if 0 <= rows <= len(self) and size >= rows * self.shape[1] * self.shape[2] * 2 else 0

    def _are_first(self, path: Path) -> bool:
        """Whether the first rows of the file are what is embedded now: a module's settings have no name."""
        rows = min(_ROWS_AT_A_TIME, len(self))
        with evaluating(self._method):
            made = self._embedded(self.images.get(torch.arange(rows)).to(self._method.device), 0)
        kept = np.fromfile(path, np.float16, made.size)
        return kept.size == made.size and bool(np.allclose(kept, made.reshape(-1), rtol=1e-2, atol=1e-2))

    def _fingerprint(self, key: str) -> str:
        of = (key, self.shape, self._seed, weights_fingerprint(self._method.encoder))
        return hashlib.sha256(repr(of).encode()).hexdigest()


def drawn_views(embeddings: Tensor, seed: int, count: int = 2) -> list[Tensor]:
    """Draw ``count`` different views of each image: (N, K, D) → float32 (N, D) each.

    Raises
    ------
    ConfigError
        for more views than there are
    """
    n, kept, _ = embeddings.shape
    if count > kept:
        raise ConfigError(f"{count} views are drawn of {kept} that are kept: raise cache_views")
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(n, kept, generator=generator).argsort(1)[:, :count].to(embeddings.device)
    rows = torch.arange(n, device=embeddings.device)
    return [embeddings[rows, column].float() for column in order.T]
