"""Monitors that look at the embeddings at the end of an epoch."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import lightning.pytorch as L
import numpy as np
import torch
from torch import Tensor

from probjepa.backbones.frozen import evaluating
from probjepa.data.labels import labelled_rows, shared_labels
from probjepa.data.records import UNLABELLED
from probjepa.draws import forked, sample_rows
from probjepa.errors import ConfigError, warn
from probjepa.methods.probabilistic import ProbabilisticMethod
from probjepa.training.module import Module
from probjepa.training.schedules import step_seed

if TYPE_CHECKING:
    from probjepa.data.images import Images
    from probjepa.methods.base import Method
    from probjepa.training.settings import FitSettings

BANK_ROWS = 5_000
MONITOR_ROWS = 2_048


@contextmanager
def undisturbed(method: Method) -> Iterator[None]:
    """Evaluate inside: random generators and the mode of every sub-module are as before afterwards."""
    with forked(method.device), evaluating(method):
        yield


class Monitor(L.Callback):
    """What is measured every ``every_n_epochs``; :attr:`latest` holds this epoch's values, or nothing."""

    def __init__(self, every_n_epochs: int = 1) -> None:
        if every_n_epochs < 1:
            raise ConfigError(f"every_n_epochs must be at least 1, got {every_n_epochs}")
        self.every_n_epochs = every_n_epochs
        self.latest: dict[str, float] = {}
        self.epochs: int | None = None  # that were trained; None: not known

    def measure(self, method: Method) -> dict[str, float]:
        """Return named values of the method as it is now."""
        raise NotImplementedError

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure on the first process, without leaving a trace, and log."""
        self.latest = {}
        epoch = trainer.current_epoch + 1
        if (epoch % self.every_n_epochs and epoch != trainer.max_epochs) or not trainer.is_global_zero:
            return
        self.epochs = epoch
        method = cast("Method", cast(Module, pl_module).method)  # what is monitored has images
        with undisturbed(method):
            self.latest = self.measure(method)
        pl_module.log_dict(self.latest, rank_zero_only=True)


class OnlineKNN(Monitor):
    """Accuracy ``knn`` of a majority vote of the k nearest training embeddings, on labelled held-out images.

    Parameters
    ----------
    train_images, val_images
        labelled sets, whose classes go by their names (see ``shared_labels``); at most 5,000 labelled rows of
        the first and 2,048 of the second, drawn with ``seed``, are used
    every_n_epochs
        and after the last epoch
    k
        neighbours, at most the rows of the first

    Raises
    ------
    ConfigError
        if a set has no labels
    DataError
        if the sets have no class in common
    """

    def __init__(
        self, train_images: Images, val_images: Images, every_n_epochs: int = 1, k: int = 20, seed: int = 0
    ) -> None:
        super().__init__(every_n_epochs)
        for images in (train_images, val_images):
            if not labelled_rows(images).any():
                raise ConfigError(
                    f"{images.name} has no labels, and a kNN accuracy needs them: leave knn_every out"
                )
        shared = shared_labels(train_images, val_images)
        assert shared is not None
        self._bank, self._bank_labels = _drawn(train_images, shared.known, BANK_ROWS, seed)
        self._queries, self._labels = _drawn(val_images, shared.asked, MONITOR_ROWS, seed)
        self.k = min(k, len(self._bank))

    def measure(self, method: Method) -> dict[str, float]:
        """Return ``{"knn": accuracy}``."""
        from probjepa.metrics import knn_predict

        bank, queries = method.embed(self._bank).cpu(), method.embed(self._queries).cpu()
        found = knn_predict(bank, self._bank_labels, queries, k=self.k)
        return {"knn": float(np.mean(found == self._labels.numpy()))}


def _drawn(images: Images, labels: Tensor, most: int, seed: int) -> tuple[Tensor, Tensor]:
    """Some labelled images, and their labels."""
    rows = torch.from_numpy(np.flatnonzero(labels != UNLABELLED))
    rows = rows[sample_rows(len(rows), most, step_seed(seed, 0))]
    return images.get(rows), labels[rows]


class CollapseMonitor(Monitor):
    """Effective rank, spread of the normalised embeddings and, where h has a posterior, mean σ² and KL.

    Values: ``effective_rank`` (entropy of the spectrum), ``std_mean`` and ``std_min`` (per feature, of h/‖h‖;
    1/√D when spread evenly), ``mean_variance`` and ``kl_per_dim``. A collapse raises a ProbjepaWarning once,
    from the tenth epoch.

    Parameters
    ----------
    images
        at most 2,048 of them, drawn with ``seed``, are embedded
    """

    def __init__(self, images: Images, every_n_epochs: int = 1, seed: int = 0) -> None:
        super().__init__(every_n_epochs)
        self._images = images.get(sample_rows(len(images), MONITOR_ROWS, step_seed(seed, 1)))
        self._warned = False
        self._h: Tensor | None = None  # of a frozen encoder, which says the same every time

    def measure(self, method: Method) -> dict[str, float]:
        """Return the values above."""
        from probjepa.metrics.collapse import collapse_summary

        h = method.embed(self._images) if self._h is None else self._h
        self._h = h if getattr(method, "frozen", False) else None
        values = {key: value for key, value in collapse_summary(h).items() if key != "rank_me"}
        if isinstance(method, ProbabilisticMethod):
            with evaluating(method):
                features = method.features_of(h)
            # what is read from h costs nothing; I-JEPA predicts tokens, which takes many passes an image
            uncertainty = method.uncertainty_of_features(features) if len(features) > 1 else {}
            if "mean_variance" in uncertainty:
                values["mean_variance"] = float(uncertainty["mean_variance"].mean())
            if "kl" in uncertainty:
                posterior = method.posterior_of_features(features)  # which may be over other space than h
                values["kl_per_dim"] = float(uncertainty["kl"].mean()) / posterior.event_shape.numel()
        self._warn(values, h, getattr(method, "settings", ()))
        return values

    def _warn(self, values: dict[str, float], h: Tensor, settings: Collection[str]) -> None:
        from probjepa.metrics.collapse import collapse_advice

        count, dim = h.shape
        advice = collapse_advice(values, dim, epochs=self.epochs, settings=settings, rows=count)
        if advice and not self._warned:
            self._warned = True
            warn(advice)


def make_monitors(
    images: Images, held_out: Images | None, epochs: int, settings: FitSettings, *, frozen: bool
) -> list[Monitor]:
    """Return what looks at a run as its settings ask; ConfigError for kNN without a held-out set."""
    every, knn_every, seed = settings.monitor_every, settings.knn_every, settings.seed
    monitors: list[Monitor] = [CollapseMonitor(images, every, seed=seed)] if every else []
    if knn_every is None:
        knn_every = 0 if held_out is None else max(1, epochs // 10)
        if held_out is not None and (why := _silent(images, held_out, frozen)):
            warn(f"val is not used, there is no kNN: {why}")
            knn_every = 0
    if knn_every:
        if held_out is None:
            raise ConfigError("knn_every needs val: give labelled held-out images, or leave knn_every out")
        monitors.append(OnlineKNN(images, held_out, knn_every, seed=seed))
    return monitors


def _silent(images: Images, held_out: Images, frozen: bool) -> str:
    """Say why kNN on a held-out set would tell nothing; "" where it tells something."""
    if frozen:
        return "a frozen encoder's embeddings stay the same"
    unlabelled = (of.name for of in (images, held_out) if not labelled_rows(of).any())
    return next((f"{name} has no labels" for name in unlabelled), "")
