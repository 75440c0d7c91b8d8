"""What every predictive head is: a module that, called with a context, returns a distribution of the target.

zuko's flows have the same shape (``flow(c)`` returns a distribution with ``log_prob`` and ``sample``), so one
would fit beside ``Autoregressive`` or ``RealNVP``, as a ``Head`` whose prediction adds ``loss``. It is not a
dependency: what is here needs torch alone, and each head trains by its own ``loss``, density or not.

All heads keep one scale: ``loss`` is a mean over the D coordinates (nats per coordinate where it is a
likelihood), one value an element; the caller takes the mean over elements. Networks may run under autocast;
densities, losses and samples are computed outside it. A head stays in float32, or is made float64 by
``double``; ``half`` and ``bfloat16`` leave it as it is.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.types import _size

from probjepa.distributions.base import FullPrecision, Likelihood
from probjepa.distributions.base import at_least_float32 as at_least_float32
from probjepa.distributions.base import full_precision as full_precision
from probjepa.errors import ConfigError, DataError, ProbjepaError
from probjepa.heads.names import HEADS
from probjepa.typed import DEEPEST, settings_checked

SCALE_FLOOR = 1e-3
MEAN_DRAWS = 64
_BLOCK = 4_000_000  # elements of one block of draws behind a Monte Carlo mean
MAX_Z = 1e9  # a standardised distance is held below it, so that its square stays finite
FARTHEST = 1e30  # flows hold their targets below it: their layers multiply them, and float32 ends at 3e38
FAR = 1e15  # numbers below it have squares and sums of squares that float32 holds
_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
RAW_UNIT_SCALE = math.log(math.expm1(1 - SCALE_FLOOR))  # ``positive_scale`` maps it to 1


class NoDensityError(ProbjepaError, NotImplementedError):
    """A head's log-density was asked for, and it has none that can be computed."""


def positive_scale(raw: Tensor) -> Tensor:
    """σ = softplus(raw) + 1e-3."""
    return nn.functional.softplus(raw) + SCALE_FLOOR


def far_scale(x: Tensor, dim: int | tuple[int, ...] = -1, far: float = FAR) -> Tensor:
    """Return what to divide x by along ``dim`` so that its squares do not overflow, without gradients.

    It is exactly 1 where no entry is above ``far``, and else what brings the largest down to it.
    """
    return (x.detach().abs().amax(dim, keepdim=True) / far).clamp_min(1)


def gaussian_log_density(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Elementwise log N(x; mean, scale²), scale ≥ 1e-3; finite, with finite gradients, for every finite x."""
    farthest = 0.5 * SCALE_FLOOR**2 * torch.finfo(x.dtype).max  # the gradient divides by the scale twice
    z = ((x - mean).clamp(-farthest, farthest) / scale).clamp(-MAX_Z, MAX_Z)
    return -0.5 * z.square() - scale.log() - _HALF_LOG_2PI


def draw_component(logits: Tensor, shape: torch.Size, generator: torch.Generator | None) -> Tensor:
    """Draw component indices of the given shape from logits (..., K), by inverting the CDF."""
    cdf = logits.softmax(-1).cumsum(-1)
    uniform = torch.rand(shape, generator=generator, device=logits.device, dtype=logits.dtype)
    return (uniform.unsqueeze(-1) >= cdf[..., :-1]).sum(-1)


class Head(FullPrecision):
    """Base of the heads: a subclass writes ``forward(context)`` → Prediction.

    Parameters
    ----------
    dim
        D ≥ 1, dimension of the target
    context_dim
        C ≥ 1, dimension of the context

    Raises
    ------
    ConfigError
        unless both are whole numbers ≥ 1
    """

    name: ClassVar[str]
    has_density: ClassVar[bool] = True  # whether its predictions have a log_prob
    # what of its predictions a graph holds: no draws, no solver
    exported: ClassVar[tuple[str, ...]] = ("posterior", "likelihood")
    far_context: ClassVar[float] = FAR  # a context with a larger entry is scaled down to it

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = settings_checked(cls.__init__)  # type: ignore[method-assign]

    def __init__(self, dim: int, context_dim: int) -> None:
        super().__init__()
        check_counts(self, dim=dim, context_dim=context_dim)
        self.dim = dim
        self.context_dim = context_dim

    @property
    def dtype(self) -> torch.dtype:
        """Type of the parameters, of predictions and of losses: float32 or float64."""
        return next(self.parameters()).dtype

    def checked(self, context: Tensor) -> Tensor:
        """Return the context (..., C) in the parameters' type, with no entry above ``far_context``.

        Layers multiply it, and float32 ends at 3e38. DataError for another width, or for complex numbers.
        """
        if context.ndim < 1 or context.shape[-1] != self.context_dim:
            raise DataError(
                f"head '{self.name}' got a context of shape {tuple(context.shape)}: "
                f"give (..., {self.context_dim}), the context_dim that it was built with"
            )
        context = _real(self, context, "context").to(self.dtype)
        return context / far_scale(context, far=self.far_context)


class Prediction(Likelihood):
    """What a head predicts of the target given a context: batch shape (...), event shape (D,).

    A torch distribution; a head without a density has samples, a mean and a loss, and ``log_prob`` raises.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector
    _alike = 0  # leading batch dimensions along which all elements get the same noise

    def __init__(self, head: Head, batch_shape: torch.Size) -> None:
        self.head = head
        super().__init__(batch_shape, torch.Size((head.dim,)), validate_args=False)

    def checked(self, target: Tensor) -> Tensor:
        """Return the target (..., D) in the head's type.

        Raises
        ------
        DataError
            unless its shape is that of batch and event, after any leading sample dimensions, or if it is
            complex
        """
        wanted = self._extended_shape()
        if target.shape[-len(wanted) :] != wanted:
            raise DataError(
                f"head '{self.head.name}' got a target of shape {tuple(target.shape)}: "
                f"give {tuple(wanted)}, as the context has it, with any leading sample dimensions"
            )
        return _real(self.head, target, "target").to(self.head.dtype)

    def loss(self, target: Tensor) -> Tensor:
        """Training loss (...) of each target (..., D), a mean over the D coordinates.

        The caller takes the mean over elements. Heads that draw noise take it from torch's global generator.
        """
        raise NotImplementedError

    def sample(self, sample_shape: _size = (), generator: torch.Generator | None = None) -> Tensor:
        """Draw targets (*sample_shape, ..., D), without gradients.

        ``generator`` lives on the head's device; None: torch's global one.
        """
        with torch.no_grad():
            return self.rsample(sample_shape, generator)

    def rsample(self, sample_shape: _size = (), generator: torch.Generator | None = None) -> Tensor:
        """Draw as ``sample`` does, differentiably; NotImplementedError where ``has_rsample`` is false."""
        raise NotImplementedError

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density (...) in nats at targets (..., D); NoDensityError where the head has none."""
        known = ", ".join(name for name in HEADS if HEADS[name].has_density)
        raise NoDensityError(f"head '{self.head.name}' has no log-density: use one that has ({known})")

    @property
    def mean(self) -> Tensor:
        """Mean (..., D); without a closed form, of 64 draws with a fixed seed (standard error σ/8)."""
        each = max(math.prod(self._batch_shape) * self.head.dim, 1)
        block = min(max(_BLOCK // each, 1), MEAN_DRAWS)
        device = next(self.head.parameters()).device
        generator = torch.Generator(device).manual_seed(0)
        total = torch.zeros(self._extended_shape(), device=device, dtype=self.head.dtype)
        for start in range(0, MEAN_DRAWS, block):
            total += self.sample((min(block, MEAN_DRAWS - start),), generator).sum(0)
        return total / MEAN_DRAWS

    def for_scores(self, alike: int = 0) -> Self:
        """Return this prediction as scores of many elements read it.

        Heads that solve an equation do so in a few well-placed steps. Along the first ``alike`` batch
        dimensions all elements get the same noise, so that what one gets does not depend on the others.
        """
        other = copy.copy(self)
        other._alike = alike
        return other

    def noise_shape(self, sample_shape: _size) -> torch.Size:
        """Shape of one number an element and draw, (*sample_shape, ...): 1 where elements share them."""
        return torch.Size((*sample_shape, *[1] * self._alike, *self._batch_shape[self._alike :]))

    def standard_normal(self, sample_shape: _size, generator: torch.Generator | None) -> Tensor:
        """Draw N(0, I) of shape (*sample_shape, ..., D), on the head's device and in its type."""
        device = next(self.head.parameters()).device
        shape = (*self.noise_shape(sample_shape), self.head.dim)
        noise = torch.randn(shape, generator=generator, device=device, dtype=self.head.dtype)
        return noise.expand(self._extended_shape(torch.Size(sample_shape)))


class DensityPrediction(Prediction):
    """A prediction that trains by its own likelihood: ``loss`` = −``log_prob``/D."""

    def loss(self, target: Tensor) -> Tensor:
        """Negative log-likelihood (...) of each target (..., D), in nats per coordinate."""
        return -self.log_prob(target) / self.head.dim


def _real(head: Head, x: Tensor, what: str) -> Tensor:
    """Return x; DataError for complex numbers, which would lose their imaginary part."""
    if x.is_complex():
        raise DataError(f"head '{head.name}' got a complex {what}, {x.dtype}: give real numbers")
    return x


def check_counts(head: Head, **counts: Any) -> None:
    """Raise ConfigError unless each setting of the given name is a whole number ≥ 1."""
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"head '{head.name}': {name} must be a whole number, at least 1, got {value}")
        if name in ("blocks", "couplings") and value > DEEPEST:
            raise ConfigError(f"head '{head.name}': {name} is {value}: use at most {DEEPEST}")


def check_widths(head: Head, hidden: Sequence[int]) -> list[int]:
    """Return the hidden widths as a list; ConfigError unless each is a whole number ≥ 1."""
    for width in hidden:
        check_counts(head, **{"each hidden width": width})
    return list(hidden)
