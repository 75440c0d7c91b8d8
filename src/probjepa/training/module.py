"""The adapter that turns any method into a LightningModule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn

from probjepa import __version__
from probjepa.errors import ArtifactError, ConfigError, ProbjepaError
from probjepa.training.optim import make_optimizer
from probjepa.training.schedules import step_seed, warmup_cosine

if TYPE_CHECKING:
    from probjepa.methods.base import Method
    from probjepa.methods.var_jepa import VarJEPA

CHECKPOINT_FORMAT = 1


class Module(L.LightningModule):
    """Train a method with Lightning: views on the device, one loss, a warm-up and a cosine.

    A batch is a uint8 tensor (N, C, H, W), or a tuple that starts with one. Every step draws from a seed made
    of (``seed``, step, rank), so that a resumed run equals an uninterrupted one. ``loss`` and the method's
    other terms are logged as ``train/…``; the values of the last optimiser step are in :attr:`terms`.

    Parameters
    ----------
    method
        what is trained; its ``loss`` takes the views and its ``after_step`` runs after each optimiser step.
        One without a view recipe (``VarJEPA``) takes the loader's batches as they are
    epochs
        the length of the schedule; give the Trainer the same ``max_epochs``
    learning_rate, momentum, weight_decay, optimizer
        ``"sgd"`` or ``"adamw"``; norms and biases are not decayed
    warmup_epochs
        the linear warm-up, in epochs; None takes 10, or a tenth of a run shorter than 100
    seed
        of the views, the posterior draws and whatever else the method draws
    channels_last
        hold weights and views in the memory order that GPUs prefer for convolutions
    compile
        run the method's loss through ``torch.compile``
    views
        uint8 batch, seed → list of float batches; None makes the method's own recipe

    Raises
    ------
    ConfigError
        for a setting out of its range
    """

    def __init__(
        self,
        method: Method | VarJEPA,
        *,
        epochs: int,
        learning_rate: float = 0.05,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        warmup_epochs: float | None = None,
        seed: int = 0,
        optimizer: str = "sgd",
        channels_last: bool = False,
        compile: bool = False,
        views: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if epochs < 1:
            raise ConfigError(f"epochs must be at least 1, got {epochs}")
        warmup = min(10.0, epochs / 10) if warmup_epochs is None else float(warmup_epochs)
        if not 0 <= warmup < epochs:
            raise ConfigError(f"warmup_epochs must lie in [0, epochs) = [0, {epochs}), got {warmup:g}")
        if not (learning_rate > 0 and math.isfinite(learning_rate)):
            raise ConfigError(f"learning_rate must be a positive number, got {learning_rate}")
        if not 0 <= momentum < 1:
            raise ConfigError(f"momentum must lie in [0, 1), got {momentum}")
        if not (weight_decay >= 0 and math.isfinite(weight_decay)):
            raise ConfigError(f"weight_decay must be 0 or more, got {weight_decay}")
        self.method = method
        self.views = _default_views(method) if views is None else views
        self.settings: dict[str, Any] = {
            "epochs": epochs,
            "learning_rate": float(learning_rate),
            "momentum": float(momentum),
            "weight_decay": float(weight_decay),
            "warmup_epochs": warmup,
            "seed": seed,
            "optimizer": optimizer,
        }
        # fit adds what it knows of the data; a resume compares it all
        self.fingerprint: dict[str, Any] = dict(self.settings)
        self.terms: dict[str, float] = {}
        self._pending: list[Tensor] = []  # the terms of the micro-batches since the last optimiser step
        self._names: list[str] = []
        self._channels_last = channels_last
        if channels_last:
            self.method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._loss = torch.compile(method.loss) if compile else method.loss

    @property
    def total_steps(self) -> int:
        """How many optimiser steps the whole run takes."""
        per_epoch = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        return int(self.settings["epochs"] * per_epoch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimiser; the learning rate is set at each step, see :meth:`optimizer_step`."""
        keys = ("learning_rate", "momentum", "weight_decay")
        return make_optimizer(
            self.settings["optimizer"], self.method, **{key: self.settings[key] for key in keys}
        )

    def on_fit_start(self) -> None:
        """Put the method in training mode: Lightning keeps the mode that it finds."""
        self.method.train()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        accumulate = self.trainer.accumulate_grad_batches
        seed = step_seed(
            self.settings["seed"],
            self.global_step * accumulate + batch_idx % accumulate,
            self.global_rank,
        )
        torch.manual_seed(step_seed(seed, 0))  # not the views' stream: their draws would repeat in the loss
        views = batch
        if self.views is not None:
            images = batch[0] if isinstance(batch, Sequence) else batch
            # colour and blur in bfloat16 would quantise the images
            with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
                views = self.views(images, seed)
        if self._channels_last:
            views = [v.contiguous(memory_format=torch.channels_last) if v.ndim == 4 else v for v in views]
        terms = self._loss(views)
        self._names = list(terms)
        self._pending.append(torch.stack([value.detach().float() for value in terms.values()]))
        return terms["loss"]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the terms, and refuse to step on a loss or a gradient that is not finite."""
        terms = torch.stack(self._pending).mean(0)
        self._pending.clear()
        gradients = [p.grad for p in self.method.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        *values, gradient = torch.cat([terms, norm.float().reshape(1)]).tolist()  # one wait for the device
        self.terms = dict(zip(self._names, values, strict=True))
        bad = [name for name, value in self.terms.items() if not math.isfinite(value)]
        # a GradScaler (16-mixed) finds its scale by overflowing and skips those steps itself
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        if bad or not (scaled or math.isfinite(gradient)):
            raise ProbjepaError(self._not_finite(bad))
        self.log_dict({f"train/{name}": value for name, value in self.terms.items()})

    def _not_finite(self, bad: list[str]) -> str:
        if bad:
            what = f"the loss term{'s' * (len(bad) > 1)} {', '.join(bad)}"
        else:
            named = ((name, p.grad) for name, p in self.method.named_parameters() if p.grad is not None)
            where = next((name for name, grad in named if not bool(grad.isfinite().all())), None)
            what = f"the gradient of {where}" if where else "the norm of the gradient"
        return (
            f"{what} is not finite at step {self.global_step}: lower the learning rate "
            f"({self.settings['learning_rate']:g}), lengthen warmup_epochs, or train with precision='32-true'"
        )

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Set the step's learning rate, step, then let the method follow (its averaged copy)."""
        step, total = self.global_step, self.total_steps
        warmup = self.settings["warmup_epochs"] * total / self.settings["epochs"]
        rate = self.settings["learning_rate"] * warmup_cosine(step, total, warmup)
        # a function of the step alone: no scheduler state to save, nothing to drift on a resume
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate
        super().optimizer_step(*args, **kwargs)
        self.method.after_step(step, total)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Sign the checkpoint: format, library version, and what was trained on what."""
        checkpoint["probjepa"] = {
            "format": CHECKPOINT_FORMAT,
            "version": __version__,
            "fingerprint": self.fingerprint,
        }

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Refuse a checkpoint of another format, version, data or settings.

        Raises
        ------
        ArtifactError
            naming the first thing that differs
        """
        check_signature(checkpoint.get("probjepa"), self.fingerprint)


def check_signature(signature: Any, fingerprint: Mapping[str, Any]) -> None:
    """Raise ArtifactError unless a checkpoint's signature fits this library and this run."""
    if not isinstance(signature, Mapping):
        raise ArtifactError("the checkpoint is not probjepa's: resume from RUN/checkpoints/last.ckpt")
    found = (signature.get("format"), signature.get("version"))
    if found != (CHECKPOINT_FORMAT, __version__):
        raise ArtifactError(
            f"the checkpoint has format {found[0]} of probjepa {found[1]}, this is {CHECKPOINT_FORMAT} of "
            f"{__version__}: install that version to resume, or start afresh"
        )
    saved = dict(signature.get("fingerprint", {}))
    for key in sorted({*saved, *fingerprint}):
        if saved.get(key) != fingerprint.get(key):
            raise ArtifactError(
                f"the checkpoint was made with {key}={saved.get(key)}, this run has {fingerprint.get(key)}: "
                "resume with the same data and settings, or start afresh with overwrite"
            )


def _default_views(method: Method | VarJEPA) -> nn.Module | None:
    from probjepa.data.views import views
    from probjepa.methods.base import Method

    if not isinstance(method, Method):
        return None
    module: nn.Module = views(method.view_recipe, **method.preprocess.config())
    return module
