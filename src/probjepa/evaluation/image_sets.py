"""The sets of images of an evaluation: held out from each other, with labels that both sides share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from probjepa.data import Images
from probjepa.data.codec import reencode as through_codec
from probjepa.data.fingerprint import fingerprint
from probjepa.data.labels import SharedLabels, labelled_rows, shared_labels
from probjepa.data.overlap import pixel_hashes, refuse_seen, unlike
from probjepa.errors import ConfigError, DataError, counted, short, warn
from probjepa.evaluation.decisions import CALIBRATION, TEST, check_calibration
from probjepa.methods import Method

TRAIN = "train"
Rows = npt.NDArray[np.intp]


def held_out_sets(
    method: Method, given: Mapping[str, Any], reencode: str | None
) -> tuple[dict[str, Images], dict[str, int]]:
    """Open all sets; the others without the images of the reference, and how many each of them had."""
    sets = {name: method.open(of) for name, of in given.items()}
    if reencode is not None:
        sets = {name: through_codec(images, reencode) for name, images in sets.items()}
    sets, hashes, dropped = _without_train(sets)
    if CALIBRATION in sets:
        check_calibration(len(sets[CALIBRATION]))
        refuse_seen(np.isin(hashes[TEST], hashes[CALIBRATION]), CALIBRATION, "test images", sets[TEST].ids)
    for name, images in sets.items():
        if name in (TRAIN, TEST, CALIBRATION):
            continue
        seen = np.isin(hashes[name], hashes[TEST])
        if seen.all():
            raise DataError(f"every image of the set '{name}' is also a test image: give another set")
        if seen.any():
            warn(
                f"{seen.sum():,} of {counted(len(images), 'image')} of the set '{name}' are also test images"
            )
    return sets, dropped


def shared_classes(train: Images, test: Images) -> SharedLabels | None:
    """Read the labels of both sets, see ``shared_labels``; DataError for one class alone."""
    shared = shared_labels(train, test)
    if shared is not None and len(shared.names) == 1:
        only = next(iter(shared.names.values()))
        raise DataError(
            f"{train.name} has one class alone, '{short(only)}', and accuracy needs two: give labels of "
            "more, or none (--labels none)"
        )
    return shared


def check_names(outside: Sequence[str]) -> None:
    """Raise ConfigError for an OOD set that is called like another set, or by no text."""
    for name in outside:
        if not isinstance(name, str):
            raise ConfigError(f"the name of an OOD set is {short(repr(name))}: give a text")
    reserved = {
        TRAIN: "the reference set",
        TEST: "the in-distribution set",
        CALIBRATION: "the calibration set",
    }
    given = [*reserved, *outside]
    twice = next((name for name in given if given.count(name) > 1), None)
    if twice is not None:
        taken = reserved.get(twice, "an OpenOOD set")
        raise ConfigError(f"'{twice}' is the name of {taken}: name the OOD set differently")


def _without_train(
    sets: Mapping[str, Images],
) -> tuple[dict[str, Images], dict[str, npt.NDArray[np.uint64]], dict[str, int]]:
    """Return the sets without the images of the reference, their hashes, and how many each of them had."""
    kept, dropped, train = dict(sets), {}, sets[TRAIN]
    for name, images in sets.items():
        if not len(images):
            raise DataError(f"{images.name} is empty: give at least one image as {name}")
    hashes = {name: pixel_hashes(images) for name, images in sets.items()}  # a streamed set is read for them
    for name, images in sets.items():
        if name == TRAIN:
            continue
        seen = np.isin(hashes[name], hashes[TRAIN])
        dropped[name] = int(seen.sum())
        if seen.all():
            raise DataError(f"every image of {images.name} is also in {train.name}: give a held-out set")
        if dropped[name]:
            kept[name], hashes[name] = images.subset(~seen), hashes[name][~seen]
    return kept, hashes, dropped


def unlike_held_out(of: Mapping[str, Any]) -> npt.NDArray[np.bool_]:
    """Return a mask of the reference's rows whose features no row of another set equals."""
    return unlike(of[TRAIN], (rows for name, rows in of.items() if name != TRAIN))


def fitted_rows(rows: Rows, free: npt.NDArray[np.bool_], name: str) -> Rows:
    """Return those rows of the reference that are ``free``: warn of the others; DataError for none."""
    fitted = rows[free[rows]]
    if not len(fitted):
        raise DataError(f"every embedding of {name} is that of a held-out image too: the encoder collapsed")
    if alike := len(rows) - len(fitted):
        warn(
            f"images of {name} that have the embedding of a held-out one: {alike}. Scores are fitted "
            "without them"
        )
    return fitted


def sets_record(
    sets: Mapping[str, Images], dropped: Mapping[str, int], reencode: str | None, shared: SharedLabels | None
) -> dict[str, Any]:
    """Return what metrics.json keeps of the sets: their sizes and hashes, and what was left out of them.

    Of the labels, how many rows have none, in the sets that have labels, and the test classes that train
    lacks.
    """
    train, test = sets[TRAIN], sets[TEST]
    unlabelled = {
        name: int((~labelled_rows(of)).sum())
        for name, of in ((TRAIN, train), (TEST, test))
        if of.labels is not None
    }
    return {
        "train": train.name,
        "test": test.name,
        "sets": {name: describe(of) for name, of in sets.items()},
        "reencode": reencode,
        "left_out_as_in_train": dropped,
        "skipped": {of.name: of.skipped for of in sets.values() if of.skipped},
        "labels": {
            "unlabelled": unlabelled,
            "classes_not_in_train": [] if shared is None else shared.absent,
        },
    }


def describe(images: Images) -> dict[str, Any]:
    """Name, size, and the hash of ids and pixels of a set: a result says exactly what it was computed on."""
    return {
        "name": images.name,
        "images": len(images),
        "shape": list(images.shape),
        "sha256": fingerprint(images),
    }
