"""The commands that write a row an input."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from probjepa.cli.options import (
    Convert,
    Data,
    Device,
    Model,
    OnError,
    OutFile,
    Overwrite,
    Quiet,
    Seed,
    load_method,
    open_as,
    open_for,
)
from probjepa.errors import ConfigError, unknown_name


def embed(
    model: Model,
    data: Data,
    out: OutFile,
    overwrite: Overwrite = False,
    convert: Convert = False,
    on_error: OnError = "raise",
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Write a table: id, label, embedding, and the posterior's variance where the model has one."""
    from probjepa.cli.tabular import embed_table, is_table_model

    if is_table_model(model):
        return embed_table(model, data, out, device=device, overwrite=overwrite)
    from rich.console import Console
    from rich.progress import track

    from probjepa.data.rows import identity, open_table
    from probjepa.files import refuse_existing

    refuse_existing(out, overwrite)
    method = load_method(model, device)
    images = open_for(method, data, convert=convert, on_error=on_error, quiet=quiet)
    batch = 512
    with open_table(out, overwrite) as table:
        batches = images.batches(batch)
        total = -(-len(images) // batch)
        bar = Console(stderr=True)
        for pixels, rows in track(
            batches, "embedding", total=total, transient=True, disable=quiet, console=bar
        ):
            features = {
                key: value.cpu().numpy() for key, value in method.features(pixels, scored=False).items()
            }
            columns = {**identity(images, rows), "embedding": features["h"]}
            if "variance" in features:
                columns["variance"] = features["variance"]
            table.write(columns)
    print(f"embedded {len(images):,} images: {out}")


def score(
    model: Annotated[
        str,
        typer.Argument(metavar="RUN_OR_MODEL", help="run or model folder, owner/name, hf:… or timm:… (jepa)"),
    ],
    data: Data,
    out: OutFile,
    score: Annotated[
        str,
        typer.Option(
            "--score",
            help="likelihood, predictive, jepa, knn, mahalanobis, gmm, or another of the model's own",
        ),
    ] = "likelihood",
    reference: Annotated[
        str | None, typer.Option("--reference", metavar="URI", help="typical images, not in --data")
    ] = None,
    estimator: Annotated[
        str, typer.Option("--estimator", help="of jepa: exact, folded, sketch, slq, subspace, auto")
    ] = "exact",
    rank: Annotated[
        str, typer.Option("--rank", help="of jepa: none (the paper's), auto, or a number")
    ] = "none",
    latent: Annotated[
        str,
        typer.Option(
            "--latent", help="of jepa: none (the paper's), normal, or reference (fitted to --reference)"
        ),
    ] = "none",
    size: Annotated[
        int | None, typer.Option("--size", help="of hf: and timm: models: pixels that images are decoded to")
    ] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    convert: Convert = False,
    on_error: OnError = "raise",
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Write a table: id, label, score (higher = more typical), and the score's parts."""
    from probjepa.cli.tabular import is_table_model, score_table

    if is_table_model(model):
        return score_table(
            model, data, out, score=score, reference=reference, seed=seed, device=device, overwrite=overwrite
        )
    from probjepa.data.rows import identity, open_table
    from probjepa.files import refuse_existing

    refuse_existing(out, overwrite)
    options: dict[str, Any] = {"convert": convert, "on_error": on_error, "quiet": quiet}
    if score == "jepa":
        if latent not in ("none", "normal", "reference"):
            raise unknown_name("latent term", latent, ["none", "normal", "reference"])
        if (latent == "reference") != (reference is not None):
            raise ConfigError("--latent reference and --reference URI go together: give both or neither")
        if rank not in ("none", "auto") and not rank.isdigit():
            raise ConfigError(f"--rank is '{rank}': pass none, auto or a number")
        from probjepa.cli.jepa import input_shape, open_encoder, score_jepa
        from probjepa.training.device import resolve_device

        encoder = open_encoder(model, resolve_device(device))
        shape = (size, None) if size else input_shape(encoder)
        images = open_as(data, *shape, **options)
        known = None if reference is None else open_as(reference, *shape, **options)
        kept = score_jepa(
            encoder, images, out, estimator=estimator, latent=latent, reference=known, seed=seed,
            rank=int(rank) if rank.isdigit() else "auto" if rank == "auto" else None,
            overwrite=overwrite, progress=not quiet,
        )  # fmt: skip
        earlier = f", {kept:,} of them by an earlier run" if kept else ""
        print(f"scored {len(images):,} images by jepa (higher = more typical){earlier}: {out}")
        return
    method = load_method(model, device)
    images = open_for(method, data, **options)
    known = None if reference is None else open_for(method, reference, **options)

    from probjepa.scores import score_set

    values, parts = score_set(method, images, score, reference=known, progress=not quiet)
    with open_table(out, overwrite) as table:
        table.write({**identity(images, slice(None)), "score": values, **parts})
    print(f"scored {len(images):,} images by {score} (higher = more typical): {out}")
