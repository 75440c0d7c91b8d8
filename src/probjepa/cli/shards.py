"""The commands on a folder of shards: one output shard for each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from probjepa.cli.options import Curating, Scoring, Sharding, Shared
from probjepa.errors import ConfigError, short
from probjepa.terminal import say

if TYPE_CHECKING:
    from probjepa.shards import Job


def is_sharded(model: str, data: str, out: str, sharding: Sharding) -> bool:
    """Whether the output is to be a folder of shards: it is no file's name, and ``data`` holds shards.

    A store has nothing but shards, and neither has a folder of which a model of tables is asked.
    """
    from probjepa.data.shard_files import holds_shards, is_remote

    if sharding.given or is_remote(out) or is_remote(data):
        return True
    if Path(out).suffix and not Path(out).is_dir():
        return False
    from probjepa.loading import is_of_tables

    return Path(data).is_dir() if is_of_tables(model) else holds_shards(data)


def of_model(model: str, shared: Shared, **settings: Any) -> Job:
    """Return what is to be done with each shard."""
    from probjepa.cli.images import checked_on_error
    from probjepa.loading import is_of_tables
    from probjepa.shards import Job

    if is_of_tables(model):
        from probjepa.cli.tables import refuse_of_images

        refuse_of_images(shared, settings.get("size"), shards=True)
    else:
        shared.refuse(model)
    return Job(
        model, convert=shared.convert, on_error=checked_on_error(shared.on_error), labels=shared.labels,
        ids=shared.ids, device=shared.device, precision=shared.precision, text=shared.text or None,
        **settings,
    )  # fmt: skip


def of_score(model: str, shared: Shared, options: Scoring) -> Job:
    """Return what ``score`` does with each shard."""
    from probjepa.cli.images import jepa_rank

    if options.fdr is not None:
        raise ConfigError(
            "--fdr decides of all rows together, and each shard has an output of its own: give --alpha, or "
            "--out F.parquet"
        )
    settings: dict[str, Any] = {}
    if options.score == "jepa":
        rank = jepa_rank(options, shared)
        settings = {
            "estimator": options.estimator, "tolerance": options.tolerance, "rank": rank,
            "latent": options.latent,
        }  # fmt: skip
    return of_model(
        model, shared, what="score", score=options.score, reference=options.reference,
        reference_size=options.reference_size, calibration=options.calibration, alpha=options.alpha,
        seed=options.seed, size=options.size, **settings,
    )  # fmt: skip


def of_rank(model: str, shared: Shared, options: Curating) -> Job:
    """Return what ``curate --rank-only`` does with each shard."""
    of_lists = ("drop", "review", "duplicates", "against")
    if named := [f"--{name}" for name in of_lists if getattr(options, name) != getattr(Curating, name)]:
        raise ConfigError(f"{', '.join(named)}: not with --rank-only, which makes no lists; leave it out")
    return of_model(
        model, shared, what="rank", score=options.score, reference=options.reference,
        reference_size=options.reference_size,
    )  # fmt: skip


def run(job: Job, data: str, out: str, sharding: Sharding, shared: Shared) -> None:
    """Write the shards, and say how many."""
    from probjepa.shards import MANIFEST, RayEngine, parse_share, run_shards

    on_ray = sharding.of_ray
    how: dict[str, Any] = {} if on_ray is None else {"engine": RayEngine(**on_ray)}
    if sharding.shard is not None:
        how["share"] = parse_share(sharding.shard)
    if Path(out).suffix == ".parquet":
        raise ConfigError(f"--out '{out}' is a file, and each shard has an output: give the name of a folder")
    found = run_shards(job, data, out, overwrite=shared.overwrite, progress=not shared.quiet, **how)
    shards = found["shards"]
    for name, reason in found["skipped"].items():
        say(f"skipped {name}: {reason}")
    if without := found["without_input"]:
        say(
            f"outputs in {out} whose shards are gone: {len(without):,}, {short(without[0])} the first; "
            f"delete those that {MANIFEST} lists in without_input"
        )
    failed = f", {found['failed_rows']:,} rows failed" if found["failed_rows"] else ""
    say(
        f"wrote {found['written']:,} shards, {found['finished']:,} were finished, {shards['skipped']:,} "
        f"skipped; of all {shards['total']:,}, {shards['left']:,} are left{failed}: {out}/{MANIFEST}"
    )
