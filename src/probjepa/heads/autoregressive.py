"""An autoregressive density: each coordinate's mixture is conditioned on the coordinates before it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.types import _size

from probjepa.errors import ConfigError
from probjepa.heads.base import (
    FARTHEST,
    MAX_Z,
    RAW_UNIT_SCALE,
    DensityPrediction,
    Head,
    check_counts,
    check_widths,
    full_precision,
    gaussian_log_density,
    positive_scale,
)
from probjepa.heads.networks import ActNorm

_COORDINATES = 16  # drawn before their effect on all later ones is added up


class MaskedLinear(nn.Linear):
    """A linear layer with some weights held at zero: ``mask`` (out, in) is True where one is kept."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask, persistent=False)

    @property
    def kept(self) -> Tensor:
        """The weight with its mask applied (out, in)."""
        return self.weight * self.mask

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to x (..., in)."""
        return F.linear(x, self.kept, self.bias)


class Autoregressive(Head):
    """p(y|c) = Πᵢ p(yᵢ | y₍<ᵢ₎, c), each a mixture of K one-dimensional Gaussians (RNADE, arXiv 1306.0186).

    One masked network (MADE, arXiv 1502.03509) gives all coordinates' parameters in one pass. A hidden unit
    has a degree m in 0…D−1: it sees the inputs before coordinate m and units of degree ≤ m, and coordinate
    i's parameters see units of degree ≤ i, hence the targets before i, and all of them. Degrees are sorted
    along each layer and each of them has a unit, so sampling, coordinate by coordinate, computes every unit
    once: all D steps cost one pass. The context modulates every hidden unit (FiLM) and adds to the
    parameters. There is no layer norm, which would mix coordinates. The target first passes ``ActNorm``, set
    by the first training batch.

    Parameters
    ----------
    dim, context_dim
        dimensions of the target and of the context
    components
        K ≥ 1, Gaussians a coordinate
    hidden
        widths of the masked network, each at least ``dim``; None: 1024, 768, 512, raised to ``dim`` where
        that is more. About 11.4 MFLOP a target at the sizes of I-JEPA tokens (192 → 384), forward

    Raises
    ------
    ConfigError
        for a count below 1, no hidden layer, or one narrower than ``dim``
    """

    name = "autoregressive"
    exported = ("likelihood",)
    far_context = 1e7  # each layer multiplies by it

    def __init__(
        self, dim: int, context_dim: int, *, components: int = 4, hidden: Sequence[int] | None = None
    ) -> None:
        super().__init__(dim, context_dim)
        check_counts(self, components=components)
        widths = [max(width, dim) for width in (1024, 768, 512)] if hidden is None else list(hidden)
        if not check_widths(self, widths) or min(widths) < dim:
            # a degree without a unit would hide some earlier coordinates from later ones
            raise ConfigError(
                f"head 'autoregressive': hidden widths must each be at least dim = {dim}, got {widths}"
            )
        self.components = components
        self.widths = widths
        degrees = [torch.arange(width) * dim // width for width in widths]
        coordinate = torch.arange(dim)
        masks = [coordinate < degrees[0].unsqueeze(1)]
        masks += [before <= after.unsqueeze(1) for before, after in pairwise(degrees)]
        masks.append(degrees[-1] <= coordinate.repeat_interleave(3 * components).unsqueeze(1))
        # how many units of each layer have a degree below m, for m = 0…D
        bounds = torch.arange(dim + 1)
        self.bounds: list[list[int]] = [torch.searchsorted(found, bounds).tolist() for found in degrees]
        self.actnorm = ActNorm(dim)
        layers = [MaskedLinear(mask) for mask in masks]
        self.layers = nn.ModuleList(layers)
        self.film = nn.Linear(context_dim, 2 * sum(widths))
        self.direct = nn.Linear(context_dim, 3 * components * dim, bias=False)
        with torch.no_grad():
            _, means, raw = layers[-1].bias.view(dim, 3, components).unbind(1)
            means.copy_(torch.linspace(-1.5, 1.5, components) if components > 1 else torch.zeros(1))
            raw.fill_(RAW_UNIT_SCALE)

    def forward(self, context: Tensor) -> AutoregressivePrediction:
        """Predict from a context (..., C)."""
        context = self.checked(context)
        scale, shift = self.film(context).chunk(2, -1)
        return AutoregressivePrediction(
            self, (1 + scale).split(self.widths, -1), shift.split(self.widths, -1), self.direct(context)
        )


class AutoregressivePrediction(DensityPrediction):
    """A product of one-dimensional conditional mixtures; its mean is one of draws.

    Targets are held to ±1e30, and where they are the network's input, once normalised, to ±1e9, as samples
    are. A context with entries above 1e7 is scaled down to it.
    """

    head: Autoregressive

    def __init__(
        self, head: Autoregressive, scales: Sequence[Tensor], shifts: Sequence[Tensor], direct: Tensor
    ) -> None:
        super().__init__(head, direct.shape[:-1])
        self._scales = scales
        self._shifts = shifts
        self._direct = direct

    def parameters_at(self, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights, means and scales (..., D, K) of every coordinate's mixture, of the normalised target.

        Row i depends on the target's coordinates before i only. ``target`` is (..., D), as given to
        ``log_prob``.
        """
        return self._parameters(self._normalise(target)[0])

    def _normalise(self, target: Tensor) -> tuple[Tensor, Tensor]:
        target = self.checked(target).clamp(-FARTHEST, FARTHEST)
        with full_precision(target):
            y, log_det = self.head.actnorm(target)
        return y, log_det

    def _parameters(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        *layers, last = self.head.layers
        h = y.clamp(-MAX_Z, MAX_Z)
        for layer, scale, shift in zip(layers, self._scales, self._shifts, strict=True):
            h = F.gelu(layer(h) * scale + shift)
        out = (last(h) + self._direct).to(y.dtype)
        return _mixture(out.reshape(*y.shape, 3 * self.head.components))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density (...) in nats at targets (..., D), in one pass."""
        y, log_det = self._normalise(value)
        log_weights, means, scales = self._parameters(y)
        with full_precision(y):
            each = log_weights + gaussian_log_density(y.unsqueeze(-1), means, scales)
            return torch.logsumexp(each, -1).sum(-1) + log_det

    @torch.no_grad()
    def sample(self, sample_shape: _size = (), generator: torch.Generator | None = None) -> Tensor:
        """Draw targets (*sample_shape, ..., D) coordinate by coordinate, at the cost of one pass in all."""
        head = self.head
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = self.standard_normal(sample_shape, generator)
        uniform_shape = self.noise_shape(sample_shape)
        with full_precision(noise):
            layers = cast(list[MaskedLinear], list(head.layers))
            weights = [layer.kept for layer in layers]
            dtype = weights[0].dtype
            # units first, contexts last: what a coordinate reads and writes is then contiguous in memory
            contexts = self._batch_shape.numel()
            draws = torch.Size(sample_shape).numel()

            def units_first(of: Tensor) -> Tensor:
                return of.reshape(contexts, of.shape[-1]).T.to(dtype).contiguous().unsqueeze(1)

            scales, shifts = ([units_first(film) for film in films] for films in (self._scales, self._shifts))
            direct = units_first(self._direct)
            noise = noise.reshape(draws * contexts, head.dim).T.contiguous()
            y = torch.zeros_like(noise, dtype=dtype)
            inputs = [y, *(y.new_zeros(width, y.shape[1]) for width in head.widths)]
            per_coordinate = 3 * head.components
            # of each layer, the first unit of degree i; of the last, coordinate i's first parameter
            bounds = [*head.bounds, [i * per_coordinate for i in range(head.dim + 1)]]
            for first in range(0, head.dim, _COORDINATES):
                end = min(first + _COORDINATES, head.dim)
                # all that the units of these coordinates get from before them, in one product a layer
                starts = [first, *(bound[first] for bound in head.bounds)]
                before = []
                for k, (start, bound) in enumerate(zip(starts, bounds, strict=True)):
                    new = slice(bound[first], bound[end])
                    bias = layers[k].bias[new].unsqueeze(1)
                    before.append(torch.addmm(bias, weights[k][new, :start], inputs[k][:start]))
                for i in range(first, end):
                    known = i
                    for layer, (bound, start) in enumerate(zip(bounds, starts, strict=True)):
                        # the units of degree i, the first that see coordinate i − 1
                        new = slice(bound[i], bound[i + 1])
                        base = before[layer][new.start - bound[first] : new.stop - bound[first]]
                        out = torch.addmm(base, weights[layer][new, start:known], inputs[layer][start:known])
                        out = out.view(len(out), draws, contexts)
                        if layer < len(head.bounds):
                            h = F.gelu(out * scales[layer][new] + shifts[layer][new])
                            inputs[layer + 1][new] = h.flatten(1)
                            known = new.stop
                    out = (out + direct[new]).to(noise.dtype).flatten(1)
                    logits, means, raw = out.chunk(3)
                    uniform = torch.rand(
                        uniform_shape, generator=generator, device=y.device, dtype=noise.dtype
                    )
                    uniform = uniform.expand(shape[:-1]).reshape(-1)
                    chosen = (uniform >= logits.softmax(0).cumsum(0)[:-1]).sum(0, keepdim=True)
                    mean, spread = (p.gather(0, chosen)[0] for p in (means, raw))
                    # a context far away, and each coordinate asks for a larger one: to infinity, unbounded
                    y[i] = (mean + positive_scale(spread) * noise[i]).clamp(-MAX_Z, MAX_Z)
            return head.actnorm.inverse(y.T.to(noise.dtype)).reshape(shape)


def _mixture(out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-weights, means and scales (..., K) of one coordinate's outputs (..., 3K)."""
    logits, means, raw = out.chunk(3, -1)
    # along the last dimension, a softmax of a few components takes ten times as long
    return logits.movedim(-1, 0).log_softmax(0).movedim(0, -1), means, positive_scale(raw)
