"""Parts that several heads share: the plain network, the normalised target, the denoiser and its use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.types import _size

from probjepa.distributed import summed
from probjepa.heads.base import FAR, Head, Prediction, check_counts, far_scale, full_precision

_TIME_FEATURES = 64
_STD_FLOOR = 1e-3


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers of the given widths (input first, output last) with GELU between them."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.GELU()]
    return nn.Sequential(*layers[:-1])


class ActNorm(nn.Module):
    """y = (x − shift)·exp(log_scale), each of shape (D,), set by the first training batch and learned on.

    The first call in training mode with two rows or more sets y to mean 0 and variance 1 over that batch
    (over all processes where several train); until then it is the identity, and a batch with NaN or Inf sets
    nothing. Parameters and the flag ``initialised`` are in the state dict, and evaluation mode changes
    nothing. A coordinate's standard deviation counts as 1e-3 at least. Source: Glow, arXiv 1807.03039,
    section 3.1.
    """

    initialised: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(dim))
        self.log_scale = nn.Parameter(torch.zeros(dim))
        self.register_buffer("initialised", torch.tensor(False))
        self._known = False  # a copy of a true flag: reading the buffer each step would wait for the device
        self.register_load_state_dict_post_hook(_forget)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _initialise(self, x: Tensor) -> None:
        rows = x.detach().reshape(-1, x.shape[-1])
        count = summed(torch.tensor(float(len(rows)), device=x.device))
        if count < 2:
            return
        scale = far_scale(summed(rows.abs().amax(0)).unsqueeze(0), 0).squeeze(0)
        rows = rows / scale
        mean = summed(rows.sum(0)) / count
        std = (summed((rows - mean).square().sum(0)) / count).sqrt() * scale
        if not std.isfinite().all():
            return
        self.shift.copy_(mean * scale)
        self.log_scale.copy_(-std.clamp_min(_STD_FLOOR).log())
        self.initialised.fill_(True)
        self._known = True

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalise x (..., D): y, and log|det ∂y/∂x| (a scalar)."""
        if self.training and not self._known:
            self._known = bool(self.initialised)
            if not self._known:
                self._initialise(x)
        return (x - self.shift) * self.log_scale.exp(), self.log_scale.sum()

    def inverse(self, y: Tensor) -> Tensor:
        """x (..., D) of y."""
        return y * (-self.log_scale).exp() + self.shift


def _forget(module: nn.Module, _: Any) -> None:
    """After loading a state, ask the flag in it again."""
    module._known = False  # type: ignore[assignment]


class _Block(nn.Module):
    """h + W₂·silu(FiLM(W₁·norm(h)))."""

    def __init__(self, width: int, code_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, width)
        self.film = nn.Linear(code_width, 2 * width)
        self.outer = nn.Linear(width, width)

    def forward(self, h: Tensor, code: Tensor) -> Tensor:
        scale, shift = self.film(code).chunk(2, -1)
        out: Tensor = h + self.outer(F.silu(self.inner(self.norm(h)) * (1 + scale) + shift))
        return out


class Denoiser(nn.Module):
    """A field f(y, t, c) of the shape of y: residual blocks modulated (FiLM) by time and context.

    The last layer starts at zero, so an untrained field is zero.

    Parameters
    ----------
    dim, context_dim
        dimensions of y and of the context
    width, blocks
        width and number of the residual blocks
    code_width
        width of the code that time and context share
    """

    frequencies: Tensor

    def __init__(self, dim: int, context_dim: int, width: int, blocks: int, code_width: int) -> None:
        super().__init__()
        half = _TIME_FEATURES // 2
        frequencies = 1000 * torch.exp(-math.log(10_000) * torch.arange(half) / half)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.context = nn.Linear(context_dim, code_width)
        self.time = nn.Sequential(
            nn.Linear(_TIME_FEATURES, code_width), nn.SiLU(), nn.Linear(code_width, code_width)
        )
        self.entry = nn.Linear(dim, width)
        self.blocks = nn.ModuleList(_Block(width, code_width) for _ in range(blocks))
        last = nn.Linear(width, dim)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.exit = nn.Sequential(nn.LayerNorm(width), last)

    def encode(self, context: Tensor) -> Tensor:
        """Code (..., code_width) of a context (..., C): computed once for all times."""
        code: Tensor = self.context(context)
        return code

    def forward(self, y: Tensor, t: Tensor, code: Tensor) -> Tensor:
        """f (..., D) at y (..., D), times t in [0, 1], a scalar or (...), and ``encode``'s code.

        A y with entries above 1e15 is scaled down to it: the layer norms make f all but independent of such
        a scale, and the squares would overflow.
        """
        angles = t.unsqueeze(-1) * self.frequencies
        code = F.silu(code + self.time(torch.cat([angles.sin(), angles.cos()], -1)))
        h = self.entry(y / far_scale(y))
        for block in self.blocks:
            h = block(h, code)
        out: Tensor = self.exit(h)
        return out


class FieldPrediction(Prediction):
    """A prediction that carries N(0, I) to the target along a field: a sub-class writes ``_carried``.

    ``code`` (..., code_width) is the context's, as ``Denoiser.encode`` gives it.
    """

    def __init__(self, head: Head, code: Tensor) -> None:
        super().__init__(head, code.shape[:-1])
        self._code = code

    @torch.no_grad()
    def sample(
        self,
        sample_shape: _size = (),
        generator: torch.Generator | None = None,
        *,
        steps: int | None = None,
    ) -> Tensor:
        """Draw targets (*sample_shape, ..., D) from N(0, I), in ``steps`` steps (None: the head's).

        Raises
        ------
        ConfigError
            for fewer than one step
        """
        noise = self.standard_normal(sample_shape, generator)
        with full_precision(noise):
            return self._carried(noise, steps)

    def checked(self, target: Tensor) -> Tensor:
        """As ``Prediction.checked``; targets are held to ±1e15, so that their squared error is a number."""
        return super().checked(target).clamp(-FAR, FAR)

    def _carried(self, noise: Tensor, steps: int | None) -> Tensor:
        raise NotImplementedError

    def _counted(self, steps: int | None) -> int:
        """Return the number of steps asked for (None: the head's); ConfigError unless it is whole and ≥ 1."""
        asked: int = self.head.steps if steps is None else steps  # type: ignore[assignment]
        check_counts(self.head, steps=asked)
        return asked
