"""An I-JEPA step with each head over the step with a point prediction, and the share of the masks."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from harness import Spread, arguments, compare, parse, write
from probjepa.heads import HEADS
from probjepa.methods.ijepa import IJEPA, PRESETS

SIZE = 64
REFERENCE = "deterministic"
MOST, MOST_AUTOREGRESSIVE, MOST_MASKS = 1.25, 1.5, 0.02


def main() -> None:
    parser = arguments(__doc__, "head_cost", repeats=3)
    parser.add_argument("--batch-size", type=int, default=8, help="images a step")
    args = parse(parser)
    device = torch.device(args.device)
    half = device.type == "cuda"
    images = torch.randn(args.batch_size, 3, SIZE, SIZE, device=device)
    settings = PRESETS["tiny-imagenet"]["method"]

    def step_of(head: str) -> Callable[[], None]:
        """The loss and its gradient: the optimiser's share is the encoder's, the same for all heads."""
        torch.manual_seed(0)
        method = IJEPA(**settings, head=head).to(device).train()

        def step() -> None:
            torch.manual_seed(0)  # the same masks for every head: their shapes decide the cost
            method.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                value = method.loss([images])["loss"]
            torch.autograd.backward(value)

        return step

    masks = IJEPA(**settings).masks
    result = compare(
        "head_cost",
        {**{head: step_of(head) for head in HEADS}, "masks": lambda: masks(args.batch_size)},
        reference=REFERENCE,
        repeats=args.repeats,
        warmup=10 if half else 1,
        # the process's own time leaves out what else runs on the machine
        clock=time.perf_counter if half else time.process_time,
    )
    shares = zip(result.seconds["masks"], result.seconds[REFERENCE], strict=True)
    share = Spread.of([made / step for made, step in shares])
    result.figures = {
        "image_size": SIZE,
        "batch_size": args.batch_size,
        "device": device.type,
        "precision": "bf16" if half else "float32",
        "settings": settings,
        "masks_share": vars(share),
    }
    for head in HEADS:
        if head != REFERENCE:
            most = MOST_AUTOREGRESSIVE if head == "autoregressive" else MOST
            result.target(f"{head} step / {REFERENCE} step", result.ratio(head).median, most)
    result.target(f"masks / {REFERENCE} step", share.median, MOST_MASKS)
    write(result, args.out)


if __name__ == "__main__":
    main()
