"""The commands that write a report on a model and sets of images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from probjepa.cli.options import (
    Convert,
    Data,
    Device,
    Model,
    OnError,
    OutFolder,
    Overwrite,
    Quiet,
    Seed,
    Target,
    checked_on_error,
    load_method,
    open_for,
    refuse_target,
    say_skipped,
)
from probjepa.errors import ConfigError


def evaluate(
    model: Model,
    train: Annotated[str, typer.Option("--train", metavar="URI", help="reference images")],
    test: Annotated[str, typer.Option("--test", metavar="URI", help="held-out images")],
    out: OutFolder,
    ood: Annotated[
        list[str] | None, typer.Option("--ood", metavar="NAME=URI", help="an out-of-distribution set")
    ] = None,
    openood: Annotated[
        Path | None,
        typer.Option(
            "--openood",
            metavar="DIR",
            help="OpenOOD v1.5: cifar100, tin, mnist, svhn, textures, places365, each NAME/ or NAME.parquet",
        ),
    ] = None,
    reencode: Annotated[
        str | None, typer.Option("--reencode", metavar="jpeg:Q", help="bring all sets through one codec")
    ] = None,
    bootstrap: Annotated[int, typer.Option("--bootstrap", help="resamples of each interval")] = 1000,
    jepa: Annotated[bool, typer.Option("--jepa", help="also JEPA-SCORE: slow for wide embeddings")] = False,
    target: Target = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    convert: Convert = False,
    on_error: OnError = "raise",
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Write metrics.json and report.html: accuracy and OOD detection beside their baselines."""
    from probjepa.cli.tabular import evaluate_tables, is_table_model, refuse_image_options
    from probjepa.data.codec import jpeg_quality
    from probjepa.files import refuse_existing

    refuse_existing(out, overwrite)
    if is_table_model(model):
        refuse_image_options(
            {"--ood": ood, "--openood": openood, "--reencode": reencode, "--jepa": jepa, "--convert": convert}
        )
        return evaluate_tables(
            model, train, test, out, target=target, seed=seed, device=device, progress=not quiet
        )
    refuse_target(target, model)
    if reencode is not None:
        jpeg_quality(reencode)  # its complaint comes before any work
    named = {}
    for item in ood or []:
        name, sign, uri = item.partition("=")
        if not (name and sign and uri):
            raise ConfigError(f"--ood takes NAME=URI, got '{item}'")
        named[name] = uri
    method = load_method(model, device)
    options: dict[str, Any] = {"convert": convert, "on_error": on_error, "quiet": quiet}
    sets = {name: open_for(method, uri, **options) for name, uri in named.items()}

    from probjepa.cli.output import print_summary, write_evaluation
    from probjepa.evaluation import evaluate as run_evaluation
    from probjepa.evaluation import openood_sets

    benchmark = None
    if openood is not None:
        benchmark = openood_sets(
            openood,
            size=method.preprocess.size,
            channels=method.preprocess.channels,
            on_error=checked_on_error(on_error),
            progress=not quiet,
        )
        for images in benchmark.values():
            say_skipped(images)
    result = run_evaluation(
        method,
        open_for(method, train, **options),
        open_for(method, test, **options),
        sets,
        openood=benchmark,
        reencode=reencode,
        seed=seed,
        n_bootstrap=bootstrap,
        jepa=jepa,
        progress=not quiet,
    )
    write_evaluation(result, out)
    print_summary(result.metrics)
    print(f"wrote {out}/metrics.json and {out}/report.html")


def curate(
    model: Model,
    data: Data,
    out: OutFolder,
    score: Annotated[
        str, typer.Option("--score", help="of typicality: likelihood, predictive, jepa, knn, …")
    ] = "likelihood",
    reference: Annotated[
        str | None, typer.Option("--reference", metavar="URI", help="typical images, not in --data")
    ] = None,
    drop: Annotated[float, typer.Option("--drop", help="share to drop: the least typical")] = 0.01,
    review: Annotated[
        float,
        typer.Option("--review", help="share to review: next least typical, and as many most uncertain"),
    ] = 0.05,
    overwrite: Overwrite = False,
    convert: Convert = False,
    on_error: OnError = "raise",
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Rank images by typicality and uncertainty: keep, review and drop lists with thumbnails."""
    from probjepa.files import refuse_existing

    refuse_existing(out, overwrite)
    method = load_method(model, device)
    options: dict[str, Any] = {"convert": convert, "on_error": on_error, "quiet": quiet}
    images = open_for(method, data, **options)
    known = None if reference is None else open_for(method, reference, **options)

    from probjepa.curation import curate as run_curate

    counts = run_curate(
        method, images, out, score=score, reference=known, drop=drop, review=review, progress=not quiet
    )
    print(", ".join(f"{name} {count:,}" for name, count in counts.items()) + f": {out}/report.html")
