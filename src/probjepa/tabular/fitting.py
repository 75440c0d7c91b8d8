"""The fit loop of the table transformers: seeded batches, schedule, validation, the best weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from probjepa.errors import DataError
from probjepa.tabular.checkpoint import FitCheckpoint
from probjepa.tabular.masks import Masks, draw_masks
from probjepa.tabular.progress import FitProgress
from probjepa.tabular.tokens import Rows
from probjepa.training.schedules import step_seed, warmup_cosine

# fewer validation rows than this say nothing of when to stop
_FEWEST_VALIDATION_ROWS = 10
_LARGEST_GRADIENT = 1.0


class Network(Protocol):
    """What the fit loop asks of a network, besides being an ``nn.Module``."""

    def loss(self, rows: Rows, masks: Masks, epoch: float = math.inf) -> dict[str, Tensor]:
        """Return "loss" and its named terms; at ``epoch`` infinity, what validation compares."""

    def after_step(self, step: int, total_steps: int) -> None:
        """Do what follows an optimiser step."""


@dataclass
class Best:
    """The weights to return: of the epoch with the lowest validation loss so far, or of the last one."""

    loss: float = math.inf
    epoch: int = 0
    state: dict[str, Tensor] | None = None

    def keep(self, loss: float, epoch: int, network: nn.Module) -> None:
        """Take an epoch's weights."""
        self.loss, self.epoch = loss, epoch
        self.state = {k: v.detach().clone() for k, v in network.state_dict().items()}


def _seeded(seed: int, *path: int) -> torch.Generator:
    for part in path:
        seed = step_seed(seed, part)
    return torch.Generator().manual_seed(seed)


def split_rows(n_rows: int, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return the numbers of training and validation rows; no validation where there would be too few."""
    order = torch.randperm(n_rows, generator=_seeded(seed, 1))
    n_validation = int(n_rows * fraction)
    if n_validation < _FEWEST_VALIDATION_ROWS:
        n_validation = 0
    return order[n_validation:], order[:n_validation]


def _parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay matrices alone, not biases, norms and tokens."""
    trained = [p for p in network.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim == 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim != 2], "weight_decay": 0.0},
    ]


def train(
    network: Any,
    rows: Rows,
    settings: Mapping[str, Any],
    seed: int,
    device: torch.device,
    best: Best,
    verbose: bool,
    checkpoint: FitCheckpoint | None = None,
) -> Iterator[dict[str, float]]:
    """Train for at most ``max_epochs``, keep the best in ``best``, and yield each epoch's mean losses.

    AdamW, linear warm-up and a cosine to 0; gradients are cut at norm 1. Validation is at the full weights,
    with the same masks and draws each epoch; it stops the fit after ``patience`` epochs without a better
    one, counted once warm-up and annealing are over. Without validation rows the last epoch is kept.

    What ``checkpoint`` holds is gone on with: the epochs before are yielded at once, and those after are what
    they would have been.
    """
    training, validation = split_rows(len(rows), settings["validation_fraction"], seed)
    batch_size, epochs = int(settings["batch_size"]), int(settings["max_epochs"])
    steps = math.ceil(len(training) / batch_size)
    # the KL terms' gradients are a millionth of the likelihoods': Adam's usual 1e-8 would drown them
    optimiser = torch.optim.AdamW(
        _parameter_groups(network, settings["weight_decay"]),
        lr=settings["learning_rate"],
        eps=1e-12,
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: warmup_cosine(step, steps * epochs, settings["warmup_epochs"] * steps)
    )
    settled = max(settings["warmup_epochs"], *_as_tuple(settings.get("anneal_epochs", 0)))

    def masks(n_rows: int, generator: torch.Generator) -> Masks:
        return draw_masks(
            n_rows,
            network.n_features,
            context_share=settings["context_share"],
            target_share=settings["target_share"],
            n_targets=settings["n_targets"],
            generator=generator,
        ).to(device)

    history: list[dict[str, float]] = []
    if checkpoint is not None and (saved := checkpoint.read()) is not None:
        network.load_state_dict(saved["network"])
        optimiser.load_state_dict(saved["optimiser"])
        schedule.load_state_dict(saved["schedule"])
        _restore_random_state(saved["random"], device)
        history, best.loss, best.epoch = saved["history"], saved["best_loss"], saved["best_epoch"]
        best.state = saved["best_state"]
        yield from history

    with FitProgress(epochs * steps, verbose, len(history) * steps) as progress:
        for epoch in range(len(history), epochs):
            if len(validation) and epoch - max(best.epoch, settled) >= settings["patience"]:
                return
            network.train()
            generator = _seeded(seed, 2, epoch)
            order = training[torch.randperm(len(training), generator=generator)]
            sums: dict[str, Tensor] = {}
            for i, index in enumerate(torch.split(order, batch_size)):
                batch = rows.at(index, device)
                terms = network.loss(batch, masks(len(index), generator), epoch + i / steps)
                optimiser.zero_grad(set_to_none=True)
                terms["loss"].backward()
                nn.utils.clip_grad_norm_(network.parameters(), _LARGEST_GRADIENT)
                optimiser.step()
                schedule.step()
                network.after_step(epoch * steps + i, epochs * steps)
                for name, value in terms.items():
                    sums[name] = sums.get(name, torch.zeros((), device=device)) + value.detach() * len(index)
                progress.advance(epoch, epochs)
            losses = {name: float(value) / len(training) for name, value in sums.items()}
            if len(validation):
                losses["validation_loss"] = _validate(
                    network, rows, validation, batch_size, masks, seed, device
                )
            if not all(map(math.isfinite, losses.values())):
                raise DataError(
                    f"the loss is {losses['loss']} in epoch {epoch + 1}: use a lower learning_rate, or "
                    "numeric_transform='quantile' if it is 'standard' and a column has extreme values"
                )
            watched = losses.get("validation_loss", -math.inf)
            if watched < best.loss or not len(validation):
                best.keep(watched, epoch + 1, network)
            history.append(losses)
            if checkpoint is not None:
                checkpoint.write(
                    lambda: {
                        "network": network.state_dict(),
                        "optimiser": optimiser.state_dict(),
                        "schedule": schedule.state_dict(),
                        "random": _random_state(device),
                        "history": history,
                        "best_loss": best.loss,
                        "best_epoch": best.epoch,
                        "best_state": best.state,
                    }
                )
            progress.show(losses)
            yield losses


def _random_state(device: torch.device) -> list[Tensor]:
    """States of the generators that draws and dropout come from."""
    on_device = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *on_device]


def _restore_random_state(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)


def _as_tuple(value: Any) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (float(value),)


@torch.no_grad()
def _validate(
    network: Any,
    rows: Rows,
    index: Tensor,
    batch_size: int,
    masks: Callable[[int, torch.Generator], Masks],
    seed: int,
    device: torch.device,
) -> float:
    network.eval()
    generator = _seeded(seed, 3)
    total = torch.zeros((), device=device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(step_seed(seed, 4))
        for part in torch.split(index, batch_size):
            total += network.loss(rows.at(part, device), masks(len(part), generator))["loss"] * len(part)
    return float(total) / len(index)
