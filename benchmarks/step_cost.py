"""A VJE step against the same two forwards and backwards with a plain cosine loss, and the views' share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from harness import Spread, arguments, compare, parse, write
from probjepa.data.views import views
from probjepa.methods.vje import VJE

SIZE = 32


def cosine_loss(method: VJE, batch: Sequence[Tensor]) -> Tensor:
    """Negative cosine of the two views' h, each with the other held constant: SimSiam without its heads."""
    h = method.encoder(torch.cat(list(batch))).float()
    other = torch.cat(h.detach().chunk(2)[::-1])
    return -F.cosine_similarity(h, other).mean()


def main() -> None:
    parser = arguments(__doc__, "step_cost", repeats=5)
    parser.add_argument("--batch-size", type=int, default=256)
    args = parse(parser)
    device = torch.device(args.device)
    half = device.type == "cuda"

    torch.manual_seed(0)
    method = VJE("resnet18", image_size=SIZE).to(device).train()
    pixels = torch.randint(0, 256, (args.batch_size, 3, SIZE, SIZE), dtype=torch.uint8).to(device)
    config = method.preprocess.config()
    make_views = views(method.view_recipe, size=SIZE, channels=3, mean=config["mean"], std=config["std"])
    make_views.to(device)
    batch = make_views(pixels, 0)
    if half:  # what fit does on a GPU
        method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        batch = [view.contiguous(memory_format=torch.channels_last) for view in batch]

    def step(loss: Callable[[], Tensor]) -> None:
        method.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            value = loss()
        torch.autograd.backward(value)

    result = compare(
        "step_cost",
        {
            "cosine": lambda: step(lambda: cosine_loss(method, batch)),
            "vje": lambda: step(lambda: method.loss(batch)["loss"]),
            "views": lambda: make_views(pixels, 0),
        },
        reference="cosine",
        repeats=args.repeats,
        warmup=10 if half else 1,
    )
    pairs = zip(result.seconds["views"], result.seconds["vje"], strict=True)
    share = Spread.of([made / (made + step) for made, step in pairs])
    result.figures = {
        "backbone": "resnet18",
        "image_size": SIZE,
        "batch_size": args.batch_size,
        "device": device.type,
        "precision": "bf16" if half else "float32",
        "views_share": vars(share),
        "vje_images_per_second": args.batch_size / result.time("vje").median,
    }
    result.target("VJE step / cosine step", result.ratio("vje").median, 1.10)
    if not half:
        result.target("views / (views + VJE step)", share.median, 0.25)
    write(result, args.out)


if __name__ == "__main__":
    main()
