"""What a million images take: images a second of a core, seconds to start, peak memory, of each kind of work.

Each measurement is a process of its own with one thread: what the commands on shards do, decoding and writing
included, and steps of training. Seconds are of the process, so that other work of the machine does not count.
``--page`` writes the tables of docs/cost.md from the committed figures.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from harness import ROOT, Result, arguments, parse, peak_resident, write
from shards import generate

ENCODERS: dict[str, dict[str, Any]] = {
    "ResNet-18, 32 px": {"backbone": "resnet18", "image_size": 32, "images": 256, "batch_size": 32},
    "ResNet-50, 224 px": {"backbone": "resnet50", "image_size": 224, "images": 32, "batch_size": 8},
}
WORK = ("train", "embed", "likelihood", "predictive", "knn", "mahalanobis", "gmm", "jepa")
NAMES = {
    "train": "training, VJE, two views", "embed": "`embed`",
    **{score: f"`score --score {score}`" for score in WORK[2:]},
}  # fmt: skip
MARK = "<!-- written by: python benchmarks/cost.py --page -->"
NEEDING = ("predictive", "knn", "mahalanobis", "gmm")
TOO_LONG = {("ResNet-50, 224 px", "jepa")}  # hours
STEPS = 3  # of training: the first warms up


def opened(encoder: str) -> Any:
    """Return VJE with random weights, which cost what trained ones do."""
    from probjepa.methods.vje import VJE

    wanted = ENCODERS[encoder]
    return VJE(wanted["backbone"], image_size=wanted["image_size"], seed=0)


def trained(encoder: str, data: str) -> dict[str, float]:
    """Steps of ``fit``, with views and the optimiser."""
    import lightning.pytorch as L

    from probjepa import open_images
    from probjepa.training import fit

    at: list[float] = []

    class Clock(L.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            at.append(time.process_time())
            trainer.should_stop = len(at) == STEPS

    wanted = ENCODERS[encoder]
    batch = min(wanted["batch_size"], wanted["images"])
    images = open_images(data, size=wanted["image_size"], channels=3)
    rows = images.get(torch.arange(STEPS * batch) % len(images))
    start = time.process_time()
    fit(
        opened(encoder), rows.numpy(), epochs=1, batch_size=batch, progress=False, callbacks=[Clock()],
        monitor_every=0, precision="32-true", channels_last=False,
    )  # fmt: skip
    return {"rows": batch * (STEPS - 1), "seconds": at[-1] - at[0], "start": at[0] - start}


def scored(what: str, model: str, data: str, few: str, reference: str, out: str) -> dict[str, float]:
    """One shard, as a worker does it."""
    from probjepa.data.shard_files import find_shards
    from probjepa.shards import Job, ShardWorker

    start = time.process_time()
    if what == "embed":
        job = Job(model, device="cpu")
    else:
        job = Job(model, "score", score=what, reference=reference if what in NEEDING else None, device="cpu")
    worker = ShardWorker(job)
    worker(find_shards(few)[0], f"{out}.few.parquet")  # opens the model, and fits the score to its reference
    opened_at = time.process_time()
    record = worker(find_shards(data)[0], out)
    return {"rows": record["rows"], "seconds": time.process_time() - opened_at, "start": opened_at - start}


def child(encoder: str, what: str, *places: str) -> None:
    """Measure one kind of work, and print it."""
    from probjepa.cli import own_process

    own_process()
    torch.set_num_threads(1)
    model, data, few, reference, out = places
    data = few if what == "jepa" else data
    found = trained(encoder, data) if what == "train" else scored(what, model, data, few, reference, out)
    print(json.dumps(found | {"imports": time.process_time() - found["seconds"] - found["start"],
                              "peak_mb": peak_resident() / 1e6}))  # fmt: skip


def rounded(value: float) -> str:
    """Return a number with two digits that count, and no exponent."""
    return f"{float(f'{value:.2g}'):,.10g}"


def page(figures: dict[str, dict[str, float]]) -> str:
    """Return the tables of the cost page, in Markdown."""
    parts = []
    for encoder in ENCODERS:
        titles = [
            "work", "images a second a core", "a million, core hours", "a billion, core years", "start, s",
            "peak, MB",
        ]  # fmt: skip
        lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
        for what in WORK:
            if (of := figures.get(f"{encoder}: {what}")) is None:
                continue
            rate = of["images_per_core_second"]
            spread = f"{rate:,.3g}"
            if of["slowest"] < of["fastest"]:
                spread += f" ({of['slowest']:,.3g}–{of['fastest']:,.3g})"
            hours = 1e6 / rate / 3600
            # a first shard was done before the clock: its rows took as long as those of the second
            before = of["images"] / rate if what == "jepa" else 0
            start = f"{max(of['start_seconds'] - before, 0):,.0f}"
            lines.append(
                f"| {NAMES[what]} | {spread} | {rounded(hours)} | {rounded(hours * 1000 / 24 / 365.25)} "
                f"| {start} | {of['peak_mb']:,.0f} |"
            )
        parts.append("\n".join([f"**{encoder}**", "", *lines]))
    return "\n\n".join(parts)


def fill_in(text: str, figures: dict[str, dict[str, float]]) -> str:
    """Put the tables in their place in the page."""
    before, _, rest = text.partition(MARK)
    after = rest.partition(MARK)[2]
    return f"{before}{MARK}\n\n{page(figures)}\n\n{MARK}{after}"


def main() -> None:
    if sys.argv[1:2] == ["--page"]:
        figures = json.loads((ROOT / "benchmarks/results/cost.json").read_text())["figures"]
        place = ROOT / "docs/cost.md"
        place.write_text(fill_in(place.read_text(), figures))
        return
    if sys.argv[1:2] == ["--child"]:  # a process of its own: a peak is never taken back
        child(*sys.argv[2:])
        return
    parser = arguments(__doc__, "cost", repeats=5)
    parser.add_argument("--encoders", nargs="+", choices=list(ENCODERS), default=list(ENCODERS))
    parser.add_argument("--work", nargs="+", choices=WORK, default=list(WORK))
    args = parse(parser)
    rows: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as home:
        root = Path(home)
        for encoder in args.encoders:
            count, size = ENCODERS[encoder]["images"], ENCODERS[encoder]["image_size"]
            place = root / encoder
            place.mkdir()
            opened(encoder).eval().save_pretrained(place / "model")
            for name, images in (("data", count), ("few", 4), ("reference", count)):
                generate(place / name, images, 1, size, seed=len(name))
            names = ("model", "data", "few", "reference", "out.parquet")
            for turn in range(args.repeats):
                for what in args.work:
                    if (encoder, what) in TOO_LONG:
                        continue
                    words = ["--child", encoder, what, *(str(place / name) for name in names)]
                    said = subprocess.run(
                        [sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=True,
                        env={**os.environ, "OMP_NUM_THREADS": "1"},
                    )  # fmt: skip
                    found = json.loads(said.stdout.splitlines()[-1])
                    rows.setdefault(f"{encoder}: {what}", []).append(found)
                    print(turn, encoder, what, found, flush=True)
    result = Result("cost", {k: [r["seconds"] / r["rows"] for r in v] for k, v in rows.items()})
    result.reference = next(iter(rows))
    result.figures = {
        name: {
            "images_per_core_second": 1 / result.time(name).median,
            "fastest": 1 / result.time(name).min,
            "slowest": 1 / result.time(name).max,
            "start_seconds": sorted(r["start"] + r["imports"] for r in found)[len(found) // 2],
            "peak_mb": max(r["peak_mb"] for r in found),
            "images": found[0]["rows"],
        }
        for name, found in rows.items()
    }
    write(result, args.out)


if __name__ == "__main__":
    main()
