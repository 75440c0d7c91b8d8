"""Shards of images: what a job makes of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from probjepa.backbones.encoding import Encoding
from probjepa.data.decode import Decoder
from probjepa.data.fitting import Fit, side_and_fit
from probjepa.data.images import Images, ImageSet
from probjepa.data.overlap import pixel_hashes, refuse_overlap
from probjepa.data.rows import as_column
from probjepa.data.shard_files import Shard, ShardError, find_shards
from probjepa.data.shards import Layout, common_layout, named_columns, read_layout, read_shard
from probjepa.data.sources import open_images
from probjepa.shards.job import Columns, Job, Opened, Written, decided, hashed
from probjepa.training.folder import data_fingerprint, weights_fingerprint

_ROWS = 512  # at a time, as the commands on one set take them


class ImageShards:
    """Shards of images, as ``ShardKind`` has them."""

    @staticmethod
    def open(job: Job) -> Opened:
        """Open the model, fit a score to its reference and score the calibration images."""
        if job.what == "embed":
            return _Embed(job)
        return _Jepa(job) if job.what == "score" and job.score == "jepa" else _Score(job)

    @staticmethod
    def find(source: str) -> list[Shard]:
        """Return the shards of a source; DataError if there is none."""
        return find_shards(source)

    @staticmethod
    def settled(job: Job, shards: Sequence[Shard]) -> Job:
        """Return the job with the columns that the first readable shard has; ShardError if none is."""
        layout, failed = common_layout(shards, job.labels, job.ids, skip=job.on_error == "skip")
        if layout is None:
            raise ShardError(failed[-1])
        return replace(job, layout=layout)


class _Opened:
    """What all jobs on images share: how shards are read, and which images decide."""

    rows = _ROWS
    decoder: Decoder

    def __init__(self, job: Job, encoding: Encoding) -> None:
        self.job, self.encoding, self.reference = job, encoding, dict[str, Any]()
        self._held_out: npt.NDArray[np.uint64] | None = None
        self._known: Any = None  # the scores of those

    def read(self, shard: Shard, failed: list[str]) -> Iterator[Written]:
        """Yield the rows of a shard's output, some at a time."""
        job = self.job
        for batch in read_shard(
            shard, self._layout(shard), self.decoder, self.rows, labels=job.labels, ids=job.ids,
            skip=job.on_error == "skip", failed=failed,
        ):  # fmt: skip
            yield Written(batch.columns | self.columns(batch.images), len(batch.images))

    def empty(self, shard: Shard) -> Columns:
        """Return columns without rows."""
        size, channels = self.decoder.size or 32, self.decoder.channels or 3
        # of noise: a score may refuse an image that tells nothing
        noise = torch.randint(0, 256, (2, channels, size, size), generator=torch.Generator().manual_seed(0))
        images = ImageSet(noise.to(torch.uint8), None, ["0", "1"])
        columns = named_columns([("", None)] * 2, self._layout(shard)) | self.columns(images)
        return {name: as_column(values).slice(0, 0) for name, values in columns.items()}

    def columns(self, images: Images) -> Columns:
        """Return what the job makes of some images."""
        raise NotImplementedError

    def _layout(self, shard: Shard) -> Layout:
        return self.job.layout or read_layout(shard, self.job.labels, self.job.ids)

    def _calibrate(self, read: Callable[[str], Images], score: Callable[[Images], Any]) -> None:
        """Score the calibration images, if there are any."""
        if self.job.calibration is None:
            return
        images = read(self.job.calibration)
        self.job.rule.check(len(images))
        self.reference |= data_fingerprint(images, "calibration")
        self._known, self._held_out = score(images), pixel_hashes(images)

    def _decided(self, images: Images, scores: Any) -> Columns:
        """Return the decisions on some images, if the job asks for any; DataError for a calibration image."""
        if self._held_out is None:
            return {}
        refuse_overlap(images, self._held_out, "calibration")
        return decided(self.job.rule, scores, self._known)


class _OfMethod(_Opened):
    """A model of ``open_encoder`` and its preparation of images."""

    def __init__(self, job: Job) -> None:
        from probjepa.loading import open_encoder
        from probjepa.training.device import resolve_device

        self.method = open_encoder(job.model, image_size=job.size).to(resolve_device(job.device))
        self.method.precision = job.precision
        super().__init__(job, self.method.encoding)
        preprocess = self.method.preprocess
        self.decoder = _decoder(preprocess.opened, preprocess.open_channels, convert=job.convert)
        self.mark = hashed({"config": self.method.config(), "weights": weights_fingerprint(self.method)})


class _Embed(_OfMethod):
    def columns(self, images: Images) -> Columns:
        return embeddings(self.method, images.get(slice(None)))


class _Score(_OfMethod):
    """A score, fitted to its reference once."""

    def __init__(self, job: Job) -> None:
        from probjepa.scores import SetScorer

        super().__init__(job)

        def read(source: str) -> Images:
            return _read(job, source, self.method.preprocess.opened, self.method.preprocess.open_channels)

        known = None
        if job.reference is not None:
            known = read(job.reference)
            self.reference |= data_fingerprint(known, "reference")
        self.scorer = SetScorer(
            self.method, job.score, reference=known, reference_size=job.reference_size, seed=job.seed
        )
        self._calibrate(read, lambda images: self.scorer(images, calibration=True)[0])

    def columns(self, images: Images) -> Columns:
        values, parts = self.scorer(images, part=True)
        if self.job.what == "score":
            return {"score": values, **self._decided(images, values), **parts}
        measure = getattr(self.method, "main_uncertainty", "")
        return {"typicality": values, **({"uncertainty": parts[measure]} if measure in parts else {})}


class _Jepa(_Opened):
    """JEPA-SCORE, of any encoder."""

    def __init__(self, job: Job) -> None:
        from probjepa.jacobian import as_encoder
        from probjepa.jacobian.estimators import Settings
        from probjepa.jacobian.latent import fit_normal
        from probjepa.scores.jepa_parts import embedded, encoder_fingerprint, input_shape, rows_a_part
        from probjepa.training.device import resolve_device

        super().__init__(job, Encoding())
        self.encoder = as_encoder(job.model, image_size=job.size).to(resolve_device(job.device))
        shape = input_shape(self.encoder)
        self.decoder = _decoder(*shape, convert=job.convert)
        self.mark = hashed({"encoder": self.encoder.name, "weights": encoder_fingerprint(self.encoder)})
        self.how = Settings(estimator=job.estimator, rank=job.rank, seed=job.seed, tolerance=job.tolerance)
        self.rows = rows_a_part(self.how)
        self.latent: Any = None if job.latent == "none" else job.latent
        self._reference: npt.NDArray[np.uint64] | None = None

        def read(source: str) -> Images:
            return _read(job, source, *shape)

        if job.reference is not None:
            known = read(job.reference)
            self.reference |= data_fingerprint(known, "reference")
            self._reference = pixel_hashes(known)
            self.latent = fit_normal(embedded(self.encoder, known))
        self._calibrate(read, self._calibration_scores)

    def _calibration_scores(self, images: Images) -> npt.NDArray[np.float64]:
        if self._reference is not None:
            refuse_overlap(images, self._reference, of="calibration images")
        return np.concatenate([self._scored(batch)["score"] for batch, _ in images.batches(self.rows)])

    def _scored(self, pixels: torch.Tensor) -> Columns:
        from probjepa.scores.jepa_parts import columns

        return columns(self.encoder, pixels, self.how, self.latent)

    def columns(self, images: Images) -> Columns:
        if self._reference is not None:
            refuse_overlap(images, self._reference)
        found = self._scored(images.get(slice(None)))
        return {**found, **self._decided(images, found["score"])}


def embeddings(method: Any, pixels: torch.Tensor) -> Columns:
    """Return the columns of N images (N, C, H, W): "embedding", and "variance" where the model has one."""
    features = {k: v.cpu().numpy() for k, v in method.features(pixels, scored=False).items()}
    variance = {k: v for k, v in features.items() if k == "variance"}
    return {"embedding": features["h"], **variance}


def _decoder(size: int | Fit | None, channels: int | None, *, convert: bool) -> Decoder:
    side, fit = side_and_fit(size)
    return Decoder(side, channels, convert, fit)


def _read(job: Job, source: str, size: int | Fit | None, channels: int | None) -> Images:
    return open_images(source, size=size, channels=channels, convert=job.convert, on_error=job.on_error)
