"""What the losses of methods over several views share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from probjepa.errors import ConfigError, DataError

if TYPE_CHECKING:
    from probjepa.methods.base import Method


def views_of(method: Method, batch: Sequence[Tensor]) -> list[Tensor]:
    """Return the V views (N, C, …) of a batch, in the encoder's type, or raise DataError."""
    if not 2 <= len(batch) <= method.most_views or any(v.shape[:2] != batch[0].shape[:2] for v in batch):
        wanted = "two views" if method.most_views == 2 else "two or more views"
        raise DataError(
            f"the loss of {type(method).__name__} takes {wanted} of the same images, got "
            f"{[tuple(view.shape) for view in batch]}: make them with the view recipe '{method.view_recipe}'"
        )
    if not len(batch[0]):
        raise DataError(
            f"the loss of {type(method).__name__} got views without rows, {tuple(batch[0].shape)}: "
            "give at least one image a batch"
        )
    if any(view.is_complex() for view in batch):
        raise DataError(f"the loss of {type(method).__name__} got complex views: give real numbers")
    return [view.to(method.dtype) for view in batch]


def encoded(encoder: nn.Module, views: Sequence[Tensor]) -> Tensor:
    """Return the embeddings (V·N, …) of V views, view after view; neighbours of one size take one pass."""
    if all(view.shape == views[0].shape for view in views):
        return encoder(torch.cat([*views]))  # type: ignore[no-any-return]
    return torch.cat([encoder(torch.cat([*alike])) for _, alike in groupby(views, lambda view: view.shape)])


def other_views(rows: Tensor, views: int) -> list[Tensor]:
    """Return V − 1 turns of rows (V·N, …), view after view: each puts another view in the place of each."""
    return [torch.cat([*rows.chunk(views)[turn:], *rows.chunk(views)[:turn]]) for turn in range(1, views)]


def mean_of(terms: Sequence[Tensor]) -> Tensor:
    """Return the mean of scalars, at least one; of one and of two it is exact to the last bit."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total / len(terms)


def check_pairs(z: Tensor, name: str) -> None:
    """Raise DataError for fewer than two rows of z (N, D), which have no variance; ``name`` is the loss's."""
    if len(z) < 2:
        raise DataError(f"the {name} loss needs at least 2 images a batch, got {len(z)}: use a larger batch")


def check_weights(weights: Mapping[str, float]) -> None:
    """Raise ConfigError unless the weights of a loss, by the name of their setting, are finite and ≥ 0."""
    for name, value in weights.items():
        if not 0 <= value < math.inf:
            raise ConfigError(f"{name} must be a finite number ≥ 0, got {value}")
