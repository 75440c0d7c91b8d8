"""The image sets of the studies by name: what is trained on, held out, and out of distribution."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from probjepa.data import Images, ImageSet, open_images, split
from probjepa.data.codec import reencode
from probjepa.data.fingerprint import fingerprint
from probjepa.data.overlap import overlap
from probjepa_experiments.study import Data, Source

CODEC = "jpeg:75"
NOISE_IMAGES = 5_000
_SUBSET_SEED = 0


@dataclass(frozen=True, kw_only=True)
class DataSet(Data):
    """A data set, opened: ``train``, ``test`` and the sets of ``ood`` have no image in common."""

    train: ImageSet
    test: ImageSet
    ood: Mapping[str, ImageSet]


@dataclass(frozen=True)
class ImageSource(Source):
    """A training and a held-out file, and how they are read: ``channels``, square, ``size`` pixels wide.

    The images of the ``unseen`` classes are not trained on and are an out-of-distribution set of their own,
    as the held-out files of the sources named in ``others`` are. With ``validation``, a fifth of the training
    images is held out in the place of the test images, and there is no out-of-distribution set: what is
    chosen by it has seen neither. Without files it is scikit-learn's digits, of all classes.
    """

    size: int = 32
    channels: int = 3
    unseen: tuple[int, ...] = ()
    others: tuple[str, ...] = ()
    validation: bool = False

    def read(self, data_root: Path, rows: int | None, seed: int) -> DataSet:
        """Open it, with at most ``rows`` training images, stratified; the seed is of no account."""
        not_run: list[str] = []
        if not self.files and not self.validation:
            from probjepa.demo import demo_sets

            train, test, ood = demo_sets()
        else:
            train, test, ood = self._read_all(data_root, not_run)
        if rows is not None and rows < len(train):
            train = split(train, rows / len(train), _SUBSET_SEED)[1]
        # what is also trained on is not held out
        test, ood = _held_out(test, train), {key: _held_out(of, train) for key, of in ood.items()}
        sets = {"train": train, "test": test, **ood}
        return DataSet(
            train=train, test=test, ood=ood, fingerprint=_fingerprint(sets),
            shape=(train.channels, train.size), not_run=tuple(not_run),
        )  # fmt: skip

    def _read_all(
        self, data_root: Path, not_run: list[str]
    ) -> tuple[ImageSet, ImageSet, dict[str, ImageSet]]:
        if self.validation:
            train = self._read(data_root / self.files[0] if self.files else "sklearn:digits")
            return *split(train, 0.2, _SUBSET_SEED), {}
        train, test = (self._read(data_root / file) for file in self.files)
        ood = {}
        if self.unseen:
            seen = set(range(10)) - set(self.unseen)
            ood["unseen classes"] = test.with_labels_in(self.unseen)
            train, test = train.with_labels_in(seen), test.with_labels_in(seen)
        for name in self.others:
            other = SOURCES[name]
            reason = dataclasses.replace(other, files=other.files[1:]).missing(data_root)
            if reason:
                not_run.append(f"{other.title} as an out-of-distribution set: {reason}")
            else:
                ood[name] = self._read(data_root / other.files[1])
        noise = np.random.default_rng(0).integers(
            0, 256, (NOISE_IMAGES, 3, self.size, self.size), dtype=np.uint8
        )
        ood |= {"digits": self._read("sklearn:digits"), "noise": self._read(noise)}
        if _is_jpeg(data_root / self.files[0]):
            # a detector could tell the sets apart by their codec alone
            ood = {key: of if key == "unseen classes" else reencode(of, CODEC) for key, of in ood.items()}
        return train, test, {key: dataclasses.replace(of, name=key) for key, of in ood.items()}

    def _read(self, source: object) -> ImageSet:
        images = open_images(source, size=self.size, channels=self.channels, convert=True)
        if isinstance(images, ImageSet):
            return images
        return ImageSet(images.get(slice(None)), images.labels, images.ids, images.classes, images.name)


def _files(folder: str, held_out: str = "test.parquet") -> tuple[str, str]:
    return f"{folder}/train.parquet", f"{folder}/{held_out}"


# STL-10's size is ours: the paper's is not in the text that reached us
SOURCES: Mapping[str, ImageSource] = {
    "digits": ImageSource("digits 0–7"),
    "cifar10": ImageSource(
        "CIFAR-10", _files("cifar10"), others=("cifar100", "tiny-imagenet", "textures", "svhn")
    ),
    "cifar10-validation": ImageSource("CIFAR-10's training images", _files("cifar10"), validation=True),
    "cifar10-8": ImageSource("CIFAR-10, 8 of 10 classes", _files("cifar10"), unseen=(8, 9)),
    "cifar100": ImageSource("CIFAR-100", _files("cifar100"), others=("tiny-imagenet", "cifar10", "svhn")),
    "stl10": ImageSource("STL-10", _files("stl10"), 96, others=("tiny-imagenet",)),
    "tiny-imagenet": ImageSource(
        "Tiny ImageNet, 100 classes", _files("tiny_imagenet100", "validation.parquet"), 64
    ),
    "tiny-imagenet-validation": ImageSource(
        "Tiny ImageNet's training images, 100 classes, 32 px",
        _files("tiny_imagenet100", "validation.parquet"),
        validation=True,
    ),
    "digits-validation": ImageSource("scikit-learn's digits, 28 px", size=28, channels=1, validation=True),
    "textures": ImageSource("ten of DTD's textures", ("textures/dtd10.parquet",) * 2),
    "svhn": ImageSource("SVHN", _files("svhn")),
}


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
