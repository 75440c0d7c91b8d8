"""What a GPU does: the CPU's figures, training's speed, JEPA-SCORE's, and VJE on CIFAR-10 at 200 epochs.

One command, in parts that take less than nine minutes each. What a part finds is written as soon as it is
found, and the same command goes on behind it. ``--dry-run`` does all of it on the CPU, tiny: the figures
mean nothing then.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch
from torch import Tensor, nn

import cifar10_cpu
import jepa_score as paper
from harness import ROOT, Spread, arguments, command_line, compare, environment, parse
from probjepa.data import ImageSet
from probjepa.evaluation import evaluate
from probjepa.files import write_text
from probjepa.jacobian import jepa_score
from probjepa.methods import METHODS, Method
from probjepa.training import fit

Found = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """A backbone, and what it is trained on."""

    backbone: str
    options: dict[str, Any]
    size: int
    batch: int
    steps: int  # an epoch

    @property
    def name(self) -> str:
        """The name of its figures."""
        return f"{self.backbone}, {self.size} px, batch {self.batch}"


SHAPES = (
    Shape("resnet18", {}, 32, 256, 40),
    Shape("resnet50", {}, 224, 128, 12),
    Shape("vit", {"patch_size": 16, "width": 384, "depth": 12, "heads": 6}, 224, 128, 12),
)
TINY = (
    Shape("convnet", {"widths": (4, 8)}, 16, 8, 2),
    Shape("vit", {"patch_size": 8, "width": 16, "depth": 1, "heads": 2}, 16, 8, 2),
)
EPOCHS = 6  # of which the first does not count, in which a compiled loss is compiled
# of the tests for a GPU, those that say little on a CPU and take long
LONG = "not compiled and not precisions and not optimisers and not embeds_and_scores"


def main() -> None:
    parser = arguments(__doc__, "gpu", repeats=7)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="which to run")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU with tiny sizes")
    parser.add_argument("--minutes", type=float, default=8.0, help="of the long run, in one call")
    parser.add_argument("--run", type=Path, help="keep the long run here; one that is there goes on")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="of lightly's loader")
    args = parse(parser)
    args.device = "cpu" if args.dry_run else "cuda"
    if not args.dry_run and not torch.cuda.is_available():
        parser.error("no GPU is visible here: run it where there is one, or with --dry-run")
    record = begun(args.out, args.dry_run)
    for part in args.parts:
        found = record["parts"].setdefault(part, {"figures": {}})
        if found.get("finished"):
            print(f"{part}: kept")
            continue
        start = time.monotonic()
        for name, figures in PARTS[part](args, found["figures"]):
            found["figures"][name] = figures
            found["seconds"] = round(time.monotonic() - start, 1)
            write_text(args.out, json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
            print(f"{part}, {name}: {json.dumps(figures)[:300]}", flush=True)
        found["finished"] = True
        write_text(args.out, json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    print(f"  → {args.out}")


def begun(out: Path, dry_run: bool) -> Found:
    """Return the record of an earlier call on this machine's kind and this commit, or a new one."""
    here = environment()
    same = ("gpu", "torch", "commit")
    try:
        kept: Found = json.loads(out.read_text())
        if kept["dry_run"] == dry_run and all(kept["environment"][key] == here[key] for key in same):
            return kept
    except (OSError, ValueError, KeyError):
        pass
    return {
        "benchmark": "gpu",
        "dry_run": dry_run,
        "command": command_line(sys.argv),
        "environment": here,
        "parts": {},
    }


def correctness(args: argparse.Namespace, kept: Found) -> Iterator[tuple[str, Any]]:
    """Run the tests that compare a GPU with the CPU."""
    with tempfile.TemporaryDirectory() as temporary:
        report = Path(temporary) / "report.xml"
        command = [sys.executable, "-m", "pytest", "tests/cuda", "-q", "-p", "no:cacheprovider"]
        command += ["-o", "addopts=", f"--junitxml={report}"]
        command += ["-k", LONG] if args.dry_run else ["-n", "6"]
        environment = {**os.environ, "PROBJEPA_TEST_DEVICE": args.device}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if not report.is_file():
            raise SystemExit(f"pytest wrote no report: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        for case in ElementTree.parse(report).iter("testcase"):
            failed = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
            message = "passed" if failed is None else f"{failed.tag}: {failed.get('message', '')[:500]}"
            yield str(case.get("name")), message


def throughput(args: argparse.Namespace, kept: Found) -> Iterator[tuple[str, Any]]:
    """Train as a user does, images already in memory; lightly's own loop beside it for SimSiam."""
    for shape in TINY if args.dry_run else SHAPES:
        images = torch.randint(
            0, 256, (shape.batch * shape.steps, 3, shape.size, shape.size), dtype=torch.uint8,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        for method in ("vje", "simsiam"):
            for compiled in (False, True) if method == "vje" and not args.dry_run else (False,):
                name = f"{method}, {shape.name}{', compiled' * compiled}"
                if name not in kept:
                    yield name, attempt(lambda: ours(args, shape, method, images, compiled))  # noqa: B023
        name = f"lightly's SimSiam loop, {shape.name}"
        if name not in kept:
            yield name, attempt(lambda: lightlys(args, shape, images))  # noqa: B023


def attempt(measure: Callable[[], Any]) -> Any:
    """Return what was measured, or why it was not: one part that fails does not end the others."""
    try:
        return measure()
    except (ImportError, RuntimeError) as error:
        return {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"}
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def made(method: str, shape: Shape) -> Method:
    built: Method = METHODS[method](
        shape.backbone, backbone_options=shape.options, image_size=shape.size, seed=0
    )
    return built


def ours(args: argparse.Namespace, shape: Shape, method: str, images: Tensor, compiled: bool) -> Found:
    """Images a second of ``fit`` with its defaults, epoch by epoch, and the memory it takes."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        start = time.perf_counter()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        fit(
            made(method, shape), images, epochs=EPOCHS, out=folder, batch_size=shape.batch,
            device=args.device, compile=compiled, progress=False, learning_rate=1e-4,
        )  # fmt: skip
        with (folder / "metrics.csv").open() as file:
            seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    return rates(shape, seconds, time.perf_counter() - start)


def rates(shape: Shape, seconds: list[float], everything: float) -> Found:
    spread = Spread.of([shape.batch * shape.steps / spent for spent in seconds[1:]])
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    return {"images_per_second": asdict(spread), "seconds_in_all": everything, "peak_gib": peak}


def lightlys(args: argparse.Namespace, shape: Shape, images: Tensor) -> Found:
    """SimSiam as its documentation has it: its transforms of PIL images in workers, and bf16 as ours has."""
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead
    from lightly.transforms import SimSiamTransform
    from PIL import Image

    encoder = made("simsiam", shape).encoder
    width = int(encoder(torch.zeros(2, 3, shape.size, shape.size)).shape[1])
    model = nn.ModuleDict(
        {
            "encoder": encoder,
            "projection": SimSiamProjectionHead(width, 2048, 2048),
            "prediction": SimSiamPredictionHead(2048, 512, 2048),
        }
    ).to(args.device)
    transform = SimSiamTransform(input_size=shape.size)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]

    class Pictures(torch.utils.data.Dataset[list[Tensor]]):
        def __len__(self) -> int:
            return len(pictures)

        def __getitem__(self, index: int) -> list[Tensor]:
            views: list[Tensor] = transform(pictures[index])
            return views

    loader = torch.utils.data.DataLoader(
        Pictures(), batch_size=shape.batch, shuffle=True, drop_last=True, num_workers=args.workers,
        persistent_workers=args.workers > 0, pin_memory=args.device == "cuda",
    )  # fmt: skip
    criterion = NegativeCosineSimilarity()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)
    seconds = []
    start = time.perf_counter()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    for _ in range(EPOCHS):
        began = time.perf_counter()
        for views in loader:
            with torch.autocast(args.device, torch.bfloat16, enabled=args.device == "cuda"):
                x = [view.to(args.device, non_blocking=True) for view in views]
                z = [model["projection"](model["encoder"](view)) for view in x]
                p = [model["prediction"](each) for each in z]
                loss = 0.5 * (criterion(z[0].detach(), p[1]) + criterion(z[1].detach(), p[0]))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        if args.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return rates(shape, seconds, time.perf_counter() - start) | {"workers": args.workers}


def scores(args: argparse.Namespace, kept: Found) -> Iterator[tuple[str, Any]]:
    """JEPA-SCORE of a ViT-S against the paper's form, and against the CPU's figures."""
    size, images = (16, 1) if args.dry_run else (224, 8)
    torch.manual_seed(0)
    model = paper.ViT(size, 16, 1, 2, 8) if args.dry_run else paper.ViT(size)
    x = paper.natural_patches(images, size)
    model.eval().to(args.device)
    if "accuracy" not in kept:
        here = jepa_score(model, x[:2].to(args.device)).cpu()
        there = jepa_score(model.cpu(), x[:2])
        model.to(args.device)
        yield "accuracy", {"gpu": here.tolist(), "cpu": there.tolist()}
    x = x.to(args.device)
    result = compare(
        "gpu",
        {
            "paper": lambda: paper.paper_score(model, x),
            "exact": lambda: jepa_score(model, x),
            "auto": lambda: jepa_score(model, x, estimator="auto"),
        },
        reference="paper",
        repeats=1 if args.dry_run else args.repeats,
    )
    yield f"ViT, {size} px, {images} images at a time", result.record()["candidates"]


def noise(seed: int) -> ImageSet:
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 3, 32, 32), dtype=np.uint8)
    return ImageSet(torch.from_numpy(pixels), torch.arange(64) % 2, [f"{i}" for i in range(64)])


def long_run(args: argparse.Namespace, kept: Found) -> Iterator[tuple[str, Any]]:
    """Train VJE on CIFAR-10 by the paper's recipe as far as the minutes go, and evaluate it."""
    recipe = dict(cifar10_cpu.FULL, seed=0, device=args.device, minutes=args.minutes)
    if args.dry_run:
        recipe |= {"epochs": 1, "width": 0.0625, "batch_size": 16, "precision": "32-true"}
        images, test = (noise(seed) for seed in (0, 1))
        ood: dict[str, ImageSet] = {}
    else:
        images, test = (cifar10_cpu.cifar10(args.data_root, part) for part in ("train", "test"))
        ood = cifar10_cpu.out_of_distribution(args.data_root, 0)
    with tempfile.TemporaryDirectory() as temporary:
        model, training = cifar10_cpu.train(
            argparse.Namespace(**recipe), images, args.run or Path(temporary) / "run"
        )
    yield "training", {"recipe": recipe, **training}
    yield "evaluation", evaluate(model, images, test, ood, seed=0).metrics


PARTS: dict[str, Callable[[argparse.Namespace, Found], Iterator[tuple[str, Any]]]] = {
    "correctness": correctness,
    "throughput": throughput,
    "jepa-score": scores,
    "train": long_run,
}


if __name__ == "__main__":
    main()
