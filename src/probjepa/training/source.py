"""The images of a run: opened as its settings ask, looked at, and handed to its Trainer."""

from __future__ import annotations

import dataclasses
from typing import Any

import lightning.pytorch as L
import torch

from probjepa.data import Images, ImageSet
from probjepa.data.streams import Stream, open_training
from probjepa.errors import ConfigError
from probjepa.methods.base import Method
from probjepa.training.cached import CachedViews
from probjepa.training.loader import EpochLoader, make_loader
from probjepa.training.settings import FitSettings


class Batches(L.LightningDataModule):
    """Makes the loader once Lightning knows which process this is."""

    def __init__(self, images: Images | Stream | CachedViews, settings: FitSettings) -> None:
        super().__init__()
        self.images, self.of = images, settings

    def train_dataloader(self) -> EpochLoader:
        """Make this process's loader."""
        assert self.trainer is not None
        return make_loader(
            self.images,
            self.of.batch_size,
            seed=self.of.seed,
            workers=0 if isinstance(self.images, ImageSet | CachedViews) else self.of.workers,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )


def open_source(method: Method, source: Any, settings: FitSettings) -> Images | Stream:
    """Open what ``fit`` is given, at the method's size and channels; a set that is open stays as it is."""
    if isinstance(source, Stream):
        return source
    # an opened set keeps its size: the user has chosen it
    size = None if isinstance(source, Images) else settings.decode_size or method.preprocess.size
    # an encoder trained elsewhere has grey images repeated
    convert = settings.convert or method.preprocess.fit is not None
    return open_training(
        source, stream=settings.stream, buffer=settings.stream_buffer, seed=settings.seed, size=size,
        channels=method.preprocess.channels, on_error=settings.on_error, convert=convert,
    )  # fmt: skip


def refuse_stream(data: Any, settings: FitSettings) -> None:
    """Raise ConfigError where data that are opened already are not streamed as is asked."""
    if isinstance(data, Images | Stream) and settings.stream not in ("auto", isinstance(data, Stream)):
        raise ConfigError(
            f"stream={settings.stream} is for data that fit opens, and this is a {type(data).__name__}: "
            "leave it out"
        )


def sample_of(images: Images | Stream) -> Images:
    """What of a set is looked at beside the training."""
    return images.sample if isinstance(images, Stream) else images


def to_device(images: Images | Stream | CachedViews, device: torch.device) -> Images | Stream | CachedViews:
    """Move a set in memory to the GPU once, where it takes less than a quarter of what is free."""
    if not isinstance(images, ImageSet) or images.images.numel() > torch.cuda.mem_get_info(device)[0] / 4:
        return images
    return dataclasses.replace(images, images=images.images.to(device))
