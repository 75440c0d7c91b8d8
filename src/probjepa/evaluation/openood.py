"""OpenOOD v1.5 with CIFAR-10 inside: its six sets from a user's folder, and its averages.

Reference: Zhang et al., "OpenOOD v1.5: Enhanced Benchmark for Out-of-Distribution Detection", 2023,
arXiv 2306.09301.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from probjepa.data import Images, open_images
from probjepa.data.fitting import Fit
from probjepa.errors import DataError

# group → set → images of the protocol's list
GROUPS: dict[str, dict[str, int]] = {
    "near": {"cifar100": 9_000, "tin": 7_793},
    "far": {"mnist": 70_000, "svhn": 26_032, "textures": 5_640, "places365": 35_195},
}
SETS = {name: count for sets in GROUPS.values() for name, count in sets.items()}
SIZE = 32
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def openood_sets(
    folder: str | Path,
    *,
    size: int | Fit = SIZE,
    channels: int | None = 3,
    on_error: Literal["raise", "skip"] = "raise",
    progress: bool = False,
) -> dict[str, Images]:
    """Open what a folder holds of near (cifar100, tin) and far (mnist, svhn, textures, places365).

    Each set is NAME/ (images, sub-folders allowed) or NAME.parquet. Grey images are converted, as the
    protocol does it; the shorter side is resized to ``size`` (bilinear, antialiased, as Pillow does it under
    torchvision) and the centre square kept.

    Returns
    -------
    dict
        name → set, in the protocol's order; any subset of the six

    Raises
    ------
    DataError
        if there is no such folder, none of the sets in it, one of them twice, or a set that cannot be opened
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"no such folder: '{root}' (OpenOOD's sets lie in it as NAME/ or NAME.parquet)")
    found: dict[str, Images] = {}
    for name in SETS:
        places = [place for place in (root / name, root / f"{name}.parquet") if place.exists()]
        if len(places) > 1:
            raise DataError(f"'{root}' holds {name}/ and {name}.parquet: keep one of them")
        if places:
            found[name] = open_images(
                places[0],
                size=size,
                channels=channels,
                convert=True,
                on_error=on_error,
                labels="none",
                progress=progress,
            )
    if not found:
        raise DataError(
            f"'{root}' holds none of OpenOOD's sets ({', '.join(SETS)}): put one in as NAME/ or NAME.parquet"
        )
    return found


def openood_summary(
    ood: Mapping[str, Mapping[str, Mapping[str, Any]]],
    counts: Mapping[str, int],
    preprocess: Mapping[str, Any],
    reencode: str | None = None,
) -> dict[str, Any]:
    """Return near, far and overall averages, and how this evaluation differs from the protocol.

    A group's average is the mean over its sets that are there; overall is the mean of the two groups'
    averages (so reckon the published tables), None unless both are known.

    Parameters
    ----------
    ood
        set → score → metric → {value, low, high}, as an evaluation has it; other sets than OpenOOD's are
        passed over
    counts
        set → images evaluated
    preprocess
        the model's: ``size``, ``channels``, ``mean``, ``std``
    reencode
        the codec that all sets went through

    Returns
    -------
    dict
        ``protocol``; ``sets``: name → group, images, expected; ``differences``: a sentence each;
        ``averages``: score → metric → {near, far, overall}
    """
    mean, std = (", ".join(f"{x:.4f}" for x in values) for values in (MEAN, STD))
    groups = {group: [name for name in sets if name in ood] for group, sets in GROUPS.items()}
    present = [name for names in groups.values() for name in names]
    scores = list(ood[present[0]]) if present else []

    def average(score: str, metric: str) -> dict[str, float | None]:
        values = {
            group: sum(ood[name][score][metric]["value"] for name in names) / len(names) if names else None
            for group, names in groups.items()
        }
        near, far = values["near"], values["far"]
        return {**values, "overall": None if near is None or far is None else (near + far) / 2}

    return {
        "protocol": (
            f"OpenOOD v1.5, CIFAR-10: RGB, shorter side to {SIZE} pixels (bilinear), centre {SIZE}×{SIZE}, "
            f"mean ({mean}), std ({std})"
        ),
        "sets": {
            name: {"group": group, "images": counts[name], "expected": GROUPS[group][name]}
            for group, names in groups.items()
            for name in names
        },
        "differences": _differences(present, counts, preprocess, reencode),
        "averages": {
            score: {metric: average(score, metric) for metric in ood[present[0]][score]} for score in scores
        },
    }


def _differences(
    present: list[str], counts: Mapping[str, int], preprocess: Mapping[str, Any], reencode: str | None
) -> list[str]:
    lines = [
        f"{name} has {counts[name]:,} images, the protocol's list {SETS[name]:,}"
        for name in present
        if counts[name] != SETS[name]
    ]
    missing = [name for name in SETS if name not in present]
    if missing:
        lines.append(f"not evaluated: {', '.join(missing)}; averages are over the sets that are there")
    if preprocess["size"] != SIZE:
        lines.append(f"images are brought to the model's {preprocess['size']} pixels, not to {SIZE}")
    if preprocess["channels"] != 3:
        lines.append("images are grey, as the model takes them, not RGB")
    if reencode is not None:
        lines.append(f"every set was re-encoded ({reencode}) after resizing")
    mean, std = (", ".join(f"{x:.4f}" for x in preprocess[key]) for key in ("mean", "std"))
    lines.append(f"pixels are normalised with the model's own mean ({mean}) and std ({std})")
    lines.append(
        "of images that are not square, the long side is rounded to a whole pixel and the crop's offset cut "
        "(torchvision cuts the one and rounds the other): they may differ by a pixel"
    )
    return lines
