"""Sections that show single images: the most and the least typical, and a map of the embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probjepa.report.maps import class_map, pca_map, score_map
from probjepa.report.page import Gallery, Section

_TILES, _POINTS = 20, 4000  # images in a gallery, points on the map: more of either is not looked at


def typical_section(
    arrays: Mapping[str, Any], scores: Mapping[str, Any], detector: str, test: str
) -> Section | None:
    """Return the images of every set by their ``scores`` (set → (N,)), or None where there are none."""
    images = arrays.get("images")
    items = []
    if images is not None and len(images) and len(np.ravel(scores.get("test", ()))) == len(images):
        order = _order(scores["test"])
        items.append(_gallery(f"Most typical of {test}", images, scores["test"], order[::-1][:_TILES]))
        items.append(_gallery(f"Least typical of {test}", images, scores["test"], order[:_TILES]))
    for name, other in (arrays.get("ood_images") or {}).items():
        if len(other) and len(np.ravel(scores.get(name, ()))) == len(other):
            best = _order(scores[name])[::-1][: _TILES // 2]
            items.append(
                _gallery(f"Most typical of {name}: the hardest to tell apart", other, scores[name], best)
            )
    if not items:
        return None
    text = (
        f"Images sorted by the {detector} score, which stands under each. If the score means something, the "
        f"least typical images look unusual, and the images of other sets that score highest resemble {test}."
    )
    return Section("Typical and unusual", text, items)


def map_section(arrays: Mapping[str, Any], score: Any) -> Section | None:
    """Return the embeddings in two dimensions, by label and by ``score`` (N,), or None without either."""
    if not has_rows(arrays.get("embeddings")):
        return None
    embeddings = np.asarray(arrays["embeddings"], np.float64)
    keep = np.flatnonzero(np.isfinite(embeddings).all(1))
    if not len(keep):
        return None
    if len(keep) > _POINTS:
        keep = np.sort(np.random.default_rng(0).choice(keep, _POINTS, replace=False))
    labels = arrays.get("labels")
    coords = pca_map(embeddings[keep])
    centred = embeddings[keep] - embeddings[keep].mean(0)
    share = float((coords**2).sum() / max(float((centred**2).sum()), 1e-300))
    items = []
    if labels is not None and len(labels) == len(embeddings):
        items.append(class_map(coords, np.asarray(labels)[keep], arrays.get("classes")))
    if score is not None and len(score) == len(embeddings):
        items.append(score_map(coords, np.asarray(score)[keep]))
    if not items:
        return None
    text = (
        f"The two main directions of the embedding (PCA) hold {100 * share:.0f} % of its variance. Classes "
        "that form separate clouds here are separate in the whole space; clouds that overlap here may still "
        "be apart in other directions."
    )
    return Section("Map", text, items)


def _gallery(title: str, images: Any, scores: Any, order: NDArray[np.intp]) -> Gallery:
    values = np.ravel(scores)
    captions = [f"{values[i]:#.4g}".removesuffix(".").replace("-", "−") for i in order]
    return Gallery(pixels(images, order), captions, title)


def pixels(images: Any, rows: NDArray[np.intp]) -> NDArray[np.uint8]:
    """Return some images, uint8 (n, C, H, W), of an array or of an ``Images``, which reads these alone."""
    if hasattr(images, "get"):
        return np.asarray(images.get(rows.copy()))
    return np.asarray(images)[rows]


def _order(scores: Any) -> NDArray[np.intp]:
    """Indices from the lowest to the highest score; scores that are not finite are left out."""
    values = np.asarray(scores, np.float64).ravel()
    order = np.argsort(values, kind="stable")
    return order[np.isfinite(values[order])]


def has_rows(x: Any) -> bool:
    """Return whether ``x`` is a matrix with something in it."""
    return x is not None and np.ndim(x) == 2 and np.size(x) > 0
