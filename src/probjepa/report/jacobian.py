"""Pictures of JEPA-SCORE: typical images of every class, spectra, and what the embedding responds to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probjepa import plots
from probjepa.evaluation.decisions import TEST
from probjepa.plots.style import number
from probjepa.report.detection import histograms
from probjepa.report.embedding import pixels
from probjepa.report.figures import picture
from probjepa.report.page import Gallery, Section

_CLASSES = 10
_EACH = 5


def jacobian_sections(arrays: Mapping[str, Any]) -> list[Section]:
    """Return the sections of an evaluation that has JEPA-SCORE; none where it has not.

    Parameters
    ----------
    arrays
        ``scores["jepa"]`` (set → (N,)), ``images`` (an ``Images``, or uint8 (N, C, H, W)), ``labels`` (N,)
        or None, ``classes``, ``spectra`` (set → (n, K)), ``singular``: {"images": (m, C, H, W),
        "vectors": (m, k, C, H, W)}
    """
    scores = (arrays.get("scores") or {}).get("jepa")
    if not scores:
        return []
    colours = plots.palette(scores)
    items = [histograms("JEPA-SCORE", scores, colours)]
    if arrays.get("spectra"):
        items.append(
            picture(
                "Singular values of the Jacobian",
                lambda axis: plots.singular_values(axis, arrays["spectra"], colours=colours),
                "Median over up to 64 images of each set, drawn at random; bands hold the middle 80 %. The "
                "score is the sum of the logarithms, so a set whose whole curve lies lower is less typical.",
            )
        )
    sections = [
        Section(
            "JEPA-SCORE",
            "JEPA-SCORE reads the density that the encoder has learned from its Jacobian: the sum of the "
            "logarithms of its singular values, higher for more typical images. It is a density, not the "
            "best detector: compare it with the others in the table above.",
            items,
        ),
        Section(
            "Typical images of every class",
            f"For each class{_more_classes(arrays.get('labels'))}, its images with the highest and the "
            "lowest JEPA-SCORE.",
            _by_class(scores[TEST], arrays),
        ),
        Section(
            "What the embedding responds to",
            "The directions in pixel space along which the embedding moves fastest (top right singular "
            "vectors of the Jacobian), the image itself first. Mid-grey is no change.",
            _vectors(arrays.get("singular") or {"images": [], "vectors": []}),
        ),
    ]
    return [section for section in sections if section.items]


def _more_classes(labels: Any) -> str:
    count = 0 if labels is None else len(np.unique(labels))
    return f" (the first {_CLASSES} of {count:,})" if count > _CLASSES else ""


def _by_class(scores: NDArray[np.float64], arrays: Mapping[str, Any]) -> list[Gallery]:
    labels, classes, images = arrays.get("labels"), arrays.get("classes"), arrays.get("images")
    if labels is None or images is None:
        return []
    galleries = []
    for value in np.unique(labels)[:_CLASSES]:
        rows = np.flatnonzero(labels == value)
        order = rows[np.argsort(-scores[rows], kind="stable")]
        shown = np.concatenate([order[:_EACH], order[-_EACH:]]) if len(order) > 2 * _EACH else order
        name = "unlabelled" if value == -1 else classes[int(value)] if classes else value
        captions = [number(scores[row], ".1f") for row in shown]
        galleries.append(
            Gallery(pixels(images, shown), captions, f"{name}: most typical, then least typical")
        )
    return galleries


def _vectors(singular: Mapping[str, Any]) -> list[Gallery]:
    galleries = []
    for index, (image, vectors) in enumerate(zip(singular["images"], singular["vectors"], strict=True)):
        peak = np.abs(vectors).max(axis=(1, 2, 3), keepdims=True)
        pictures = (127.5 + 127.5 * vectors / np.maximum(peak, 1e-12)).round().astype(np.uint8)
        shown = np.concatenate([image[None], pictures])
        captions = ["image", *(f"direction {i + 1}" for i in range(len(pictures)))]
        galleries.append(Gallery(shown, captions, f"Image {index + 1}"))
    return galleries
