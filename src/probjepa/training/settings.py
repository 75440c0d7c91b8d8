"""The settings of a training run: each declared once, with its type, its default and what it means."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar, get_args, get_type_hints

import numpy as np
import torch

from probjepa.data.streams import LANES
from probjepa.errors import ConfigError, unknown_name
from probjepa.training.optim import OPTIMIZERS
from probjepa.typed import check_plain, checked

F = TypeVar("F", bound=Callable[..., Any])
S = TypeVar("S", bound="LoopSettings")

# of a method whose recipe does not say
_USUAL = {
    "learning_rate": 0.05, "sgd_momentum": 0.9, "weight_decay": 5e-4, "optimizer": "sgd",
    "gradient_clip_val": 0.0, "layer_decay": 1.0,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """What decides the numbers of a training loop, besides its length; a resume compares it.

    What is None is as the method's ``recipe`` has it, else SGD's usual setting at batch 256.

    Parameters
    ----------
    learning_rate
        the highest of the schedule: a linear warm-up, then a cosine to 0; else 0.05
    sgd_momentum
        of SGD, and refused with another optimizer unless it is 0.9; not of a method's averaged teacher,
        which is ``ema_momentum``; else 0.9
    weight_decay
        of weights; norms and biases are not decayed; else 5e-4
    warmup_epochs
        the linear warm-up, in epochs; else 10, or a tenth of a run shorter than 100
    layer_decay
        factor in (0, 1] of the rate from each of the encoder's layers to the one below it, to tune an encoder
        that is trained already: what stands on it has the whole rate, its last layer this share of it; else 1
    optimizer
        ``"sgd"`` or ``"adamw"``; else ``"sgd"``
    gradient_clip_val
        the largest norm of a gradient; 0, and else, any
    seed
        of the order of the data, the views, the posterior draws and whatever else the method draws. The
        initial weights are drawn when the method is made: by its own ``seed``

    Raises
    ------
    ConfigError
        for a value of the wrong type, or out of its range
    """

    learning_rate: float | None = None
    sgd_momentum: float | None = None
    weight_decay: float | None = None
    warmup_epochs: float | None = None
    layer_decay: float | None = None
    optimizer: str | None = None
    gradient_clip_val: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            object.__setattr__(self, name, _checked(name, getattr(self, name), kind))
        check_plain("seed", self.seed, int)
        rate, momentum = self.learning_rate, self.sgd_momentum
        if rate is not None and not (rate > 0 and math.isfinite(rate)):
            raise ConfigError(f"learning_rate must be a positive number, got {rate}")
        if momentum is not None and not 0 <= momentum < 1:
            raise ConfigError(f"sgd_momentum must lie in [0, 1), got {momentum}")
        decay = self.layer_decay
        if decay is not None and not 0 < decay <= 1:
            raise ConfigError(f"layer_decay must lie in (0, 1], got {decay}")
        for name in ("weight_decay", "gradient_clip_val"):
            value = getattr(self, name)
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise ConfigError(f"{name} must be 0 or more, got {value}")
        if self.optimizer is not None and self.optimizer not in OPTIMIZERS:
            raise unknown_name("optimizer", self.optimizer, OPTIMIZERS)

    def resolved(self, recipe: Mapping[str, Any], epochs: int) -> dict[str, Any]:
        """Return all of them for a run of so many epochs; ConfigError for a recipe that has others."""
        own, others = split_settings(LoopSettings, recipe)
        for name in others:
            raise unknown_name("setting of a recipe", name, [field.name for field in fields(own)])
        found: dict[str, Any] = {}
        for field in fields(LoopSettings):
            values = (getattr(self, field.name), getattr(own, field.name), _USUAL.get(field.name))
            found[field.name] = next((value for value in values if value is not None), None)
        usual = _USUAL["sgd_momentum"]
        if found["optimizer"] != "sgd":
            if self.sgd_momentum not in (None, usual):
                raise ConfigError(
                    f"sgd_momentum is {self.sgd_momentum}, and the optimizer is {found['optimizer']!r}: "
                    "leave it out, or set optimizer='sgd'"
                )
            found["sgd_momentum"] = usual  # whatever the recipe has for its own optimizer
        found["warmup_epochs"] = _warmup(found["warmup_epochs"], epochs)
        return {k: float(v) if isinstance(v, int) and k != "seed" else v for k, v in found.items()}


def check_epochs(epochs: int) -> None:
    """Raise ConfigError for a run without an epoch."""
    if epochs < 1:
        raise ConfigError(f"epochs must be at least 1, got {epochs}")


def _warmup(given: float | None, epochs: int) -> float:
    warmup = min(10.0, epochs / 10) if given is None else float(given)
    if not 0 <= warmup < epochs:
        raise ConfigError(f"warmup_epochs must lie in [0, epochs) = [0, {epochs}), got {warmup:g}")
    return warmup


@dataclass(frozen=True, kw_only=True)
class FitSettings(LoopSettings):
    """Settings of ``fit`` beyond the data and the run folder.

    Parameters
    ----------
    batch_size
        images a step and process; of an epoch, those beyond whole batches wait for another one
    device
        ``"auto"`` (CUDA if there is one, else the CPU), ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``
    channels_last
        hold weights and views in the memory order that GPUs prefer for convolutions; ``"auto"``: on a GPU,
        and on a CPU where timed steps are faster so, or with bf16 in a run that is not timed
    compile
        run the method's loss through ``torch.compile``, on a GPU as a CUDA graph; ``"auto"``: on a GPU, for
        4,000 steps or more, which win the minute of compiling back
    loggers
        ``"tensorboard"``, a Lightning logger, or a list of them
    knn_every
        epochs between kNN accuracies on ``val``; None: where both are labelled, after every
        tenth of the epochs, rounded down, and the last one; 0: never
    monitor_every
        epochs between looks at the effective rank, σ² and KL; 0: never
    workers
        processes that decode streamed images
    checkpoint_seconds
        between checkpoints inside an epoch
    decode_size
        shorter side that images are decoded to, before views are cut from them; None: the method's image size
    cache_views
        K ≥ 2 views an image of a frozen encoder's embeddings, computed once, kept in the run folder as
        float16, and trained on instead of images: each step draws from them; 0: none
    stream
        read shards once an epoch in a shuffled order, without a copy of them in memory or on the disk;
        ``"auto"``: tar, Arrow and litdata's files, what has an address, and parquet files whose images would
        take more than half of the free memory. With ``on_error="skip"`` another row takes the place of a
        broken one
    stream_buffer
        rows of a stream that are held, still encoded, to be shuffled; 32 or more
    on_error, convert
        see ``open_images``
    """

    batch_size: int = 256
    device: str = "auto"
    channels_last: bool | Literal["auto"] = "auto"
    compile: bool | Literal["auto"] = False
    loggers: Any = ()
    knn_every: int | None = None
    monitor_every: int = 1
    workers: int = 2
    checkpoint_seconds: float = 30.0
    decode_size: int | None = None
    cache_views: int = 0
    stream: bool | Literal["auto"] = "auto"
    stream_buffer: int = 4096
    on_error: Literal["raise", "skip"] = "raise"
    convert: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (
            "knn_every",
            "monitor_every",
            "workers",
            "checkpoint_seconds",
            "decode_size",
            "cache_views",
            "stream_buffer",
        ):
            least, value = {"decode_size": 8, "stream_buffer": LANES}.get(name, 0), getattr(self, name)
            if value is not None and not value >= least:
                raise ConfigError(f"{name} must be {least} or more, got {value}")

    def loop(self) -> dict[str, Any]:
        """Return those of ``LoopSettings``."""
        return {field.name: getattr(self, field.name) for field in fields(LoopSettings)}


def _checked(name: str, value: Any, kind: Any) -> Any:
    """Return a setting if it is of its type; a NumPy number becomes a plain one."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, torch.device):
        value = str(value)
    infinite = isinstance(value, float) and not math.isfinite(value)
    if infinite and float in (kind, *get_args(kind)):
        return value  # the range of the setting says what is wrong with it
    if name == "loggers":
        return value if isinstance(value, list | tuple) else [value]  # of objects, which make_logger looks at
    return checked(name, value, kind)


def split_settings(kind: type[S], options: Mapping[str, Any]) -> tuple[S, dict[str, Any]]:
    """Return the settings of a kind among some options, and the other options."""
    names = {field.name for field in fields(kind)}
    settings = kind(**{name: value for name, value in options.items() if name in names})
    return settings, {name: value for name, value in options.items() if name not in names}


def with_settings(settings: type[LoopSettings], rest: str | None = None) -> Callable[[F], F]:
    """Show the settings that a function takes as ``**options`` in its signature and in its docstring.

    ``rest`` is what the other options are called; None: there are no others.
    """

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        *own, options = signature.parameters.values()
        kind, types = inspect.Parameter.KEYWORD_ONLY, get_type_hints(settings)
        own += [
            inspect.Parameter(field.name, kind, default=field.default, annotation=types[field.name])
            for field in fields(settings)
        ]
        if rest is not None:
            own.append(options.replace(name=rest))
        shown: Any = function
        shown.__signature__ = signature.replace(parameters=own)
        if function.__doc__ is not None:
            before, mark, after = inspect.cleandoc(function.__doc__).partition("\n\nRaises\n")
            documented = [_parameters(part) for part in reversed(settings.__mro__) if part is not object]
            shown.__doc__ = "\n".join([before, *documented]) + mark + after
        return function

    return decorate


def _parameters(kind: type) -> str:
    """The parameters in a class's docstring."""
    text = inspect.cleandoc(kind.__doc__ or "").partition("Parameters\n----------\n")[2]
    return text.partition("\n\nRaises\n")[0]
