"""Directions in input space that the embedding responds to most: right singular vectors of the Jacobian."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from probjepa.errors import ConfigError, DataError
from probjepa.jacobian.encoders import as_encoder, exact_gradients, refuse_batch_dependence
from probjepa.jacobian.rows import JacobianRows, Passes
from probjepa.typed import settings_checked


@settings_checked
def singular_vectors(encoder: Any, images: Any, count: int = 4) -> tuple[Tensor, Tensor]:
    """Return each input's largest singular values (N, count) and right singular vectors (N, count, …).

    A vector has the shape of a prepared input and norm 1, and its sign is such that its largest entry is
    positive. Float64; K passes; meant for a few images: the whole Jacobian is held.

    Raises
    ------
    ConfigError
        if ``count`` is not in 1 … min(K, P), or the encoder is not differentiable, or in training mode
    DataError
        for inputs of a wrong type, or derivatives that are not finite
    """
    model = as_encoder(encoder)
    with exact_gradients(model):
        source = model.source(images)
        x = model.prepare(source if isinstance(source, Tensor) else source.get(slice(None)))
        refuse_batch_dependence(model, x[:1])
        rows = JacobianRows(model, x, Passes())
        dim = rows.embeddings.shape[1]
        limit = min(dim, x[0].numel())
        if not 1 <= count <= limit:
            raise ConfigError(f"count is {count}: use 1 to {limit}, the singular vectors that there are")
        jacobian = rows(torch.eye(dim, device=x.device)).double()
    if not bool(torch.isfinite(jacobian).all()):
        raise DataError("derivatives of the encoder are not finite for some inputs: repair the encoder")
    _, sigma, right = torch.linalg.svd(jacobian, full_matrices=False)
    right = right[:, :count]
    largest = right.gather(2, right.abs().argmax(2, keepdim=True))
    return sigma[:, :count].cpu(), (right * largest.sign()).reshape(len(x), count, *x.shape[1:]).cpu()
