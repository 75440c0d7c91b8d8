"""Var-JEPA: joint-embedding prediction as one latent-variable model, trained by its evidence lower bound."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypedDict, Unpack, cast

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from probjepa._arrays import ArrayInput, as_float_tensor
from probjepa.backbones.frozen import evaluating
from probjepa.distributed import gather, shared_seed
from probjepa.distributions.base import at_least_float32, full_precision
from probjepa.distributions.gaussian import kl_diagonal_gaussians
from probjepa.errors import ArtifactError, ConfigError, DataError, unknown_name
from probjepa.methods.losses import check_weights
from probjepa.methods.pretrained import Pretrained
from probjepa.methods.sigreg import sigreg
from probjepa.methods.var_jepa_networks import Decoder, Gaussian, VectorNetwork, draw, log_prob
from probjepa.model_files import takes_no
from probjepa.typed import check_settings, types_of

TERMS = ("rec", "gen", "sx", "z", "sy")
NETWORKS = ("encoder", "auxiliary", "target_encoder", "predictor", "x_decoder", "y_decoder")
LIKELIHOODS = ("gaussian", "bernoulli")
_LARGEST_LOG_VARIANCE = 20.0  # σ² in [2e-9, 5e8]: no overflow in float32


class TermWeights(TypedDict, total=False):
    """Weights of the loss, see ``VarJEPA``; unset: 1 of the five terms, 0 of SIGReg."""

    alpha_rec: float
    alpha_gen: float
    alpha_sx: float
    alpha_z: float
    alpha_sy: float
    sigreg_weight: float


class VarJEPA(Pretrained, paper_url="https://arxiv.org/abs/2603.20111"):
    r"""Variational joint-embedding predictive architecture (arXiv 2603.20111), for pairs (x, y) of any data.

    Generative model: p(s_x) p(z) p(x|s_x) p(s_y|s_x, z) p(y|s_y) with N(0, I) priors on s_x and z. Posterior:
    q(s_x|x) q(z|s_x) q(s_y|s_x, z, y). All latents are diagonal Gaussians, drawn once. The loss is

    .. math::
        \alpha_{rec}\,E[-\log p(x|s_x)] + \alpha_{gen}\,E[-\log p(y|s_y)]
        + \alpha_{sx} KL(q(s_x|x) \| N(0, I)) + \alpha_z KL(q(z|s_x) \| N(0, I))
        + \alpha_{sy} KL(q(s_y|s_x, z, y) \| p(s_y|s_x, z)),

    the mean over the batch, in nats: with every α = 1 the negative evidence lower bound of log p(x, y). No
    averaged teacher, no stop-gradient; standard JEPA is its deterministic limit.

    Parameters
    ----------
    x_dim, y_dim
        features of x and y, for the networks that are built here
    latent_dim, z_dim
        dimensions of s_x and s_y, and of z
    hidden
        widths of the hidden layers of each network built here (GELU between); ``()``: linear maps
    x_likelihood, y_likelihood
        of the decoders built here: "gaussian", or "bernoulli" for features in {0, 1}
    noise
        standard deviation of the Gaussian likelihoods; None: learned, one a decoder, from 1
    alpha_rec, alpha_gen, alpha_sx, alpha_z, alpha_sy
        weights α ≥ 0 of the five terms
    anneal
        T as a share of the training: the α of the three divergences grow as min(t/T, 1); 0: at once
    sigreg_weight
        λ ≥ 0 of SIGReg on the draws of s_x: the mean over 64 directions and 64 frequencies to 5 of the
        squared distance of characteristic functions. The source gives these counts and λ = 10; that there is
        neither a window nor a factor N is our reading
    networks
        modules of your own in the place of some of the six: "encoder" (x), "auxiliary" (s_x),
        "target_encoder" (s_x, z, y) and "predictor" (s_x, z) take tensors and return (N, 2K), mean and log σ²
        side by side; "x_decoder" (s_x) and "y_decoder" (s_y) return a ``torch.distributions.Distribution``
        whose ``log_prob`` has the batch first. ``load(…, networks=…)`` takes such modules again.
    seed
        of the initial weights; None: torch's global generator draws them

    Raises
    ------
    ConfigError
        for a setting out of its range, or an unknown name of a network or likelihood

    Examples
    --------
    Any loop trains it:

    >>> _ = torch.manual_seed(0)
    >>> x, y = torch.randn(2, 64, 32)
    >>> model = VarJEPA(anneal=0.5)
    >>> optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    >>> for step in range(4):
    ...     terms = model.loss((x, y))
    ...     optimizer.zero_grad()
    ...     terms["loss"].backward()
    ...     optimizer.step()
    ...     model.after_step(step, 4)
    >>> sorted(terms)
    ['gen', 'loss', 'rec', 'sx', 'sy', 'z']
    >>> model.embed(x).shape, model.score_samples(x, y).shape
    (torch.Size([64, 16]), torch.Size([64]))
    """

    name = "var-jepa"
    defaults: ClassVar[Mapping[str, float]] = {f"alpha_{name}": 1.0 for name in TERMS} | {
        "sigreg_weight": 0.0
    }
    anneal_factor: Tensor
    x_decoder: nn.Module
    y_decoder: nn.Module

    def __init__(
        self,
        *,
        x_dim: int = 32,
        y_dim: int = 32,
        latent_dim: int = 16,
        z_dim: int = 8,
        hidden: Sequence[int] = (128, 128),
        x_likelihood: Literal["gaussian", "bernoulli"] = "gaussian",
        y_likelihood: Literal["gaussian", "bernoulli"] = "gaussian",
        noise: float | None = None,
        anneal: float = 0.0,
        networks: Mapping[str, nn.Module] | None = None,
        seed: int | None = None,  # used by the metaclass
        **weights: Unpack[TermWeights],
    ) -> None:
        super().__init__()
        sizes = {"x_dim": x_dim, "y_dim": y_dim, "latent_dim": latent_dim, "z_dim": z_dim}
        sizes |= {f"hidden[{i}]": width for i, width in enumerate(hidden)}
        for name, size in sizes.items():
            if size < 1:
                raise ConfigError(f"{name} must be a whole number ≥ 1, got {size}")
        for name in weights:
            if name not in self.defaults:
                raise unknown_name("setting of VarJEPA", name, inspect.signature(VarJEPA).parameters)
        every: dict[str, float] = {**self.defaults, **cast(Mapping[str, float], weights)}
        check_weights(every)
        if not any(every.values()):
            raise ConfigError("every weight is 0: set at least one alpha above 0")
        if not 0 <= anneal <= 1:
            raise ConfigError(f"anneal is a share of the training in [0, 1], got {anneal}")
        if noise is not None and not 0 < noise < math.inf:
            raise ConfigError(f"noise must be a positive number, or None to learn it, got {noise}")
        for likelihood in (x_likelihood, y_likelihood):
            if likelihood not in LIKELIHOODS:
                raise unknown_name("likelihood", likelihood, LIKELIHOODS)
        if noise is not None and x_likelihood == y_likelihood == "bernoulli":
            raise ConfigError("noise is of Gaussian decoders, and both are Bernoulli: leave it out")
        own = dict(networks or {})
        for name in own:
            if name not in NETWORKS:
                raise unknown_name("network", name, NETWORKS)
        # of networks their names only: the modules are the user's
        self.settings |= {"hidden": list(hidden), "networks": sorted(own), **every}
        self.alpha = {name: every[f"alpha_{name}"] for name in TERMS}
        self.anneal = anneal
        self.sigreg_weight = every["sigreg_weight"]
        self.latent_dim, self.z_dim = latent_dim, z_dim
        s, z = {"s": latent_dim}, {"z": z_dim}
        build: dict[str, Callable[[], nn.Module]] = {
            "encoder": lambda: VectorNetwork({"x": x_dim}, 2 * latent_dim, hidden),
            "auxiliary": lambda: VectorNetwork(s, 2 * z_dim, hidden),
            "target_encoder": lambda: VectorNetwork({**s, **z, "y": y_dim}, 2 * latent_dim, hidden),
            "predictor": lambda: VectorNetwork({**s, **z}, 2 * latent_dim, hidden),
            "x_decoder": lambda: Decoder(VectorNetwork(s, x_dim, hidden), x_likelihood, noise),
            "y_decoder": lambda: Decoder(VectorNetwork(s, y_dim, hidden), y_likelihood, noise),
        }
        for name, make in build.items():
            self.add_module(name, own[name] if name in own else make())
        # saved with the weights: a resumed run goes on at its own factor
        self.register_buffer("anneal_factor", torch.tensor(0.0 if anneal else 1.0))

    @classmethod
    def _wanted_modules(
        cls, folder: Path, config: Mapping[str, Any], given: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        if other := sorted(given.keys() - {"networks"}):
            raise takes_no(folder, cls, other[0])
        own, networks = sorted(config["settings"]["networks"]), dict(given.get("networks", {}))
        if own != sorted(networks):
            raise ArtifactError(
                f"{folder} was built with these networks of its user's own: {', '.join(own) or 'none'}; "
                "pass just those, load(…, networks={name: module})"
            )
        return networks

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **modules: Any) -> Self:
        """Make a model with fresh weights from what ``config`` returned; see ``Pretrained``."""
        settings = {k: v for k, v in config["settings"].items() if k != "networks"}
        return cls(**check_settings(settings, types_of(cls)), networks=modules or None)

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.anneal_factor.device

    def _gaussian(self, network: str, dim: int, *inputs: Tensor) -> Gaussian:
        """Mean and bounded log σ², each (N, dim), that a network gives; in float32 at least."""
        out = at_least_float32(self.get_submodule(network)(*inputs))
        if out.ndim != 2 or out.shape[1] != 2 * dim:
            raise DataError(
                f"the network '{network}' returned shape {tuple(out.shape)}: it must return (N, {2 * dim}), "
                f"the mean and log σ² of {dim} latents side by side"
            )
        mean, log_variance = out.chunk(2, 1)
        return mean, log_variance.clamp(-_LARGEST_LOG_VARIANCE, _LARGEST_LOG_VARIANCE)

    def _terms(
        self,
        x: Tensor,
        y: Tensor | None,
        generator: torch.Generator | None = None,
        *,
        double: bool = False,
    ) -> dict[str, Tensor]:
        """The terms of each row (N,), unweighted, and the draw "s_x" (N, K); those of x alone without y.

        ``double``: the networks run in their own type, and what is made of their outputs is float64.
        """

        def divergence(*parts: Tensor) -> Tensor:
            return kl_diagonal_gaussians(*(part.double() if double else part for part in parts))

        q_sx = self._gaussian("encoder", self.latent_dim, x)
        s_x = draw(q_sx, generator)
        found = {
            "rec": -log_prob(self.x_decoder(s_x), x, double),
            "sx": divergence(*q_sx),
            "s_x": s_x,
        }
        if y is None:
            return found
        q_z = self._gaussian("auxiliary", self.z_dim, s_x)
        z = draw(q_z, generator)
        q_sy = self._gaussian("target_encoder", self.latent_dim, s_x, z, y)
        p_sy = self._gaussian("predictor", self.latent_dim, s_x, z)
        s_y = draw(q_sy, generator)
        return found | {
            "gen": -log_prob(self.y_decoder(s_y), y, double),
            "z": divergence(*q_z),
            "sy": divergence(*q_sy, *p_sy),
        }

    def loss(self, batch: Sequence[ArrayInput]) -> dict[str, Tensor]:
        """Objective for a batch (x, y): "loss" and its unweighted terms, means over the batch in nats.

        "rec" and "gen" are negative log-likelihoods, "sx", "z" and "sy" divergences; "sigreg" where it is on.
        """
        x, y = self._pair(batch)
        if len(x) == 0:
            raise DataError(f"the batch is empty, x of shape {tuple(x.shape)}: give at least one row")
        rows = self._terms(x, y)
        terms = {name: rows[name].mean() for name in TERMS}
        factors = {name: 1.0 if name in ("rec", "gen") else self.anneal_factor for name in TERMS}
        # a term of weight 0 is left out: it may grow without bound, and 0 · ∞ is no number
        weighted = [factors[name] * self.alpha[name] * terms[name] for name in TERMS if self.alpha[name]]
        loss = sum(weighted, torch.zeros((), device=x.device))
        if self.sigreg_weight:
            with full_precision(x):
                s_x = gather(rows["s_x"])
                directions = torch.Generator(x.device).manual_seed(shared_seed(x.device))
                statistic = sigreg(s_x, 64, directions, resolution=math.inf, points=64, largest_frequency=5.0)
            terms["sigreg"] = statistic / (2 * 5.0 * len(s_x))  # a mean over [−5, 5], not N times an integral
            loss = loss + self.sigreg_weight * terms["sigreg"]
        return {"loss": loss, **terms}

    def after_step(self, step: int, total_steps: int) -> None:
        """Anneal: after optimiser step number ``step`` (from 0) the factor is min((step + 1)/T, 1)."""
        if self.anneal:
            length = self.anneal * max(total_steps, 1)
            self.anneal_factor.fill_(min((step + 1) / length, 1.0))

    def forward(self, x: ArrayInput) -> Tensor:
        """Posterior mean of s_x (N, K): differentiable, in the current mode."""
        return self._gaussian("encoder", self.latent_dim, self._checked(x, "x"))[0]

    def embed(self, x: ArrayInput) -> Tensor:
        """Posterior mean of s_x (N, latent_dim), in evaluation mode and without gradients."""
        with evaluating(self):
            mean: Tensor = self(x)
        return mean

    def posterior(self, x: ArrayInput) -> Distribution:
        """q(s_x|x), a diagonal Gaussian: batch shape (N,), event shape (latent_dim,)."""
        with evaluating(self):
            mean, log_variance = self._gaussian("encoder", self.latent_dim, self._checked(x, "x"))
        return Independent(Normal(mean, torch.exp(0.5 * log_variance)), 1)

    def outputs(self, x: Tensor, what: str) -> tuple[Tensor, ...]:
        """Return what ``probjepa.export`` traces of vectors: (mean,) of s_x, or (mean, variance).

        Raises
        ------
        ConfigError
            for the likelihood, a mean over random draws
        """
        if what == "likelihood":
            raise ConfigError("the likelihood of a VarJEPA is a mean over random draws, which no graph holds")
        mean, log_variance = self._gaussian("encoder", self.latent_dim, x)
        return (mean,) if what == "embed" else (mean, log_variance.exp())

    def example_batch(self, count: int, generator: torch.Generator) -> Tensor:
        """Return random vectors x (N, x_dim)."""
        return torch.randn(count, int(self.settings["x_dim"]), generator=generator)

    def score_samples(
        self, x: ArrayInput, y: ArrayInput | None = None, *, draws: int = 16, seed: int = 0
    ) -> Tensor:
        """Evidence lower bound (N,) float64, in nats: of log p(x), or of log p(x, y) where y is given.

        Higher = more typical. The plain bound, whatever the weights α. The expectation is a mean over
        ``draws`` of the noise, which all rows share: a row's bound is the same among other rows, and for the
        same ``seed``. The mean of many rows is as exact as its draws are many.

        Raises
        ------
        DataError
            for NaN or Inf, or x and y of different lengths
        ConfigError
            for fewer than one draw
        """
        if draws < 1:
            raise ConfigError(f"draws must be at least 1, got {draws}")
        if y is None:
            x = self._checked(x, "x")
        else:
            x, y = self._pair((x, y))
        generator = torch.Generator(self.device).manual_seed(seed)
        bound = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        with evaluating(self):
            for _ in range(draws):
                rows = self._terms(x, y, generator, double=True)
                bound -= sum(rows[name].double() for name in TERMS if name in rows)
        return bound / draws

    def uncertainty(self, x: ArrayInput) -> dict[str, Tensor]:
        """Measures of q(s_x|x), each (N,) float64.

        "mean_variance" (mean σ²), "trace" (Σσ²), "kl" (to the prior N(0, I), nats: low = uninformed).
        """
        with evaluating(self):
            q = self._gaussian("encoder", self.latent_dim, self._checked(x, "x"))
        mean, log_variance = q[0].double(), q[1].double()
        variance = log_variance.exp()
        return {
            "mean_variance": variance.mean(1),
            "trace": variance.sum(1),
            "kl": kl_diagonal_gaussians(mean, log_variance),
        }

    def _pair(self, batch: Sequence[ArrayInput]) -> tuple[Tensor, Tensor]:
        if len(batch) != 2:
            raise DataError(
                f"the loss of VarJEPA takes a batch (x, y), got {len(batch)} parts: give the pair"
            )
        x, y = (self._checked(part, name) for part, name in zip(batch, "xy", strict=True))
        if len(x) != len(y):
            raise DataError(f"x has {len(x)} rows and y {len(y)}: give one y for each x")
        return x, y

    def _checked(self, values: ArrayInput, name: str) -> Tensor:
        if not isinstance(values, Tensor):  # a tensor keeps its graph, and integers for an own network
            values = as_float_tensor(values, name).to(next(self.parameters(), self.anneal_factor).dtype)
        values = values.to(self.device)
        if values.ndim == 0:
            raise DataError(f"{name} is one number: give rows, shape (N, D)")
        finite = values.isfinite().reshape(len(values), math.prod(values.shape[1:]))
        bad = len(values) - int(finite.all(1).sum())
        if bad:
            raise DataError(f"{name} has NaN or Inf in {bad} of {len(values)} rows: drop or fill them")
        return values
