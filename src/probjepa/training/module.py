"""The adapter that turns any method into a LightningModule."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging
from torch import Tensor, nn

from probjepa.distributed import of_each
from probjepa.distributions.base import full_precision, unchecked
from probjepa.draws import reseed, shared_draws
from probjepa.errors import ConfigError, DataError, ProbjepaError, short, unknown_name, warn
from probjepa.training.checkpoint import check_signature, sign
from probjepa.training.optim import check_state, make_optimizer, set_learning_rate
from probjepa.training.schedules import step_seed, warmup_cosine
from probjepa.training.settings import LoopSettings, check_epochs, split_settings, with_settings
from probjepa.typed import check_plain

if TYPE_CHECKING:
    from probjepa.methods.base import Method
    from probjepa.methods.var_jepa import VarJEPA


def check_counts(progress: Mapping[str, Any]) -> None:
    """Raise ValueError unless all that a loop counts is a whole number ≥ 0, or a yes or no."""
    for name, count in progress.items():
        if isinstance(count, Mapping):
            check_counts(count)
        elif not isinstance(count, int) or count < 0:
            raise ValueError(f"the count {name} is {short(repr(count))}")


@contextmanager
def _float32_by_default() -> Iterator[None]:
    """Make new tensors float32: Lightning's "bf16-true" and "64-true" give them the weights' type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class Module(L.LightningModule):
    """Train a method with Lightning: views on the device, one loss, a warm-up and a cosine.

    A batch is a uint8 tensor (N, C, H, W), or a tuple that starts with one. Every step draws from a seed made
    of (``seed``, step), so that a resumed run equals an uninterrupted one, and several processes one. (From
    a checkpoint within an epoch it does with a loader that has ``state_dict`` alone: Lightning begins others
    again.)
    ``loss`` and the method's other terms, means over the processes, are logged as ``train/…``; the values of
    the last optimiser step are in :attr:`terms`.

    A checkpoint holds weights and no code: ``Module.load_from_checkpoint(path, method=method, epochs=200)``
    puts them into a method.

    Parameters
    ----------
    method
        what is trained; its ``loss`` takes the views and its ``after_step`` runs after each optimiser step.
        One without a view recipe (``VarJEPA``) takes the loader's batches as they are
    epochs
        the length of the schedule; give the Trainer the same ``max_epochs``
    views
        a recipe's name; how many views of an image the method's own recipe makes; or a module: uint8 batch,
        seed → list of float batches; None: the method's own recipe
    channels_last
        hold weights and views in the memory order that GPUs prefer for convolutions
    compile
        run the method's loss through ``torch.compile``
    settings
        learning_rate, sgd_momentum, weight_decay, warmup_epochs, layer_decay, optimizer, gradient_clip_val,
        seed: see
        :class:`~probjepa.training.settings.LoopSettings`; None: as the method's recipe has it

    Raises
    ------
    ConfigError
        for a method without a ``loss``, an unknown setting, or one of the wrong type or out of its range
    """

    @with_settings(LoopSettings)
    def __init__(
        self,
        method: Method | VarJEPA,
        *,
        epochs: int,
        views: Callable[[Tensor, int], Any] | str | int | None = None,
        channels_last: bool = False,
        compile: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__()
        _check_method(method)
        channels_last = check_plain("channels_last", channels_last, bool)
        compile = check_plain("compile", compile, bool)
        epochs = check_plain("epochs", epochs, int)
        check_epochs(epochs)
        loop, unknown = split_settings(LoopSettings, settings)
        for name in unknown:
            raise unknown_name("setting", name, inspect.signature(Module).parameters)
        self.method = method
        self.views = views_for(method, views)
        self.settings: dict[str, Any] = {
            "epochs": epochs,
            **loop.resolved(_recipe(method), epochs),
        }
        if getattr(method, "frozen", False) and self.settings["layer_decay"] < 1:
            raise ConfigError(
                "layer_decay is of an encoder's layers, and this one's are frozen: leave it out"
            )
        # fit adds what it knows of the data; a resume compares it all
        self.fingerprint: dict[str, Any] = self.settings | {
            "method": getattr(method, "name", type(method).__name__),
            **{f"method.{key}": value for key, value in getattr(method, "settings", {}).items()},
        }
        self.terms: dict[str, float] = {}
        self.rate = 0.0  # of the last step: what an averaging callback sets after it is in no step
        self.restored = False
        self._restored_steps: object = None
        self.logs = True  # fit logs where somebody listens: it takes longer than all else between two steps
        self._pending: list[Tensor] = []  # the terms of the micro-batches since the last optimiser step
        self._names: list[str] = []
        self._channels_last = False
        if channels_last:
            self.hold_channels_last(True)
        self._compile = compile
        self._loss: Callable[[Sequence[Tensor]], dict[str, Tensor]] | None = None

    def hold_channels_last(self, on: bool) -> None:
        """Hold weights and views in the order that GPUs prefer for convolutions, or in the plain one."""
        self._channels_last = on
        order = torch.channels_last if on else torch.contiguous_format
        self.method.to(memory_format=order)  # type: ignore[call-overload]

    @property
    def total_steps(self) -> int:
        """How many optimiser steps the whole run takes."""
        if not math.isfinite(self.trainer.num_training_batches):
            raise ConfigError("the loader has no length, and the schedule needs one: limit_train_batches=N")
        per_epoch = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        return int(self.settings["epochs"] * per_epoch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimiser; the learning rate is set at each step, see :meth:`optimizer_step`."""
        return make_optimizer(
            self.settings["optimizer"],
            self.method,
            learning_rate=self.settings["learning_rate"],
            weight_decay=self.settings["weight_decay"],
            momentum=self.settings["sgd_momentum"],
            layer_decay=self.settings["layer_decay"],
        )

    def on_train_start(self) -> None:
        """Warn of a schedule shorter than the run, and of no image statistics; see ``accept_restored``."""
        epochs = int(self.settings["epochs"])
        averaged = any(isinstance(of, StochasticWeightAveraging) for of in self.trainer.callbacks)  # type: ignore[attr-defined]
        # averaging adds an epoch, without steps, for the statistics of batch normalisation
        if (self.trainer.max_epochs or 0) > epochs + averaged:
            warn(
                f"the schedule ends after {epochs} epochs, and the Trainer goes on at rate 0 to "
                f"{self.trainer.max_epochs}: give both the same"
            )
        was, now = self._restored_steps, self.total_steps
        if isinstance(was, int) and was != now:
            warn(
                f"the schedule had {was} steps when the checkpoint was written, and has {now} now, so that "
                "the learning rate jumps: give the loader, accumulate_grad_batches and the processes of then"
            )
        if not getattr(self.method, "calibrated", True):  # a VarJEPA takes rows
            warn(
                "the method has no channel statistics of these images: call method.calibrate(images) "
                "with some thousand uint8 images before it trains, or give it mean= and std="
            )
        self.accept_restored()

    def accept_restored(self) -> None:
        """Look at the optimiser's state and the loop's counts, which a checkpoint may have given."""
        check_state(self.trainer.optimizers[0])
        loops = self.trainer.fit_loop.state_dict()
        check_counts({name: state for name, state in loops.items() if name.endswith("progress")})
        self.restored = True

    def on_fit_start(self) -> None:
        """Look at callbacks and the other processes; set training mode, which Lightning keeps as it is."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            refuse_changing_steps(callback)
            if isinstance(callback, StochasticWeightAveraging):
                warn(
                    "StochasticWeightAveraging averages the weights, and its swa_lrs are not used: each step "
                    "has the rate of the schedule"
                )
        _refuse_others(of_each(self.fingerprint))
        self.method.train()
        if self._compile:
            # a step's kernels in one launch; gradients that add up would be overwritten by the next one's
            graphs = self.device.type == "cuda" and self.trainer.accumulate_grad_batches == 1
            with unchecked():
                self._loss = torch.compile(self.method.loss, mode="reduce-overhead" if graphs else None)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        accumulate = self.trainer.accumulate_grad_batches
        step = self.global_step * accumulate + batch_idx % accumulate
        terms = self.terms_of(batch, step, self.global_rank, self.trainer.world_size)
        self._names = list(terms)
        self._pending.append(torch.stack([value.detach().float() for value in terms.values()]))
        return terms["loss"] * self._share(batch_idx)

    def _share(self, batch_idx: int) -> float:
        """What makes a step's gradient the mean of its batches: Lightning divides by their usual number."""
        accumulate, batches = self.trainer.accumulate_grad_batches, self.trainer.num_training_batches
        left = batches % accumulate if accumulate > 1 and math.isfinite(batches) else 0
        return accumulate / left if left and batch_idx >= batches - left else 1.0

    @_float32_by_default()
    def terms_of(self, batch: Any, step: int, rank: int = 0, processes: int = 1) -> dict[str, Tensor]:
        """Return the loss and the method's other terms of one batch.

        Draws come from the seed and the step alone. Several processes draw together what one would draw for
        their joined batch; what knows nothing of them, as dropout, draws from a stream of each process.
        """
        seed, common = (step_seed(self.settings["seed"], step, of) for of in (rank, 0))
        reseed(step_seed(seed, 0), self.device)  # not the views' stream: their draws would repeat in the loss
        views = batch
        if self.views is not None:
            images = _images_of(batch)
            # colour and blur in bfloat16 would quantise the images
            with torch.no_grad(), full_precision(images), shared_draws(common, rank, processes):
                views = self.views(images, seed)
        if self._channels_last:
            views = [v.contiguous(memory_format=torch.channels_last) if v.ndim == 4 else v for v in views]
        checks = unchecked() if self._loss else nullcontext()
        with checks, shared_draws(step_seed(common, 0), rank, processes):
            terms: dict[str, Tensor] = (self._loss or self.method.loss)(views)
        return terms

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the terms, and refuse to step on a loss or a gradient that is not finite."""
        terms = self.trainer.strategy.reduce(torch.stack(self._pending).mean(0), reduce_op="mean")
        self._pending.clear()
        gradients = [p.grad for p in self.method.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if hasattr(norm, "full_tensor"):  # of a model whose processes hold a part each (FSDP2)
            norm = norm.full_tensor()
        *values, gradient = torch.cat([terms, norm.float().reshape(1)]).tolist()  # one wait for the device
        self.terms = dict(zip(self._names, values, strict=True))
        bad = [name for name, value in self.terms.items() if not math.isfinite(value)]
        # a GradScaler (16-mixed) finds its scale by overflowing and skips those steps itself
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        if bad or not (scaled or math.isfinite(gradient)):
            raise ProbjepaError(self._not_finite(bad))
        if self.logs:
            self.log_dict({f"train/{name}": value for name, value in self.terms.items()})

    def _not_finite(self, bad: list[str]) -> str:
        if bad:
            what = f"the loss term{'s' * (len(bad) > 1)} {', '.join(bad)}"
        else:
            named = ((name, p.grad) for name, p in self.method.named_parameters() if p.grad is not None)
            where = next((name for name, grad in named if not bool(grad.isfinite().all())), None)
            what = f"the gradient of {where}" if where else "the norm of the gradient"
        advice = f"lower the learning rate ({self.settings['learning_rate']:g}), lengthen warmup_epochs"
        if not self.settings["gradient_clip_val"]:
            advice += ", clip the gradient (gradient_clip_val=1)"
        if self.trainer.precision != "32-true":
            advice += ", train with precision='32-true'"
        return f"{what} is not finite at step {self.global_step}: {' or'.join(advice.rsplit(',', 1))}"

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient to what the Trainer was given, else to this module's setting."""
        most = self.settings["gradient_clip_val"] if gradient_clip_val is None else gradient_clip_val
        self.clip_gradients(optimizer, most, gradient_clip_algorithm)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Set the step's learning rate, step, then let the method follow (its averaged copy)."""
        step, total = self.global_step, self.total_steps
        warmup = self.settings["warmup_epochs"] * total / self.settings["epochs"]
        self.rate = self.settings["learning_rate"] * warmup_cosine(step, total, warmup)
        set_learning_rate(self.trainer.optimizers[0], self.rate)
        super().optimizer_step(*args, **kwargs)
        self.method.after_step(step, total)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Sign the checkpoint: format, library version, what was trained on what, the schedule's length."""
        sign(checkpoint, self.fingerprint)
        if math.isfinite(self.trainer.num_training_batches):  # not before a fit
            checkpoint["total_steps"] = self.total_steps

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Refuse a checkpoint of another format, version, data or settings.

        Where no Trainer goes on from it (``load_from_checkpoint``), the method alone must be the same.

        Raises
        ------
        ArtifactError
            naming the first thing that differs
        """
        trainer = getattr(self, "_trainer", None)
        check_signature(checkpoint, self.fingerprint, of="" if trainer else "method")
        self._restored_steps = checkpoint.get("total_steps")
        if trainer is not None and trainer.precision == "64-true":
            self.method.double()  # Lightning restores the state before it makes the module so


def refuse_changing_steps(callback: L.Callback) -> None:
    """Raise ConfigError for a callback that changes how many steps a run has, and so the schedule."""
    if isinstance(callback, GradientAccumulationScheduler):
        raise ConfigError(
            "a GradientAccumulationScheduler changes how many steps the learning rate's schedule has: give "
            "accumulate_grad_batches=N"
        )


def _refuse_others(fingerprints: Sequence[Mapping[str, Any]]) -> None:
    """Raise ConfigError, in every process, where their data or settings differ from the first's."""
    first, *others = fingerprints
    for rank, other in enumerate(others, 1):
        for key in (*first, *(key for key in other if key not in first)):
            mine, theirs = repr(first.get(key)), repr(other.get(key))  # of arrays and NaN, too
            copied = key == "data_sha256" and "data_shards" in first  # shards of each machine have its times
            if mine != theirs and not copied:
                raise ConfigError(
                    f"the processes of the run differ in {key}: {short(mine)} in the first, {short(theirs)} "
                    f"in process {rank}: give all of them the same data and settings"
                )


def _check_method(method: Any) -> None:
    """Raise ConfigError unless it is a module with what a method of training needs."""
    if not isinstance(method, nn.Module):
        raise ConfigError(f"method is a module such as pj.VJE(backbone), got {short(repr(method))}")
    lacks = [name for name in ("loss", "after_step") if not callable(getattr(method, name, None))]
    if lacks:
        what = f"a {type(method).__name__} has no {' and no '.join(lacks)}"
        raise ConfigError(f"{what}: a method has both, as pj.VJE(backbone)")


def _images_of(batch: Any) -> Tensor:
    """The images of a loader's batch: the batch, or what stands first in it."""
    first = batch[0] if isinstance(batch, Sequence) and not isinstance(batch, str) and batch else batch
    if isinstance(first, Tensor):
        return first
    got = f"a {type(first).__name__}"
    if isinstance(first, Mapping):
        got = f"a dict of {short(', '.join(map(str, first)))}"
    raise DataError(
        f"the loader gave {got} for images: give batches that are a tensor (N, C, H, W), or a tuple that "
        "starts with one"
    )


def _recipe(method: Method | VarJEPA) -> Mapping[str, Any]:
    frozen: Mapping[str, Any] = (
        getattr(method, "frozen_recipe", {}) if getattr(method, "frozen", False) else {}
    )
    return {**getattr(method, "recipe", {}), **frozen}


def views_for(method: Method | VarJEPA, views: Any) -> Callable[[Tensor, int], Any] | None:
    """What makes the views of a batch; None: the batch is taken as it is."""
    from probjepa.data.views import views as views_of
    from probjepa.methods.base import Method

    if callable(views):
        made: Callable[[Tensor, int], Any] = views
        return made
    if not isinstance(views, str | int | None) or isinstance(views, bool):
        raise ConfigError(f"views takes a view recipe's name, a number or a module, got {views!r}")
    if isinstance(method, Method):
        count = views if isinstance(views, int) else None
        if count is not None and not 2 <= count <= method.most_views:
            takes = (
                "1 view" if method.most_views < 2 else "2 views" if method.most_views == 2 else "2 or more"
            )
            raise ConfigError(
                f"views is {count}, and {type(method).__name__} trains on {takes} of an image: leave it out"
            )
        recipe = views if isinstance(views, str) else method.view_recipe
        prepared = method.preprocess.config()
        prepared.pop("fit", None)  # views are cut again
        module: nn.Module = views_of(recipe, **prepared, count=count)
        return module
    if views is not None:
        raise ConfigError(f"a {type(method).__name__} trains on pairs, not on views: leave views out")
    return None
