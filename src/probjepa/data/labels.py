"""One vocabulary of labels over two sets, in which classes go by their names."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from probjepa._arrays import check_classes, is_labelled
from probjepa.data.images import Images
from probjepa.data.records import UNLABELLED
from probjepa.errors import DataError, short, warn

_SHOWN = 5


def labelled_rows(images: Images) -> npt.NDArray[np.bool_]:
    """Return a mask (N,) of the images that have a label."""
    if images.labels is None:
        return np.zeros(len(images), dtype=bool)
    return is_labelled(images.labels.cpu().numpy())


class SharedLabels(NamedTuple):
    """The labels of two sets in one vocabulary.

    Attributes
    ----------
    known, asked
        int64 (M,) of the reference, in its own numbers, and (N,) of the other set; −1: unlabelled
    absent
        the other set's classes that no row of the reference has
    names
        number → the name of a class of the reference
    """

    known: Tensor
    asked: Tensor
    absent: list[str]
    names: dict[int, str]


def shared_labels(reference: Images, images: Images) -> SharedLabels | None:
    """Return the labels of a set in the numbers of a reference's; None where either has no labelled row.

    Classes are compared by their names. Where one side has numbers alone, they are the places of the other
    side's names, which is said in a warning, or the names themselves, if these are numbers. Another warning
    names the classes that the reference lacks.

    Raises
    ------
    DataError
        where numbers stand for no name of the other side, or no class is on both
    """
    if reference.labels is None or images.labels is None:
        return None
    known, asked = reference.labels.cpu().numpy(), images.labels.cpu().numpy()
    mine, theirs = np.unique(known[is_labelled(known)]), np.unique(asked[is_labelled(asked)])
    if not len(mine) or not len(theirs):
        return None
    names = _names(reference, mine, images.classes)
    found = _names(images, theirs, reference.classes)
    number = {name: int(code) for code, name in zip(mine, names, strict=True)}
    absent = check_classes(found, names, f"{images.name}, beside {reference.name}")
    new = int(known.max()) + 1  # the numbers of what the reference lacks
    number |= {name: new + i for i, name in enumerate(name for name in found if name not in number)}
    codes = np.full(len(asked), UNLABELLED, dtype=np.int64)
    for code, name in zip(theirs, found, strict=True):
        codes[asked == code] = number[name]
    of_code = dict(zip(mine.tolist(), names, strict=True))
    return SharedLabels(torch.from_numpy(known), torch.from_numpy(codes), absent, of_code)


def _names(images: Images, codes: npt.NDArray[np.int64], others: list[str] | None) -> list[str]:
    """The names of a set's classes, which are read from the other side's where it has numbers alone."""
    if images.classes is not None:
        return [images.classes[code] for code in codes]
    texts = [str(code) for code in codes]
    if others is None or set(texts) & set(others):
        return texts
    if not 0 <= codes[0] <= codes[-1] < len(others):
        shown = ", ".join(short(name) for name in others[:_SHOWN])
        raise DataError(
            f"{images.name} has the labels {texts[0]} to {texts[-1]} without names, and the other set "
            f"{len(others)} names ({shown}…): give both sets names, or both numbers"
        )
    warn(
        f"{images.name} has labels without names: {texts[0]} to {texts[-1]} are taken for places among "
        f"the other set's {len(others)} class names"
    )
    return [others[code] for code in codes]
