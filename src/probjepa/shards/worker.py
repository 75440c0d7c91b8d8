"""What is done with one shard: a job of plain values, and the worker that opens its model."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from probjepa import __version__
from probjepa.backbones.encoding import Encoding
from probjepa.data.decode import Decoder
from probjepa.data.fitting import Fit
from probjepa.data.images import Images, ImageSet
from probjepa.data.overlap import pixel_hashes, refuse_overlap
from probjepa.data.rows import TableWriter, as_column
from probjepa.data.shard_files import Shard, ShardError, file_mark, filesystem, is_remote
from probjepa.data.shards import Layout, named_columns, read_layout, read_shard
from probjepa.data.sources import open_images
from probjepa.errors import ArtifactError, ConfigError
from probjepa.files import first_line, staged_file
from probjepa.training.folder import data_fingerprint, weights_fingerprint

KEY = b"probjepa.shard"  # of an output's metadata
_ROWS = 512  # at a time, as the commands on one set take them


@dataclass(frozen=True)
class Job:
    """What is done with each shard: plain values, which travel to any process.

    Attributes
    ----------
    model
        what ``open_encoder`` takes
    what
        "embed", "score", or "rank" (typicality and uncertainty, as ``curate`` has them)
    score, reference, reference_size, seed
        as ``SetScorer`` has them; a reference is a data source
    estimator, tolerance, rank, latent
        of the score "jepa"
    size
        pixels that images are decoded to, of an encoder trained elsewhere; None: its own
    convert, on_error, labels, ids
        as ``open_images`` has them; "skip" also leaves out shards that cannot be read
    device
        as ``resolve_device`` takes it
    precision
        that images are encoded in, "float32" or "bf16"; JEPA-SCORE's is float32
    layout
        the columns that every shard must have; None: those of the first
    """

    model: str
    what: Literal["embed", "score", "rank"] = "embed"
    score: str = "likelihood"
    reference: str | None = None
    reference_size: int | None = None
    seed: int = 0
    estimator: str = "exact"
    tolerance: float = 0.0
    rank: int | Literal["auto"] | None = None
    latent: str = "none"
    size: int | None = None
    convert: bool = False
    on_error: Literal["raise", "skip"] = "raise"
    labels: str | None = None
    ids: str | None = None
    device: str = "auto"
    precision: str = "float32"
    layout: Layout | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError for the precision "auto", which each process would settle for itself."""
        if self.precision == "auto":
            raise ConfigError("the precision of shards is the same in all processes: name float32 or bf16")


class ShardWorker:
    """Turns one input shard into one output shard: ``worker(shard, place)``.

    The model is opened, and a score fitted to its reference, at first use. A pickle holds the job alone.
    """

    def __init__(self, job: Job) -> None:
        self.job = job

    def __getstate__(self) -> dict[str, Any]:
        return {"job": self.job}

    @cached_property
    def _model(self) -> _Embed | _Score | _Jepa:
        if self.job.what == "embed":
            return _Embed(self.job)
        jepa = self.job.what == "score" and self.job.score == "jepa"
        return _Jepa(self.job) if jepa else _Score(self.job)

    @cached_property
    def marks(self) -> dict[str, str]:
        """The fingerprints of the model and of the settings that an output depends on."""
        free = {"model", "device", "on_error", "reference", "precision"}  # a reference counts by its images
        settings = {name: value for name, value in asdict(self.job).items() if name not in free}
        settings |= {"version": __version__, **self._model.reference}
        return {
            "model": self._model.mark, "settings": _hash(settings), "what": self.job.what,
            "precision": self._model.encoding.precision,
        }  # fmt: skip

    def __call__(self, shard: Shard, place: str) -> dict[str, Any]:
        """Write the output of a shard under a temporary name, rename it, and return its record.

        The record, which the output's metadata hold, has the fingerprints ("input", "model", "settings"),
        "precision" (and of bf16 "bf16_error"), "rows", "failed" (a line for each row that was left out) and
        "seconds".

        Raises
        ------
        ShardError
            for a shard that cannot be read, or that changes meanwhile
        DataError, ConfigError
            as ``open_images`` and ``SetScorer``
        ArtifactError
            if the output cannot be written
        """
        marks = self.marks  # opens the model, which is no time of the shard's
        start, before = time.perf_counter(), file_mark(shard.path)
        failed: list[str] = []
        job, rows = self.job, 0
        layout = job.layout or read_layout(shard, job.labels, job.ids)
        with placed(place) as stage:
            writer = TableWriter(stage)
            try:
                for batch in read_shard(
                    shard, layout, self._model.decoder, self._model.rows, labels=job.labels, ids=job.ids,
                    skip=job.on_error == "skip", failed=failed,
                ):  # fmt: skip
                    writer.write(batch.columns | self._model.columns(batch.images))
                    rows += len(batch.images)
                if not rows:
                    writer.write(self._empty(layout))
                if file_mark(shard.path) != before:
                    raise ShardError(f"'{shard.path}' changed while it was read: run the command again")
                record = {
                    **marks, **self._model.encoding.record(), "input": before, "rows": rows, "failed": failed,
                    "seconds": round(time.perf_counter() - start, 3),
                }  # fmt: skip
                writer.note(KEY, json.dumps(record))
            finally:
                writer.close()
        return record

    def _empty(self, layout: Layout) -> dict[str, Any]:
        """The columns of an output without rows, of the types that others have."""
        size, channels = self._model.decoder.size or 32, self._model.decoder.channels or 3
        # of noise: a score may refuse an image that tells nothing
        noise = torch.randint(0, 256, (2, channels, size, size), generator=torch.Generator().manual_seed(0))
        images = ImageSet(noise.to(torch.uint8), None, ["0", "1"])
        columns = named_columns([("", None)] * 2, layout) | self._model.columns(images)
        return {name: as_column(values).slice(0, 0) for name, values in columns.items()}


class _Opened:
    """A model with what it needs to read shards."""

    rows = _ROWS

    def __init__(self, job: Job) -> None:
        from probjepa.loading import open_encoder
        from probjepa.training.device import resolve_device

        self.job, self.reference = job, dict[str, Any]()
        self.method = open_encoder(job.model, image_size=job.size).to(resolve_device(job.device))
        self.method.precision = job.precision
        self.encoding = self.method.encoding
        preprocess = self.method.preprocess
        self.decoder = _decoder(preprocess.opened, preprocess.open_channels, convert=job.convert)
        self.mark = _hash({"config": self.method.config(), "weights": weights_fingerprint(self.method)})


class _Embed(_Opened):
    def columns(self, images: Images) -> dict[str, Any]:
        return embeddings(self.method, images.get(slice(None)))


class _Score(_Opened):
    """A score, fitted to its reference once."""

    def __init__(self, job: Job) -> None:
        from probjepa.scores import SetScorer

        super().__init__(job)
        preprocess, known = self.method.preprocess, None
        if job.reference is not None:
            known = _read(job, preprocess.opened, preprocess.open_channels)
            self.reference = data_fingerprint(known, "reference")
        self.scorer = SetScorer(
            self.method, job.score, reference=known, reference_size=job.reference_size, seed=job.seed
        )

    def columns(self, images: Images) -> dict[str, Any]:
        values, parts = self.scorer(images, part=True)
        if self.job.what == "score":
            return {"score": values, **parts}
        measure = getattr(self.method, "main_uncertainty", "")
        return {"typicality": values, **({"uncertainty": parts[measure]} if measure in parts else {})}


class _Jepa:
    """JEPA-SCORE, of any encoder."""

    def __init__(self, job: Job) -> None:
        from probjepa.jacobian import as_encoder
        from probjepa.jacobian.estimators import Settings
        from probjepa.scores.jepa_parts import embedded, fingerprint, input_shape, rows_a_part
        from probjepa.training.device import resolve_device

        self.encoder, self.encoding = as_encoder(job.model).to(resolve_device(job.device)), Encoding()
        shape: Any = (job.size, None) if job.size else input_shape(self.encoder)
        self.decoder = _decoder(*shape, convert=job.convert)
        self.mark = _hash({"encoder": self.encoder.name, "weights": fingerprint(self.encoder)})
        self.reference, self._known = dict[str, Any](), None
        self.how = Settings(estimator=job.estimator, rank=job.rank, seed=job.seed, tolerance=job.tolerance)
        self.rows = rows_a_part(self.how)
        self.latent: Any = None if job.latent == "none" else job.latent
        if job.reference is not None:
            known = _read(job, *shape)
            self.reference, self._known = data_fingerprint(known, "reference"), pixel_hashes(known)
            self.latent = embedded(self.encoder, known)

    def columns(self, images: Images) -> dict[str, Any]:
        from probjepa.scores.jepa_parts import columns

        if self._known is not None:
            refuse_overlap(images, self._known)
        return columns(self.encoder, images.get(slice(None)), self.how, self.latent)


def embeddings(method: Any, pixels: torch.Tensor) -> dict[str, Any]:
    """Return the columns of N images (N, C, H, W): "embedding", and "variance" where the model has one."""
    features = {k: v.cpu().numpy() for k, v in method.features(pixels, scored=False).items()}
    variance = {k: v for k, v in features.items() if k == "variance"}
    return {"embedding": features["h"], **variance}


def _decoder(size: int | Fit | None, channels: int | None, *, convert: bool) -> Decoder:
    fit, side = (size, size.side) if isinstance(size, Fit) else (None, size)
    return Decoder(side, channels, convert, fit)


def _read(job: Job, size: int | Fit | None, channels: int | None) -> Images:
    return open_images(
        job.reference, size=size, channels=channels, convert=job.convert, on_error=job.on_error
    )


def _hash(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


@contextmanager
def placed(place: str) -> Iterator[Path]:
    """Yield a temporary file that becomes ``place`` when the block ends well, or else goes."""
    if not is_remote(place):
        with staged_file(Path(place)) as stage:
            yield stage
        return
    system, name = filesystem(place)
    with tempfile.TemporaryDirectory(prefix="probjepa-") as home:
        stage = Path(home) / "shard"
        stage.touch()
        yield stage
        try:  # an object store shows a file when all of it is there
            system.makedirs(system._parent(name), exist_ok=True)
            system.put_file(str(stage), name)
        except Exception as error:  # each package for a store has errors of its own
            raise ArtifactError(f"cannot write {place}: {first_line(error)}") from error
