"""I-JEPA with predictive distributions: the tokens of hidden patches are predicted by any head."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, TypedDict, TypeVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal
from torch.nn import functional as F

from probjepa.backbones.transformer import Transformer, sincos_positions, start_linear
from probjepa.data.masks import MultiBlockMasks
from probjepa.errors import ConfigError, DataError, unknown_name
from probjepa.heads import HEADS
from probjepa.methods.base import ProbabilisticMethod, evaluating
from probjepa.methods.ema import EMA

T = TypeVar("T")

_SMALLEST_SCALE = 1e-6
_SCORED_AT_A_TIME = 128  # images; each holds the tokens of all masks


class Preset(TypedDict):
    """Keywords of ``IJEPA`` and of ``fit`` that make one published recipe."""

    method: dict[str, Any]
    fit: dict[str, Any]


PRESETS: dict[str, Preset] = {
    # Assran et al. 2023 (arXiv 2301.08243, appendix A), ViT-B/16. Not theirs: weight decay is constant (they
    # raise it from 0.04 to 0.4), the rate ends at 0 (1e-6), and the recipe "ijepa" flips.
    "i-jepa": {
        "method": {
            "image_size": 224,
            "backbone_options": {"patch_size": 16, "width": 768, "depth": 12, "heads": 12},
            "head": "deterministic",
            "head_options": {"hidden": []},
            "predictor_width": 384,
            "predictor_depth": 6,
            "predictor_heads": 12,
            "momentum": 0.996,
            "momentum_schedule": "linear",
        },
        "fit": {
            "optimizer": "adamw",
            "batch_size": 2048,
            "learning_rate": 1e-3,
            "weight_decay": 0.04,
            "warmup_epochs": 15,
        },
    },
    # "Variational JEPA: Adding Uncertainty to Visual Representations". Its: encoder, predictor's width,
    # momentum, AdamW and the clip. Ours: 4 predictor layers (its range is 2–6) of 8 heads, batch size,
    # learning rate, weight decay and warm-up.
    "tiny-imagenet": {
        "method": {
            "image_size": 64,
            "backbone_options": {"patch_size": 8, "width": 384, "depth": 10, "heads": 8},
            "predictor_width": 192,
            "predictor_depth": 4,
            "predictor_heads": 8,
            "momentum": 0.998,
            "momentum_schedule": "cosine",
        },
        "fit": {
            "optimizer": "adamw",
            "batch_size": 256,
            "learning_rate": 5e-4,
            "weight_decay": 0.05,
            "warmup_epochs": None,
            "gradient_clip_val": 3.0,
        },
    },
}


class Predictor(nn.Module):
    """Context tokens and the positions of hidden patches → one context vector a hidden patch.

    Each target block is predicted on its own: its mask tokens see the context and one another.

    Parameters
    ----------
    dim
        D, of the context tokens
    grid
        patches a side
    width, depth, heads
        of the transformer
    """

    positions: Tensor

    def __init__(self, dim: int, grid: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.entry = nn.Linear(dim, width)
        start_linear(self.entry)
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02))
        self.transformer = Transformer(width, depth, heads)
        self.register_buffer("positions", sincos_positions(grid, grid, width), persistent=False)

    def forward(self, tokens: Tensor, context: Tensor, targets: Tensor) -> Tensor:
        """Return c (N, M, Tt, width).

        Parameters
        ----------
        tokens
            (N, Tc, D), of the context's patches
        context, targets
            indices (N, Tc) and (N, M, Tt), or (Tc,) and (M, Tt) for all images alike
        """
        blocks, asked = targets.shape[-2:]
        seen = self.entry(tokens) + self.positions[context]
        seen = seen.unsqueeze(1).expand(-1, blocks, -1, -1)
        hidden = self.mask_token + self.positions[targets]
        x = torch.cat([seen, hidden.expand(len(tokens), -1, -1, -1)], 2)
        out: Tensor = self.transformer(x.flatten(0, 1))[:, -asked:]
        return out.reshape(len(tokens), blocks, asked, -1)


class IJEPA(ProbabilisticMethod, paper_url="https://arxiv.org/abs/2301.08243"):
    r"""Image-based joint-embedding prediction (arXiv 2301.08243), with a distribution for each hidden token.

    The student f encodes the context patches x_C alone; the teacher f̄, its moving average, the whole image.
    With y_i the teacher's token i, layer-normed without affine, and c_i the predictor's vector for patch i:

    loss = mean over the patches i of the target blocks of ℓ(head(c_i(f(x_C))), y_i),

    where ℓ is the head's ``loss``, a mean over the D coordinates (the negative log-likelihood for Gaussians,
    mixtures, autoregressive models and flows). With ``head="deterministic"`` it is I-JEPA with smooth L1.

    Parameters
    ----------
    backbone, backbone_options, channels, image_size, mean, std, view_recipe
        see ``Method``. The backbone is "vit", or a module of your own with ``tokens(images, keep)`` and
        ``patch_size``, see ``ViT``. The default recipe is "ijepa", one view; each view of another recipe
        counts as an image of its own
    head
        a name of ``probjepa.heads.HEADS``, or a module: called with c (…, predictor_width) it returns an
        object with ``loss(y)`` → (…,), ``sample((n,))`` → (n, …, D) and ``mean``, and where they exist
        ``log_prob(y)``, ``variance`` and ``entropy()`` (a torch Distribution with ``loss`` is one)
    head_options
        keywords of a named head
    predictor_width, predictor_depth, predictor_heads
        of the predictor's transformer
    momentum, momentum_schedule
        τ₀ of the teacher, → 1 on a "cosine" or "linear"
    score_masks, score_draws, score_seed
        scores are means over S masks, and over draws (≥ 2) where a head has no closed form; the same masks
        and draws for every image, so that a score does not depend on the batch

    Raises
    ------
    ConfigError
        for an unknown head or option, a backbone without ``tokens``, or a setting out of its range

    Examples
    --------
    >>> vit = {"patch_size": 4, "width": 32, "depth": 2, "heads": 4}
    >>> model = IJEPA(channels=1, image_size=16, backbone_options=vit, predictor_width=16)
    >>> model.embed(torch.zeros(2, 1, 16, 16, dtype=torch.uint8)).shape
    torch.Size([2, 32])
    """

    name = "i-jepa"
    recipe: ClassVar[Mapping[str, Any]] = {
        key: PRESETS["tiny-imagenet"]["fit"][key]
        for key in ("optimizer", "learning_rate", "weight_decay", "gradient_clip_val")
    }

    def __init__(
        self,
        backbone: str | nn.Module = "vit",
        *,
        backbone_options: Mapping[str, Any] | None = None,
        channels: int = 3,
        image_size: int = 64,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        view_recipe: str | None = None,
        head: str | nn.Module = "gaussian",
        head_options: Mapping[str, Any] | None = None,
        predictor_width: int = 192,
        predictor_depth: int = 4,
        predictor_heads: int = 8,
        momentum: float = 0.998,
        momentum_schedule: Literal["cosine", "linear"] = "cosine",
        score_masks: int = 4,
        score_draws: int = 8,
        score_seed: int = 0,
    ) -> None:
        for name, count, least in (("score_masks", score_masks, 1), ("score_draws", score_draws, 2)):
            if not isinstance(count, int) or count < least:
                raise ConfigError(f"{name} must be a whole number, at least {least}, got {count!r}")
        options = dict(head_options or {})
        super().__init__(
            backbone,
            backbone_options=backbone_options,
            channels=channels,
            image_size=image_size,
            mean=mean,
            std=std,
            view_recipe=view_recipe or "ijepa",
            settings={
                "head": head if isinstance(head, str) else None,
                "head_options": options,
                "predictor_width": predictor_width,
                "predictor_depth": predictor_depth,
                "predictor_heads": predictor_heads,
                "momentum": momentum,
                "momentum_schedule": momentum_schedule,
                "score_masks": score_masks,
                "score_draws": score_draws,
                "score_seed": score_seed,
            },
        )
        patch = getattr(self.encoder, "patch_size", None)
        if not isinstance(patch, int) or not hasattr(self.encoder, "tokens"):
            raise ConfigError(
                f"I-JEPA encodes some of the patches, and {type(self.encoder).__name__} cannot: use "
                "backbone='vit', or a module with tokens(images, keep) and patch_size"
            )
        grid = image_size // patch
        self.masks = MultiBlockMasks(grid)
        self.predictor = Predictor(
            self.embedding_dim, grid, predictor_width, predictor_depth, predictor_heads
        )
        self.head = _build_head(head, self.embedding_dim, predictor_width, options)
        self.teacher = EMA(self.encoder, momentum, momentum_schedule)
        self.score_draws = score_draws
        self.score_seed = score_seed
        self._score_masks = self.masks(score_masks, torch.Generator().manual_seed(score_seed))

    def targets(self, images: Tensor) -> Tensor:
        """The teacher's tokens of prepared images, layer-normed without affine: (N, T, D), no gradient."""
        with torch.no_grad():
            tokens: Tensor = self.teacher.module.tokens(images)  # type: ignore[operator]
        with torch.autocast(tokens.device.type, enabled=False):
            return F.layer_norm(tokens.float(), tokens.shape[-1:])

    def contexts(self, images: Tensor, context: Tensor, targets: Tensor) -> Tensor:
        """The predictor's vectors c (N, M, Tt, width) of prepared images, from the context's patches alone.

        ``context`` and ``targets`` are indices (N, Tc) and (N, M, Tt), or (Tc,) and (M, Tt).
        """
        tokens = self.encoder.tokens(images, context)  # type: ignore[operator]
        vectors: Tensor = self.predictor(tokens, context, targets)
        return vectors

    def loss(self, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        """Objective for views (N, C, H, W): "loss", and "target_std", the targets' spread over images.

        Masks are drawn from torch's global generator. A "target_std" that falls to 0 is a collapse.
        """
        if not batch:
            raise DataError(
                "the loss of IJEPA takes at least one view (N, C, H, W), got none: give the images"
            )
        images = torch.cat(list(batch))
        size = self.preprocess.size
        if images.shape[2:] != (size, size):
            raise DataError(
                f"the loss of IJEPA takes views of {size}x{size} pixels, got {tuple(images.shape)}: make "
                f"them with the view recipe '{self.view_recipe}'"
            )
        context, hidden = (index.to(images.device) for index in self.masks(len(images)))
        tokens = self.targets(images)
        rows = torch.arange(len(images), device=images.device)[:, None, None]
        loss = self.head(self.contexts(images, context, hidden)).loss(tokens[rows, hidden]).mean()
        return {"loss": loss, "target_std": tokens.std(0, correction=0).mean()}

    def after_step(self, step: int, total_steps: int) -> None:
        """Move the teacher."""
        self.teacher.update(self.encoder, step, total_steps)

    def embed(self, x: Tensor, batch_size: int = 512) -> Tensor:
        """Mean of the student's normalised tokens, all patches seen: (N, D), without gradients."""
        with evaluating(self):
            return torch.cat([self(chunk).float() for chunk in torch.split(x, batch_size)])

    def features(self, x: Tensor, batch_size: int = 128) -> dict[str, Tensor]:
        """Embeddings and predictive measures of images (N, C, H, W), in evaluation mode.

        Returns
        -------
        dict
            "h" (N, D) float32, and means over the hidden tokens of ``score_masks`` masks, each (N,) float64:
            "log_density" of the image's own tokens in nats a coordinate, or, where the head has no density,
            "negative_energy_score" of them (from draws; of a point prediction it is the negative distance);
            "spread", √(mean predictive variance), from draws where it has no closed form; "entropy" in nats a
            coordinate where the prediction has one
        """
        measures = self._read(x, batch_size, _measures)
        out = {"h": self.embed(x, batch_size)}
        return out | {key: torch.stack([each[key] for each in measures]) for key in measures[0]}

    def _read(self, x: Tensor, batch_size: int, read: Callable[[Any, Tensor, int], T]) -> list[T]:
        """For each image, ``read`` the prediction of its hidden tokens (S, M, Tt) and the tokens (…, D).

        Heads that draw, in a sample or a density, do so image by image from one seed: drawn for a batch at
        once, what an image gets would depend on its neighbours.
        """
        context, hidden = (index.to(self.device) for index in self._score_masks)
        cuda = [self.device] if self.device.type == "cuda" else []
        found = []
        with evaluating(self), torch.random.fork_rng(cuda):
            for chunk in torch.split(x, min(batch_size, _SCORED_AT_A_TIME)):
                images = self.preprocess(chunk.to(self.device))
                tokens = self.targets(images)[:, hidden]
                masks = zip(context, hidden, strict=True)
                vectors = torch.stack([self.contexts(images, *mask) for mask in masks], 1)
                for each, target in zip(vectors, tokens, strict=True):
                    torch.manual_seed(self.score_seed)
                    found.append(read(self.head(each), target, self.score_draws))
        return found

    def score_features(self, features: Mapping[str, Tensor]) -> Tensor:
        """Score (N,) float64 of encoded images: higher = more typical.

        Held-out log-density a coordinate, in nats, of an image's own hidden tokens given its context; for a
        head without a density, the negative energy score.
        """
        return next(features[key] for key in ("log_density", "negative_energy_score") if key in features)

    def ood_scores(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Label-free scores of encoded images, each (N,) float64, higher = more typical.

        "likelihood", or "energy score" (negated) for a head without a density; "spread" and "entropy"
        negated.
        """
        name = "likelihood" if "log_density" in features else "energy score"
        uncertainty = self.uncertainty_of_features(features)
        return {name: self.score_features(features), **{key: -value for key, value in uncertainty.items()}}

    def uncertainty_of_features(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Predictive "spread", and "entropy" where there is one, of encoded images: each (N,) float64."""
        return {key: features[key] for key in ("spread", "entropy") if key in features}

    def posterior(self, x: Tensor) -> Distribution:
        """What the context says of a hidden token of each image: batch shape (N,), event shape (D,).

        The diagonal Gaussian with the mean and variance of the equal mixture, over the hidden patches of
        ``score_masks`` masks, of the head's predictions: m = E[μ_i], v = E[σ²_i] + Var[μ_i]. It describes the
        teacher's layer-normed tokens at those patches. For one patch, call ``head`` on ``contexts``.
        """
        means, variances = zip(*self._read(x, _SCORED_AT_A_TIME, _moments), strict=True)
        scale = torch.stack(variances).sqrt().clamp_min(_SMALLEST_SCALE)
        return Independent(Normal(torch.stack(means), scale), 1)


def _build_head(head: str | nn.Module, dim: int, context_dim: int, options: dict[str, Any]) -> nn.Module:
    if isinstance(head, str):
        build: Callable[..., nn.Module] = HEADS[head]
        known = set(inspect.signature(build).parameters) - {"dim", "context_dim"}
        for option in options:
            if option not in known:
                raise unknown_name(f"option of head '{head}'", option, known)
        return build(dim, context_dim, **options)
    if options:
        raise ConfigError("head_options go with a head's name, not with a module of your own")
    if not isinstance(head, nn.Module):
        raise ConfigError(
            f"head is {head!r}: give a name of probjepa.heads.HEADS or a module. A head of your own is not "
            "made anew from a saved model: build IJEPA(head=…) with it and load the weights into that"
        )
    return head


def _measures(prediction: Any, target: Tensor, draws: int) -> dict[str, Tensor]:
    """Means over tokens (…, D) of what a prediction says of them, scalars in float64."""
    density = _if_there(lambda: prediction.log_prob(target))
    variance = _if_there(lambda: prediction.variance)
    entropy = _if_there(lambda: prediction.entropy())
    dim = target.shape[-1]
    out: dict[str, Tensor] = {}
    if density is not None:
        out["log_density"] = density.double().mean() / dim
    if density is None or variance is None:
        samples: Tensor = prediction.sample((draws,)).double()
        if density is None:
            out["negative_energy_score"] = -_energy(samples, target).mean()
        if variance is None:
            variance = samples.var(0)
    out["spread"] = variance.double().mean().sqrt()
    if entropy is not None:
        out["entropy"] = entropy.double().mean() / dim
    return out


def _moments(prediction: Any, _: Tensor, draws: int) -> tuple[Tensor, Tensor]:
    """Mean and variance (D,) of the equal mixture of a prediction over its tokens."""
    variance = _if_there(lambda: prediction.variance)
    if variance is None:
        variance = prediction.sample((draws,)).var(0)
    means = prediction.mean.double().flatten(0, -2)
    total = variance.double().flatten(0, -2).mean(0) + means.var(0, correction=0)
    return means.mean(0).float(), total.float()


def _energy(samples: Tensor, target: Tensor) -> Tensor:
    """Energy score (…) of draws (S, …, D), unbiased: E‖X − y‖ − ½E‖X − X′‖."""
    norm = torch.linalg.vector_norm
    apart = norm(samples.unsqueeze(0) - samples.unsqueeze(1), dim=-1).sum((0, 1))
    score: Tensor = norm(samples - target, dim=-1).mean(0) - apart / (2 * len(samples) * (len(samples) - 1))
    return score


def _if_there(read: Callable[[], Tensor]) -> Tensor | None:
    try:
        return read()
    except (NotImplementedError, AttributeError):  # torch's distributions raise the first
        return None
