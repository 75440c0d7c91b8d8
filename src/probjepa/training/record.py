"""What is written of a run: in its config.yaml, in what a resume is compared with, and on a model's card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as L

from probjepa.data import Images
from probjepa.data.streams import Stream
from probjepa.methods.base import Method
from probjepa.methods.card import plain_record
from probjepa.training.folder import left_out, weights_fingerprint
from probjepa.training.settings import FitSettings

# options of a Trainer that change the numbers, beside those that are always compared
_CHANGING = ("limit_train_batches", "gradient_clip_algorithm", "sync_batchnorm")


def of_data(images: Images | Stream, held_out: Images | None) -> dict[str, Any]:
    """Return where a run's images are from, and how many of them were left out."""
    names = {"data": images.name, "val": held_out.name if held_out else None}
    return names | left_out(images) | ({} if held_out is None else left_out(held_out, "val"))


def of_settings(settings: FitSettings) -> dict[str, Any]:
    """Return the settings that change no weight, where they are not the usual ones."""
    names = ("knn_every", "monitor_every", "workers", "checkpoint_seconds", "decode_size")
    given = {name: getattr(settings, name) for name in names}
    return {name: value for name, value in given.items() if value != getattr(FitSettings, name)}


def run_fingerprint(
    method: Method, views: Any, trainer: L.Trainer, settings: FitSettings, options: Mapping[str, Any]
) -> dict[str, Any]:
    """What a resumed run must have in common with the interrupted one, besides what its ``Module`` says."""
    given = {name: options[name] for name in _CHANGING if options.get(name) is not None}
    if views is not None:
        named = getattr(views, "__qualname__", type(views).__name__)  # a function's own name, a module's type
        given["views"] = views if isinstance(views, str | int) else named
    if settings.cache_views:
        given["cache_views"] = settings.cache_views
    if method.frozen:  # its file may hold other weights later, and the kept views would be of those
        given["encoder_sha256"] = weights_fingerprint(method.encoder)[:16]
    if method.statistics_given:
        prepared = method.preprocess.config()
        given |= {"method.mean": prepared["mean"], "method.std": prepared["std"]}
    return {
        "channels_last": settings.channels_last,  # sums are rounded otherwise, as in compiled code
        "compile": settings.compile,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        **{f"method.{key}": value for key, value in method.source.items()},
        **given,
    }


def for_the_card(
    images: Images | Stream, settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What a model card says of a run: its data, its settings, and the last value of each metric."""
    named = images.name.startswith(("hf:", "sklearn:"))  # of a file, not where it lies
    about = {"data": images.name if named else Path(images.name).name, "images": len(images)}
    other = ("method", "data_", "val_", "channels_last", "compile")
    used = {name: value for name, value in settings.items() if not name.startswith(other)}
    last = {name: value for row in rows for name, value in row.items()}
    left = {"epoch", "step", "learning_rate", "seconds"}
    return plain_record(about | used | {k: v for k, v in last.items() if k not in left})
