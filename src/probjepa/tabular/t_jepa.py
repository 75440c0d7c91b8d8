"""TJEPA: the deterministic baseline, T-JEPA, as a scikit-learn transformer of tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from probjepa.errors import ConfigError
from probjepa.methods.ema import EMA
from probjepa.tabular.estimator import TableTransformer
from probjepa.tabular.features import NumericTransform
from probjepa.tabular.masks import Masks
from probjepa.tabular.networks import Transformer, pick, token_parameter
from probjepa.tabular.schema import ColumnType
from probjepa.tabular.tokens import FeatureTokenizer, Layout, Rows


class RowEncoder(nn.Module):
    """Tokenizer and transformer: a row's shown features to their latents; the REG tokens are always shown."""

    def __init__(self, layout: Layout, dim: int, n_reg: int, **sizes: Any) -> None:
        super().__init__()
        self.tokenizer = FeatureTokenizer(layout, dim)
        self.reg = nn.Parameter(torch.randn(1, n_reg, dim) / math.sqrt(dim))
        self.transformer = Transformer(dim, **sizes)

    def forward(self, rows: Rows, shown: Tensor | None = None) -> Tensor:
        """Latents (B, C, d) of the features ``shown`` (B, C), or (B, D, d) of all; REG tokens are dropped."""
        tokens = self.tokenizer(rows)
        if shown is not None:
            tokens = pick(tokens, shown)
        x = torch.cat([self.reg.expand(len(tokens), -1, -1), tokens], 1)
        out: Tensor = self.transformer(x)[:, self.reg.shape[1] :]
        return out


class TJEPANetwork(nn.Module):
    """T-JEPA (arXiv 2410.05016): predict an averaged encoder's latents of masked features, by MSE."""

    def __init__(self, layout: Layout, *, dim: int, n_reg: int, ema_momentum: float, **sizes: Any) -> None:
        super().__init__()
        self.dim, self.n_features = dim, layout.n_features
        self.encoder = RowEncoder(layout, dim, n_reg, **sizes)
        self.target = EMA(self.encoder, ema_momentum)
        self.from_context = nn.Linear(dim, dim)
        self.mask_token = token_parameter(dim)
        self.position = nn.Parameter(torch.randn(layout.n_features, dim) / math.sqrt(dim))
        self.predictor = Transformer(dim, **sizes)
        self.to_latent = nn.Linear(dim, dim)

    def loss(self, rows: Rows, masks: Masks, epoch: float = math.inf) -> dict[str, Tensor]:
        """Return "loss": ‖predicted − averaged encoder's latent‖², mean over target tokens and d."""
        shown = self.from_context(self.encoder(rows, masks.context)) + self.position[masks.context]
        targets = masks.targets.transpose(0, 1).flatten(1)  # (B, K·T)
        asked = self.mask_token + self.position[targets]
        predicted = self.predictor.asked(shown, asked, len(masks.targets))
        return {"loss": F.mse_loss(self.to_latent(predicted), pick(self.target(rows), targets))}

    def after_step(self, step: int, total_steps: int) -> None:
        """Move the averaged encoder."""
        self.target.update(self.encoder, step, total_steps)

    def embed(self, rows: Rows) -> Tensor:
        """Latents (B, D, d) of whole rows under the averaged encoder."""
        latents: Tensor = self.target(rows)
        return latents


class TJEPA(TableTransformer):
    """T-JEPA for tables (arXiv 2410.05016): the deterministic baseline of ``VarTJEPA``.

    Masks, optimiser and schedule are ``VarTJEPA``'s. Tokens and length are not: a number's token is linear in
    its value, whatever the preset's ``n_bins``, gradients are cut off at norm 1, and ``max_epochs`` are run,
    however many steps they are. Nothing is held out for validation: the EMA target moves, so that losses of
    different epochs do not compare, and the last epoch is kept. The embedding is the averaged encoder's of
    the whole row. There is no likelihood: neither scores nor uncertainty.

    Parameters
    ----------
    n_reg
        REG tokens: never masked, dropped before the predictor
    ema_momentum
        of the averaged encoder, → 1 on a cosine
    preset, max_epochs, batch_size, learning_rate, warmup_epochs, weight_decay, context_share, target_share
        see ``VarTJEPA``
    n_targets, dim, n_layers, n_heads, ff_dim, dropout, embedding
        see ``VarTJEPA``
    column_types, numeric_transform, max_categories, precision, random_state, device, verbose
        see ``VarTJEPA``
    """

    n_reg: int
    ema_momentum: float

    def __init__(
        self,
        preset: str = "small",
        *,
        max_epochs: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        warmup_epochs: float | None = None,
        weight_decay: float | None = None,
        context_share: tuple[float, float] | None = None,
        target_share: tuple[float, float] | None = None,
        n_targets: int | None = None,
        n_reg: int = 1,
        ema_momentum: float = 0.996,
        dim: int | None = None,
        n_layers: int | None = None,
        n_heads: int | None = None,
        ff_dim: int | None = None,
        dropout: float | None = None,
        embedding: Literal["flattened", "pooled"] = "flattened",
        column_types: Mapping[str, ColumnType] | None = None,
        numeric_transform: NumericTransform = "quantile",
        max_categories: int = 256,
        precision: Literal["float32", "bf16"] = "float32",
        random_state: int | np.random.RandomState | None = None,
        device: str = "auto",
        verbose: bool = False,
    ) -> None:
        self._set_parameters(locals())

    def _settings(self) -> dict[str, Any]:
        settings = super()._settings()
        if self.n_reg < 0:
            raise ConfigError(f"n_reg is {self.n_reg!r}: use 0 or more")
        return settings | {
            "n_reg": self.n_reg,
            "ema_momentum": self.ema_momentum,
            "validation_fraction": 0.0,
        }

    def _build(self, layout: Layout, settings: Mapping[str, Any]) -> TJEPANetwork:
        names = ("dim", "n_reg", "ema_momentum", "n_layers", "n_heads", "ff_dim", "dropout")
        return TJEPANetwork(layout, **{name: settings[name] for name in names})

    @torch.no_grad()
    def transform(self, X: Any) -> npt.NDArray[np.float32]:
        """Embed a table (N, D): (N, D·dim), or (N, dim) if pooled. Raises as ``VarTJEPA.transform``."""
        return np.concatenate([self._arranged(self.network_.embed(rows)) for rows in self._batches(X)])
