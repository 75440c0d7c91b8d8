"""Lightning's Trainer as ``fit`` makes it: its options, its loggers, and its notes kept back."""

from __future__ import annotations

import importlib.util
import inspect
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import lightning.pytorch as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.loggers import Logger

from probjepa.errors import ConfigError, MissingExtraError, short, unknown_name
from probjepa.model_files import quiet
from probjepa.training.callbacks import AtomicCheckpointIO
from probjepa.training.folder import RunFolder
from probjepa.training.module import refuse_changing_steps
from probjepa.training.processes import SyncBatchNorm, TorchSync
from probjepa.typed import check_plain

_INSTEAD = {
    "max_time": "stop it by Ctrl-C or SIGTERM (timeout --foreground 2h …), and go on with resume",
    "fast_dev_run": "give epochs=1 and limit_train_batches=1",
}
# what Lightning looks at in the midst of a run, or not at all
_UNCHECKED: dict[str, Any] = {
    "log_every_n_steps": int, "detect_anomaly": bool, "deterministic": bool | Literal["warn"],
}  # fmt: skip
_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def check_options(options: Mapping[str, Any], others: Iterable[str]) -> None:
    """Raise ConfigError for what a Trainer does not take; ``others`` are names that may be meant instead."""
    own = inspect.signature(L.Trainer.__init__).parameters
    # Lightning resumes a run with max_steps in the middle of an epoch that has ended
    taken = {"max_epochs": "epochs", "max_steps": "epochs", "accelerator": "device", "logger": "loggers"}
    for name in options:
        if name in taken:
            raise ConfigError(f"{name} is set by {taken[name]}: give that instead")
        if name not in own:
            raise unknown_name("setting", name, {*own, *others} - {"self", "trainer_options", *taken})
    for name, kind in _UNCHECKED.items():
        if options.get(name) is not None:
            check_plain(name, options[name], kind)
    accumulate = check_plain("accumulate_grad_batches", options.get("accumulate_grad_batches", 1), int)
    if accumulate < 1:
        raise ConfigError(f"accumulate_grad_batches must be 1 or more, got {accumulate}")
    if options.get("overfit_batches"):
        raise ConfigError("overfit_batches would take other images each epoch: give fit fewer images")
    for name, instead in _INSTEAD.items():
        if options.get(name):
            raise ConfigError(f"{name} would end the run as if it were whole: {instead}")
    if options.get("limit_train_batches") == 0:
        raise ConfigError("limit_train_batches is 0, which trains nothing: leave it out")
    for callback in as_list(options.get("callbacks")):
        if not isinstance(callback, L.Callback):
            raise ConfigError(f"callbacks takes callbacks of lightning.pytorch, got {short(repr(callback))}")
        if isinstance(callback, Timer):
            raise ConfigError(f"a Timer would end the run as if it were whole: {_INSTEAD['max_time']}")
        refuse_changing_steps(callback)


def as_list(given: Any) -> list[Any]:
    """Return what a Trainer takes as None, as one object or as several."""
    return [] if given is None else list(given) if isinstance(given, list | tuple) else [given]


@contextmanager
def process_as_before() -> Iterator[None]:
    """Put back, after the block, what a Trainer sets in a process: determinism, benchmarks, gradients."""
    asked, warns = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    cudnn, workspace = torch.backends.cudnn.benchmark, os.environ.get(_WORKSPACE)
    gradients = torch.is_grad_enabled()
    try:
        yield
    finally:
        torch.set_grad_enabled(gradients)
        torch.use_deterministic_algorithms(asked, warn_only=warns)
        torch.backends.cudnn.benchmark = cudnn
        if workspace is None:
            os.environ.pop(_WORKSPACE, None)
        else:
            os.environ[_WORKSPACE] = workspace


def make_logger(logger: str | Logger, folder: RunFolder | None) -> Logger:
    """Return a logger of a name, or the one given; ConfigError or MissingExtraError where there is none."""
    if isinstance(logger, Logger):
        return logger
    if logger != "tensorboard":
        raise unknown_name("logger", short(logger), ["tensorboard"])
    if importlib.util.find_spec("tensorboard") is None:
        raise MissingExtraError("tensorboard", "tensorboard")
    if folder is None:
        raise ConfigError("the tensorboard logger writes into the run folder: give its path as out")
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(folder.path, name="tensorboard", version="")


def make_trainer(device: torch.device, options: Mapping[str, Any]) -> L.Trainer:
    """Return a Trainer on a device; ConfigError where Lightning takes none of these options."""
    ours = {
        "accelerator": "gpu" if device.type == "cuda" else device.type,
        "devices": [device.index] if device.type == "cuda" else 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    plugins = [*as_list(options.get("plugins")), AtomicCheckpointIO()]
    if options.get("sync_batchnorm", True):
        plugins.append(TorchSync() if device.type == "cuda" else SyncBatchNorm())
    try:
        return L.Trainer(**{**ours, **options, "sync_batchnorm": False, "plugins": plugins})
    except (TypeError, ValueError, ImportError, MisconfigurationException) as error:
        raise ConfigError(f"Lightning cannot train with these settings: {short(error, 200)}") from error


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's notes on GPUs, tips and workers; our own warnings pass."""
    names = ("lightning", "lightning.pytorch", "lightning.fabric", "lightning_utilities")
    with quiet(*names), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\.")
        warnings.filterwarnings("ignore", message="This DataLoader will create")  # torch's, on one core
        yield
