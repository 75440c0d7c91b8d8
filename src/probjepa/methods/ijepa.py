"""I-JEPA with predictive distributions: the tokens of hidden patches are predicted by any head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, Unpack, cast

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal
from torch.nn import functional as F

from probjepa.backbones.frozen import evaluating
from probjepa.data.masks import MultiBlockMasks
from probjepa.distributed import standard_deviation
from probjepa.draws import drawn_rows, forked
from probjepa.errors import ConfigError, DataError
from probjepa.heads.base import MEAN_DRAWS, at_least_float32, full_precision
from probjepa.methods.base import EncoderSettings
from probjepa.methods.ema import EMA
from probjepa.methods.ijepa_predictor import Predictor, build_head
from probjepa.methods.ijepa_presets import PRESETS as PRESETS
from probjepa.methods.probabilistic import ProbabilisticMethod
from probjepa.methods.token_measures import Measured, by_image, joined, likeness, measures, moments

_SMALLEST_SCALE = 1e-6
_SCORED_AT_A_TIME = 128  # images; each holds the tokens of all masks


class IJEPA(ProbabilisticMethod, paper_url="https://arxiv.org/abs/2301.08243"):
    r"""Image-based joint-embedding prediction (arXiv 2301.08243), with a distribution for each hidden token.

    The student f encodes the context patches x_C alone; the teacher f̄, its moving average, the whole image.
    With y_i the teacher's token i, layer-normed without affine, and c_i the predictor's vector for patch i:

    loss = mean over the patches i of the target blocks of ℓ(head(c_i(f(x_C))), y_i),

    where ℓ is the head's ``loss``, a mean over the D coordinates (the negative log-likelihood for Gaussians,
    mixtures, autoregressive models and flows). With ``head="deterministic"`` it is I-JEPA with smooth L1.

    Parameters
    ----------
    backbone, encoder
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
    ema_momentum, ema_schedule
        τ₀ of the teacher, → 1 on a "cosine" or "linear"
    score_masks, score_draws, score_seed
        scores are means over S masks, and over draws (≥ 2) where a head has no closed form (the "spread" of a
        head that has a density: 2); the same masks and noise for every image, so that a score does not depend
        on the batch

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
    most_views = 1
    main_uncertainty = "spread"
    takes_embeddings = False
    defaults: ClassVar[Mapping[str, Any]] = {"image_size": 64, "view_recipe": "ijepa"}
    recipe: ClassVar[Mapping[str, Any]] = {
        key: PRESETS["tiny-imagenet"]["fit"][key]
        for key in ("optimizer", "learning_rate", "weight_decay", "gradient_clip_val")
    }

    def __init__(
        self,
        backbone: str | nn.Module = "vit",
        *,
        head: str | nn.Module = "gaussian",
        head_options: Mapping[str, Any] | None = None,
        predictor_width: int = 192,
        predictor_depth: int = 4,
        predictor_heads: int = 8,
        ema_momentum: float = 0.998,
        ema_schedule: Literal["cosine", "linear"] = "cosine",
        score_masks: int = 4,
        score_draws: int = 8,
        score_seed: int = 0,
        **encoder: Unpack[EncoderSettings],
    ) -> None:
        for name, count, least in (("score_masks", score_masks, 1), ("score_draws", score_draws, 2)):
            if count < least:
                raise ConfigError(f"{name} must be a whole number, at least {least}, got {count}")
        options = dict(head_options or {})
        given = {name: value for name, value in encoder.items() if value is not None}
        super().__init__(backbone, **cast(EncoderSettings, {**self.defaults, **given}))
        self.settings["head_options"] = options
        patch = getattr(self.encoder, "patch_size", None)
        if not isinstance(patch, int) or not hasattr(self.encoder, "tokens"):
            raise ConfigError(
                f"I-JEPA encodes some of the patches, and {type(self.encoder).__name__} cannot: use "
                "backbone='vit', or a module with tokens(images, keep) and patch_size"
            )
        grid = self.preprocess.size // patch
        self.masks = MultiBlockMasks(grid)
        self.predictor = Predictor(
            self.embedding_dim, grid, predictor_width, predictor_depth, predictor_heads
        )
        self.head = build_head(head, self.embedding_dim, predictor_width, options)
        self.teacher = EMA(self.encoder, ema_momentum, ema_schedule)
        self.score_draws = score_draws
        self.score_seed = score_seed
        self._score_masks = self.masks(score_masks, torch.Generator().manual_seed(score_seed))

    def targets(self, images: Tensor) -> Tensor:
        """The teacher's tokens of prepared images, layer-normed without affine: (N, T, D), no gradient."""
        with torch.no_grad():
            tokens: Tensor = self.teacher.module.tokens(self.teacher.typed(images))  # type: ignore[operator]
        with full_precision(tokens):
            return F.layer_norm(at_least_float32(tokens), tokens.shape[-1:])

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
        if not len(batch) or not len(batch[0]):
            raise DataError(
                "the loss of IJEPA takes at least one view (N, C, H, W) of one image or more: give some"
            )
        images = torch.cat(list(batch)).to(self.dtype)
        size = self.preprocess.size
        if images.shape[2:] != (size, size):
            raise DataError(
                f"the loss of IJEPA takes views of {size}x{size} pixels, got {tuple(images.shape)}: make "
                f"them with the view recipe '{self.view_recipe}'"
            )
        context, hidden = (index.to(images.device) for index in drawn_rows(self.masks, len(images)))
        tokens = self.targets(images)
        rows = torch.arange(len(images), device=images.device)[:, None, None]
        loss = self.head(self.contexts(images, context, hidden)).loss(tokens[rows, hidden]).mean()
        return {"loss": loss, "target_std": standard_deviation(tokens).mean()}

    def after_step(self, step: int, total_steps: int) -> None:
        """Move the teacher."""
        self.teacher.update(self.encoder, step, total_steps)

    def features(self, x: Any, batch_size: int = 128, *, scored: bool = True) -> dict[str, Tensor]:
        """Embeddings and predictive measures of N images, in evaluation mode.

        The measures take many passes, and rows that are not ``scored`` go without.

        Returns
        -------
        dict
            "h" (N, D) float32, the mean of the student's normalised tokens, all patches seen; and means over
            the hidden tokens of ``score_masks`` masks, each (N,) float64:
            "log_density" of the image's own tokens in nats a coordinate, or, where the head has no density,
            "negative_energy_score" of them (from draws; of a point prediction it is the negative distance);
            "spread", √(mean predictive variance), from draws where it has no closed form; "entropy" in nats a
            coordinate where the prediction has one
        """
        x = self.open(x)
        features = super().features(x, batch_size)
        if not scored:
            return features
        read = partial(measures, draws=self.score_draws)
        return {**features, **self._read(x, batch_size, read, self.score_draws)}

    def _read(self, x: Any, batch_size: int, read: Callable[[Any, Tensor], Measured], draws: int) -> Measured:
        """What ``read`` finds in the predictions of the hidden tokens of images, see ``by_image``."""
        context, hidden = (index.to(self.device) for index in self._score_masks)
        parts = []
        with evaluating(self), forked(self.device):
            for batch in self.batches(x, min(batch_size, _SCORED_AT_A_TIME)):
                vectors, tokens = self._hidden(self.preprocess(batch.to(self.device)), context, hidden)
                parts.append(by_image(self.head, vectors, tokens, read, draws=draws, seed=self.score_seed))
        return joined(parts)

    def _hidden(self, images: Tensor, context: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors and the teacher's tokens of prepared images at the hidden patches of the scores' masks."""
        images = images.to(self.dtype)
        tokens = self.targets(images)[:, hidden]
        masks = zip(context, hidden, strict=True)
        return torch.stack([self.contexts(images, *mask) for mask in masks], 1), tokens

    def outputs(self, pixels: Tensor, what: str) -> tuple[Tensor, ...]:
        """Return what ``probjepa.export`` traces, see ``Method``.

        Raises
        ------
        ConfigError
            for what draws random numbers, or is solved for step by step, with this head
        """
        if what == "embed":
            return super().outputs(pixels, what)
        head: Any = self.head
        if what not in getattr(head, "exported", (what,)):  # of any other module the trace says it
            raise ConfigError(
                f"{what} of an i-jepa with the head '{head.name}' cannot be exported: it draws random "
                "numbers or solves step by step, and no graph does; export embed"
            )
        masks = (index.to(pixels.device) for index in self._score_masks)
        vectors, tokens = self._hidden(self.preprocess(pixels), *masks)
        prediction = self.head(vectors)
        if what == "likelihood":
            return (self.score_features(likeness(prediction, tokens, self.score_draws)),)
        found = moments(prediction, tokens, MEAN_DRAWS)
        return found["mean"], found["variance"].clamp_min(_SMALLEST_SCALE**2)

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

    def posterior(self, x: Any) -> Distribution:
        """What the context says of a hidden token of each image: batch shape (N,), event shape (D,).

        The diagonal Gaussian with the mean and variance of the equal mixture, over the hidden patches of
        ``score_masks`` masks, of the head's predictions: m = E[μ_i], v = E[σ²_i] + Var[μ_i]. It describes the
        teacher's layer-normed tokens at those patches. For one patch, call ``head`` on ``contexts``.
        """
        read = partial(moments, draws=self.score_draws)
        found = self._read(x, _SCORED_AT_A_TIME, read, max(self.score_draws, MEAN_DRAWS))
        scale = found["variance"].sqrt().clamp_min(_SMALLEST_SCALE)
        return Independent(Normal(found["mean"], scale), 1)
