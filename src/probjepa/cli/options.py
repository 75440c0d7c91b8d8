"""Options that several commands share, declared once; a group of them is one argument of a command."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from probjepa.errors import ConfigError, unknown_name
from probjepa.typed import check_plain

if TYPE_CHECKING:
    from probjepa.metrics.conformal import Rule

Data = Annotated[
    str,
    typer.Option(
        "--data", metavar="URI", help="images: folder, shards, csv of paths, npy/npz, hf:, …; or tables"
    ),
]
OutTable = Annotated[
    str,
    typer.Option("--out", metavar="F.parquet|DIR", help="table to write; DIR, of shards: one for each"),
]
OutFolder = Annotated[Path, typer.Option("--out", metavar="DIR", help="folder to write")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace what is there")]
Convert = Annotated[bool, typer.Option("--convert", help="convert grey ↔ RGB and drop alpha")]
OnError = Annotated[str, typer.Option("--on-error", metavar="raise|skip", help="at an unreadable image")]
Labels = Annotated[
    str | None, typer.Option("--labels", metavar="COLUMN", help="of labels; none: leave labels out")
]
Ids = Annotated[str | None, typer.Option("--ids", metavar="COLUMN", help="of ids  [id, or the row's number]")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress bars")]
DEVICE = typer.Option("--device", help="auto (CUDA, if there), cpu, cuda:1, mps")


def _seed(value: int | None) -> int | None:
    if value is not None:
        check_plain("seed", value, int)
    return value


SEED = typer.Option("--seed", help="of every random choice", callback=_seed)
SEED_OF_RUN = typer.Option("--seed", help="of every random choice  [0]", callback=_seed)
Seed = Annotated[int, SEED]
Score = Annotated[str, typer.Option("--score", help="one of `probjepa list`, or another of the model's own")]
Reference = Annotated[
    str | None,
    typer.Option(
        "--reference", metavar="URI", help="typical inputs, not in --data; for knn and predictive also --data"
    ),
]
ReferenceSize = Annotated[
    int | None,
    typer.Option(
        "--reference-size", metavar="N", help="take at most N rows of the reference, at random  [all]"
    ),
]
Target = Annotated[
    str | None, typer.Option("--target", metavar="COLUMN", help="of tables: the labels, which no model sees")
]
Model = Annotated[
    str,
    typer.Argument(
        metavar="ENCODER", help="run or model folder, owner/name, hf:NAME, timm:NAME, or BACKBONE:WEIGHTS"
    ),
]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a table that is text is written."""

    sep: Annotated[str | None, typer.Option("--sep", help="of tables: between cells  [, or tab]")] = None
    decimal: Annotated[str | None, typer.Option("--decimal", help="of tables: decimal sign  [.]")] = None
    thousands: Annotated[str | None, typer.Option("--thousands", help="of tables: between groups")] = None
    na: Annotated[
        list[str] | None, typer.Option("--na", metavar="TEXT", help="of tables: a missing cell; repeatable")
    ] = None
    na_only: Annotated[
        bool, typer.Option("--na-only", help="of tables: NA, None, null, … are no missing cells")
    ] = False

    @property
    def text(self) -> dict[str, Any]:
        """What was given, as ``read_table`` takes it."""
        sep = None if self.sep is None else self.sep.replace("\\t", "\t")
        given = {"sep": sep, "decimal": self.decimal, "thousands": self.thousands, "na_values": self.na}
        words = {"keep_default_na": False} if self.na_only else {}
        return {name: value for name, value in given.items() if value} | words

    def refuse(self, what: str) -> None:
        """Raise ConfigError if any was given: what is read is of images."""
        if self.text:
            raise ConfigError(
                f"--sep, --decimal, --thousands, --na and --na-only are for tables, and {what} is of images: "
                "leave them out"
            )


@dataclass(frozen=True)
class Shared(Reading):
    """What every command on a trained model takes."""

    overwrite: Overwrite = False
    convert: Convert = False
    on_error: OnError = "raise"
    labels: Labels = None
    ids: Ids = None
    device: Annotated[str, DEVICE] = "auto"
    precision: Annotated[
        str, typer.Option("--precision", metavar="float32|bf16|auto", help="that images are encoded in")
    ] = "float32"
    quiet: Quiet = False


@dataclass(frozen=True)
class Sharding:
    """Who does the shards."""

    shard: Annotated[
        str | None,
        typer.Option("--shard", metavar="I/N", help="of shards: every N-th from the I-th on, counted from 1"),
    ] = None
    engine: Annotated[
        str, typer.Option("--engine", metavar="local|ray", help="of shards: this process, or a Ray cluster")
    ] = "local"
    address: Annotated[
        str | None,
        typer.Option(
            "--address", metavar="HOST:PORT", help="of the Ray cluster  [one of this machine's own]"
        ),
    ] = None
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", help="on Ray  [as many as there is room for]")
    ] = None
    worker_cpus: Annotated[
        float | None, typer.Option("--worker-cpus", metavar="N", help="CPUs, and threads, of each  [1]")
    ] = None
    worker_gpus: Annotated[
        float | None, typer.Option("--worker-gpus", metavar="N", help="GPUs of each, 0.5 say  [0]")
    ] = None

    @property
    def given(self) -> list[str]:
        """The options that were given: they are of shards."""
        return [
            f"--{of.name.replace('_', '-')}" for of in fields(self) if getattr(self, of.name) != of.default
        ]

    @property
    def of_ray(self) -> dict[str, Any] | None:
        """What ``RayEngine`` takes; None for this process.

        Raises
        ------
        ConfigError
            for an unknown engine, or options of Ray without it
        """
        if self.engine not in ("local", "ray"):
            raise unknown_name("engine", self.engine, ("local", "ray"))
        settings = {"address": self.address, "workers": self.workers,
                    "cpus": self.worker_cpus, "gpus": self.worker_gpus}  # fmt: skip
        if self.engine == "ray":
            return {name: value for name, value in settings.items() if value is not None}
        if named := [name for name in self.given if name not in ("--shard", "--engine")]:
            raise ConfigError(f"{', '.join(named)}: with --engine ray; give both, or leave it out")
        return None


@dataclass(frozen=True)
class Training(Reading):
    """What ``train`` takes besides a method and its data."""

    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="run folder")]
    val: Annotated[str | None, typer.Option("--val", metavar="URI", help="held-out images, for kNN")] = None
    epochs: Annotated[
        int | None, typer.Option("--epochs", help="passes over the data  [200; of tables: the preset's]")
    ] = None
    config: Annotated[Path | None, typer.Option("--config", metavar="F", help="YAML of settings")] = None
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="a setting of the method, backbone or training"),
    ] = None
    cache_views: Annotated[
        int | None,
        typer.Option("--cache-views", metavar="K", help="with a frozen encoder: views an image to keep"),
    ] = None
    target: Target = None
    resume: Annotated[bool, typer.Option("--resume", help="go on from the last checkpoint")] = False
    overwrite: Overwrite = False
    seed: Annotated[int | None, SEED_OF_RUN] = None
    device: Annotated[str | None, DEVICE] = None
    convert: Convert = False
    on_error: OnError = "raise"
    labels: Labels = None
    ids: Ids = None
    quiet: Quiet = False


@dataclass(frozen=True)
class Scoring:
    """What ``score`` takes besides a model and its data."""

    score: Score = "likelihood"
    reference: Reference = None
    reference_size: ReferenceSize = None
    calibration: Annotated[
        str | None,
        typer.Option("--calibration", metavar="URI", help="held-out typical inputs, for p_value and flagged"),
    ] = None
    alpha: Annotated[
        float | None,
        typer.Option("--alpha", help="share of typical inputs that may be flagged  [0.05]"),
    ] = None
    fdr: Annotated[
        float | None,
        typer.Option("--fdr", help="instead: share of the flagged inputs that may be typical"),
    ] = None
    estimator: Annotated[str, typer.Option("--estimator", help="of jepa: one of `probjepa list`")] = "exact"
    tolerance: Annotated[
        float,
        typer.Option(
            "--tolerance", help="of jepa, with --estimator auto: share of the scores' spread; 0: exact"
        ),
    ] = 0.0
    rank: Annotated[str, typer.Option("--rank", help="of jepa: none (the paper's), auto, or a number")] = (
        "none"
    )
    latent: Annotated[
        str,
        typer.Option(
            "--latent", help="of jepa: none (the paper's), normal, or reference (fitted to --reference)"
        ),
    ] = "none"
    size: Annotated[
        int | None,
        typer.Option("--size", help="of hf:, timm: and BACKBONE:FILE models: side of the images, in pixels"),
    ] = None
    seed: Seed = 0

    def __post_init__(self) -> None:
        """Raise ConfigError for options that do not go together, or no number of pixels."""
        for name in ("estimator", "tolerance", "rank", "latent"):
            if self.score != "jepa" and getattr(self, name) != getattr(Scoring, name):
                raise ConfigError(f"--{name} is of --score jepa, not of {self.score}: leave it out")
        if self.size is not None and self.size < 1:
            raise ConfigError(f"--size is {self.size}: give a number of pixels")
        if self._rates and self.calibration is None:
            raise ConfigError(
                f"--{next(iter(self._rates))} goes with --calibration URI, held-out typical inputs: give both"
            )
        if len(self._rates) == 2:
            raise ConfigError("--alpha and --fdr both say what to flag: give one of them")

    @property
    def _rates(self) -> dict[str, float]:
        given = {"alpha": self.alpha, "fdr": self.fdr}
        return {name: rate for name, rate in given.items() if rate is not None}

    @property
    def rule(self) -> Rule:
        """Which inputs to flag."""
        from probjepa.metrics.conformal import Rule

        return Rule(**self._rates)


@dataclass(frozen=True)
class Evaluating:
    """What ``evaluate`` takes besides a model and its data."""

    ood: Annotated[
        list[str] | None, typer.Option("--ood", metavar="NAME=URI", help="an out-of-distribution set")
    ] = None
    openood: Annotated[
        Path | None,
        typer.Option(
            "--openood",
            metavar="DIR",
            help="OpenOOD v1.5: cifar100, tin, mnist, svhn, textures, places365, each NAME/ or NAME.parquet",
        ),
    ] = None
    reencode: Annotated[
        str | None, typer.Option("--reencode", metavar="jpeg:Q", help="bring all sets through one codec")
    ] = None
    calibration: Annotated[
        str | None,
        typer.Option(
            "--calibration", metavar="URI", help="held-out typical inputs for thresholds  [half of --test]"
        ),
    ] = None
    bootstrap: Annotated[int, typer.Option("--bootstrap", help="resamples of each interval")] = 1000
    jepa: Annotated[bool, typer.Option("--jepa", help="also JEPA-SCORE: slow for wide embeddings")] = False
    reference_size: ReferenceSize = None
    target: Target = None
    seed: Seed = 0


@dataclass(frozen=True)
class Curating:
    """What ``curate`` takes besides a model and its data."""

    score: Score = "likelihood"
    reference: Reference = None
    reference_size: ReferenceSize = None
    drop: Annotated[float, typer.Option("--drop", help="share to drop: the least typical")] = 0.01
    review: Annotated[
        float,
        typer.Option("--review", help="share to review: next least typical, and as many most uncertain"),
    ] = 0.05
    duplicates: Annotated[
        float | None,
        typer.Option("--duplicates", metavar="COSINE", help="group near-duplicates, 0.96 say, and keep one"),
    ] = None
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="URI", help="another set, whose near-duplicates are listed too"),
    ] = None
    rank_only: Annotated[
        bool, typer.Option("--rank-only", help="of shards: typicality and uncertainty of each row, no lists")
    ] = False


class Command(typer.core.TyperCommand):
    """A command that refuses an option given twice, of which it would take the last, and empty values."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse, as typer does; ConfigError for an option of one value that is there twice, or empty."""
        values, _, given = self.make_parser(ctx).parse_args(args=list(args))
        for parameter in given:
            option = parameter if isinstance(parameter, typer.core.TyperOption) else None
            name = parameter.metavar if option is None else option.opts[0]
            if values.get(str(parameter.name)) == "":  # as a path it would be the current folder
                raise ConfigError(f"{name} is empty: give a value (is a variable of the shell not set?)")
            once = option is not None and not (option.multiple or option.is_flag)
            if once and given.count(parameter) > 1:
                raise ConfigError(f"{name} is given {given.count(parameter)} times: give it once")
        return super().parse_args(ctx, args)


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Show the options of each group that a command takes in the place of the group."""
    signature = inspect.signature(command, eval_str=True)
    own = signature.parameters
    groups: dict[str, Any] = {name: of.annotation for name, of in own.items() if is_dataclass(of.annotation)}
    shown = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name in own
        for parameter in (
            inspect.signature(groups[name], eval_str=True).parameters.values()
            if name in groups
            else [own[name]]
        )
    ]

    @wraps(command)
    def with_groups(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        command(**given)

    with_groups.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
    return with_groups
