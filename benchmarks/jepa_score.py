"""JEPA-SCORE: ours against the paper's formulation, the sketch's memory, Lanczos quadrature at K = 1024.

The paper's formulation is what published code does: ``torch.autograd.functional.jacobian`` of the batch's
sum, ``torch.linalg.svdvals`` of every image's Jacobian, clip, log, sum. Models are randomly initialised: the
arithmetic is that of trained ones.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from harness import Result, arguments, compare, parse, peak_resident, synchronise, write
from probjepa.jacobian import jacobian_spectrum, jepa_score

EPS = 1e-6
PATCH = 16
Clock = Callable[[], float]


class Block(nn.Module):
    """A pre-norm transformer block with fused attention."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (N, T, D) to tokens."""
        n, tokens, dim = x.shape
        qkv = self.qkv(self.norm1(x)).view(n, tokens, 3, self.heads, dim // self.heads)
        mixed = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        x = x + self.proj(mixed.transpose(1, 2).reshape(n, tokens, dim))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """A vision transformer with a class token; a ViT-S/16 by default."""

    def __init__(
        self, size: int, dim: int = 384, depth: int = 12, heads: int = 6, patch: int = PATCH
    ) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, dim, patch, patch)
        self.cls = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.position = nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2 + 1, dim))
        self.blocks = nn.Sequential(*[Block(dim, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def tokens(self, x: Tensor) -> Tensor:
        """Map images (N, 3, size, size) to normalised tokens (N, T, D), the class token first."""
        patches = self.patch(x).flatten(2).transpose(1, 2)
        with_class = torch.cat([self.cls.expand(len(x), -1, -1), patches], 1)
        return self.norm(self.blocks(with_class + self.position))

    def forward(self, x: Tensor) -> Tensor:
        """Map images to the class token (N, D)."""
        return self.tokens(x)[:, 0]


class Wide(ViT):
    """A small ViT on 32 px whose embedding, a linear map of all its tokens, has K = 1024."""

    def __init__(self) -> None:
        super().__init__(32, dim=128, depth=4, heads=4, patch=8)
        self.head = nn.Linear(17 * 128, 1024)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, 32, 32) to embeddings (N, 1024)."""
        return self.head(self.tokens(x).flatten(1))


def paper_spectrum(model: nn.Module, images: Tensor) -> Tensor:
    """Singular values (N, K) as published code takes them, parameters as a user has them."""
    jacobian = torch.autograd.functional.jacobian(lambda x: model(x).sum(0), images)
    return torch.linalg.svdvals(jacobian.flatten(2).transpose(0, 1))


def paper_score(model: nn.Module, images: Tensor) -> Tensor:
    """The paper's formulation."""
    return paper_spectrum(model, images).clamp(min=EPS).log().sum(1)


def natural_patches(count: int, size: int) -> Tensor:
    """Seeded crops of scikit-learn's two photographs, of several magnifications; (count, 3, size, size)."""
    from sklearn.datasets import load_sample_images

    photographs = [torch.tensor(p).permute(2, 0, 1).float() / 255 for p in load_sample_images().images]
    generator = torch.Generator().manual_seed(0)
    crops = []
    for index in range(count):
        photograph = photographs[index % len(photographs)]
        side = size * (1 + index // len(photographs) % 3)
        side = min(side, *photograph.shape[1:])
        top, left = (
            int(torch.randint(0, room - side + 1, (), generator=generator)) for room in photograph.shape[1:]
        )
        crop = photograph[None, :, top : top + side, left : left + side]
        crops.append(F.interpolate(crop, size=(size, size), mode="bilinear", antialias=True))
    return normalised(torch.cat(crops))


def normalised(pixels: Tensor) -> Tensor:
    return (pixels - 0.5) / 0.25


def mixed_images(each: int) -> dict[str, Tensor]:
    """Four kinds of 32 px images: photographs, digits, smooth noise, white noise."""
    from sklearn.datasets import load_digits

    generator = torch.Generator().manual_seed(1)
    digits = torch.from_numpy(load_digits().images[:each]).float()[:, None].expand(-1, 3, -1, -1) / 16
    coarse = torch.rand(each, 3, 5, 5, generator=generator)
    return {
        "photographs": natural_patches(each, 32),
        "digits": normalised(F.interpolate(digits, size=(32, 32), mode="bilinear")),
        "smooth noise": normalised(F.interpolate(coarse, size=(32, 32), mode="bicubic").clamp(0, 1)),
        "white noise": normalised(torch.rand(each, 3, 32, 32, generator=generator)),
    }


def matrix_rate(device: str, clock: Clock) -> float:
    """FLOP/s of a large float32 matrix product, the median of some."""
    side = 2048 if device == "cpu" else 8192
    a = torch.randn(side, side, device=device)
    a @ a
    times = []
    for _ in range(7):
        synchronise()
        start = clock()
        a @ a
        synchronise()
        times.append(clock() - start)
    return 2 * side**3 / statistics.median(times)


def peak_bytes(estimator: str, size: int, images: int, threads: int, device: str) -> int:
    """Memory that an estimator, or "paper", needs beyond the libraries, the model and its inputs."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = ViT(size).eval().to(device)
    x = natural_patches(images, size).to(device)

    def score(model: nn.Module, x: Tensor) -> None:
        if estimator == "paper":
            paper_score(model, x)
        else:
            jepa_score(model, x, estimator=estimator, chunk_size=images)

    score(ViT(32, 48, 1, 3, 8).eval().to(device), x[:1, :, :32, :32])  # loads all
    if device == "cpu":
        before = peak_resident()
        score(model, x)
        return peak_resident() - before
    torch.cuda.reset_peak_memory_stats()
    allocated = torch.cuda.memory_allocated()
    score(model, x)
    return torch.cuda.max_memory_allocated() - allocated


def timed(run: Callable[[], Tensor], clock: Clock) -> tuple[float, Tensor]:
    synchronise()
    start = clock()
    out = run()
    synchronise()
    return clock() - start, out


def lanczos(each: int, device: str, clock: Clock) -> dict[str, Any]:
    """Exact against slq at K = 1024, batch by batch in turn: ratios and rank correlations."""
    torch.manual_seed(0)
    model = Wide().eval().to(device)
    kinds = mixed_images(each)
    images = torch.cat(list(kinds.values())).to(device)
    seconds: dict[str, list[float]] = {"exact": [], "slq": []}
    scores: dict[str, list[Tensor]] = {"exact": [], "slq": []}
    for estimator in seconds:  # warm-up
        jepa_score(model, images[:1], estimator=estimator)
    for batch in images.split(16):
        for estimator in seconds:
            spent, score = timed(lambda e=estimator, b=batch: jepa_score(model, b, estimator=e), clock)
            seconds[estimator].append(spent)
            scores[estimator].append(score)
    exact, slq = (torch.cat(scores[name]) for name in ("exact", "slq"))
    spread = {kind: exact[i * each : (i + 1) * each] for i, kind in enumerate(kinds)}
    return {
        "K": 1024,
        "inputs": len(images),
        "seconds": seconds,
        "speed": statistics.median(e / s for e, s in zip(*seconds.values(), strict=True)),
        "spearman": float(spearmanr(exact, slq).statistic),
        "spearman_within": {
            kind: float(spearmanr(spread[kind], slq[i * each : (i + 1) * each]).statistic)
            for i, kind in enumerate(kinds)
        },
        "exact_mean_sd": {k: [float(v.mean()), float(v.std())] for k, v in spread.items()},
        "slq_minus_exact_mean_sd": [float((slq - exact).mean()), float((slq - exact).std())],
    }


def accuracy(model: nn.Module, images: Tensor, ours: Tensor) -> dict[str, list[float]]:
    """Differences from the paper's form in float64: of float32 scores, and of a small float64 model."""
    spectrum = jacobian_spectrum(model, images)
    reference = paper_spectrum(model.double(), images.double()).cpu()
    model.float()
    torch.manual_seed(1)
    small = ViT(32, dim=48, depth=2, heads=3, patch=8).eval().double()
    x = natural_patches(4, 32).double()
    return {
        "ours_float32_minus_float64": (ours - reference.clamp(min=EPS).log().sum(1)).tolist(),
        # the null directions of the last norm are below eps and clipped in both: all others
        "ours_float32_minus_float64_without_null": (spectrum[:, :-2] / reference[:, :-2])
        .log()
        .sum(1)
        .tolist(),
        "null_float32": spectrum[:, -2:].flatten().tolist(),
        "null_float64": reference[:, -2:].flatten().tolist(),
        "small_float64_ours_minus_paper": (jepa_score(small, x) - paper_score(small, x)).tolist(),
    }


def main() -> None:
    parser = arguments(__doc__, "jepa_score", repeats=1)
    parser.add_argument("--size", type=int, default=96, help="px, of the comparison with the paper's form")
    parser.add_argument("--images", type=int, default=4, help="at a time, in that comparison")
    parser.add_argument("--accuracy-images", type=int, default=1, help="of the float64 reference")
    parser.add_argument("--each", type=int, default=16, help="images of each kind for slq")
    args = parse(parser)
    on_cpu = args.device == "cpu"
    # on one thread the process's time: what others run on the machine does not lengthen it
    clock: Clock = time.process_time if on_cpu and args.threads == 1 else time.perf_counter
    torch.manual_seed(0)
    model = ViT(args.size).eval().to(args.device)
    images = natural_patches(args.images, args.size).to(args.device)
    scores: dict[str, Tensor] = {}

    def run(name: str, count: int, score: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        return lambda: scores.update({f"{name} {count}": score(images[:count])})

    def against_paper(count: int) -> Result:
        return compare(
            "jepa_score",
            {
                "paper": run("paper", count, lambda x: paper_score(model, x)),
                "exact": run("exact", count, lambda x: jepa_score(model, x)),
                "auto (folded)": run("auto", count, lambda x: jepa_score(model, x, estimator="auto")),
            },
            reference="paper",
            repeats=args.repeats,
            warmup=0 if on_cpu else 1,
            clock=clock,
        )

    paper_score(ViT(32, 48, 1, 3, 8).to(args.device), images[:1, :, :32, :32])  # loads the libraries
    rates = [matrix_rate(args.device, clock)]
    result = against_paper(args.images)
    rates.append(matrix_rate(args.device, clock))
    rate = statistics.mean(rates)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images[:1])
    dim = model.norm.normalized_shape[0]
    floor = dim * counter.get_total_flops() * args.images / rate
    single = against_paper(1)
    spawn = multiprocessing.get_context("spawn")
    peaks: dict[str, dict[str, int]] = {}
    for size, count in {args.size: args.images, 224: 1}.items():
        at = peaks.setdefault(f"{size} px, {count} at a time", {})
        for estimator in ("paper", "exact", "sketch"):
            with spawn.Pool(1) as pool:  # a fresh process each: the peak of a process never falls
                at[estimator] = pool.apply(peak_bytes, (estimator, size, count, args.threads, args.device))
    paper, exact, folded = (scores[f"{name} {args.images}"].cpu() for name in ("paper", "exact", "auto"))
    found = accuracy(model, images[: args.accuracy_images], exact[: args.accuracy_images])
    slq = lanczos(args.each, args.device, clock)
    result.figures = {
        "model": f"ViT-S/16, K = {dim}, {args.size} px, {args.images} images at a time",
        "matrix_rate_gflops": [r / 1e9 for r in rates],
        "forward_gflop_per_image": counter.get_total_flops() / 1e9,
        "clock": clock.__name__,
        "one_image_at_a_time": single.record()["candidates"],
        "floor_seconds": floor,
        "fraction_of_floor": {name: floor / result.time(name).median for name in result.seconds},
        "peak_bytes": peaks,
        "accuracy": found,
        "float32_paper_minus_ours": (paper - exact).tolist(),
        "folded_minus_exact": (folded - exact).tolist(),
        "slq": slq,
    }
    speed = 1.3 if on_cpu else 8
    for timed, count in ((result, args.images), (single, 1)):
        for name in ("exact", "auto (folded)"):  # both are exact
            what = f"{name} / the paper's formulation, {count} at a time (≥ {speed} × faster)"
            result.target(what, timed.ratio(name).median, 1 / speed)
    for where, at in peaks.items():
        for other in ("paper", "exact"):
            result.target(f"peak memory, sketch / {other}, {where}", at["sketch"] / at[other], 0.25)
    result.target("slq / exact seconds at K = 1024 (≥ 2 × faster)", 1 / slq["speed"], 0.5)
    result.target("1 − Spearman of slq and exact", 1 - slq["spearman"], 0.03)
    result.target("|float32 − float64 SVD|, ViT-S", max(map(abs, found["ours_float32_minus_float64"])), 0.05)
    worst = max(map(abs, found["small_float64_ours_minus_paper"]))
    result.target("|ours − paper's|, float64, small ViT", worst, 1e-3)
    print(json.dumps(result.figures, indent=1))
    write(result, args.out)


if __name__ == "__main__":
    main()
