"""A head registered by a user is held to the whole contract, and used by name, without a list that knows it."""

import os
import re
import subprocess
import sys
from pathlib import Path

HEAD = '''
"""A Laplace head, in a package of its own."""
import torch
from torch import nn

from probjepa.heads import HEADS, Head
from probjepa.heads.base import DensityPrediction, positive_scale


@HEADS.register("laplace")
class Laplace(Head):
    name = "laplace"

    def __init__(self, dim, context_dim, *, hidden=(32,)):
        super().__init__(dim, context_dim)
        self.net = nn.Sequential(
            nn.Linear(context_dim, hidden[0]), nn.GELU(), nn.Linear(hidden[0], 2 * dim)
        )

    def forward(self, context):
        mean, raw = self.net(self.checked(context)).to(self.dtype).chunk(2, -1)
        return LaplacePrediction(self, mean, positive_scale(raw))


class LaplacePrediction(DensityPrediction):
    def __init__(self, head, mean, scale):
        super().__init__(head, mean.shape[:-1])
        self._mean, self._scale = mean, scale

    @property
    def mean(self):
        return self._mean

    @property
    def variance(self):
        return 2 * self._scale.square()

    def log_prob(self, value):
        apart = (self.checked(value) - self._mean).abs() / self._scale
        return -(apart + (2 * self._scale).log()).sum(-1)

    @torch.no_grad()
    def sample(self, sample_shape=(), generator=None):
        shape = (*self.noise_shape(sample_shape), self.head.dim)
        uniform = torch.rand(shape, generator=generator, dtype=self.head.dtype).clamp_min(1e-6) - 0.5
        draws = -uniform.sign() * torch.log1p(-2 * uniform.abs())
        return self._mean + self._scale * draws.expand(self._extended_shape(torch.Size(sample_shape)))
'''


def test_it_runs_through_the_contract(tmp_path):
    (tmp_path / "laplace_head.py").write_text(HEAD)
    root = Path(__file__).parents[2]
    contract = Path(__file__).with_name("test_head_contract.py")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "laplace_head", "-p", "no:cacheprovider", str(contract), "-k", "laplace"],
        capture_output=True, text=True, cwd=root, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:]
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed and int(passed[1]) >= 25, run.stdout
