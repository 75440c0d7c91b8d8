"""``fit``: from a data source to a trained method and a run folder."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import lightning.pytorch as L
import torch
from lightning.pytorch.loggers import Logger

from probjepa.data import Images, ImageSet, open_images
from probjepa.errors import ConfigError, MissingExtraError, unknown_name
from probjepa.training.callbacks import CollapseMonitor, MetricsTable, Monitor, OnlineKNN, sample_rows
from probjepa.training.checkpoint import AtomicCheckpointIO, Checkpointer
from probjepa.training.folder import RunFolder, data_fingerprint
from probjepa.training.interrupt import Interrupted, stop_on_signal
from probjepa.training.loader import EpochLoader
from probjepa.training.module import Module
from probjepa.training.progress import ProgressLine

if TYPE_CHECKING:
    from probjepa.methods.base import Method

M = TypeVar("M", bound="Method")

_CALIBRATION_ROWS = 10_000


class _Batches(L.LightningDataModule):
    """Makes the loader once Lightning knows which process this is."""

    def __init__(self, images: Images, batch_size: int, seed: int, workers: int) -> None:
        super().__init__()
        self.images, self.batch_size, self.seed, self.workers = images, batch_size, seed, workers

    def train_dataloader(self) -> EpochLoader:
        assert self.trainer is not None
        return EpochLoader(
            self.images,
            self.batch_size,
            seed=self.seed,
            workers=self.workers,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )


def fit(
    method: M,
    data: Any,
    *,
    epochs: int,
    out: str | Path | None = None,
    val: Any = None,
    batch_size: int = 256,
    learning_rate: float = 0.05,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    warmup_epochs: float | None = None,
    optimizer: str = "sgd",
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    channels_last: bool | str = "auto",
    compile: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    loggers: Sequence[str | Logger] = (),
    knn_every: int | None = None,
    monitor_every: int = 1,
    workers: int = 2,
    checkpoint_seconds: float = 30.0,
    decode_size: int | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    convert: bool = False,
    **trainer_options: Any,
) -> M:
    """Train ``method`` on ``data`` and return it in evaluation mode, on the device that it was trained on.

    A run draws from (``seed``, step) alone: interrupted at any moment, by Ctrl-C or by force, and resumed, it
    ends with the weights and the metrics.csv of an uninterrupted one.

    Parameters
    ----------
    method
        any method; its channel statistics are calibrated on the data unless they were given
    data, val
        what ``open_images`` takes: a string, an array, an ``ImageSet``, …; ``val`` is never trained on
    epochs
        passes over the data; the learning rate's cosine spans them
    out
        run folder: config.yaml, model/, checkpoints/last.ckpt, metrics.csv; None writes nothing
    batch_size
        images a step and process
    learning_rate, momentum, weight_decay, warmup_epochs, optimizer, compile
        see :class:`~probjepa.training.Module`
    device
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``
    precision
        a Lightning precision; ``"auto"`` is bf16-mixed where the GPU has it, else 32-true
    channels_last
        ``"auto"``: on a GPU
    resume
        go on from the run's last checkpoint, with the same data and settings
    overwrite
        remove the run that is in ``out``
    progress
        show a bar
    loggers
        ``"tensorboard"`` or Lightning loggers
    knn_every
        epochs between kNN accuracies on ``val``; None: where both are labelled, ten in a run; 0: never
    monitor_every
        epochs between looks at the effective rank, σ² and KL; 0: never
    workers
        processes that decode streamed images
    checkpoint_seconds
        between checkpoints inside an epoch
    decode_size
        shorter side that images are decoded to, before views are cut from them; None: the method's image size
    on_error, convert
        see ``open_images``
    trainer_options
        go to ``lightning.Trainer`` (``accumulate_grad_batches``, ``devices``, ``strategy``, …)

    Raises
    ------
    ConfigError, DataError, ArtifactError
        for a setting out of its range, unusable data, an ``out`` in the way, a checkpoint of another run
    MissingExtraError
        for a logger that is not installed
    Interrupted
        after Ctrl-C or SIGTERM; the run is resumable
    ProbjepaError
        if a loss or gradient is not finite
    """
    _check_trainer_options(trainer_options)
    target = resolve_device(device)
    precision = _resolve_precision(precision, target)
    if channels_last not in (True, False, "auto"):
        raise ConfigError(f"channels_last must be True, False or 'auto', got {channels_last!r}")
    folder = RunFolder(out) if out is not None else None
    # a second process of a distributed run finds the folder that the first has made
    root = os.environ.get("LOCAL_RANK", "0") == os.environ.get("NODE_RANK", "0") == "0"
    if folder is None and (resume or overwrite):
        raise ConfigError("resume and overwrite are about a run folder: give its path as out")
    if folder is not None and root:
        folder.check(resume=resume, overwrite=overwrite)
    made_loggers = [_make_logger(logger, folder) for logger in loggers]

    images = _open(method, data, decode_size, on_error=on_error, convert=convert)
    held_out = None if val is None else _open(method, val, decode_size, on_error=on_error, convert=convert)
    EpochLoader(images, batch_size, seed=seed)  # its complaints come before anything is written
    method.calibrate(images.get(sample_rows(len(images), _CALIBRATION_ROWS, seed)))
    module = Module(
        method,
        epochs=epochs,
        learning_rate=learning_rate,
        momentum=momentum,
        weight_decay=weight_decay,
        warmup_epochs=warmup_epochs,
        seed=seed,
        optimizer=optimizer,
        channels_last=target.type == "cuda" if channels_last == "auto" else bool(channels_last),
        compile=compile,
    )
    monitors = _monitors(images, held_out, epochs, monitor_every, knn_every, seed)
    with stop_on_signal() as stop, _quiet(), torch.random.fork_rng([target] if target.type == "cuda" else []):
        trainer = L.Trainer(
            **{
                "accelerator": "gpu" if target.type == "cuda" else target.type,
                "devices": [target.index] if target.type == "cuda" else 1,
                "precision": precision,
                "max_epochs": epochs,
                "logger": made_loggers or False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "num_sanity_val_steps": 0,
                **trainer_options,
                "callbacks": [
                    *monitors,
                    MetricsTable(folder.metrics if folder else None),
                    *([ProgressLine()] if progress else []),
                    *trainer_options.get("callbacks", []),
                    Checkpointer(folder.checkpoint if folder else None, stop, checkpoint_seconds),
                ],
                "plugins": [*trainer_options.get("plugins", []), AtomicCheckpointIO()],
            }
        )
        module.fingerprint |= {
            "batch_size": batch_size,
            "precision": precision,
            "processes": trainer.world_size,
            "accumulate_grad_batches": trainer.accumulate_grad_batches,
            "method": method.name,
            **{f"method.{key}": value for key, value in method.settings.items()},
            **data_fingerprint(images),
        }
        if folder is not None and root and not resume:
            options = {"channels_last": channels_last, "compile": compile, **trainer_options}
            names = {"data": images.name, "val": held_out.name if held_out else None}
            folder.start(module.fingerprint | names, target, options)
        if target.type == "cuda" and trainer.world_size == 1:
            images = _to_device(images, target)
        batches = _Batches(images, batch_size, seed, 0 if isinstance(images, ImageSet) else workers)
        checkpoint = folder.checkpoint if folder and resume and folder.checkpoint.is_file() else None
        try:
            trainer.fit(module, datamodule=batches, ckpt_path=checkpoint)
        except (KeyboardInterrupt, SystemExit):  # Lightning turns the first into the second
            if not stop:
                raise
            then = (
                "go on from the last checkpoint with resume=True (--resume)"
                if folder
                else "nothing was saved"
            )
            raise Interrupted(f"stopped at once in step {trainer.global_step}: {then}") from None
    method.eval().to(target)
    if folder is not None and trainer.is_global_zero:
        method.save_pretrained(folder.model)
    return method


def _open(method: Method, source: Any, decode_size: int | None, **options: Any) -> Images:
    # an opened set keeps its size: the user has chosen it
    size = None if isinstance(source, Images) else decode_size or method.preprocess.size
    return open_images(source, size=size, channels=method.preprocess.channels, **options)


def _monitors(
    images: Images,
    held_out: Images | None,
    epochs: int,
    monitor_every: int,
    knn_every: int | None,
    seed: int,
) -> list[Monitor]:
    monitors: list[Monitor] = [CollapseMonitor(images, monitor_every, seed=seed)] if monitor_every else []
    if knn_every is None:
        labelled = held_out is not None and images.labels is not None and held_out.labels is not None
        knn_every = max(1, epochs // 10) if labelled else 0
    if knn_every:
        if held_out is None:
            raise ConfigError("knn_every needs val: give labelled held-out images, or leave knn_every out")
        monitors.append(OnlineKNN(images, held_out, knn_every, seed=seed))
    return monitors


def resolve_device(device: str) -> torch.device:
    """Return the device of a name such as "auto" (a GPU where there is one), or raise ConfigError."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")
    try:
        target = torch.device(device)
    except RuntimeError:
        raise unknown_name("device", device, ["auto", "cpu", "cuda", "mps"]) from None
    if target.type == "cuda":
        count = torch.cuda.device_count()
        if (target.index or 0) >= count:
            raise ConfigError(f"no device {device}: {count} CUDA devices are visible; use 'cpu' or 'auto'")
        return torch.device("cuda", target.index or 0)
    if target.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("no device mps on this machine: use device='cpu' or 'auto'")
    if target.type not in ("cpu", "mps"):
        raise unknown_name("device", device, ["auto", "cpu", "cuda", "mps"])
    return target


def _resolve_precision(precision: str, device: torch.device) -> str:
    if precision != "auto":
        return precision
    return "bf16-mixed" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "32-true"


def _check_trainer_options(options: dict[str, Any]) -> None:
    taken = {"max_epochs": "epochs", "accelerator": "device", "logger": "loggers"}
    for name in options:
        if name in taken:
            raise ConfigError(f"{name} is set by {taken[name]}: give that instead")
        if name not in inspect.signature(L.Trainer.__init__).parameters:
            known = {*inspect.signature(fit).parameters, *inspect.signature(L.Trainer.__init__).parameters}
            raise unknown_name("setting", name, known - {"self", "trainer_options", *taken})


def _make_logger(logger: str | Logger, folder: RunFolder | None) -> Logger:
    if isinstance(logger, Logger):
        return logger
    if logger != "tensorboard":
        raise unknown_name("logger", logger, ["tensorboard"])
    if importlib.util.find_spec("tensorboard") is None:
        raise MissingExtraError("tensorboard", "tensorboard")
    if folder is None:
        raise ConfigError("the tensorboard logger writes into the run folder: give its path as out")
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(folder.path, name="tensorboard", version="")


def _to_device(images: Images, device: torch.device) -> Images:
    """Move a set in memory to the GPU once, where it takes less than a quarter of what is free."""
    if not isinstance(images, ImageSet) or images.images.numel() > torch.cuda.mem_get_info(device)[0] / 4:
        return images
    return dataclasses.replace(images, images=images.images.to(device))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning's notes on GPUs, tips and workers; our own warnings pass."""
    names = ("lightning", "lightning.pytorch", "lightning.fabric", "lightning_utilities")
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\.")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
