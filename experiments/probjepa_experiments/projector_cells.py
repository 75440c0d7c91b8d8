"""A cell that trains a method with a projector that it does not have, or without the one that it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from probjepa import metrics
from probjepa.data import Images
from probjepa.errors import unknown_name
from probjepa.heads.projectors import equal_widths, projector
from probjepa.methods.base import Method
from probjepa.methods.vje import VJE
from probjepa_experiments.datasets import DataSet
from probjepa_experiments.images import build, image_base, run_embeddings, trained
from probjepa_experiments.measure import encoded, knn_accuracy
from probjepa_experiments.study import Base, Budget, Cell, Data, Measured, Row

WIDTH, LAYERS = 512, 3  # of VJE's projector: as VICReg's expander at these budgets


def base(row: Row, budget: Budget, dataset: str, data: Data) -> Base:
    """What ``image_base`` has, and what is between the embedding and the loss: by default, as it is."""
    plain = image_base(replace(row, settings=_own(row.settings)), budget, dataset, data)
    return Base({**plain.settings, "projector": "as it is"}, plain.fit, plain.modules)


def run(cell: Cell, data: DataSet, folder: Path, budget: Budget, progress: bool) -> Measured:
    """Train a cell, or go on with what ``folder`` holds of it; kNN on the encoder's own embedding h."""
    if cell.task != "train":
        return run_embeddings(replace(cell, settings=_own(cell.settings)), data, folder, budget, progress)
    method = altered(cell.method, _own(cell.settings), cell.settings["projector"], cell.seed)
    trained(cell, data, folder, method, monitor_every=0, knn_every=0, progress=progress)
    bank, queries = (embedded(method, images) for images in (data.train, data.test))
    figures: dict[str, Any] = {
        "knn20/h": knn_accuracy(data, bank, queries),
        "effective rank": metrics.effective_rank(queries),
    }
    return Measured(figures)


def altered(name: str, settings: Mapping[str, Any], how: str, seed: int) -> Method:
    """Return a method "as it is", "none": without its projector, or "own": VJE behind one.

    Without it, a method's loss takes the encoder's embedding h; SimSiam keeps its predictor, made for the
    width of h. Behind one, VJE's posterior and likelihood are of the projector's output.
    """
    method = build(name, settings, seed)
    dim = method.embedding_dim
    with torch.random.fork_rng(()):
        torch.manual_seed(seed)
        if how == "none":
            method.projector = nn.Identity()
            if hasattr(method, "predictor"):
                method.predictor = projector([dim, settings["predictor_dim"], dim])
        elif how == "own":
            behind = Projected(method.encoder, projector(equal_widths(dim, WIDTH, LAYERS)))
            rest = {key: value for key, value in settings.items() if not key.startswith("backbone")}
            method = VJE(behind, seed=seed, **rest)
        elif how != "as it is":
            raise unknown_name("projector", how, ("as it is", "none", "own"))
    return method


class Projected(nn.Module):
    """An encoder with a projector behind it, as one encoder (N, C, H, W) → (N, WIDTH)."""

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.projector = encoder, head

    def forward(self, x: Tensor) -> Tensor:
        """Encode and project."""
        projected: Tensor = self.projector(self.encoder(x))
        return projected


def embedded(method: Method, images: Images) -> Tensor:
    """Return the encoder's embeddings (N, D) of images: what is before a projector."""
    encoder = method.encoder.encoder if isinstance(method.encoder, Projected) else method.encoder
    return encoded(method, encoder, images)


def _own(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != "projector"}
