"""Curation: rank a set by typicality and uncertainty, and say what to keep, look at and drop."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from probjepa.data import Images
from probjepa.data.rows import as_column, identity, open_table
from probjepa.errors import ConfigError
from probjepa.files import staged_directory, write_text
from probjepa.methods import Method
from probjepa.report.page import Card, Gallery, Section, render
from probjepa.report.provenance import skipped_table
from probjepa.report.sections import named
from probjepa.scores import score_set
from probjepa.scores.table import leaves_one_out
from probjepa.terminal import printable

_TEXTS = {
    "drop": "The least typical images: look here for files that do not belong in the set.",
    "review": "The next least typical, and the images whose embedding is most uncertain.",
    "keep": "The most typical of what is kept.",
}
LISTS = ("keep", "review", "drop")
_THUMBNAILS = 48

Column = npt.NDArray[np.float64]


def sort_out(
    typicality: Column, uncertainty: Column | None, drop: float, review: float
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
    images: Any,
    out: Path,
    *,
    score: str = "likelihood",
    reference: Any = None,
    drop: float = 0.01,
    review: float = 0.05,
    progress: bool = False,
) -> dict[str, int]:
    """Write ranking.parquet, keep, review and drop lists (ids) and report.html with thumbnails into ``out``.

    Images are given as the method's ``open`` takes them.
    What was left out of the set when it was opened stands, with the reason, in skipped.txt.

    Typicality is any score of ``score_set``; "knn" and "predictive" compare each image with the others where
    there is no ``reference``. Uncertainty is the method's ``main_uncertainty`` (VJE: the mean
    posterior variance), where it has one. Nothing is deleted: the lists are for the user's own tools.

    Returns
    -------
    dict[str, int]
        how many images are on each list, and how many files were "skipped"

    Raises
    ------
    ConfigError, DataError
        as ``score_set`` and ``sort_out``
    """
    sort_out(np.zeros(1), None, drop, review)  # its complaint comes before the scoring
    images = method.open(images)
    if reference is None and leaves_one_out(score):
        reference = images
    typicality, parts = score_set(method, images, score, reference=reference, progress=progress)
    measure = getattr(method, "main_uncertainty", "")
    uncertain = parts.get(measure)
    verdict = sort_out(typicality, uncertain, drop, review)
    order = np.argsort(typicality, kind="stable")
    columns = {**identity(images, slice(None)), "typicality": typicality}
    if uncertain is not None:
        columns["uncertainty"] = uncertain
    columns["verdict"] = verdict
    rows = {name: order[verdict[order] == name] for name in LISTS}
    sections = []
    for name, text in _TEXTS.items():
        chosen = rows[name]
        if not len(chosen):
            continue
        title = f"{name}: {len(chosen):,} images, by {score}"
        items = [_gallery(images, title, chosen[::-1] if name == "keep" else chosen, typicality)]
        if name == "review" and uncertain is not None:
            most = chosen[np.argsort(-uncertain[chosen], kind="stable")]
            items.append(_gallery(images, f"review, by uncertainty ({named(measure)})", most, uncertain))
        sections.append(Section(name.capitalize(), text, items))
    counts = {name: len(chosen) for name, chosen in rows.items()}
    cards = [Card(name.capitalize(), f"{n:,}", f"of {len(images):,} images") for name, n in counts.items()]
    if images.skipped:
        cards.append(Card("Skipped", f"{len(images.skipped):,}", "files that could not be read", "warn"))
        text = "What could not be read is on no other list."
        sections.append(Section("Skipped", text, [skipped_table({images.name: images.skipped})]))
    lists = {name: [images.ids[i] for i in chosen] for name, chosen in rows.items()}
    with staged_directory(out, last="report.html") as stage:
        with open_table(stage / "ranking.parquet", overwrite=True) as table:
            table.write({name: as_column(values).take(order) for name, values in columns.items()})
        for name, lines in {**lists, "skipped": images.skipped}.items():
            write_text(stage / f"{name}.txt", "".join(f"{printable(line)}\n" for line in lines))
        write_text(stage / "report.html", render(f"Curation of {images.name}", cards, sections))
    return {**counts, "skipped": len(images.skipped)}


def _gallery(images: Images, title: str, rows: npt.NDArray[np.intp], values: Column) -> Gallery:
    shown = rows[:_THUMBNAILS]
    pixels = images.get(shown.copy()).cpu().numpy()
    return Gallery(pixels, [f"{images.ids[i]}: {values[i]:.4g}" for i in shown], title)
