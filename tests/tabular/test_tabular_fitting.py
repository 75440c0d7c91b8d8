"""The fit loop on a network of one parameter: its rows, and its steps by AdamW's formulas."""

import math

import pytest
import torch
from torch import nn

from probjepa.tabular.fitting import FitLoop
from probjepa.tabular.tokens import Rows
from probjepa.training.interrupt import StopRequest
from probjepa.training.progress import ProgressBar

SETTINGS = {
    "validation_fraction": 0.25,
    "batch_size": 16,
    "max_epochs": 3,
    "warmup_epochs": 0,
    "learning_rate": 0.01,
    "weight_decay": 0.1,
    "patience": 9,
    "context_share": (0.5, 0.5),
    "target_share": (0.5, 0.5),
    "n_targets": 1,
}


class Slope(nn.Module):
    """The loss is slope·Σ w, with w (2, 2): its gradient is the slope, and its norm twice that."""

    n_features = 2

    def __init__(self, slope):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))
        self.slope = slope
        self.seen = {True: [], False: []}  # the rows of training steps, and of validation

    def loss(self, rows, masks, epoch=math.inf):
        self.seen[self.training].append(rows.numeric[:, 0])
        return {"loss": self.slope * self.weight.sum()}

    def after_step(self, step, total_steps):
        pass


def fitted(slope, **settings):
    numbers = torch.arange(80.0)[:, None].expand(80, 2)
    rows = Rows(numbers, torch.zeros(80, 2, dtype=torch.bool), torch.zeros(80, 0, dtype=torch.long))
    loop = FitLoop(Slope(slope), rows, SETTINGS | settings, 0, torch.device("cpu"))
    loop.run(StopRequest(), ProgressBar(False))
    return loop


def test_validation_rows_are_not_trained_on():
    seen = fitted(1.0).network.seen
    trained, validated = (torch.cat(seen[key]).view(3, -1).sort(1).values for key in (True, False))
    assert trained.shape == (3, 60) and validated.shape == (3, 20)
    for epoch in range(3):  # every row once an epoch, the two sets apart
        assert torch.equal(torch.cat([trained[epoch], validated[epoch]]).sort().values, torch.arange(80.0))
        assert torch.equal(trained[epoch], trained[0])


@pytest.mark.parametrize("slope", [1e-9, 1e-4, 0.4, 3.0, 1e6])
def test_steps_are_adamws_on_gradients_cut_at_norm_one(slope):
    """By the formulas of arXiv 1711.05101 in float64: ε = 1e-12, so that gradients of 1e-9 move weights too."""
    loop = fitted(slope)
    weight, m, v, total = 1.0, 0.0, 0.0, 3 * 4
    gradient = slope * min(1.0, 1.0 / (2 * slope))
    for step in range(total):
        rate = 0.01 * (1 + math.cos(math.pi * step / total)) / 2
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        scaled = (m / (1 - 0.9 ** (step + 1))) / (math.sqrt(v / (1 - 0.999 ** (step + 1))) + 1e-12)
        weight -= rate * (0.1 * weight + scaled)
    assert loop.network.weight.flatten().tolist() == pytest.approx([weight] * 4, rel=2e-4)
    state = loop.optimiser.state[loop.network.weight]
    assert state["exp_avg"].flatten().tolist() == pytest.approx([m] * 4, rel=1e-4)


def test_history_is_of_means_over_rows_and_the_best_state_is_kept():
    loop = fitted(1.0)
    assert [set(losses) for losses in loop.history] == [{"loss", "validation_loss"}] * 3
    found = [losses["validation_loss"] for losses in loop.history]
    assert found[0] > found[1] > found[2]
    assert found[2] == pytest.approx(float(loop.network.weight.detach().sum()), rel=1e-6)
    assert loop.best_epoch == 3
    assert torch.equal(loop.best_state["weight"], loop.network.weight)
