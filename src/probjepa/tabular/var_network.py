"""Var-T-JEPA's network: four posteriors and priors over a row's tokens, and the evidence lower bound."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from probjepa.distributions.gaussian import kl_diagonal_gaussians
from probjepa.tabular.calibration import Calibration, cross_calibrated, hide_together
from probjepa.tabular.copula import Copula
from probjepa.tabular.elbo import Noise, annealed, draw
from probjepa.tabular.masks import Masks
from probjepa.tabular.networks import (
    AttentionPool,
    GaussianHead,
    Transformer,
    pick,
    token_parameter,
)
from probjepa.tabular.skill import Skill, measure
from probjepa.tabular.tokens import (
    CellDistribution,
    FeatureDecoder,
    FeatureTokenizer,
    Layout,
    Rows,
    by_group,
    resolution,
    twice,
)

_Predict = Callable[[Rows, Tensor], CellDistribution]  # rows, and which of their cells are hidden

FOLDS = 8  # groups of columns, each predicted from the others


class Weights(NamedTuple):
    """α of the five terms, over how many epochs the KL terms are annealed (sx, z, sy), and α of ours."""

    rec: float
    gen: float
    sx: float
    z: float
    sy: float
    anneal_epochs: tuple[float, float, float]
    pred: float = 0.0


class Latents(NamedTuple):
    """Means and log-variances of q(s_x) (B, 1 + C, d), q(z) (B, d), q(s_y) (B, D, d) and of p(s_y) at the
    ``targets`` (B, K·T), (B, K·T, d); and the draw s_x (B, 1 + C, d)."""

    x: tuple[Tensor, Tensor]
    z: tuple[Tensor, Tensor]
    y: tuple[Tensor, Tensor]
    prior: tuple[Tensor, Tensor]
    s_x: Tensor
    targets: Tensor

    def kl(self) -> tuple[Tensor, Tensor, Tensor]:
        """KL of s_x's tokens (B, 1 + C), of z (B,), and of the targets' s_y (B, K·T)."""
        y_mean, y_log = (pick(part, self.targets) for part in self.y)
        return (
            kl_diagonal_gaussians(*self.x),
            kl_diagonal_gaussians(*self.z),
            kl_diagonal_gaussians(y_mean, y_log, *self.prior),
        )


class Calibrated(NamedTuple):
    """What ``calibrate`` returns: each feature's ``skill``; ``rows`` with their cells, calibrated by the
    ``kept`` correction, which was fitted to them; and ``new``, the cells of the ``new_rows``, calibrated by
    what was not; all are empty where there are no such rows."""

    skill: list[Skill]
    rows: Rows
    new_rows: Rows
    kept: CellDistribution | None = None
    new: CellDistribution | None = None


class VarTJEPANetwork(nn.Module):
    r"""Var-T-JEPA (arXiv 2603.20111): the objective is a bound on log p(x, y) of context and target cells.

    p = N(s_x; 0, I) N(z; 0, I) p(x|s_x) p(s_y|s_x, z) p(y|s_y);  q = q(s_x|x) q(z|s_x) q(s_y|s_x, z, row)

    One draw of each latent. s_x is a latent a token, CLS among them; z is one a row; s_y is one a feature
    of the whole row, of which a target mask picks those that the predictor is held to. The decoders of
    p(x|s_x) and of p(y|s_y) are two sets, each with its global variance, since the two latent spaces are
    not one.

    A sixth term is ours: −log p(y|s_x, z) of the target cells, s_y integrated out under p(s_y|s_x, z), which
    trains what ``predict`` reads. Where its weight ``pred`` is above 0, numbers have a variance a column and
    balanced likelihoods (``FeatureDecoder``); at 0 all is the paper's.

    Parameters
    ----------
    layout
        the table's
    dim
        d, the size of all latents
    weights
        of the loss
    n_bins
        of the numbers' tokens, see ``FeatureTokenizer``
    copula, copula_bins
        what predicts hidden cells: the network, both, or the copula (see ``Copula``), and its bins
    sizes
        of each of the three transformers: n_layers, n_heads, ff_dim, dropout
    """

    def __init__(
        self,
        layout: Layout,
        *,
        dim: int,
        weights: Weights,
        n_bins: int = 0,
        copula: Literal["none", "beside", "alone"] = "none",
        copula_bins: int = 0,
        **sizes: Any,
    ) -> None:
        super().__init__()
        self.weights = weights
        self.dim, self.n_features = dim, layout.n_features
        self.tokenizer = FeatureTokenizer(layout, dim, n_bins)
        self.context_cls = token_parameter(dim)
        self.context_encoder = Transformer(dim, **sizes)
        self.context_head = GaussianHead(dim)
        self.pool = AttentionPool(dim)
        self.auxiliary = nn.Sequential(nn.Linear(dim, dim), nn.LayerNorm(dim), nn.GELU(), GaussianHead(dim))
        self.target_cls = token_parameter(dim)
        self.target_from_context = nn.Linear(dim, dim)
        self.target_from_z = nn.Linear(dim, dim)
        self.target_encoder = Transformer(dim, **sizes)
        self.target_head = GaussianHead(dim)
        self.predictor_from_context = nn.Linear(dim, dim)
        self.predictor_from_z = nn.Linear(dim, dim)
        self.mask_token = token_parameter(dim)
        # position 0 is CLS, i + 1 is feature i
        self.predictor_position = nn.Parameter(torch.randn(layout.n_features + 1, dim) / math.sqrt(dim))
        self.predictor = Transformer(dim, **sizes)
        self.predictor_head = GaussianHead(dim)
        self.context_decoder = FeatureDecoder(layout, dim, per_column=weights.pred > 0)
        self.target_decoder = FeatureDecoder(layout, dim, per_column=weights.pred > 0)
        self.layout, self.alone = layout, copula == "alone"
        self.copula = None if copula == "none" else Copula(layout, copula_bins)
        self.calibration = Calibration(layout, 2 if copula == "beside" else 1)

    def encode_context(self, tokens: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """q(s_x|x) of tokens (B, C, d): mean and log-variance (B, 1 + C, d), CLS first."""
        x = torch.cat([self.context_cls.expand(len(tokens), -1, -1), tokens], 1)
        mean, log_variance = self.context_head(
            self.context_encoder(x, None if keep is None else keep.unsqueeze(1))
        )
        return mean, log_variance

    def encode_target(self, tokens: Tensor, pooled: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """q(s_y|s_x, z, row) of a row's tokens (B, D, d): mean and log-variance (B, D, d)."""
        special = [self.target_from_context(pooled).unsqueeze(1), self.target_from_z(z).unsqueeze(1)]
        x = torch.cat([self.target_cls.expand(len(tokens), -1, -1), *special, tokens], 1)
        mean, log_variance = self.target_head(self.target_encoder(x)[:, 3:])
        return mean, log_variance

    def loss(self, rows: Rows, masks: Masks, epoch: float = math.inf) -> dict[str, Tensor]:
        """Return "loss", −ELBO at the annealed weights of ``epoch`` (a fraction within one), and its terms.

        ``rec``: mean −log p(x|s_x) of the context's cells; ``gen``: mean −log p(y|s_y) of all D, missing
        cells left out of both; ``kl_sx``, ``kl_z``, ``kl_sy``: summed over d, averaged over tokens (sy:
        over the K target masks' tokens); ``pred``, where it has a weight: mean −log p(y|s_x, z) of the K
        target masks' cells.
        """
        of = self._latents(rows, masks)
        rec, gen = self._surprise(rows, masks, of)
        observed = self.tokenizer.observed(rows)
        in_context = torch.zeros_like(observed).scatter(1, masks.context, True) & observed
        rec, gen = _mean_where(rec, in_context), _mean_where(gen, observed)
        kl_sx, kl_z, kl_sy = (kl.mean() for kl in of.kl())
        w = self.weights
        over_sx, over_z, over_sy = w.anneal_epochs
        loss = (
            w.rec * rec
            + w.gen * gen
            + annealed(w.sx, epoch, over_sx) * kl_sx
            + annealed(w.z, epoch, over_z) * kl_z
            + annealed(w.sy, epoch, over_sy) * kl_sy
        )
        terms = {"rec": rec, "gen": gen, "kl_sx": kl_sx, "kl_z": kl_z, "kl_sy": kl_sy}
        if w.pred > 0:
            terms["pred"] = self._predictive(rows, masks, of)
            loss = loss + w.pred * terms["pred"]
        return {"loss": loss, **terms}

    def bound(self, rows: Rows, masks: Masks, noise: Noise) -> Tensor:
        """ELBO of log p(context and target cells), (B,) in nats: weights 1, sums over cells and tokens.

        Of one target mask, ``masks.targets`` (1, B, T); missing cells are left out. ``noise``: see ``draw``.
        """
        of = self._latents(rows, masks, noise)
        rec, gen = self._surprise(rows, masks, of, noise)
        observed = self.tokenizer.observed(rows)
        likelihood = -sum(
            (surprise * observed).gather(1, index).sum(1)
            for surprise, index in ((rec, masks.context), (gen, masks.targets[0]))
        )
        kl_sx, kl_z, kl_sy = of.kl()
        total: Tensor = likelihood - kl_sx.sum(1) - kl_z - kl_sy.sum(1)
        return total

    def bounds(self, rows: Rows, folds: int, seed: int) -> Tensor:
        """Mean of ``bound`` over the groups of features as targets, (B,): feature i is in group i mod folds.

        The noise is the same for all rows, so that a row's bound does not depend on the others.
        """
        device = rows.codes.device
        generator = torch.Generator().manual_seed(seed)

        def noise(of: Tensor) -> Tensor:
            return torch.randn(of.shape[1:], generator=generator).to(of)

        group = torch.arange(self.n_features, device=device) % folds
        groups = range(min(folds, self.n_features))
        total = torch.zeros(len(rows), device=device)
        for fold in groups:
            context, target = (
                where.nonzero().squeeze(1).expand(len(rows), -1) for where in (group != fold, group == fold)
            )
            total += self.bound(rows, Masks(context, target.unsqueeze(0)), noise)
        return total / len(groups)

    def _latents(self, rows: Rows, masks: Masks, noise: Noise = torch.randn_like) -> Latents:
        """One draw of each latent, and its posterior and prior."""
        tokens = self.tokenizer(rows)
        b, _, dim = tokens.shape

        x_mean, x_log = self.encode_context(pick(tokens, masks.context))
        s_x = draw(x_mean, x_log, noise)
        pooled = self.pool(s_x)
        z_mean, z_log = self.auxiliary(pooled)
        z = draw(z_mean, z_log, noise)
        y_mean, y_log = self.encode_target(tokens, pooled, z)

        from_z = self.predictor_from_z(z).unsqueeze(1)
        position = self.predictor_position
        at_context = torch.cat([position[:1].expand(b, 1, dim), position[masks.context + 1]], 1)
        shown = self.predictor_from_context(s_x) + from_z + at_context
        targets = masks.targets.transpose(0, 1).flatten(1)  # (B, K·T)
        asked = self.mask_token + from_z + position[targets + 1]
        prior = self.predictor_head(self.predictor.asked(shown, asked, len(masks.targets)))
        return Latents((x_mean, x_log), (z_mean, z_log), (y_mean, y_log), prior, s_x, targets)

    def _surprise(
        self, rows: Rows, masks: Masks, of: Latents, noise: Noise = torch.randn_like
    ) -> tuple[Tensor, Tensor]:
        """−log p of each cell (B, D): of context cells given s_x, of all cells given a draw of s_y."""
        s_x, dim = of.s_x[:, 1:], of.s_x.shape[2]
        empty = torch.zeros(len(s_x), self.n_features, dim, device=s_x.device, dtype=s_x.dtype)
        scattered = empty.scatter(1, masks.context.unsqueeze(-1).expand(-1, -1, dim), s_x)
        rec = self.context_decoder.loss(rows, scattered)
        return rec, self.target_decoder.loss(rows, draw(*of.y, noise))

    def _predictive(self, rows: Rows, masks: Masks, of: Latents) -> Tensor:
        """Mean −log p(y|s_x, z) of the masks' observed target cells; the decoder integrates s_y out."""
        k, b, n_target = masks.targets.shape
        index = of.targets.reshape(b * k, n_target)
        rows = Rows(*(part.repeat_interleave(k, 0) for part in rows))
        empty = of.s_x.new_zeros(b * k, self.n_features, of.s_x.shape[2])
        at = index.unsqueeze(-1).expand(-1, -1, empty.shape[2])
        mean, log_variance = (part.reshape(at.shape) for part in of.prior)
        asked = torch.zeros(b * k, self.n_features, dtype=torch.bool, device=index.device)
        asked = asked.scatter(1, index, True) & self.tokenizer.observed(rows)
        latents = empty.scatter(1, at, mean), empty.scatter(1, at, log_variance.exp())
        return _mean_where(self.target_decoder.loss(rows, *latents), asked)

    def resolve(self, rows: Rows) -> None:
        """Take the floors of the numeric columns' deviations from the rows of the fit."""
        if self.weights.pred > 0:
            floor = resolution(rows)
            self.context_decoder.floor.copy_(floor)
            self.target_decoder.floor.copy_(floor)

    def after_step(self, step: int, total_steps: int) -> None:
        """Nothing: no average of weights is kept."""

    def embed(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Mean and std (B, D, d) of q(s_y|s_x, z, row): nothing is masked, s_x and z are their means."""
        tokens = self.tokenizer(rows)
        pooled = self.pool(self.encode_context(tokens)[0])
        mean, log_variance = self.encode_target(tokens, pooled, self.auxiliary(pooled)[0])
        return mean, (0.5 * log_variance).exp()

    def predict_latents(self, rows: Rows, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """p(s_y|s_x, z) at the hidden cells (B, D), given the others: mean and log-variance (B, D, d).

        s_x and z are their means. Values at cells that are not hidden are meaningless.
        """
        tokens = self.tokenizer(rows)
        keep = torch.cat([torch.ones_like(hidden[:, :1]), ~hidden], 1)
        s_x = self.encode_context(tokens, keep)[0]
        z = self.auxiliary(self.pool(s_x, keep))[0]
        shown = torch.where(keep.unsqueeze(-1), self.predictor_from_context(s_x), self.mask_token)
        sequence = shown + self.predictor_from_z(z).unsqueeze(1) + self.predictor_position
        allow = keep.unsqueeze(1) | ~keep.unsqueeze(2)  # as in the fit: the context attends to itself alone
        mean, log_variance = self.predictor_head(self.predictor(sequence, allow)[:, 1:])
        return mean, log_variance

    def predict(self, rows: Rows, hidden: Tensor) -> CellDistribution:
        """p(cells | the cells that are not hidden), calibrated; read it at the hidden cells (B, D)."""
        cells: CellDistribution = self.calibration([of(rows, hidden) for of in self._sources()])
        return cells

    def predict_each(self, rows: Rows, folds: int, hidden: Tensor | None = None) -> CellDistribution:
        """p(cell | the cells of the other groups), calibrated; feature i is in group i mod ``folds``.

        The ``hidden`` cells (B, D) are in no group's condition.
        """
        cells: CellDistribution = self.calibration(self._each(rows, folds, hidden))
        return cells

    def calibrate(
        self,
        held_out: Rows,
        training: Rows,
        left_out: Rows,
        names: Sequence[str],
        at_once: int,
        folds: int = FOLDS,
    ) -> Calibrated:
        """Fit what is fitted after the weights, and say what it is worth.

        ``held_out`` rows are those that the weights were not fitted to, and ``left_out`` the same as new ones
        would be read; without any there is nothing to fit. The network predicts ``at_once`` of them at a
        time. Where the copula predicts alone, every row, the held-out ones last, is predicted by a fit to
        others.
        """
        sizes, copula = self.target_decoder.sizes, self.copula
        every = training.followed_by(held_out)
        counts = [
            (of[of > 0] - 1).bincount(minlength=n) for of, n in zip(every.codes.unbind(1), sizes, strict=True)
        ]
        if self.alone and copula is not None:
            rows, new_rows = every, training.followed_by(left_out)
        else:
            if copula is not None:
                copula.fit(training)
            rows, new_rows = held_out, left_out
            if not len(rows):
                return Calibrated([], rows, new_rows)
        hidden = hide_together(self.layout, rows)

        def look(predict: _Predict, index: Tensor) -> list[CellDistribution]:
            seen, new = rows.at(index), new_rows.at(index)
            both = twice(partial(by_group, self.layout, folds, predict=predict), seen, new)
            return [*both, *(predict(seen, where[index]) for where in hidden)]

        if self.alone and copula is not None:
            looks = [copula.out_of_fold(rows, partial(look, copula.predict))]
        else:
            pieces = torch.split(torch.arange(len(rows), device=rows.codes.device), at_once)
            looks = []
            for of in self._sources():
                parts = zip(*(look(of, index) for index in pieces), strict=True)
                looks.append([CellDistribution.joined(part) for part in parts])
        sources, of_new, *of_hidden = zip(*looks, strict=True)
        self.calibration.fit(sources, rows, counts)
        self.calibration.widen(of_hidden, rows, hidden)
        said, said_new = cross_calibrated(self.layout, sources, rows, counts, of_new)
        skill = measure(self.layout, names, said, rows, every, counts)
        return Calibrated(skill, rows, new_rows, self.calibration(sources), said_new)

    def _sources(self) -> list[_Predict]:
        """What predicts hidden cells: the network, or the copula, or both."""
        return [
            *([] if self.alone else [self._predict]),
            *([] if self.copula is None else [self.copula.predict]),
        ]

    def _each(self, rows: Rows, folds: int, hidden: Tensor | None = None) -> list[CellDistribution]:
        return [by_group(self.layout, folds, rows, of, hidden) for of in self._sources()]

    def _predict(self, rows: Rows, hidden: Tensor) -> CellDistribution:
        """As the model has it, s_y integrated out."""
        mean, log_variance = self.predict_latents(rows, hidden)
        cells: CellDistribution = self.target_decoder(mean, log_variance.exp())
        return cells


def _mean_where(values: Tensor, where: Tensor) -> Tensor:
    """Mean of the values that ``where`` names; 0 if it names none."""
    return (values * where).sum() / where.sum().clamp(min=1)
