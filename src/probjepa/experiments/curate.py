"""Curation: rank a set by typicality and uncertainty, and say what to keep, look at and drop."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from probjepa.data import Images
from probjepa.data.rows import TableWriter, identity
from probjepa.errors import ConfigError
from probjepa.files import staged_file, write_text
from probjepa.methods import Method
from probjepa.methods.vje import VJE
from probjepa.report.page import Card, Gallery, Section, render
from probjepa.scores import encode, score_set

LISTS = ("keep", "review", "drop")
_THUMBNAILS = 48


def sort_out(
    typicality: npt.NDArray[np.float64],
    uncertainty: npt.NDArray[np.float64] | None,
    drop: float,
    review: float,
) -> npt.NDArray[np.str_]:
    """Say for each row (N,) whether to keep, review or drop it.

    The ``drop`` share with the lowest typicality is dropped; of the rest, the ``review`` share of all rows
    with the lowest typicality and as many with the highest uncertainty are for review. Shares round up.

    Raises
    ------
    ConfigError
        for shares that are not in [0, 1], or add to more than 1
    """
    if not (0 <= drop <= 1 and 0 <= review <= 1 and drop + review <= 1):
        raise ConfigError(
            f"drop {drop:g} and review {review:g} are shares: each in [0, 1], together at most 1"
        )
    count = len(typicality)
    dropped, reviewed = math.ceil(drop * count), math.ceil(review * count)
    order = np.argsort(typicality, kind="stable")
    verdict = np.full(count, "keep", dtype="<U6")
    verdict[order[dropped : dropped + reviewed]] = "review"
    if uncertainty is not None:
        verdict[np.argsort(-uncertainty, kind="stable")[:reviewed]] = "review"
    verdict[order[:dropped]] = "drop"
    return verdict


def curate(
    method: Method,
    images: Images,
    out: Path,
    *,
    score: str = "likelihood",
    reference: Images | None = None,
    drop: float = 0.01,
    review: float = 0.05,
    progress: bool = False,
) -> dict[str, int]:
    """Write ranking.parquet, keep, review and drop lists (ids) and report.html with thumbnails into ``out``.

    Typicality is any score of ``score_set``; uncertainty is the mean posterior variance, where the method has
    one. Nothing is deleted: the lists are for the user's own tools.

    Returns
    -------
    dict[str, int]
        how many images are on each list

    Raises
    ------
    ConfigError, DataError
        as ``score_set`` and ``sort_out``
    """
    sort_out(np.zeros(1), None, drop, review)  # its complaint comes before the scoring
    typicality, _ = score_set(method, images, score, reference=reference, progress=progress)
    uncertainty = None
    if isinstance(method, VJE):
        features = encode(method, images, progress=progress)
        uncertainty = features["variance"].double().mean(1).numpy()
    verdict = sort_out(typicality, uncertainty, drop, review)
    order = np.argsort(typicality, kind="stable")
    columns = {**identity(images, slice(None)), "typicality": typicality}
    if uncertainty is not None:
        columns["uncertainty"] = uncertainty
    columns["verdict"] = verdict
    with staged_file(out / "ranking.parquet") as stage:
        writer = TableWriter(stage)
        writer.write({name: np.asarray(values)[order] for name, values in columns.items()})
        writer.close()
    for name in LISTS:
        rows = [images.ids[i] for i in order if verdict[i] == name]
        write_text(out / f"{name}.txt", "".join(f"{row}\n" for row in rows))
    counts = {name: int((verdict == name).sum()) for name in LISTS}
    write_text(out / "report.html", _page(images, typicality, uncertainty, verdict, order, score, counts))
    return counts


def _page(
    images: Images,
    typicality: npt.NDArray[np.float64],
    uncertainty: npt.NDArray[np.float64] | None,
    verdict: npt.NDArray[np.str_],
    order: npt.NDArray[np.intp],
    score: str,
    counts: dict[str, int],
) -> str:
    def gallery(title: str, rows: npt.NDArray[np.intp], values: npt.NDArray[np.float64]) -> Gallery:
        shown = rows[:_THUMBNAILS]
        pixels = images.get(torch.from_numpy(shown.copy())).cpu().numpy()
        return Gallery(pixels, [f"{images.ids[i]}: {values[i]:.4g}" for i in shown], title)

    sections = []
    texts = {
        "drop": "The least typical images: look here for files that do not belong in the set.",
        "review": "The next least typical, and the images whose embedding is most uncertain.",
        "keep": "The most typical of what is kept.",
    }
    for name in ("drop", "review", "keep"):
        rows = order[verdict[order] == name]
        if len(rows):
            chosen = rows[::-1] if name == "keep" else rows
            title = f"{name}: {counts[name]:,} images, by {score}"
            items = [gallery(title, chosen, typicality)]
            if name == "review" and uncertainty is not None:
                most = rows[np.argsort(-uncertainty[rows], kind="stable")]
                items.append(gallery("review, by uncertainty (mean σ²)", most, uncertainty))
            sections.append(Section(name.capitalize(), texts[name], items))
    cards = [Card(name.capitalize(), f"{counts[name]:,}", f"of {len(images):,} images") for name in LISTS]
    return render(f"Curation of {images.name}", cards, sections)
