"""Which construction of the predictive score tells the demo's sets apart best, near and far."""

from __future__ import annotations

import math

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional as F

from harness import Result, arguments, parse, write
from probjepa.demo import demo_sets, train_demo
from probjepa.detectors import KNN
from probjepa.distributions import PolarStudentT, PolarStudentTMixture
from probjepa.methods.vje import VJE

Features = dict[str, Tensor]


def log_density(h: Tensor, centers: Tensor, variance: Tensor, nearest: int | None = None) -> Tensor:
    """Log-mean, over all or the nearest components, of the polar Student-t at each reference row."""
    rows = []
    for block in h.split(64):
        pairs = PolarStudentT(centers, variance).log_prob(block[:, None])
        if nearest:
            pairs = pairs.topk(nearest, dim=1).values
        rows.append(pairs.logsumexp(1) - math.log(pairs.shape[1]))
    return torch.cat(rows)


def robust_z(scores: Tensor, reference: Tensor) -> Tensor:
    """Standardise by the reference's median and median absolute deviation."""
    middle = reference.median()
    return (scores - middle) / (1.4826 * (reference - middle).abs().median())


def constructions(model: VJE, sets: dict[str, Features]) -> dict[str, dict[str, Tensor]]:
    """Return the scores of every construction by set; "train" is the reference."""
    known = {key: value.double() for key, value in sets["train"].items()}
    h, mu, variance = known["h"], known["mu"], known["variance"]
    mean_variance = variance.mean(0).expand(h.shape)
    fitted = {
        "embedding, τσᵢ²": PolarStudentTMixture(h, variance).fit_scale(),
        "embedding, τσ̄²": PolarStudentTMixture(h, mean_variance).fit_scale(),
        "embedding, τσ̄², no radial part": PolarStudentTMixture(F.normalize(h), mean_variance).fit_scale(),
        "latent, τσᵢ²": PolarStudentTMixture(mu, variance).fit_scale(),
    }
    chosen = fitted["embedding, τσ̄²"]
    detectors = {f"kNN, k = {k}": KNN(k).fit(h) for k in (1, 5, 20)}
    # the combination is calibrated on the reference itself, each row scored by the others
    own = model.score_features(known).detach()
    others = torch.stack(
        [
            PolarStudentTMixture(
                torch.cat([h[:i], h[i + 1 :]]), mean_variance[1:], scale=chosen.scale
            ).log_prob(h[i : i + 1])[0]
            for i in range(0, len(h), 4)
        ]
    )
    scores: dict[str, dict[str, Tensor]] = {}
    for name, features in sets.items():
        if name == "train":
            continue
        x = {key: value.double() for key, value in features.items()}
        likelihood = model.score_features(x).detach()
        density = chosen.log_prob(x["h"])
        by = {
            "self-likelihood": likelihood,
            "latent, σᵢ²": log_density(x["h"], mu, variance),
            "embedding, σᵢ²": log_density(x["h"], h, variance),
            "embedding, σᵢ², nearest 10": log_density(x["h"], h, variance, nearest=10),
            **{label: mixture.log_prob(x["h"]) for label, mixture in fitted.items()},
            "embedding, τσ̄² + self-likelihood": robust_z(density, others) + robust_z(likelihood, own),
            "min(embedding τσ̄², self-likelihood)": torch.minimum(
                robust_z(density, others), robust_z(likelihood, own)
            ),
            **{label: torch.from_numpy(d.score_samples(x["h"])) for label, d in detectors.items()},
        }
        for label, values in by.items():
            scores.setdefault(label, {})[name] = values
    return scores


def main() -> None:
    """Train the demo's model from each seed and tabulate AUROC."""
    parser = arguments(__doc__, "predictive")
    parser.add_argument("--seeds", type=int, default=5, help="models trained")
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64], help="of the encoder")
    args = parse(parser)
    train, test, ood = demo_sets()
    found: dict[str, dict[str, list[float]]] = {}
    scales = []
    for seed in range(args.seeds):
        model = train_demo(train, None, seed=seed, widths=args.widths, progress=False)
        sets = {"train": train, "test": test, **ood}
        features = {name: model.features(images.images) for name, images in sets.items()}
        scales.append(model.predictive(features["train"]).scale)
        for label, by in constructions(model, features).items():
            for name in ood:
                truth = np.r_[np.zeros(len(by["test"])), np.ones(len(by[name]))]
                auroc = roc_auc_score(truth, -np.r_[by["test"].numpy(), by[name].numpy()])
                found.setdefault(label, {}).setdefault(name, []).append(round(float(auroc), 4))
    table = {
        label: {name: {"mean": round(float(np.mean(v)), 4), "seeds": v} for name, v in by.items()}
        for label, by in found.items()
    }
    for label, by in table.items():
        print(f"{label:40s}", "  ".join(f"{name} {entry['mean']:.3f}" for name, entry in by.items()))
    write(Result("predictive", figures={"widths": args.widths, "auroc": table, "scales": scales}), args.out)


if __name__ == "__main__":
    main()
