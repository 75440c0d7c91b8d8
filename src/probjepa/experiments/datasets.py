"""The data sets of the tables by name: what is trained on, held out, and out of distribution."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from probjepa.data import Images, ImageSet, open_images, split
from probjepa.data.codec import reencode
from probjepa.data.fingerprint import fingerprint
from probjepa.data.overlap import overlap
from probjepa.errors import DataError, unknown_name

CODEC = "jpeg:75"
NOISE_IMAGES = 5_000
_SUBSET_SEED = 0


@dataclass(frozen=True)
class Source:
    """Where a set of files is under the data root, and how it is read.

    ``files`` are its training and held-out file; the images of the ``unseen`` classes, a share of the set,
    are not trained on and are an out-of-distribution set of their own.
    """

    title: str
    folder: str
    size: int
    files: tuple[str, str] = ("train.parquet", "test.parquet")
    unseen: tuple[int, ...] = ()
    ood: tuple[str, ...] = ()


# STL-10's size is ours: the paper's is not in the text that reached us
SOURCES = {
    "cifar10": Source("CIFAR-10", "cifar10", 32, ood=("tiny-imagenet", "cifar100", "svhn")),
    "cifar10-8": Source("CIFAR-10, 8 of 10 classes", "cifar10", 32, unseen=(8, 9)),
    "cifar100": Source("CIFAR-100", "cifar100", 32, ood=("tiny-imagenet", "cifar10", "svhn")),
    "stl10": Source("STL-10", "stl10", 96, ood=("tiny-imagenet",)),
    "tiny-imagenet": Source(
        "Tiny ImageNet, 100 classes", "tiny_imagenet100", 64, ("train.parquet", "validation.parquet")
    ),
    "svhn": Source("SVHN", "svhn", 32),
}
DATA_SETS = ("digits", *(name for name in SOURCES if name != "svhn"))
RANDOM_PIXELS = "random pixels"  # what a step's cost is measured on: nothing is read


@dataclass(frozen=True)
class DataSet:
    """A data set, opened.

    Attributes
    ----------
    train, test, ood
        disjoint: what is also in ``train`` was dropped from the others
    fingerprint
        of all their pixels and labels
    not_run
        a line for each out-of-distribution set that is not there
    """

    name: str
    title: str
    train: ImageSet
    test: ImageSet
    ood: dict[str, ImageSet]
    fingerprint: str
    not_run: tuple[str, ...] = ()


def title_of(name: str) -> str:
    """Return what reports call a data set."""
    if name in SOURCES:
        return SOURCES[name].title
    return "digits 0–7" if name == "digits" else name


def missing(name: str, data_root: Path | None, *, trained_on: bool = True) -> str | None:
    """Return why a data set cannot be opened ("no <path>"), or None; ConfigError for an unknown name.

    One that is not ``trained_on`` needs its held-out file alone.
    """
    if name in ("digits", RANDOM_PIXELS):
        return None
    if name not in SOURCES:
        raise unknown_name("data set", name, DATA_SETS)
    source = SOURCES[name]
    if data_root is None:
        return f"no --data-root, which holds {source.folder}/{source.files[0]}"
    paths = [data_root / source.folder / file for file in source.files[not trained_on :]]
    return next((f"no {path}" for path in paths if not path.exists()), None)


def open_data_set(name: str, data_root: Path | None, images: int | None = None) -> DataSet:
    """Open a data set, cut down to ``images`` training images (stratified) where it has more.

    Raises
    ------
    DataError
        where a file is not there, or cannot be read
    """
    reason = missing(name, data_root)
    if reason:
        raise DataError(f"{title_of(name)}: {reason}: put it there, or pass another --data-root")
    not_run: list[str] = []
    if name == "digits":
        from probjepa.experiments.demo import demo_sets

        train, test, ood = demo_sets()
    else:
        assert data_root is not None
        train, test, ood = _from_files(name, data_root, not_run)
    if images is not None and images < len(train):
        train = split(train, images / len(train), _SUBSET_SEED)[1]
    test, ood = _held_out(test, train), {key: _held_out(of, train) for key, of in ood.items()}
    sets = {"train": train, "test": test, **ood}
    return DataSet(name, title_of(name), train, test, ood, _fingerprint(sets), tuple(not_run))


def _from_files(
    name: str, data_root: Path, not_run: list[str]
) -> tuple[ImageSet, ImageSet, dict[str, ImageSet]]:
    source = SOURCES[name]
    train, test = (_read(source, file, data_root, source.size) for file in source.files)
    ood = {}
    if source.unseen:
        seen = set(range(10)) - set(source.unseen)
        ood["unseen classes"] = test.with_labels_in(source.unseen)
        train, test = train.with_labels_in(seen), test.with_labels_in(seen)
    for other in source.ood:
        reason = missing(other, data_root, trained_on=False)
        if reason:
            not_run.append(f"{title_of(other)} as an out-of-distribution set: {reason}")
        else:
            ood[other] = _read(SOURCES[other], SOURCES[other].files[1], data_root, source.size)
    noise = np.random.default_rng(0).integers(
        0, 256, (NOISE_IMAGES, 3, source.size, source.size), dtype=np.uint8
    )
    for key, uri in (("digits", "sklearn:digits"), ("noise", noise)):
        ood[key] = _in_memory(uri, source.size)
    if _is_jpeg(data_root / source.folder / source.files[0]):
        # a detector could tell the sets apart by their codec alone
        ood = {key: of if key == "unseen classes" else reencode(of, CODEC) for key, of in ood.items()}
    return train, test, {key: dataclasses.replace(of, name=key) for key, of in ood.items()}


def _read(source: Source, file: str, data_root: Path, size: int) -> ImageSet:
    images = _in_memory(data_root / source.folder / file, size)
    return dataclasses.replace(images, name=f"{source.title} {file.split('.')[0]}")


def _in_memory(source: object, size: int) -> ImageSet:
    images = open_images(source, size=size, channels=3, convert=True)
    if isinstance(images, ImageSet):
        return images
    return ImageSet(images.get(slice(None)), images.labels, images.ids, images.classes, images.name)


def _is_jpeg(path: Path) -> bool:
    """Whether the first image of a parquet file is stored as JPEG."""
    import pyarrow.parquet as pq

    table = next(pq.ParquetFile(path).iter_batches(1)).to_pylist()[0]
    found: Iterator[bytes] = (
        value["bytes"] for value in table.values() if isinstance(value, dict) and value.get("bytes")
    )
    return next(found, b"").startswith(b"\xff\xd8")


def _held_out(images: ImageSet, train: Images) -> ImageSet:
    seen = overlap(images, train)
    return images.subset(~seen) if seen.any() else images


def _fingerprint(sets: dict[str, ImageSet]) -> str:
    digest = hashlib.sha256()
    for name, images in sets.items():
        labels = b"" if images.labels is None else images.labels.numpy().tobytes()
        digest.update(f"{name} {fingerprint(images)}".encode() + labels)
    return digest.hexdigest()[:16]
