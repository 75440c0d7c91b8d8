"""How fast a VJE head trains on kept views of a frozen encoder's embeddings.

``python benchmarks/frozen_speed.py`` keeps 8 views of 50,000 images (random; of the width that the public
ResNet-20 has, 64) and trains for 20 epochs. Embedding is timed apart: it is what the encoder costs. Seconds
are of the process on one core (what others do beside it does not count) and by the clock.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn

import probjepa as pj
from harness import Result, arguments, parse, write


class Small(nn.Module):
    """An encoder that costs next to nothing: 64 means of the image's patches."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(48, 64)

    def forward(self, x: Tensor) -> Tensor:
        """Embed (N, 3, H, W) to (N, 64)."""
        h: Tensor = self.mix(nn.functional.adaptive_avg_pool2d(x, 4).flatten(1))
        return h


def two_noisy(images: Tensor, seed: int) -> list[Tensor]:
    """Two views that cost next to nothing."""
    generator = torch.Generator().manual_seed(seed)
    pixels = images.float() / 255
    return [pixels + 0.1 * torch.randn(pixels.shape, generator=generator) for _ in range(2)]


def main() -> None:
    """Keep the views once, then train from fresh heads."""
    parser = arguments(__doc__, "frozen_speed")
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    args = parse(parser)
    torch.manual_seed(0)
    images = torch.randint(0, 256, (args.images, 3, 8, 8), dtype=torch.uint8)
    encoder = Small()
    cpu, clock = [], []
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        for epochs in [1, *[args.epochs] * args.repeats]:  # the first keeps the views
            head = pj.VJE(encoder, freeze=True, image_size=8, seed=0)
            start, process = time.perf_counter(), time.process_time()
            pj.fit(
                head, images, epochs=epochs, batch_size=args.batch_size, views=two_noisy,
                cache_views=args.views, out=run, overwrite=run.exists(), device="cpu", progress=False,
                monitor_every=0,
            )  # fmt: skip
            cpu.append(time.process_time() - process)
            clock.append(time.perf_counter() - start)
    result = Result(
        "frozen_speed", {"training, of the process": cpu[1:], "training, by the clock": clock[1:]}
    )
    result.reference = "training, of the process"
    result.figures = {
        "images": args.images, "views": args.views, "epochs": args.epochs, "width": 64,
        "batch size": args.batch_size,
        "keeping the views and one epoch, seconds of the process": round(cpu[0], 1),
    }  # fmt: skip
    middle = result.time("training, of the process").median
    result.target(f"{args.epochs} epochs on one core", middle, 60.0, "s")
    write(result, args.out)


if __name__ == "__main__":
    main()
