"""Pictures of JEPA-SCORE: typical images of every class, spectra, and what the embedding responds to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probjepa.report.examples import pixels
from probjepa.report.figures import score_histograms
from probjepa.report.page import Figure, Gallery, Section
from probjepa.report.style import FULL, canvas, finish, label, palette, styled

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
    colours = palette(scores)
    items: list[Figure | Gallery] = [score_histograms(scores, name="JEPA-SCORE", colours=colours)]
    if arrays.get("spectra"):
        items.append(spectra(arrays["spectra"], colours))
    text = (
        "JEPA-SCORE reads the density that the encoder has learned from its Jacobian: the sum of the "
        "logarithms of its singular values, higher for more typical images. It is a density, not the best "
        "detector: compare it with the others in the table above."
    )
    sections = [Section("JEPA-SCORE", text, items)]
    typical = _by_class(scores["test"], arrays)
    if typical:
        sections.append(
            Section(
                "Typical images of every class",
                "For each class, its images with the highest and the lowest JEPA-SCORE.",
                typical,
            )
        )
    if arrays.get("singular"):
        sections.append(
            Section(
                "What the embedding responds to",
                "The directions in pixel space along which the embedding moves fastest (top right singular "
                "vectors of the Jacobian), the image itself first. Mid-grey is no change.",
                _vectors(arrays["singular"]),
            )
        )
    return sections


@styled
def spectra(spectrum: Mapping[str, ArrayLike], colours: Mapping[str, str]) -> Figure:
    """Return the median singular values of each set, (n, K), falling, with the middle 80 % of its images."""
    figure = canvas(FULL, 300)
    axis = figure.subplots()
    for name, values in spectrum.items():
        sigma = np.maximum(np.asarray(values, float), 1e-6)  # as the score clips them
        low, middle, high = np.quantile(sigma, [0.1, 0.5, 0.9], axis=0)
        x = np.arange(1, len(middle) + 1)
        axis.fill_between(x, low, high, color=colours[name], alpha=0.15, lw=0)
        axis.plot(x, middle, color=colours[name], label=label(name))
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(
        lambda value, _: f"{value:g}"
    )  # the default is mathtext, which SVG text is not
    axis.set(title="Singular values of the Jacobian", xlabel="rank", ylabel="σ")
    axis.legend()
    return finish(
        figure,
        "Median over up to 64 images of each set; bands hold the middle 80 %. The score is the sum of the "
        "logarithms, so a set whose whole curve lies lower is less typical.",
        f"Singular value spectra of {', '.join(spectrum)}",
    )


def _by_class(scores: NDArray[np.float64], arrays: Mapping[str, Any]) -> list[Figure | Gallery]:
    labels, classes, images = arrays.get("labels"), arrays.get("classes"), arrays.get("images")
    if labels is None or images is None:
        return []
    galleries: list[Figure | Gallery] = []
    for value in np.unique(labels)[:_CLASSES]:
        rows = np.flatnonzero(labels == value)
        order = rows[np.argsort(-scores[rows], kind="stable")]
        shown = np.concatenate([order[:_EACH], order[-_EACH:]]) if len(order) > 2 * _EACH else order
        name = classes[int(value)] if classes else value
        captions = [f"{scores[row]:.1f}" for row in shown]
        galleries.append(
            Gallery(pixels(images, shown), captions, f"{name}: most typical, then least typical")
        )
    return galleries


def _vectors(singular: Mapping[str, NDArray[Any]]) -> list[Figure | Gallery]:
    galleries: list[Figure | Gallery] = []
    for index, (image, vectors) in enumerate(zip(singular["images"], singular["vectors"], strict=True)):
        peak = np.abs(vectors).max(axis=(1, 2, 3), keepdims=True)
        pictures = (127.5 + 127.5 * vectors / np.maximum(peak, 1e-12)).round().astype(np.uint8)
        shown = np.concatenate([image[None], pictures])
        captions = ["image", *(f"direction {i + 1}" for i in range(len(pictures)))]
        galleries.append(Gallery(shown, captions, f"Image {index + 1}"))
    return galleries
