"""Curation: rank a set by typicality and uncertainty, and say what to keep, look at and drop."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from probjepa.data import Images
from probjepa.data.overlap import pixel_hashes
from probjepa.data.rows import as_column, identity, open_table
from probjepa.errors import ConfigError, counted, warn
from probjepa.files import staged_directory, write_text
from probjepa.methods import Method
from probjepa.metrics.duplicates import ROUNDING, check_cosine, duplicate_groups, nearest_twins
from probjepa.plots.style import number
from probjepa.report.embedding import pixels
from probjepa.report.page import Card, Gallery, Section, render
from probjepa.report.provenance import skipped_table
from probjepa.report.sections import named
from probjepa.scores import SetScorer, encode
from probjepa.scores.table import leaves_one_out
from probjepa.terminal import printable
from probjepa.typed import check_plain

_TEXTS = {
    "drop": "The least typical images: look here for files that do not belong in the set.",
    "review": "The next least typical, and the images whose embedding is most uncertain.",
    "keep": "The most typical of what is kept.",
}
LISTS = ("keep", "review", "drop")
DUPLICATE = "duplicate"
_OF_DUPLICATES = {f"{DUPLICATE}.txt", "duplicates.parquet", "twins.parquet"}  # not of every curation
_THUMBNAILS = 48
_MANY = 0.5  # a larger share of duplicates is remarked on

Column = npt.NDArray[np.float64]


def check_shares(drop: float, review: float) -> None:
    """Raise ConfigError for shares that are not in [0, 1], or add to more than 1."""
    if not (0 <= drop <= 1 and 0 <= review <= 1 and drop + review <= 1):
        raise ConfigError(
            f"drop {drop:g} and review {review:g} are shares: each in [0, 1], together at most 1"
        )


def check_options(drop: float, review: float, duplicates: float | None, against: Any) -> None:
    """Raise ConfigError for what cannot be curated by, whatever the images: before they are read."""
    check_plain("drop", drop, float)
    check_plain("review", review, float)
    check_plain("duplicates", duplicates, float | None)
    check_shares(drop, review)
    if duplicates is not None:
        check_cosine(duplicates)
    elif against is not None:
        raise ConfigError("--against goes with --duplicates COSINE: give both, 0.96 is a usual one")


def compared_with(images: Any, score: str, reference: Any) -> Any:
    """Return the reference, or the images themselves where there is none and a score leaves each out."""
    return images if reference is None and leaves_one_out(score) else reference


def sort_out(
    typicality: Column, uncertainty: Column | None, drop: float, review: float
) -> npt.NDArray[np.str_]:
    """Say for each row (N,) whether to keep, review or drop it.

    The ``drop`` share with the lowest typicality is dropped; of the rest, the ``review`` share of all rows
    with the lowest typicality and as many with the highest uncertainty are for review. Shares round up.

    Raises
    ------
    ConfigError
        as ``check_shares``
    """
    check_shares(drop, review)
    count = len(typicality)
    # 0.07 of 100 rows is 7.000000000000001
    dropped, reviewed = (math.ceil(share * count * (1 - 1e-12)) for share in (drop, review))
    order = np.argsort(typicality, kind="stable")
    verdict = np.full(count, "keep", dtype="<U6")
    rest = order[dropped:]
    verdict[rest[:reviewed]] = "review"
    if uncertainty is not None:
        rest = np.sort(rest)
        verdict[rest[np.argsort(-uncertainty[rest], kind="stable")[:reviewed]]] = "review"
    verdict[order[:dropped]] = "drop"
    return verdict


def one_of_each(
    groups: npt.NDArray[np.intp], typicality: Column, leaks: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
    """Choose the most typical row of each group, but none that ``leaks`` marks.

    Returns
    -------
    tuple
        rows of the groups of several, group by group, the chosen one first; and a mask (N,) of all rows that
        are not chosen
    """
    ranked = np.lexsort((-typicality, leaks, groups))
    surplus = leaks.copy()
    surplus[ranked[1:][np.diff(groups[ranked]) == 0]] = True
    several = np.bincount(groups, minlength=len(groups))[groups] > 1
    return ranked[several[ranked]], surplus


def curate(
    method: Method,
    images: Any,
    out: str | Path,
    *,
    score: str = "likelihood",
    reference: Any = None,
    reference_size: int | None = None,
    drop: float = 0.01,
    review: float = 0.05,
    duplicates: float | None = None,
    against: Any = None,
    progress: bool = False,
) -> dict[str, int]:
    """Write ranking.parquet, keep, review and drop lists (ids) and report.html with thumbnails into ``out``.

    Images are given as the method's ``open`` takes them.
    What was left out of the set when it was opened stands, with the reason, in skipped.txt.

    Typicality is any score of ``score_set``; "knn" and "predictive" compare each image with the others where
    there is no ``reference`` (of which ``reference_size`` takes some rows, see there). Uncertainty is the
    method's ``main_uncertainty`` (VJE: the mean posterior variance), where it has one. Nothing is deleted:
    the lists are for the user's own tools.

    With ``duplicates``, a cosine similarity of embeddings, the near-duplicates and exact copies are grouped
    (``metrics.duplicate_groups``): the most typical of each group stays on its list, the others' verdict is
    "duplicate"; duplicates.parquet has the groups. So is that of images with a near twin in the set
    ``against``, which twins.parquet names.

    Returns
    -------
    dict[str, int]
        how many images are on each list, and how many files were "skipped"

    Raises
    ------
    ConfigError, DataError
        as ``score_set``, ``sort_out`` and ``duplicate_groups``; for ``against`` without ``duplicates``
    """
    out = Path(out)
    check_options(drop, review, duplicates, against)
    images = method.open(images)
    reference = compared_with(images, score, reference)
    scorer = SetScorer(method, score, reference=reference, reference_size=reference_size, progress=progress)
    typicality, parts = scorer(images)
    measure = getattr(method, "main_uncertainty", "")
    uncertain = parts.get(measure)
    verdict = sort_out(typicality, uncertain, drop, review)
    lists: tuple[str, ...] = LISTS
    tables: dict[str, Any] = {}
    found: list[Gallery] = []
    if duplicates is not None:
        h, lists = scorer.embeddings, (*LISTS, DUPLICATE)
        h = encode(method, images, progress=progress, scored=False)["h"] if h is None else h
        known = None if against is None else method.open(against)
        seen = None if known is None else encode(method, known, progress=progress, scored=False)["h"]
        surplus, tables, found = _duplicates(images, h, typicality, duplicates, known, seen)
        verdict = np.where(surplus, DUPLICATE, verdict)
        if surplus.mean() > _MANY:
            warn(
                f"{surplus.sum():,} of {counted(len(images), 'image')} are duplicates from a cosine of "
                f"{duplicates:g}: look at them in report.html; if they are none, raise it or train for longer"
            )
    order = np.argsort(typicality, kind="stable")
    columns = {**identity(images, slice(None)), "typicality": typicality}
    if uncertain is not None:
        columns["uncertainty"] = uncertain
    columns["verdict"] = verdict
    rows = {name: order[verdict[order] == name] for name in lists}
    tables["ranking"] = {name: as_column(values).take(order) for name, values in columns.items()}
    orders = _Orders(score, typicality, measure, uncertain)
    page = _page(images, rows, orders, duplicates, found)
    _write(out, images, rows, tables, page, method.encoding.note())
    return {**{name: len(chosen) for name, chosen in rows.items()}, "skipped": len(images.skipped)}


class _Orders(NamedTuple):
    """What images (N,) are ordered by: a score, and a measure of uncertainty where there is one."""

    score: str
    typicality: Column
    measure: str
    uncertainty: Column | None


def _page(
    images: Images, rows: Mapping[str, npt.NDArray[np.intp]], by: _Orders, duplicates: float | None,
    found: Sequence[Gallery],
) -> str:  # fmt: skip
    """The page of the lists, each a selection of ``rows`` in the order of typicality, and of duplicates."""
    sections = []
    for name, text in _TEXTS.items():
        chosen = rows[name]
        if not len(chosen):
            continue
        title = f"{name}: {counted(len(chosen), 'image')}, by {by.score}"
        items = [_gallery(images, title, chosen[::-1] if name == "keep" else chosen, by.typicality)]
        if name == "review" and by.uncertainty is not None:
            most = chosen[np.argsort(-by.uncertainty[chosen], kind="stable")]
            items.append(
                _gallery(images, f"review, by uncertainty ({named(by.measure)})", most, by.uncertainty)
            )
        sections.append(Section(name.capitalize(), text, items))
    if found:
        text = f"Images whose embeddings have a cosine similarity from {duplicates:g}, and exact copies."
        sections.append(Section("Duplicates", text, [item for item in found if item.captions]))
    of_all = f"of {counted(len(images), 'image')}"
    cards = [Card(name.capitalize(), f"{len(chosen):,}", of_all) for name, chosen in rows.items()]
    if images.skipped:
        cards.append(Card("Skipped", f"{len(images.skipped):,}", "files that could not be read", "warn"))
        text = "What could not be read is on no other list."
        sections.append(Section("Skipped", text, [skipped_table({images.name: images.skipped})]))
    return render(f"Curation of {images.name}", cards, sections)


def _write(
    out: Path, images: Images, rows: Mapping[str, npt.NDArray[np.intp]], tables: Mapping[str, Any], page: str,
    note: tuple[bytes, str],
) -> None:  # fmt: skip
    """Write the tables, the lists of ids and the page, in the place of those of an earlier curation."""
    with staged_directory(out, last="report.html", drop=_OF_DUPLICATES) as stage:
        for name, written in tables.items():
            with open_table(stage / f"{name}.parquet", overwrite=True) as table:
                table.write(written)
                table.note(*note)
        for name, chosen in rows.items():
            lines = b"".join(_line(images.ids[i]) + b"\n" for i in chosen)
            (stage / f"{name}.txt").write_bytes(lines)
        write_text(stage / "skipped.txt", "".join(f"{printable(line)}\n" for line in images.skipped))
        write_text(stage / "report.html", page)


def _line(text: str) -> bytes:
    """An id as the file's name is on the disk, or escaped if it is more than a line, or is no such name."""
    with suppress(UnicodeEncodeError):
        line = os.fsencode(text)
        if b"\n" not in line and b"\r" not in line:
            return b"./" + line if line.startswith((b"#", b";")) else line  # a comment to rsync
    return printable(text).encode("utf-8", "backslashreplace")


def _duplicates(
    images: Images, h: Tensor, typicality: Column, cosine: float, others: Images | None, known: Tensor | None
) -> tuple[npt.NDArray[np.bool_], dict[str, Any], list[Gallery]]:
    """Which images (N,) go, and the tables and galleries of groups, and of twins in another set."""
    leaks, copies = np.zeros(len(h), dtype=bool), pixel_hashes(images)
    tables: dict[str, Any] = {}
    galleries = []
    if others is not None and known is not None:
        similarity, twin = nearest_twins(h, known)
        leaks = similarity >= np.float32(cosine - ROUNDING)
        pairs = np.flatnonzero(leaks)[np.argsort(-similarity[leaks], kind="stable")]
        names = [others.ids[i] for i in twin[pairs]]
        tables["twins"] = {**_identity(images, pairs), "twin": names, "similarity": similarity[pairs]}
        galleries.append(_pairs(images, others, pairs, twin, similarity))
    groups = duplicate_groups(h, cosine, copies=copies)
    members, surplus = one_of_each(groups, typicality, leaks)
    of, first, group = np.unique(groups[members], return_index=True, return_inverse=True)
    tables["duplicates"] = {
        "group": group, **_identity(images, members), "kept": ~surplus[members],
        "copy": copies[members] == copies[members[first]][group],
    }  # fmt: skip
    shown = zip(group[:_THUMBNAILS], members[:_THUMBNAILS], strict=True)
    captions = [f"group {n}: {images.ids[i]}" for n, i in shown]
    title = f"{counted(len(of), 'group')} of {counted(len(members), 'image')}, the most typical of each first"
    title += _first(_THUMBNAILS, len(members))
    galleries.insert(0, Gallery(pixels(images, members[:_THUMBNAILS]), captions, title))
    return surplus, tables, galleries


def _identity(images: Images, rows: npt.NDArray[np.intp]) -> dict[str, Any]:
    """The columns of ``identity``, of rows in any order."""
    return {name: as_column(values).take(rows) for name, values in identity(images, slice(None)).items()}


def _gallery(images: Images, title: str, rows: npt.NDArray[np.intp], values: Column) -> Gallery:
    shown = rows[:_THUMBNAILS]
    captions = [f"{images.ids[i]}: {number(values[i], '.4g')}" for i in shown]
    return Gallery(pixels(images, shown), captions, title + _first(_THUMBNAILS, len(rows)))


def _first(shown: int, count: int) -> str:
    """The words on a gallery that does not show all, or none."""
    return f" (the first {shown} are shown)" if count > shown else ""


def _pairs(
    images: Images, others: Images, rows: npt.NDArray[np.intp], twin: npt.NDArray[np.intp],
    similarity: npt.NDArray[np.float32],
) -> Gallery:  # fmt: skip
    """Images and their twins in another set, side by side."""
    shown = rows[: _THUMBNAILS // 2]
    sides = [pixels(images, shown), pixels(others, twin[shown])]
    captions = [
        caption
        for i in shown
        for caption in (f"{images.ids[i]}: {similarity[i]:.4g}", f"{others.ids[twin[i]]}, of {others.name}")
    ]
    title = f"{counted(len(rows), 'image')} with a twin in {others.name}, each beside it"
    title += _first(_THUMBNAILS // 2, len(rows))
    return Gallery(np.stack(sides, 1).reshape(-1, *sides[0].shape[1:]), captions, title)
