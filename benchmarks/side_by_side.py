"""Training beside lightly's loops and a plain Lightning loop: same encoder, batch, images and threads.

For the environment with torchvision and lightly. Each candidate trains one epoch on the same CIFAR-10 images,
which lie in memory as their files have them (WebP), from the file's bytes to the last optimiser step.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as L
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor, nn

from harness import arguments, compare, parse, peak_resident, write
from probjepa.cli import own_process
from probjepa.data import ImageSet, open_images
from probjepa.methods import METHODS
from probjepa.training import fit

Run = Callable[[], None]


class Files(torch.utils.data.Dataset[Any]):
    """Images as a data set of torch's: decoded when asked for, then transformed."""

    def __init__(self, files: list[bytes], transform: Any) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        return self.transform(Image.open(io.BytesIO(self.files[index])).convert("RGB"))


def encoder(args: argparse.Namespace) -> nn.Module:
    made = METHODS["simsiam"](
        "resnet18", backbone_options={"width": args.width}, image_size=32, seed=0
    ).encoder
    assert isinstance(made, nn.Module)
    return made


def loader(args: argparse.Namespace, files: list[bytes], transform: Any) -> Any:
    return torch.utils.data.DataLoader(
        Files(files, transform), batch_size=args.batch_size, shuffle=True, drop_last=True,
        num_workers=args.workers,
    )  # fmt: skip


def ours(args: argparse.Namespace, files: list[bytes], method: str) -> Run:
    """``fit`` as it is, decoding included."""

    def run() -> None:
        pixels = [torch.from_numpy(_array(file)).permute(2, 0, 1) for file in files]
        images = ImageSet(torch.stack(pixels), None, [str(i) for i in range(len(files))])
        model = METHODS[method]("resnet18", backbone_options={"width": args.width}, image_size=32, seed=0)
        fit(
            model, images, epochs=1, batch_size=args.batch_size, device="cpu", progress=False,
            learning_rate=1e-4,
        )  # fmt: skip

    return run


def _array(file: bytes) -> Any:
    import numpy as np

    return np.array(Image.open(io.BytesIO(file)).convert("RGB"))


def trained(
    args: argparse.Namespace, batches: Any, model: nn.Module, loss_of: Callable[[Any], Tensor]
) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)
    for views in batches:
        loss = loss_of(views)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def lightly_simsiam(args: argparse.Namespace, files: list[bytes]) -> Run:
    """SimSiam as lightly's documentation has it."""
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead
    from lightly.transforms import SimSiamTransform

    def run() -> None:
        f = encoder(args)
        width = int(512 * args.width)
        project, predict = SimSiamProjectionHead(width, 2048, 2048), SimSiamPredictionHead(2048, 512, 2048)
        criterion = NegativeCosineSimilarity()

        def loss(views: list[Tensor]) -> Tensor:
            z = [project(f(view)) for view in views]
            p = [predict(each) for each in z]
            found: Tensor = 0.5 * (criterion(z[0].detach(), p[1]) + criterion(z[1].detach(), p[0]))
            return found

        batches = loader(args, files, SimSiamTransform(input_size=32))
        trained(args, batches, nn.ModuleList([f, project, predict]), loss)

    return run


def lightly_byol(args: argparse.Namespace, files: list[bytes]) -> Run:
    """BYOL as lightly's documentation has it."""
    import copy

    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum
    from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform

    def run() -> None:
        f = encoder(args)
        width = int(512 * args.width)
        project, predict = BYOLProjectionHead(width, 4096, 256), BYOLPredictionHead(256, 4096, 256)
        f_slow, project_slow = copy.deepcopy(f), copy.deepcopy(project)
        deactivate_requires_grad(f_slow)
        deactivate_requires_grad(project_slow)
        criterion = NegativeCosineSimilarity()
        transform = BYOLTransform(
            view_1_transform=BYOLView1Transform(input_size=32, gaussian_blur=0.0),
            view_2_transform=BYOLView2Transform(input_size=32, gaussian_blur=0.0),
        )

        def loss(views: list[Tensor]) -> Tensor:
            update_momentum(f, f_slow, m=0.996)
            update_momentum(project, project_slow, m=0.996)
            p = [predict(project(f(view))) for view in views]
            with torch.no_grad():
                z = [project_slow(f_slow(view)) for view in views]
            found: Tensor = 0.5 * (criterion(p[0], z[1]) + criterion(p[1], z[0]))
            return found

        trained(args, loader(args, files, transform), nn.ModuleList([f, project, predict]), loss)

    return run


class Plain(L.LightningModule):
    """SimSiam as one writes it by hand."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__()
        width = int(512 * args.width)
        self.f = encoder(args)
        self.project = nn.Sequential(
            nn.Linear(width, 2048),
            nn.BatchNorm1d(2048),
            nn.ReLU(),
            nn.Linear(2048, 2048),
            nn.BatchNorm1d(2048),
        )
        self.predict = nn.Sequential(
            nn.Linear(2048, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 2048)
        )

    def training_step(self, batch: Any, index: int) -> Tensor:
        """Return the loss of two views."""
        z = [self.project(self.f(view)) for view in batch]
        p = [self.predict(each) for each in z]
        pairs = ((p[0], z[1]), (p[1], z[0]))
        return -sum(nn.functional.cosine_similarity(a, b.detach()).mean() for a, b in pairs) / 2

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimiser, at a constant rate."""
        return torch.optim.SGD(self.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)


def plain_lightning(args: argparse.Namespace, files: list[bytes]) -> Run:
    """A LightningModule and torchvision's transforms."""
    from torchvision import transforms as T

    one = T.Compose(
        [
            T.RandomResizedCrop(32, scale=(0.08, 1.0)),
            T.RandomHorizontalFlip(),
            T.RandomApply([T.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            T.RandomGrayscale(0.2),
            T.ToTensor(),
            T.Normalize([0.49, 0.48, 0.45], [0.25, 0.24, 0.26]),
        ]
    )

    def run() -> None:
        trainer = L.Trainer(
            accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(Plain(args), loader(args, files, lambda image: [one(image), one(image)]))

    return run


CANDIDATES: dict[str, Callable[[argparse.Namespace, list[bytes]], Run]] = {
    "lightly SimSiam": lightly_simsiam,
    "ours SimSiam": lambda args, files: ours(args, files, "simsiam"),
    "plain Lightning SimSiam": plain_lightning,
    "lightly BYOL": lightly_byol,
    "ours BYOL": lambda args, files: ours(args, files, "byol"),
    "ours VJE": lambda args, files: ours(args, files, "vje"),
}


def images_of(args: argparse.Namespace) -> list[bytes]:
    table = pq.ParquetFile(args.data_root / "cifar10" / "test.parquet")
    batch = next(table.iter_batches(args.batch_size * args.steps, columns=["img"]))
    return [row["img"]["bytes"] for row in batch.to_pylist()]


def peak(args: argparse.Namespace, name: str) -> int:
    """Bytes that a candidate's epoch takes beyond the libraries and the files, in a process of its own."""
    own_process()
    torch.set_num_threads(args.threads)
    run = CANDIDATES[name](args, images_of(args))
    before = peak_resident()
    run()
    return peak_resident() - before


def main() -> None:
    parser = arguments(__doc__, "side_by_side", repeats=5)
    parser.add_argument("--width", type=float, default=1.0, help="of the ResNet-18")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=8, help="an epoch")
    parser.add_argument("--workers", type=int, default=0, help="of the others' loaders; ours needs none")
    own_process()  # as the command line runs: memory that is kept, threads that do not spin
    args = parse(parser)
    files = images_of(args)
    open_images(args.data_root / "cifar10" / "test.parquet", size=32, channels=3)  # loads the libraries
    runs = {name: make(args, files) for name, make in CANDIDATES.items()}
    # in one process on one thread, the process's time: what others run on the machine does not lengthen it
    clock = time.process_time if args.threads == 1 and not args.workers else time.perf_counter
    result = compare("side_by_side", runs, "lightly SimSiam", args.repeats, clock=clock)
    count = args.batch_size * args.steps
    spawn = multiprocessing.get_context("spawn")
    peaks = {}
    for name in CANDIDATES:
        with spawn.Pool(1) as pool:
            peaks[name] = pool.apply(peak, (args, name))
    result.figures = {
        "images": count,
        "clock": clock.__name__,
        "batch size": args.batch_size,
        "width": args.width,
        "workers": args.workers,
        "images_per_second": {name: count / result.time(name).median for name in runs},
        "peak_bytes": peaks,
    }
    result.target("ours SimSiam / lightly's (≥ 3 × faster)", result.ratio("ours SimSiam").median, 1 / 3)
    write(result, args.out)


if __name__ == "__main__":
    main()
