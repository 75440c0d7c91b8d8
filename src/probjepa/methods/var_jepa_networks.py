"""The networks of Var-JEPA on vectors, and what is read from their outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Normal

from probjepa.distributions.base import FullPrecision, at_least_float32
from probjepa.draws import drawn
from probjepa.errors import DataError
from probjepa.heads.networks import mlp

Gaussian = tuple[Tensor, Tensor]  # mean, log σ²


class VectorNetwork(FullPrecision):
    """An MLP with GELU on vectors that are laid side by side: (N, D₁), (N, D₂), … → (N, out).

    Parameters
    ----------
    inputs
        name → dimension, in the order of the arguments
    out
        outputs
    hidden
        widths of the hidden layers
    """

    def __init__(self, inputs: Mapping[str, int], out: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.inputs = dict(inputs)
        self.layers = mlp([sum(inputs.values()), *hidden, out])

    def forward(self, *vectors: Tensor) -> Tensor:
        """Apply the network; DataError names an input of another width."""
        for (name, dim), vector in zip(self.inputs.items(), vectors, strict=True):
            if vector.ndim != 2 or vector.shape[1] != dim:
                raise DataError(
                    f"{name} has shape {tuple(vector.shape)} and the network takes (N, {dim}): "
                    "set x_dim and y_dim to the data's, or give a network of your own"
                )
        dtype = next(self.parameters()).dtype
        out: Tensor = self.layers(torch.cat([vector.to(dtype) for vector in vectors], 1))
        return out


class Decoder(FullPrecision):
    """A network's output as the distribution of features: (N, K) → batch shape (N, D).

    Parameters
    ----------
    network
        (N, K) → (N, D), the mean or the logits
    likelihood
        "gaussian" or "bernoulli"
    noise
        standard deviation of the Gaussian, one for all features; None: learned, from 1
    """

    def __init__(self, network: nn.Module, likelihood: str, noise: float | None) -> None:
        super().__init__()
        self.network = network
        self.likelihood = likelihood
        if likelihood == "gaussian":
            log_scale = torch.tensor(0.0 if noise is None else math.log(noise))
            if noise is None:
                self.log_scale = nn.Parameter(log_scale)
            else:
                self.register_buffer("log_scale", log_scale)

    def forward(self, latent: Tensor) -> Distribution:
        """Distribution of the features given the latent."""
        out = at_least_float32(self.network(latent))
        if self.likelihood == "bernoulli":
            return Bernoulli(logits=out, validate_args=False)
        return Normal(out, self.log_scale.to(out.dtype).exp().expand_as(out), validate_args=False)


def draw(q: Gaussian, generator: torch.Generator | None) -> Tensor:
    """Draw one latent for each of N rows, (N, K).

    Without a generator the noise is torch's own, a row each; with one, all rows have the same.
    """
    mean, log_variance = q
    of: Any = {"device": mean.device, "dtype": mean.dtype}
    if generator is None:
        noise = drawn(torch.randn, mean.shape, **of)
    else:
        # the same for every row, so that a row's bound does not depend on its place among others
        noise = torch.randn(mean.shape[1:], generator=generator, **of)
    return mean + torch.exp(0.5 * log_variance) * noise


def log_prob(distribution: Distribution, values: Tensor, double: bool = False) -> Tensor:
    """Log-density (N,): the feature axes that the distribution leaves are summed.

    ``double``: in float64, of a Normal, whose squares may overflow float32, and for the sum.
    """
    kind = type(distribution).__name__
    shape = tuple(distribution.batch_shape + distribution.event_shape)
    if tuple(values.shape) != shape:  # they would broadcast
        raise DataError(
            f"a decoder gives a {kind} of shape {shape}, and the data have {tuple(values.shape)}: "
            "set x_dim and y_dim to the data's, or fix the decoder"
        )
    support = distribution.support
    if support is not None and not bool(support.check(values).all()):  # type: ignore[no-untyped-call]
        raise DataError(
            f"the data hold values that the {kind} likelihood does not have ({support}): "
            "choose another likelihood, or scale the data"
        )
    if double and isinstance(distribution, Normal):
        values = values.double()
    density: Tensor = distribution.log_prob(values)
    density = density.double() if double else density
    return density.reshape(len(values), math.prod(density.shape[1:])).sum(1)
