"""The command that trains."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from probjepa.cli.options import (
    Convert,
    Data,
    OnError,
    Overwrite,
    Quiet,
    Target,
    checked_on_error,
    refuse_target,
    say_skipped,
)
from probjepa.errors import unknown_name

if TYPE_CHECKING:
    from probjepa.data import Images


def train(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="a name of `probjepa list`")],
    data: Data,
    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="run folder")],
    val: Annotated[str | None, typer.Option("--val", metavar="URI", help="held-out images, for kNN")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="passes over the data  [200]")] = None,
    config: Annotated[Path | None, typer.Option("--config", metavar="F", help="YAML of settings")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="a setting of the method, backbone or training"),
    ] = None,
    target: Target = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the last checkpoint")] = False,
    overwrite: Overwrite = False,
    seed: Annotated[int | None, typer.Option("--seed", help="of every random choice  [0]")] = None,
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps")] = None,
    convert: Convert = False,
    on_error: OnError = "raise",
    quiet: Quiet = False,
) -> None:
    """Train a method; Ctrl-C leaves a run that --resume goes on with."""
    from probjepa.cli.settings import check_early, fill_in, parse_assignments, read_config, sort_settings
    from probjepa.cli.tabular import refuse_image_options, train_table
    from probjepa.methods import METHODS
    from probjepa.tabular import TABLE_METHODS

    if method in TABLE_METHODS:
        refuse_image_options({"--val": val, "--convert": convert})
        return train_table(
            method, data, out, target=target, epochs=epochs, config=config, settings=settings or [],
            seed=seed, device=device, resume=resume, overwrite=overwrite, progress=not quiet,
        )  # fmt: skip
    if method not in METHODS:
        raise unknown_name("method", method, [*METHODS, *TABLE_METHODS])
    refuse_target(target, method)
    given = read_config(config, method) if config else {}
    if resume and config is None and (out / "config.yaml").is_file():
        given = read_config(out / "config.yaml", method)
    given |= parse_assignments(settings or [])
    given |= {k: v for k, v in {"epochs": epochs, "seed": seed, "device": device}.items() if v is not None}

    given = check_early(method, given)

    from probjepa.data import open_images
    from probjepa.files import refuse_existing

    if not resume:
        refuse_existing(out, overwrite, "go on with it with --resume")
    size, channels = given.get("image_size"), given.get("channels")
    opened = open_images(
        data, size=size, channels=channels, convert=convert, on_error=checked_on_error(on_error),
        progress=not quiet,
    )  # fmt: skip
    given = fill_in(method, given, opened.size, opened.channels)
    side = given["image_size"]
    sorted_settings = sort_settings(method, given)
    if size is None:
        opened = open_images(opened if _in_memory(opened) else data, size=side, channels=opened.channels)
    say_skipped(opened)

    import torch

    from probjepa.report.training import training_report
    from probjepa.training import fit

    fit_settings: dict[str, Any] = {"epochs": 200, "seed": 0, **METHODS[method].recipe, **sorted_settings.fit}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fit_settings["seed"])
        model = METHODS[method](**sorted_settings.method, backbone_options=sorted_settings.backbone)
    held_out = None
    if val is not None:
        held_out = open_images(val, size=side, channels=opened.channels, convert=convert, progress=not quiet)
    fit(
        model, opened, val=held_out, out=out, resume=resume, overwrite=overwrite, progress=not quiet,
        **fit_settings,
    )  # fmt: skip
    training_report(out)
    print(f"trained {method} on {len(opened):,} images: {out}/model, {out}/metrics.csv, {out}/report.html")


def _in_memory(images: Images) -> bool:
    from probjepa.data import ImageSet

    return isinstance(images, ImageSet)
