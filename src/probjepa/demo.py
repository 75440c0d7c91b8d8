"""The demo: VJE on scikit-learn's digits, and what it makes of images unlike them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from probjepa.data import Images, ImageSet, open_images, split
from probjepa.evaluation import evaluate
from probjepa.files import discard, refuse_existing, refuse_foreign, replacing
from probjepa.methods.vje import VJE
from probjepa.report.summary import PAGES, print_summary, write_evaluation
from probjepa.report.training import training_report
from probjepa.terminal import say
from probjepa.training import Interrupted, fit
from probjepa.training.auto import using_threads

UNSEEN = (8, 9)
STEPS = 3600
BATCH_SIZE = 128
IMAGE_SIZE = 16


def run_demo(out: Path, *, seed: int = 0, overwrite: bool = False, progress: bool = True) -> None:
    """Train on eight digit classes; score held-out digits, two unseen classes, natural patches and noise.

    Writes the run folder, metrics.json and report.html into ``out`` and prints a summary. A demo that was cut
    short goes on.

    Raises
    ------
    ArtifactError
        if ``out`` is in the way, or cannot be written
    Interrupted
        after a signal: the same call goes on, without ``overwrite``
    """
    started = time.monotonic()
    half_done = not (out / "report.html").exists() and (out / "run").is_dir()
    refuse_existing(out, overwrite or half_done)
    if not half_done:
        refuse_foreign(out)
    resume = half_done and not overwrite and (out / "run" / "config.yaml").is_file()
    train, test, ood = demo_sets()
    say(
        f"training VJE on {len(train):,} images of digits 0–7 ({IMAGE_SIZE}×{IMAGE_SIZE}), "
        f"{STEPS:,} steps of {BATCH_SIZE}"
    )
    if overwrite and out.is_dir():  # an earlier demo's pages do not stay beside another run
        with replacing(out, *PAGES):
            discard(out / "run")
    # so small a network gains nothing from more threads, and loses much where others want the cores
    with using_threads(1):
        try:
            model = train_demo(
                train, test, seed=seed, out=out / "run", resume=resume, overwrite=overwrite, progress=progress
            )
        except Interrupted as stop:
            raise stop.otherwise(": run the demo again, without --overwrite, to go on") from None
        training_report(out / "run")
        result = evaluate(model, train, test, ood, seed=seed)
    write_evaluation(result, out)
    print_summary(result.metrics)
    say(f"{time.monotonic() - started:.0f} s; open {out}/report.html (training: {out}/run/report.html)")


def demo_sets() -> tuple[ImageSet, ImageSet, dict[str, ImageSet]]:
    """Return the digits 0–7 to train on, those held out, and the out-of-distribution sets by name."""
    digits = open_images("sklearn:digits", size=IMAGE_SIZE)
    train, test = split(digits.with_labels_in(set(range(10)) - set(UNSEEN)), 0.25, seed=0)
    random = np.random.default_rng(0)
    ood = {
        "unseen classes": _named(digits.with_labels_in(UNSEEN), "digits 8 and 9"),
        "natural patches": natural_patches(500, IMAGE_SIZE, random),
        "noise": noise(500, IMAGE_SIZE, random),
    }
    return _named(train, "digits 0–7, train"), _named(test, "digits 0–7, held out"), ood


def train_demo(
    train: ImageSet,
    test: ImageSet | None,
    *,
    seed: int,
    widths: Sequence[int] = (16, 32, 64),
    **options: Any,
) -> VJE:
    """Train the demo's model, or one with other ``widths``; ``options`` go to ``fit``."""
    # an embedding of 64 would give the inference network 16 units (D/4): too few for μ to follow h
    model = VJE(
        "convnet",
        backbone_options={"widths": list(widths)},
        channels=1,
        image_size=IMAGE_SIZE,
        hidden_dim=32,
        seed=seed,
    )
    return fit(
        model,
        train,
        val=test,
        epochs=round(STEPS / (len(train) // BATCH_SIZE)),
        batch_size=BATCH_SIZE,
        learning_rate=0.03,
        seed=seed,
        monitor_every=25,
        knn_every=None if test is None else 100,
        device="cpu",
        precision="32-true",  # the same figures on every processor
        channels_last=True,
        **options,
    )


def _named(images: Images, name: str) -> ImageSet:
    return ImageSet(images.get(slice(None)), images.labels, images.ids, images.classes, name)


def natural_patches(count: int, size: int, random: np.random.Generator) -> ImageSet:
    """Grey patches of scikit-learn's two photographs: squares of 8 to 64 pixels, resized to size × size."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photos = [Image.fromarray(image).convert("L") for image in load_sample_images().images]
    patches = []
    for index in range(count):
        photo = photos[index % len(photos)]
        side = int(random.integers(8, 65))
        left, top = (int(random.integers(0, extent - side + 1)) for extent in photo.size)
        patch = photo.crop((left, top, left + side, top + side)).resize(
            (size, size), Image.Resampling.BILINEAR
        )
        patches.append(np.asarray(patch))
    pixels = torch.from_numpy(np.stack(patches))[:, None]
    return ImageSet(pixels, None, [str(i) for i in range(count)], name="patches of photographs")


def noise(count: int, size: int, random: np.random.Generator) -> ImageSet:
    """Uniform noise, each pixel its own."""
    pixels = torch.from_numpy(random.integers(0, 256, (count, 1, size, size), dtype=np.uint8))
    return ImageSet(pixels, None, [str(i) for i in range(count)], name="uniform noise")
