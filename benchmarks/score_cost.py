"""What IJEPA's features cost with each head, beside the same measures image by image and in full steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from harness import Result, arguments, compare, parse, write
from probjepa.backbones.frozen import evaluating
from probjepa.heads import HEADS
from probjepa.heads.base import NoDensityError
from probjepa.methods.ijepa import IJEPA

SIZE = 32
VIT = {"patch_size": 4, "width": 96, "depth": 4, "heads": 4}
# as in the heads' table at the budget "small"
NARROW = {
    **{head: {"hidden": [128]} for head in ("deterministic", "gaussian", "mdn")},
    "autoregressive": {"hidden": [256, 192, 128]},
    "realnvp": {"hidden": [96, 96]},
    **{head: {"width": 128, "blocks": 2, "code_width": 64} for head in ("flow_matching", "diffusion")},
}
SLOW = ("flow_matching", "diffusion")
LEAST = 10.0  # times as fast


def main() -> None:
    parser = arguments(__doc__, "score_cost", repeats=3)
    parser.add_argument("--images", type=int, default=24, help="images a round; a sixth for the slow heads")
    parser.add_argument("--default-heads", action="store_true", help="heads as wide as they are by default")
    args = parse(parser)
    device = torch.device(args.device)
    result = Result("score_cost", reference="gaussian", warmup=1)
    speed, ratios = {}, {}
    for head in HEADS:
        torch.manual_seed(0)
        options = {} if args.default_heads else NARROW[head]
        method = IJEPA(
            image_size=SIZE, backbone_options=VIT, head=head, head_options=options, predictor_width=48,
            predictor_depth=2, predictor_heads=4,
        ).to(device).eval()  # fmt: skip
        count = max(2, args.images // 6) if head in SLOW else args.images
        images = torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8, device=device)
        names = (head, f"{head}, image by image")
        found = compare(
            head,
            dict(zip(names, (partial(method.features, images), one_by_one(method, images)), strict=True)),
            reference=head,
            repeats=args.repeats,
            # the process's own time leaves out what else runs on the machine
            clock=time.perf_counter if device.type == "cuda" else time.process_time,
        )
        ratios[head] = found.ratio(names[1])
        for name in names:
            # per image, as heads are given different numbers of them
            result.seconds[name] = [seconds / count for seconds in found.seconds[name]]
            speed[name] = 1 / result.time(name).median
    result.figures = {
        "image_size": SIZE, "encoder": VIT, "heads": "default" if args.default_heads else NARROW,
        "device": device.type, "images_per_second": speed,
        "image_by_image_over_features": {head: vars(ratio) for head, ratio in ratios.items()},
    }  # fmt: skip
    for head in SLOW:
        result.target(f"{head}: features / image by image", 1 / ratios[head].median, 1 / LEAST)
    write(result, args.out)


def one_by_one(method: IJEPA, images: Tensor) -> Callable[[], None]:
    """The measures as they are without ``for_scores``: full steps, 8 draws of every token, 8 probes."""
    context, hidden = (index.to(images.device) for index in method.masks(4, torch.Generator().manual_seed(0)))

    def read() -> None:
        method.embed(images)
        with evaluating(method):
            prepared = method.preprocess(images)
            tokens = method.targets(prepared)[:, hidden]
            masks = zip(context, hidden, strict=True)
            vectors = torch.stack([method.contexts(prepared, *mask) for mask in masks], 1)
            for vector, target in zip(vectors, tokens, strict=True):
                prediction = method.head(vector)
                try:
                    prediction.log_prob(target)
                    variance = prediction.variance
                except NoDensityError:
                    samples = prediction.sample((8,)).double()
                    norm = torch.linalg.vector_norm
                    norm(samples - target, dim=-1).mean(0)
                    norm(samples.unsqueeze(0) - samples.unsqueeze(1), dim=-1).sum((0, 1))
                    variance = samples.var(0)
                except NotImplementedError:  # no variance in closed form
                    variance = prediction.sample((8,)).double().var(0)
                variance.mean().sqrt()

    return read


if __name__ == "__main__":
    main()
