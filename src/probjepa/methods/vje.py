"""VJE: variational joint embedding with a polar Student-t likelihood on the encoder's own embedding."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Unpack

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from probjepa.data.overlap import refuse_overlap
from probjepa.distributions import MultivariateStudentT, PolarStudentT, PolarStudentTMixture
from probjepa.draws import drawn
from probjepa.errors import ConfigError, DataError, unknown_name
from probjepa.heads import InferenceNetwork
from probjepa.heads.base import at_least_float32
from probjepa.methods.base import EncoderSettings
from probjepa.methods.ema import EMA
from probjepa.methods.losses import encoded, mean_of, other_views, views_of
from probjepa.methods.probabilistic import ProbabilisticMethod

_EMA_MOMENTUM = 0.996


class VJE(ProbabilisticMethod, paper_url="https://arxiv.org/abs/2602.05639"):
    r"""Joint Embedding Variational Bayes (arXiv 2602.05639).

    h = f(x) ∈ R^D, q(z|h) = N(μ(h), diag σ²(h)). For two views, with one reparameterised draw z and the other
    view's h′ held constant:

    loss = ½[NLL(h₂|z₁) + NLL(h₁|z₂)] + β·½[KL₁ + KL₂],  KL = ½Σ(μ² + σ² − log σ² − 1)

    or, of more views, the mean over all their ordered pairs. NLL is ``PolarStudentT``'s (directional +
    radial), whose directional scale is the same σ².

    Parameters
    ----------
    backbone, encoder
        see ``Method``
    hidden_dim
        width of the inference network; None: D/4, at least 8
    df
        degrees of freedom ν > 0 of the likelihood; ``math.inf``: Gaussian (collapses: the ablation)
    kl_weight
        β ≥ 0; 0 drops the KL term
    directional, radial
        whether the polar likelihood's terms are in the loss
    draws
        L ≥ 0 reparameterised draws a view; 0 puts z = μ
    variance
        "diagonal", or "isotropic": one σ² an input (the ablation)
    likelihood
        "polar", or "standard": a Student-t on h′ − z with scale diag σ² (the ablation)
    target
        "stop-gradient"; "ema": h′ from an averaged encoder that normalises by its own batch; "ema-averaged":
        from one in evaluation mode, whose batch statistics are averaged like its weights (see ``EMA``)
    ema_momentum
        τ₀ of the averaged encoder, → 1 on a cosine; refused where there is none
    center_log_variance
        use σ²/exp(mean log σ²) in the directional term (for D ≥ 2048)

    Raises
    ------
    ConfigError
        for a setting out of its range

    Examples
    --------
    >>> model = VJE("convnet", channels=1, image_size=16)
    >>> model.embed(torch.zeros(2, 1, 16, 16, dtype=torch.uint8)).shape
    torch.Size([2, 64])
    """

    name = "vje"
    most_views = math.inf
    main_uncertainty = "mean_variance"
    recipe: ClassVar[Mapping[str, Any]] = {"learning_rate": 0.05, "sgd_momentum": 0.9, "weight_decay": 5e-4}
    # the loss is a sum over D features: what stands on 1,280 of them would diverge at this rate
    frozen_recipe: ClassVar[Mapping[str, Any]] = {"gradient_clip_val": 10.0}

    def __init__(
        self,
        backbone: str | nn.Module = "resnet18",
        *,
        hidden_dim: int | None = None,
        df: float | Literal["inf"] = 1.0,
        kl_weight: float = 1.0,
        directional: bool = True,
        radial: bool = True,
        draws: int = 1,
        variance: Literal["diagonal", "isotropic"] = "diagonal",
        likelihood: Literal["polar", "standard"] = "polar",
        target: Literal["stop-gradient", "ema", "ema-averaged"] = "stop-gradient",
        ema_momentum: float = _EMA_MOMENTUM,
        center_log_variance: bool = False,
        **encoder: Unpack[EncoderSettings],
    ) -> None:
        df = float(df)  # "inf" too, as config.json has it
        if not df > 0:
            raise ConfigError(f"df must be positive (inf for the Gaussian limit), got {df}")
        if not 0 <= kl_weight < math.inf:
            raise ConfigError(f"kl_weight must be a finite number ≥ 0, got {kl_weight}")
        if draws < 0:
            raise ConfigError(f"draws must be a whole number ≥ 0 (0: the posterior mean), got {draws}")
        if likelihood == "standard" and not (directional and radial and not center_log_variance):
            raise ConfigError(
                "directional, radial and center_log_variance are settings of the polar likelihood: "
                "leave them at their defaults with likelihood='standard'"
            )
        if target == "stop-gradient" and ema_momentum != _EMA_MOMENTUM:
            raise ConfigError("ema_momentum is of the averaged encoder: set target='ema', or leave it out")
        if not (directional or radial):
            raise ConfigError("directional=False and radial=False leave no likelihood: keep one of them")
        super().__init__(backbone, **encoder)
        self.settings["df"] = df
        self.df = df
        self.kl_weight = kl_weight
        self.draws = draws
        self.center_log_variance = center_log_variance
        self.terms = [name for name, on in (("directional", directional), ("radial", radial)) if on]
        self.standard = likelihood == "standard"
        self.inference = InferenceNetwork(self.embedding_dim, hidden_dim, variance)
        self.target = None
        if target != "stop-gradient":
            statistics: Any = "averaged" if target == "ema-averaged" else "batch"
            self.target = EMA(self.encoder, ema_momentum, statistics=statistics)

    def likelihood(self, z: Tensor, variance: Tensor) -> PolarStudentT | MultivariateStudentT:
        """Distribution of an embedding h given the latent z and σ², both (…, N, D)."""
        if self.standard:
            return MultivariateStudentT(z, variance, self.df, validate_args=False)
        return PolarStudentT(
            z, variance, self.df, center_log_variance=self.center_log_variance, validate_args=False
        )

    def loss(self, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        """Objective for two or more views, each (N, C, H, W): "loss" and its terms, means over the batch."""
        views = views_of(self, batch)
        h = at_least_float32(encoded(self.encoder, views))
        mean, variance = self.inference(h)
        observed = at_least_float32(encoded(self.target, views)) if self.target else h.detach()
        others = other_views(observed, len(batch))  # each view is an observation of the others
        z = mean
        if self.draws:
            shape = (self.draws, *mean.shape)
            z = mean + variance.sqrt() * drawn(torch.randn, shape, 1, device=mean.device, dtype=mean.dtype)
        likelihood = self.likelihood(z, variance)
        if isinstance(likelihood, PolarStudentT):
            terms = {name: getattr(likelihood, f"{name}_nll") for name in self.terms}
        else:
            terms = {"nll": likelihood.nll}
        parts = {name: mean_of([nll(other).mean() for other in others]) for name, nll in terms.items()}
        kl = gaussian_kl(mean, variance).mean()
        weighted = [self.kl_weight * kl] if self.kl_weight else []  # 0 · ∞ would be NaN
        loss = sum([*parts.values(), *weighted])
        return {"loss": loss, **parts, "kl": kl, "mean_variance": variance.detach().mean()}

    def after_step(self, step: int, total_steps: int) -> None:
        """Move the averaged encoder, where there is one."""
        if self.target:
            self.target.update(self.encoder, step, total_steps)

    def features_of(self, h: Tensor) -> dict[str, Tensor]:
        """Add the posterior's "mu" and "variance", each (N, D), to "h"."""
        mean, variance = self.inference(h)
        return {"h": h, "mu": mean, "variance": variance}

    def posterior_of_features(self, features: Mapping[str, Tensor]) -> Distribution:
        """q(z|x) = N(μ, diag σ²) of encoded images: batch shape (N,), event shape (D,)."""
        return Independent(Normal(features["mu"], features["variance"].sqrt()), 1)

    def score_features(self, features: Mapping[str, Tensor]) -> Tensor:
        """Self-likelihood (N,) of encoded images: log-density of h at z = μ(h), in float64."""
        h, mean, variance = (features[key].double() for key in ("h", "mu", "variance"))
        return self.likelihood(mean, variance).log_prob(h)

    def ood_scores(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Label-free scores of encoded images, each (N,) float64, higher = more typical.

        "likelihood" and its parts "directional" and "radial" (negative losses at z = μ); "kl" and
        "anisotropy" as they are (both rise where the posterior is informed); "mean variance" negated.
        """
        measures = self.uncertainty_of_features(features)
        return {
            "likelihood": self.score_features(features),
            "directional": -measures["directional_nll"],
            "radial": -measures["radial_nll"],
            "kl": measures["kl"],
            "mean variance": -measures["mean_variance"],
            "anisotropy": measures["anisotropy"],
        }

    def score_samples(
        self,
        x: Any,
        *,
        score: Literal["likelihood", "predictive"] = "likelihood",
        reference: Any = None,
    ) -> Tensor:
        """Score (N,) float64 of N images: a log-density in nats, higher = more typical.

        Parameters
        ----------
        x
            images, as ``open`` takes them
        score
            "likelihood": of h at z = μ(h), no other data needed; strong far from the training data and
            unreliable near it. "predictive": of h under a reference set, see ``predictive``
        reference
            M images for "predictive", none of them in ``x``

        Raises
        ------
        ConfigError
            for an unknown score, or "predictive" without a reference (or "likelihood" with one)
        DataError
            if a row of ``x`` is among the reference
        """
        if score not in ("likelihood", "predictive"):
            raise unknown_name("score", score, ["likelihood", "predictive"])
        if (reference is None) == (score == "predictive"):
            raise ConfigError("reference goes with score='predictive': give both or neither")
        if reference is None:
            return self.score_features(self.features(x))
        x, reference = self.open(x), self.open(reference)
        refuse_overlap(x, reference)
        return self.predictive(reference).log_prob(self.embed(x))

    @property
    def without_predictive(self) -> str | None:
        """Why there is no ``predictive`` density; None where there is one."""
        if not self.standard and math.isfinite(self.df):
            return None
        return (
            "the predictive score is a mixture of polar Student-t densities: "
            "it needs likelihood='polar' and a finite df"
        )

    def predictive(self, reference: Any) -> PolarStudentTMixture:
        """Density of an embedding under a reference set: the "predictive" score's log_prob.

        The mean of the polar Student-t densities centred at each reference row's embedding hᵢ with scale
        τσ̄², σ̄² the reference's mean posterior variance, τ by leave-one-out likelihood on the reference
        (``PolarStudentTMixture.fit_scale``). On a frozen encoder the scale is the spread of the reference's
        neighbours instead (``PolarStudentTMixture.of_neighbours``). Of M ≥ 1,500 rows each image's nearest
        round(M/1000) − 1 are left out, as the kNN detector's k = M/1000 does.

        Parameters
        ----------
        reference
            images, as ``open`` takes them, or their ``features``; M ≥ 2, none of them among those scored

        Raises
        ------
        ConfigError
            without a polar likelihood of finite df
        DataError
            unless at least two of the reference's embeddings differ

        Notes
        -----
        What matters is the scale: the posterior's σ² is the spread over views, far too wide for a density of
        embeddings. docs/scores.md has what other centres and scales reach, and where this score
        fails: on uniform noise, by small encoders of CIFAR-10.
        """
        if self.without_predictive is not None:
            raise ConfigError(self.without_predictive)
        encoded = isinstance(reference, Mapping) and "h" in reference
        features = reference if encoded else self.features(reference)
        h = features["h"]
        if self.frozen:
            return neighbours_density(h, self.df)
        variance = features["variance"].mean(0, dtype=torch.float64).expand(h.shape)
        try:
            return PolarStudentTMixture(h, variance, self.df, skip=_skipped(len(h))).fit_scale()
        except ValueError as error:
            raise DataError(f"the reference set gives no density: {error}") from error

    def uncertainty_of_features(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Measures of encoded images, each (N,) float64.

        "mean_variance" (mean σ²), "trace" (Σσ²), "anisotropy" (coefficient of variation of σ² over the
        features), "kl" (to the prior N(0, I), nats), "directional_nll", "radial_nll" (of h at z = μ, nats,
        without their constants), "h_norm", "mu_norm".
        """
        h, mean, variance = (features[key].double() for key in ("h", "mu", "variance"))
        polar = PolarStudentT(mean, variance, self.df, center_log_variance=self.center_log_variance)
        level = variance.mean(-1)
        return {
            "mean_variance": level,
            "trace": variance.sum(-1),
            "anisotropy": (variance - level[:, None]).square().mean(-1).sqrt() / level,
            "kl": gaussian_kl(mean, variance),
            "directional_nll": polar.directional_nll(h),
            "radial_nll": polar.radial_nll(h),
            "h_norm": h.norm(dim=-1),
            "mu_norm": mean.norm(dim=-1),
        }


def _skipped(count: int) -> int:
    """How many of a reference's nearest rows the predictive density leaves out."""
    return max(round(count / 1000) - 1, 0)


def neighbours_density(h: Tensor, df: float = 1.0) -> PolarStudentTMixture:
    """Predictive density of embeddings (M, D) of any encoder, see ``PolarStudentTMixture.of_neighbours``.

    Raises
    ------
    DataError
        unless at least two of their directions differ
    """
    try:
        return PolarStudentTMixture.of_neighbours(h, df, skip=_skipped(len(h)))
    except ValueError as error:
        raise DataError(f"the reference set gives no density: {error}") from error


def gaussian_kl(mean: Tensor, variance: Tensor) -> Tensor:
    """KL(N(μ, diag σ²) ‖ N(0, I)) = ½Σ(μ² + σ² − log σ² − 1) in nats; (…, D) → (…)."""
    return 0.5 * (mean.square() + variance - variance.log() - 1).sum(-1)
