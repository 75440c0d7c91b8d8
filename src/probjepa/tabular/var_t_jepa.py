"""VarTJEPA: Var-T-JEPA as a scikit-learn transformer of tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, Self, get_args

import numpy as np
import numpy.typing as npt
import torch

from probjepa.detectors.base import Thresholded, threshold_sample
from probjepa.errors import ConfigError, DataError, counted, warn
from probjepa.metrics.conformal import threshold, threshold_rank
from probjepa.tabular.anomalies import Cells, Reduction, Typical, blame, judged, looked_up, row_scores
from probjepa.tabular.copula import bins_for
from probjepa.tabular.estimator import TableTransformer, parted, rows_at_a_time
from probjepa.tabular.features import NumericTransform
from probjepa.tabular.fitting import FEWEST_VALIDATION_ROWS, FitLoop, split_rows, stretched
from probjepa.tabular.frames import as_frame, named, pandas
from probjepa.tabular.imputation import Imputation, described, filled, hidden_cells, without
from probjepa.tabular.schema import ColumnType
from probjepa.tabular.skill import Skill
from probjepa.tabular.tokens import Layout, Rows
from probjepa.tabular.var_network import FOLDS, VarTJEPANetwork, Weights
from probjepa.typed import check_settings, checked, types_of

_SCORE_SEED = 0  # of the draws of the bound
_FEWEST_ROWS = 500  # of a table whose cells the network helps to predict


class VarTJEPA(Thresholded, TableTransformer):
    r"""Variational T-JEPA for tables (arXiv 2603.20111): embeddings, uncertainty, scores, imputation.

    A parameter that is None is the preset's (``PRESETS[preset]``). ``fit`` and ``transform`` take a
    DataFrame (pandas, polars), a pyarrow Table or an array, with numbers, categories, booleans, dates and
    missing cells as they are. The loss is −ELBO, α_rec·rec + α_gen·gen + α_sx·KL + α_z·KL + α_sy·KL (see
    ``VarTJEPANetwork``).

    At embedding time nothing is masked and latents are their means.

    ``skill_`` says of each feature what was learned: held-out nats gained over its own distribution and the
    share of variance or errors explained (``skill.Skill``); ``fit`` warns of features with none. It is empty
    without validation rows, and of a model saved before there was one.

    It is an outlier detector as well: ``predict`` gives −1 for rows whose ``score_samples`` is below
    ``offset_``. ``held_out_scores_`` (n,) are those of the rows that the fit held out to stop by (n ≤ 1,024),
    by what was not fitted to them, for ``metrics.conformal``; ``typical_`` is what standardises the cells'
    surprise (``anomalies.Typical``).

    Parameters
    ----------
    preset
        "small", or the published settings of "adult", "credit", "bank", "electricity", "covertype", "mnist"
    max_epochs, batch_size, learning_rate, warmup_epochs, weight_decay, patience, validation_fraction
        of the fit (see ``fitting.FitLoop``)
    min_steps, max_steps
        a fit has at least and at most about so many (0: no limit): of a table of few or many rows the epochs
        of the preset, and all that is counted in epochs, are as many times more or less (``max_epochs`` that
        are given are kept)
    context_share, target_share
        (low, high) shares of the features, from which each batch's counts are drawn
    n_targets
        K target masks a row
    dim, n_layers, n_heads, ff_dim, dropout
        of each of the three transformers; ``dim`` is the size of all latents
    n_bins
        of the piecewise linear encoding of numbers; 0: linear, as published
    copula
        what predicts hidden cells: the network ("none", as published), both it and a Gaussian copula of the
        cells, in the shares that held-out rows ask for ("beside"), or the copula ("alone"); "auto" is
        "alone" below 500 rows, which are too few for a network, and else "beside"
    alpha_sx, alpha_z, alpha_sy, alpha_rec, alpha_gen
        weights of the loss
    alpha_pred
        weight of −log p(target cells | context), ours, which trains what is imputed and scored; 0 is the
        paper's loss, with its one variance for all numbers
    max_grad_norm
        gradients are cut at this norm
    anneal_epochs
        over how many epochs the three KL weights rise from 0: (sx, z, sy)
    embedding
        "flattened": (N, D·dim); "pooled": the mean over features, (N, dim)
    column_types, max_categories
        see ``TableSchema.infer``
    numeric_transform
        "quantile": numbers to normal quantiles, so that a heavy tail does not rule the likelihood;
        "standard": (x − mean)/std
    contamination
        share of the rows of the fit that ``predict`` calls outliers, in (0, 0.5]: ``offset_`` is that
        quantile of their scores (of 1,024 of them, evenly spaced, where there are more)
    alpha
        None, or the share of new typical rows that ``predict`` may call outliers, in (0, 1), in the place of
        ``contamination``: ``offset_`` is the conformal threshold among the rows that the fit held out
        (``metrics.conformal.threshold``; at least 1/α − 1 of them), each scored by a calibration and a schema
        of the columns that leave it out: its category is unknown if no other row has it, its number beyond
        the range if all others are below. They stopped the fit, so that the rate holds nearly, not exactly
    precision
        of the transformers' products in the fit's steps: "bf16" takes about half of the time at the size
        published for Adult, where the processor has units for it (AVX512-BF16, AMX, a GPU). Likelihoods,
        validation and whatever comes after the fit are float32
    random_state
        int, numpy RandomState or None
    device
        "auto" (CUDA if there is one), "cpu", "cuda", …
    verbose
        whether ``fit`` shows a progress bar on stderr

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"age": [21.0, 35.0, None, 50.0], "work": ["a", "b", "a", None]})
    >>> model = VarTJEPA(max_epochs=1, dim=8, random_state=0).fit(table)
    >>> model.transform(table).shape, model.uncertainty(table).shape
    ((4, 16), (4,))
    """

    def __init__(
        self,
        preset: str = "small",
        *,
        max_epochs: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        warmup_epochs: float | None = None,
        weight_decay: float | None = None,
        patience: int | None = None,
        validation_fraction: float | None = None,
        context_share: tuple[float, float] | None = None,
        target_share: tuple[float, float] | None = None,
        n_targets: int | None = None,
        dim: int | None = None,
        n_layers: int | None = None,
        n_heads: int | None = None,
        ff_dim: int | None = None,
        dropout: float | None = None,
        n_bins: int | None = None,
        min_steps: int | None = None,
        max_steps: int | None = None,
        copula: Literal["auto", "none", "beside", "alone"] | None = None,
        alpha_sx: float | None = None,
        alpha_z: float | None = None,
        alpha_sy: float | None = None,
        alpha_rec: float | None = None,
        alpha_gen: float | None = None,
        alpha_pred: float | None = None,
        max_grad_norm: float | None = None,
        anneal_epochs: tuple[float, float, float] | None = None,
        embedding: Literal["flattened", "pooled"] = "flattened",
        column_types: Mapping[str, ColumnType] | None = None,
        numeric_transform: NumericTransform = "quantile",
        max_categories: int = 256,
        contamination: float = 0.1,
        alpha: float | None = None,
        precision: Literal["float32", "bf16"] = "float32",
        random_state: int | np.random.RandomState | None = None,
        device: str = "auto",
        verbose: bool = False,
    ) -> None:
        self._set_parameters(locals())

    def _settings(self) -> dict[str, Any]:
        settings = super()._settings()
        for name in ("n_bins", "min_steps", "max_steps"):
            if settings[name] < 0:
                raise ConfigError(f"{name} is {settings[name]!r}: use a number from 0")
        if settings["patience"] < 1:
            raise ConfigError(f"patience is {settings['patience']!r}: use at least 1")
        if not settings["max_grad_norm"] > 0:
            raise ConfigError(f"max_grad_norm is {settings['max_grad_norm']!r}: use a positive number")
        if not 0 <= settings["validation_fraction"] < 1:
            raise ConfigError(f"validation_fraction is {settings['validation_fraction']!r}: use 0 to below 1")
        self._check_contamination()
        return settings

    def _build(self, layout: Layout, settings: Mapping[str, Any]) -> VarTJEPANetwork:
        alphas = {name: settings[f"alpha_{name}"] for name in ("rec", "gen", "sx", "z", "sy")}
        alphas["pred"] = settings.get("alpha_pred", 0.0)  # models saved before it was there have none
        if min(alphas.values()) < 0:
            raise ConfigError(f"the alphas are {alphas}: use numbers from 0")
        sizes = {name: settings[name] for name in ("dim", "n_layers", "n_heads", "ff_dim", "dropout")}
        return VarTJEPANetwork(
            layout,
            **sizes,
            n_bins=settings.get("n_bins", 0),
            copula=checked("copula", settings.get("copula", "none"), Literal["none", "beside", "alone"]),
            copula_bins=settings.get("copula_bins", 0),
            weights=Weights(**alphas, anneal_epochs=tuple(settings["anneal_epochs"])),
        )

    def _prepare(self, network: VarTJEPANetwork, rows: Rows) -> None:
        if self.alpha is not None:  # before the fit, not after it
            share = self._settings()["validation_fraction"]
            held_out = split_rows(len(rows), share, 0)[1]
            try:
                threshold_rank(len(threshold_sample(len(held_out))), self.alpha)
            except DataError as error:
                raise DataError(
                    f"{error} (they are held out of the fit's {counted(len(rows), 'row')} by "
                    f"validation_fraction={share:g}, where that makes {FEWEST_VALIDATION_ROWS} or more: give "
                    "more rows, or a larger share)"
                ) from error
        network.resolve(rows)

    def _settled(self, settings: dict[str, Any], layout: Layout, n_rows: int) -> dict[str, Any]:
        if self.max_epochs is None:
            settings = stretched(settings, n_rows)
        bins = bins_for(layout, n_rows)
        if settings["copula"] == "auto":
            few = n_rows < _FEWEST_ROWS
            settings["copula"] = "none" if bins is None else "alone" if few else "beside"
        elif settings["copula"] != "none" and bins is None:
            raise ConfigError(f"copula is {settings['copula']!r}, but the table is too wide: use 'none'")
        return settings if settings["copula"] == "none" else settings | {"copula_bins": bins}

    @torch.no_grad()
    def _finish(self, loop: FitLoop) -> None:
        network: VarTJEPANetwork = loop.network
        training, held_out, left_out = parted(loop, self.schema_)
        names = [feature.name for feature in self.schema_.features]
        found = network.calibrate(held_out, training, left_out, names, rows_at_a_time(self.schema_))
        self.skill_: list[Skill] = found.skill
        if network.alone and self.copula != "alone":
            warn(
                f"the table has {len(training) + len(held_out)} rows: its cells are predicted by a copula "
                f"alone, since a network needs {_FEWEST_ROWS}; embeddings are the network's (copula='none' "
                "takes it for cells too)"
            )
        if none := [of.feature for of in self.skill_ if of.none]:
            warn(
                f"nothing was learned of {len(none)} of {len(names)} columns ({named(none)}): their held-out "
                "cells are predicted no better than by the column's own distribution, so what is imputed "
                "there is the marginal; see skill_"
            )
        of_fit = self._sampled(training.followed_by(held_out))
        # as predicted by what has not seen them: a copula alone is fitted to the held-out rows in the end
        kept, as_new = (
            None if cells is None else looked_up(network, cells, rows)
            for cells, rows in ((found.kept, found.rows), (found.new, found.new_rows))
        )
        self.typical_ = Typical.of(kept, of_fit)  # of the correction whose cells it standardises
        self.held_out_scores_ = np.empty(0)
        if as_new is not None and len(held_out):
            last = row_scores(as_new)[-len(held_out) :]
            self.held_out_scores_ = last[threshold_sample(len(held_out))]
        if self.alpha is None:
            self.offset_ = float(np.quantile(row_scores(of_fit, self.typical_), self.contamination))
        else:
            self.offset_ = threshold(self.held_out_scores_, self.alpha)

    def config(self) -> dict[str, Any]:
        """Return what config.json holds of a fitted estimator: ``skill_`` with it, and what scores need."""
        saved = super().config() | {"skill": [of._asdict() for of in self.skill_]}
        if hasattr(self, "typical_"):
            saved["typical"] = self.typical_._asdict()
            saved["held_out_scores"], saved["offset"] = self.held_out_scores_.tolist(), self.offset_
        return saved

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Make a fitted estimator with fresh weights from what ``config`` returned."""
        model = super().from_config(config)
        # models saved before there was one have none
        types, skill = types_of(Skill), checked("skill", config.get("skill", []), list[dict[str, Any]])
        model.skill_ = [Skill(**check_settings(of, types)) for of in skill]
        if skill and [of.feature for of in model.skill_] != [of.name for of in model.schema_.features]:
            raise ValueError("skill is not of the schema's features")
        if "typical" in config:
            model.typical_ = Typical.from_json(config["typical"], len(model.schema_.features))
            scores = checked("held_out_scores", config["held_out_scores"], list[float])
            model.held_out_scores_ = np.array(scores, dtype=np.float64)
            model.offset_ = checked("offset", config["offset"], float)
        return model

    @torch.no_grad()
    def transform(self, X: Any) -> npt.NDArray[np.float32]:
        """Embed a table (N, D): posterior means of the target side, (N, D·dim), or (N, dim) if pooled.

        Raises
        ------
        NotFittedError
            before ``fit``
        DataError
            if the columns are not the fit's, or a cell is not of its column's type
        """
        return np.concatenate([self._arranged(self.network_.embed(rows)[0]) for rows in self._batches(X)])

    @torch.no_grad()
    def uncertainty(
        self, X: Any, reduction: Literal["mean", "p90", "decoded", "predictive"] = "mean"
    ) -> npt.NDArray[np.float64]:
        """Uncertainty of each row, (N,): of what its cells say of each other, or of the target posterior.

        Parameters
        ----------
        X
            the table (N, C)
        reduction
            "predictive": the mean over features of ``uncertainty_features``, in nats: how ambiguous the row
            is. It is the same for fits that predict alike, and falls where cells determine each other.
            "mean", "p90": the mean or 90th percentile of the row's D·dim standard deviations of the target
            posterior, the published measures. Nothing fixes the deviations in directions that the decoder
            ignores, so another ``random_state`` may rank the rows differently.
            "decoded": the mean over features of how much that posterior blurs the decoded cell, in nats
            (``FeatureDecoder.blur``); it has no such freedom

        Raises
        ------
        NotFittedError, DataError
            as ``transform``
        ConfigError
            for another reduction
        """
        if reduction == "predictive":
            entropy: npt.NDArray[np.float64] = self._cells(self._batches(X)).expected.mean(1)
            return entropy
        if reduction not in ("mean", "p90", "decoded"):
            raise ConfigError(f"reduction is {reduction!r}: use 'predictive', 'mean', 'p90' or 'decoded'")
        parts = []
        for rows in self._batches(X):
            mean, std = self.network_.embed(rows)
            if reduction == "decoded":
                values = self.network_.target_decoder.blur(mean, std.square()).double()
            else:
                values = std.flatten(1).double()
            parts.append(values.quantile(0.9, dim=1) if reduction == "p90" else values.mean(1))
        return torch.cat(parts).cpu().numpy()

    def uncertainty_features(self, X: Any, folds: int = FOLDS) -> Any:
        """Uncertainty of each cell, the entropy of p(cell | the row's other cells): a DataFrame (N, D), nats.

        It does not depend on what stands in the cell, nor whether anything does: a cell's surprise
        (``score_features``) is what it turned out to be, this is what was to be expected. A number's is
        that of a density of the transformed column, and may be below 0. Folds, columns and errors are those
        of ``score_features``.
        """
        _check_folds(folds)
        return self._frame(self._cells(self._batches(X), folds).expected, X)

    def score_samples(
        self,
        X: Any,
        folds: int = FOLDS,
        kind: Literal["cells", "elbo"] = "cells",
        reduction: Reduction = "mean",
    ) -> npt.NDArray[np.float64]:
        """Score each row, (N,); higher = more typical.

        The features are dealt into ``folds`` groups (feature i to group i mod folds; D: leave one out), and
        each is predicted from the others. Numbers are densities of the transformed columns.

        Parameters
        ----------
        X
            the table (N, C)
        folds
            groups; one pass each
        kind
            "cells": from log p(cell | the cells of the other groups), calibrated, by the ``reduction``.
            "elbo": the evidence lower bound of log p(row), all weights 1 and sums over cells, missing ones
            left out; the mean over groups as targets, with one draw each, the same for all rows, in nats. Its
            KL terms are large wherever the fit's weights for them were small
        reduction
            "mean": the mean log p, in nats; a missing cell counts with its expected log-probability, so that
            rows with and without compare. "max", "top-k": −the largest, or −the mean of the 3 largest
            standardised surprises (see ``score_features``), a missing cell's being 0. "explained": the mean
            log p, less a D-th of what the worst cell spoils (``score_features(explained=True)``); 4 times
            the passes

        Raises
        ------
        NotFittedError, DataError
            as ``transform``
        ConfigError
            for fewer than 1 fold, another kind or reduction, or a reduction of the bound
        """
        if kind not in ("cells", "elbo"):
            raise ConfigError(f"kind is {kind!r}: use 'cells' or 'elbo'")
        if reduction not in get_args(Reduction):
            raise ConfigError(f"reduction is {reduction!r}: use {', '.join(map(repr, get_args(Reduction)))}")
        _check_folds(folds)
        if kind == "elbo":
            if reduction != "mean":
                raise ConfigError(f"reduction is {reduction!r}, and the bound is of rows: use kind='cells'")
            with torch.no_grad():
                bounds = [self.network_.bounds(rows, folds, _SCORE_SEED) for rows in self._batches(X)]
            return torch.cat(bounds).double().cpu().numpy()
        if reduction == "explained":
            return row_scores(*self._blamed(self._batches(X), folds), reduction)
        cells = self._cells(self._batches(X), folds)
        return row_scores(cells, None if reduction == "mean" else self._typical(), reduction)

    def decision_function(self, X: Any) -> npt.NDArray[np.float64]:
        """Return ``score_samples(X)`` − ``offset_`` (N,): negative for outliers. Errors as there."""
        self._check_is_fitted()
        self._require("offset_")
        return super().decision_function(X)

    def score(self, X: Any, y: Any = None) -> float:
        """Return the mean log p(cell | the others), which scikit-learn's searches maximise; y is ignored."""
        return float(self.score_samples(X).mean())

    def score_features(
        self, X: Any, folds: int = FOLDS, *, standardized: bool = False, explained: bool = False
    ) -> Any:
        """Surprise of each cell, −log p(cell | the row's other cells): a DataFrame (N, D), NaN where missing.

        A datetime column has a column for each part. See ``score_samples``. ``standardized``: beyond what was
        expected of the cell (its distribution's entropy), less the mean and by the standard deviation of that
        over the column's held-out cells: so columns compare, and none that always surprises drowns the
        others. Warns of columns with fewer than 50 held-out cells: cells of the fit's rows take their place.
        ``explained``: how much the cell spoils its row, in nats (``anomalies.blame``): its surprise beyond
        what was expected, and for a row's three most surprising cells what they add to the surprise of the
        others. A wrong cell makes right ones look odd, and this tells them apart; 4 times the passes.
        """
        _check_folds(folds)
        if explained and standardized:
            raise ConfigError("explained and standardized are two scales: use one of them")
        if explained:
            return self._frame(self._blamed(self._batches(X), folds)[1], X)
        cells = self._cells(self._batches(X), folds)
        return self._frame(self._typical().standardized(cells) if standardized else cells.surprise, X)

    def _frame(self, cells: npt.NDArray[np.float64], X: Any) -> Any:
        """Values of cells (N, D) as a DataFrame with the rows' index."""
        names = [feature.name for feature in self.schema_.features]
        return pandas().DataFrame(cells, columns=names, index=as_frame(X, self.schema_.columns).index)

    def _sampled(self, rows: Rows) -> Cells:
        index = torch.from_numpy(threshold_sample(len(rows))).to(rows.numeric.device)
        return self._cells(self._pieces(rows.at(index)))

    def _typical(self) -> Typical:
        self._require("typical_")
        self.typical_.warn([feature.name for feature in self.schema_.features])
        return self.typical_

    def _require(self, attribute: str) -> None:
        if not hasattr(self, attribute):
            raise ConfigError(f"this VarTJEPA was saved before it had {attribute}: fit it again")

    def _cells(self, batches: Iterable[Rows], folds: int = FOLDS) -> Cells:
        """How surprising each cell is, given those of the other groups."""
        found = [judged(self.network_, rows, folds) for rows in batches]
        return Cells(*map(np.concatenate, zip(*found, strict=True)))

    def _blamed(self, batches: Iterable[Rows], folds: int) -> tuple[Cells, npt.NDArray[np.float64]]:
        """The same, and how much each cell spoils its row."""
        found = []
        for rows in batches:
            cells = judged(self.network_, rows, folds)
            found.append((*cells, blame(self.network_, rows, folds, cells)))
        surprise, expected, of_cells = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return Cells(surprise, expected), of_cells

    def impute(self, X: Any, mask: Any = None) -> Imputation:
        """Predict missing cells, and those that ``mask`` names, from the others of their row.

        A number's distribution is Gaussian in the transformed column; its value is the mean of what that is
        in the table's units, which has the least squared error, and its interval, ``low`` to ``high``, is of
        95 %, by the errors of held-out cells with as many of their row hidden. A category's probabilities are
        over the known ones. A datetime is filled from its part "days". A number stays in the range that the
        fit saw; a column that was empty in the fit stays missing.

        The distributions are calibrated on the rows that the fit held out to stop by, see ``Calibration``;
        where the copula predicts alone, on each row in turn. With fewer than 50 of those, or
        ``validation_fraction=0``, they are the network's own, which are too narrow (3 to 4 times on a column
        of noise).

        Parameters
        ----------
        X
            the table (N, C)
        mask
            further cells to hide and predict: bool (N, C), in the order of X's columns; or a DataFrame, which
            is matched by its labels, and hides nothing in columns that it does not have

        Raises
        ------
        NotFittedError, DataError
            as ``transform``; DataError if the mask has another shape,
            other values or other labels
        """
        self._check_is_fitted()
        pd = pandas()
        called = as_frame(X, self.schema_.columns)
        hide = None if mask is None else hidden_cells(mask, called)
        given = self._by_position(called)
        frame = self.schema_.frame(given if hide is None else without(given, hide))
        parts, start = [], 0
        for rows in self._batches(frame):
            with torch.no_grad():
                hidden = ~self.network_.tokenizer.observed(rows)
                cells = self.network_.predict(rows, hidden)
            reach = self.network_.calibration.reach_of(hidden, FOLDS)
            parts.append(described(self.schema_, cells, hidden, reach, start))
            start += len(rows)
        table, out = pd.concat(parts, ignore_index=True), given.copy()
        table["marginal"] = table["feature"].isin([of.feature for of in self.skill_ if of.none])
        for feature in self.schema_.features:
            if feature.part not in (None, "days"):
                continue
            found = table[table["feature"] == feature.name]
            if len(found):
                out[feature.column] = filled(given[feature.column], found, feature)
            elif hide is not None and feature.low is None and not feature.categories:
                out[feature.column] = frame[feature.column]  # nothing is known of it
        out.columns = X.columns if isinstance(X, pd.DataFrame) else called.columns
        return Imputation(out, table)


def _check_folds(folds: int) -> None:
    if not isinstance(folds, int | np.integer) or folds < 1:
        raise ConfigError(f"folds is {folds!r}: use a whole number from 1")
