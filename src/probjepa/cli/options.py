"""What the commands share: their options, and how they open models and images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from probjepa.errors import ConfigError

if TYPE_CHECKING:
    from probjepa.data import Images
    from probjepa.methods import Method

Data = Annotated[str, typer.Option("--data", metavar="URI", help="images: folder, parquet, npy/npz, hf:, …")]
OutFile = Annotated[Path, typer.Option("--out", metavar="F.parquet", help="table to write")]
OutFolder = Annotated[Path, typer.Option("--out", metavar="DIR", help="folder to write")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace what is there")]
Convert = Annotated[bool, typer.Option("--convert", help="convert grey ↔ RGB and drop alpha")]
OnError = Annotated[str, typer.Option("--on-error", metavar="raise|skip", help="at an unreadable image")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress bars")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps")]
Seed = Annotated[int, typer.Option("--seed", help="of every random choice")]
Target = Annotated[
    str | None, typer.Option("--target", metavar="COLUMN", help="of tables: the labels, which no model sees")
]
Model = Annotated[str, typer.Argument(metavar="RUN_OR_MODEL", help="run folder, model folder or owner/name")]


def refuse_target(target: str | None, what: str) -> None:
    """Raise ConfigError where --target is given for images."""
    if target is not None:
        raise ConfigError(f"--target is for tables, and {what} is of images: leave it out")


def checked_on_error(value: str) -> Any:
    """Return raise or skip, or raise ConfigError."""
    if value not in ("raise", "skip"):
        raise ConfigError(f"--on-error is '{value}': pass raise or skip")
    return value


def say_skipped(images: Images) -> None:
    """Print which images were left out."""
    if images.skipped:
        print(f"skipped {len(images.skipped)} unreadable images of {images.name}:")
        for line in images.skipped:
            print(f"  {line}")


def load_method(source: str, device: str) -> Method:
    """Load a model of images onto a device."""
    from probjepa.loading import load
    from probjepa.methods import Method
    from probjepa.training.device import resolve_device

    target = resolve_device(device)
    method = load(source)
    if not isinstance(method, Method):
        raise ConfigError(f"{source} holds a {type(method).__name__}, which is no model of images")
    return method.to(target)


def open_for(method: Method, uri: str, **options: Any) -> Images:
    """Open images as a model takes them."""
    return open_as(uri, method.preprocess.size, method.preprocess.channels, **options)


def open_as(
    uri: str, size: int | None, channels: int | None, *, convert: bool, on_error: str = "raise", quiet: bool
) -> Images:
    """Open images at a size and with channels, and say which were skipped."""
    from probjepa.data import open_images

    images = open_images(
        uri,
        size=size,
        channels=channels,
        convert=convert,
        on_error=checked_on_error(on_error),
        progress=not quiet,
    )
    say_skipped(images)
    return images
