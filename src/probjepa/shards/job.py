"""What is done with each shard: a job of plain values, and what each kind of data makes of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from probjepa.backbones.encoding import Encoding
from probjepa.data.shard_files import Shard
from probjepa.data.shards import Layout
from probjepa.errors import ConfigError
from probjepa.metrics.conformal import Rule
from probjepa.typed import check_arguments, types_of

Columns = dict[str, Any]  # name → a value a row


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
    calibration, alpha
        a data source of held-out typical rows, for "p_value" and "flagged" of each scored row, and the share
        of typical rows that may be flagged; None: 0.05
    estimator, tolerance, rank, latent
        of the score "jepa"
    size
        side of the images in pixels, of an encoder trained elsewhere; None: its own
    convert, on_error, labels, ids
        as ``open_images`` has them; "skip" also leaves out shards that cannot be read
    device
        as ``resolve_device`` takes it
    precision
        that images are encoded in, "float32" or "bf16"; JEPA-SCORE's is float32
    layout
        the columns that every shard of images must have; None: those of the first
    text
        of tables: how those that are text are written, as ``read_table`` has it; None: as the run's was
    """

    model: str
    what: Literal["embed", "score", "rank"] = "embed"
    score: str = "likelihood"
    reference: str | None = None
    reference_size: int | None = None
    seed: int = 0
    calibration: str | None = None
    alpha: float | None = None
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
    text: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError for another type, a precision that processes would settle, or a rate alone."""
        types = types_of(Job).items()
        # names of files may be no text
        check_arguments(vars(self), {name: kind for name, kind in types if kind not in (str, str | None)})
        if self.precision == "auto":
            raise ConfigError("the precision of shards is the same in all processes: name float32 or bf16")
        if self.alpha is not None and self.calibration is None:
            raise ConfigError("alpha goes with calibration, held-out typical rows: give both")

    @property
    def rule(self) -> Rule:
        """Which rows are flagged, each by itself."""
        return Rule() if self.alpha is None else Rule(self.alpha)


class Written(NamedTuple):
    """Some rows of an output shard."""

    columns: Columns
    rows: int


class Opened(Protocol):
    """A job with its model opened."""

    mark: str  # a fingerprint of the model
    reference: dict[str, Any]  # fingerprints of all else that was read for it
    encoding: Encoding

    def read(self, shard: Shard, failed: list[str]) -> Iterator[Written]:
        """Yield the rows of a shard's output, some at a time; tell ``failed`` of those that are left out."""

    def empty(self, shard: Shard) -> Columns:
        """Return columns of the types that the output of a shard with rows would have."""


class ShardKind(Protocol):
    """A kind of data that lies in shards."""

    @staticmethod
    def open(job: Job) -> Opened:
        """Open the model, fit a score to its reference and score the calibration rows."""

    @staticmethod
    def find(source: str) -> list[Shard]:
        """Return the shards of a source; DataError if there is none."""

    @staticmethod
    def settled(job: Job, shards: Sequence[Shard]) -> Job:
        """Return the job with what its shards decide."""


def hashed(values: Mapping[str, Any]) -> str:
    """Return a fingerprint of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


def decided(rule: Rule, values: Any, known: Any) -> Columns:
    """Return "p_value" and "flagged", which of a row's decisions are of that row alone."""
    return {name: of for name, of in rule.decide(values, known).items() if name != "q_value"}
