"""The fit loop of the table transformers: seeded batches, schedule, validation, the best weights.

The loop is plain PyTorch. Lightning is for runs with logs and many devices; a scikit-learn estimator is
cloned and fitted many times in one process, and writes nothing that it is not asked for.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from probjepa.draws import forked, random_state, restore_random_state
from probjepa.errors import DataError
from probjepa.files import DAMAGES
from probjepa.tabular.masks import Masks, draw_masks
from probjepa.tabular.networks import in_bf16
from probjepa.tabular.tokens import Rows
from probjepa.training.checkpoint import FitCheckpoint
from probjepa.training.interrupt import StopRequest
from probjepa.training.optim import check_state, make_optimizer, set_learning_rate
from probjepa.training.progress import ProgressBar
from probjepa.training.schedules import step_seed, warmup_cosine

# fewer validation rows than this cannot say when to stop
FEWEST_VALIDATION_ROWS = 10


class Network(Protocol):
    """What the fit loop asks of a network, besides being an ``nn.Module``."""

    n_features: int

    def loss(self, rows: Rows, masks: Masks, epoch: float = math.inf) -> dict[str, Tensor]:
        """Return "loss" and its named terms; at ``epoch`` infinity, what validation compares."""

    def after_step(self, step: int, total_steps: int) -> None:
        """Do what follows an optimiser step."""


def _seeded(seed: int, *path: int) -> torch.Generator:
    for part in path:
        seed = step_seed(seed, part)
    return torch.Generator().manual_seed(seed)


def split_rows(n_rows: int, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return the numbers of training and validation rows; no validation where there would be too few."""
    order = torch.randperm(n_rows, generator=_seeded(seed, 1))
    n_validation = int(n_rows * fraction)
    if n_validation < FEWEST_VALIDATION_ROWS:
        n_validation = 0
    return order[n_validation:], order[:n_validation]


def stretched(settings: Mapping[str, Any], n_rows: int) -> dict[str, Any]:
    """Return settings whose epochs, and all that is counted in them, suit so many rows.

    They are as many times more or less as at least ``min_steps`` and at most ``max_steps`` ask for (0: no
    limit).
    """
    out = dict(settings)
    n_training = n_rows - int(n_rows * settings["validation_fraction"])
    steps = settings["max_epochs"] * math.ceil(n_training / settings["batch_size"])
    least, most = settings.get("min_steps", 0), settings.get("max_steps", 0) or math.inf
    times = min(max(steps, least), most) / steps
    if times != 1:
        out["max_epochs"] = math.ceil(times * settings["max_epochs"])
        out["patience"] = math.ceil(times * settings["patience"])
        out["warmup_epochs"] = times * settings["warmup_epochs"]
        out["anneal_epochs"] = tuple(times * over for over in settings["anneal_epochs"])
    return out


class FitLoop:
    """A fit of a network to rows, as far as it has come: a dict of losses an epoch, and the best weights.

    AdamW (``parameter_groups`` says what decays), linear warm-up and a cosine to 0; gradients are cut at the
    norm ``max_grad_norm``, 1 where it is no setting. Validation is at the full weights, with the same masks
    and draws each epoch; it stops the fit after ``patience`` epochs without a better one, counted once
    warm-up and annealing are over. Without validation rows the last epoch is kept.

    Parameters
    ----------
    network
        a :class:`Network`
    rows
        of the whole table, on the CPU
    settings
        by name: those of the estimator
    seed
        of the split, the order of the rows, the masks and the validation's draws
    device
        the network's
    """

    def __init__(
        self, network: Any, rows: Rows, settings: Mapping[str, Any], seed: int, device: torch.device
    ) -> None:
        self.network, self.rows, self.settings = network, rows, settings
        self.seed, self.device = seed, device
        self.training, self.validation = split_rows(len(rows), settings["validation_fraction"], seed)
        self.batch_size, self.epochs = int(settings["batch_size"]), int(settings["max_epochs"])
        self.steps = math.ceil(len(self.training) / self.batch_size)  # an epoch
        anneal = settings.get("anneal_epochs", 0)
        over = anneal if isinstance(anneal, tuple | list) else (float(anneal),)
        self.settled = max(settings["warmup_epochs"], *over)
        # the KL terms' gradients are a millionth of the likelihoods': Adam's usual 1e-8 would drown them
        self.optimiser = make_optimizer(
            "adamw",
            network,
            learning_rate=settings["learning_rate"],
            weight_decay=settings["weight_decay"],
            eps=1e-12,
            fused=True,
        )
        self.history: list[dict[str, float]] = []
        self.best_loss, self.best_epoch = math.inf, 0
        self.best_state: dict[str, Tensor] | None = None

    def run(self, stop: StopRequest, progress: ProgressBar, checkpoint: FitCheckpoint | None = None) -> None:
        """Train for at most ``max_epochs``, on from what ``checkpoint`` holds.

        A resumed fit has the numbers of one that was never stopped. A ``stop`` ends the fit by a
        KeyboardInterrupt after the step, or after the epoch where the step is its last: what Ctrl-C does
        where no handler can be set, as in a notebook.

        Raises
        ------
        DataError
            if a loss is not finite
        """
        if checkpoint is not None and (saved := checkpoint.read()) is not None:
            try:
                self._restore(saved)
            except DAMAGES as error:
                raise checkpoint.unfit(error) from error
        progress.start(self.epochs * self.steps, len(self.history) * self.steps)
        for epoch in range(len(self.history), self.epochs):
            waited = epoch - max(self.best_epoch, self.settled)
            if len(self.validation) and waited >= self.settings["patience"]:
                break
            with in_bf16(self.network, self.settings.get("precision") == "bf16"):
                losses = self._train(epoch, stop, progress)
            if len(self.validation):
                losses["validation_loss"] = self.validate()
            if not all(map(math.isfinite, losses.values())):
                raise DataError(
                    f"the loss is {losses['loss']} in epoch {epoch + 1}: use a lower learning_rate, or "
                    "numeric_transform='quantile' if it is 'standard' and a column has extreme values"
                )
            self._count(losses)
            if checkpoint is not None:
                checkpoint.write(self._state)
            progress.show({k: v for k, v in losses.items() if k in ("loss", "validation_loss")})
            if stop and epoch + 1 < self.epochs:
                raise KeyboardInterrupt
        if checkpoint is not None:
            checkpoint.write(self._state, at_once=True)

    def _train(self, epoch: int, stop: StopRequest, progress: ProgressBar) -> dict[str, float]:
        """Take an epoch's steps, and return their mean losses."""
        network, total = self.network, self.epochs * self.steps
        warmup = self.settings["warmup_epochs"] * self.steps
        network.train()
        generator = _seeded(self.seed, 2, epoch)
        order = self.training[torch.randperm(len(self.training), generator=generator)]
        sums: dict[str, Tensor] = {}
        for i, index in enumerate(torch.split(order, self.batch_size)):
            step = epoch * self.steps + i
            batch = self.rows.at(index, self.device)
            terms = network.loss(batch, self._masks(len(index), generator), epoch + i / self.steps)
            self.optimiser.zero_grad(set_to_none=True)
            terms["loss"].backward()
            nn.utils.clip_grad_norm_(network.parameters(), self.settings.get("max_grad_norm", 1.0))
            rate = self.settings["learning_rate"] * warmup_cosine(step, total, warmup)
            set_learning_rate(self.optimiser, rate)
            self.optimiser.step()
            network.after_step(step, total)
            for name, value in terms.items():
                sums[name] = sums.get(name, torch.zeros((), device=self.device)) + value.detach() * len(index)
            progress.update(step + 1, epoch + 1, self.epochs)
            if stop and i + 1 < self.steps:
                raise KeyboardInterrupt
        return {name: float(value) / len(self.training) for name, value in sums.items()}

    def _count(self, losses: dict[str, float]) -> None:
        """Take an epoch in: a second Ctrl-C, which may come anywhere, finds all of it or none."""
        watched = losses.get("validation_loss", -math.inf)
        history, best = [*self.history, losses], (self.best_loss, self.best_epoch, self.best_state)
        if watched < self.best_loss or not len(self.validation):
            weights = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
            best = (watched, len(history), weights)
        self.history, (self.best_loss, self.best_epoch, self.best_state) = history, best

    @torch.no_grad()
    def validate(self) -> float:
        """Return the mean loss of the validation rows, at the full weights."""
        self.network.eval()
        generator = _seeded(self.seed, 3)
        total = torch.zeros((), device=self.device)
        with forked(self.device, step_seed(self.seed, 4)):
            for index in torch.split(self.validation, self.batch_size):
                batch, masks = self.rows.at(index, self.device), self._masks(len(index), generator)
                total += self.network.loss(batch, masks)["loss"] * len(index)
        return float(total) / len(self.validation)

    def _masks(self, n_rows: int, generator: torch.Generator) -> Masks:
        shares = {name: self.settings[name] for name in ("context_share", "target_share", "n_targets")}
        return draw_masks(n_rows, self.network.n_features, **shares, generator=generator).to(self.device)

    def _state(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "random": random_state(self.device),
            "history": self.history,
            "best_loss": self.best_loss,
            "best_epoch": self.best_epoch,
            "best_state": self.best_state,
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        best = state["best_state"]
        self.network.load_state_dict(best)
        self.best_state = {name: of.detach().clone() for name, of in self.network.state_dict().items()}
        if any(best[name].dtype != of.dtype for name, of in self.best_state.items() if name in best):
            raise ValueError("its best weights are not of this network")
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        check_state(self.optimiser)
        restore_random_state(state["random"], self.device)
        self.history = [{str(k): float(x) for k, x in losses.items()} for losses in state["history"]]
        self.best_loss, self.best_epoch = float(state["best_loss"]), operator.index(state["best_epoch"])
