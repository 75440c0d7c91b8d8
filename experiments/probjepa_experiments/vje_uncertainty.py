"""What VJE's likelihood and variances tell without labels: what is unlike the data, and what is ambiguous."""

from __future__ import annotations

from collections.abc import Sequence

from probjepa_experiments.study import PIXELS, RANDOM, Column, Finding, Published, Row
from probjepa_experiments.vje import DF, ablation_study, df_label, image_study

_VJE = ("likelihood", "predictive", "directional", "radial", "kl", "mean variance", "anisotropy")
_VI_SIMSIAM = ("likelihood", "concentration", "elbo", "cosine")
_DETECTORS = ("knn", "mahalanobis", "gmm")
_COMBINED = "fisher"
_MEASURES = {  # name → figure, sign of its correlation with the margin
    "NLL": ("nll", -1),
    "KL": ("kl", 1),
    "mean σ²": ("mean variance", -1),
    "anisotropy": ("anisotropy", 1),
}
AUROC = Column("AUROC, {ood}", "auroc/{ood}/{score}", better="max", plot=True, limits=(0, 1))
FPR95 = Column("FPR95, {ood}", "fpr95/{ood}/{score}", better="min", limits=(0, 1), brief=False)


def _floors(scores: Sequence[str], of_pixels: Sequence[str]) -> tuple[Row, ...]:
    """Return the rows that training must beat: scores of a random initialisation, and of raw pixels."""
    return (
        *(Row(f"{RANDOM}, {score}", task="random-init", score=score) for score in scores),
        *(Row(f"{PIXELS}, {score}", task="raw-pixels", score=score) for score in of_pixels),
    )


OOD = image_study(
    name="vje-ood",
    title="VJE: out-of-distribution detection",
    question="Does VJE's likelihood tell what it has never seen, without labels?",
    rows=(
        *(Row(f"VJE, {score}", score=score) for score in (*_VJE, *_DETECTORS, _COMBINED)),
        *(Row(f"VI-SimSiam, {score}", "vi-simsiam", score=score) for score in (*_VI_SIMSIAM, "knn")),
        *(Row(f"SimSiam, {score}", "simsiam", score=score) for score in _DETECTORS),
        *_floors(_DETECTORS, _DETECTORS[:2]),
    ),
    columns=(AUROC, FPR95),
    about="FPR95 is the share of held-out images flagged where 95 % of the other set's are, as OpenOOD v1.5 "
    "has it.",
    data={
        "quick": ("digits",),
        "small": ("cifar10", "cifar10-8"),
        "medium": ("cifar10",),
        "full": ("cifar10", "cifar10-8", "cifar100"),
    },
    findings=(
        Finding("VJE's likelihood tells natural patches from digits: AUROC above 0.9",
                lambda r: r("VJE, likelihood", "AUROC, natural patches") > 0.9),
        Finding(
            "near the training data it does not: on unseen classes its predictive score is better",
            lambda r: (
                r("VJE, predictive", "AUROC, unseen classes") > r("VJE, likelihood", "AUROC, unseen classes")
            ),
        ),
        Finding("VJE's likelihood is above VI-SimSiam's on noise",
                lambda r: r("VJE, likelihood", "AUROC, noise") > r("VI-SimSiam, likelihood", "AUROC, noise")),
    ),
    published=Published(
        "the paper's average over SVHN and CIFAR-100 (CIFAR-10 inside, ResNet-18): VJE 93.5, "
        "VI-SimSiam 91.2"
    ),
)  # fmt: skip
OOD_DF = ablation_study(
    name="vje-ood-df",
    title="VJE: out-of-distribution detection by degrees of freedom",
    question="At which ν does the likelihood tell what it has never seen?",
    rows=(
        *(
            Row(f"{df_label(df)}, {score}", settings={"df": df}, score=score)
            for score in ("likelihood", "knn")
            for df in DF
        ),
        *_floors(("likelihood", "knn"), ("knn",)),
    ),
    columns=(AUROC,),
    findings=(
        Finding(
            "at ν = 50 and ∞ the likelihood is near chance: on noise its AUROC is below that of ν = 1 by 0.1",
            lambda r: (
                max(r(f"{df_label(df)}, likelihood", "AUROC, noise") for df in DF[-2:])
                < r("ν = 1, likelihood", "AUROC, noise") - 0.1
            ),
        ),
        Finding(
            "ν = 1 tells natural patches at least as well as ν = ∞",
            lambda r: (
                r("ν = 1, likelihood", "AUROC, natural patches")
                >= r("ν = ∞, likelihood", "AUROC, natural patches") - 0.01
            ),
        ),
    ),
    published=Published(
        "words alone: near chance at ν = 50 and ∞ (ResNet-18, 200 epochs)"
    ),
)  # fmt: skip


def _sign(name: str, sign: int) -> Finding:
    return Finding(
        f"{name} {'rises' if sign > 0 else 'falls'} with the margin to the nearest other class",
        lambda r: sign * r("VJE", f"ρ of {name} with margin") > 0,
    )


GEOMETRY = image_study(
    name="vje-geometry",
    title="VJE: uncertainty and the geometry of the classes",
    question="Is VJE less sure of an image the nearer it lies to another class?",
    rows=(Row("VJE"), Row("VJE-EMA", settings={"target": "ema"}), Row(RANDOM, task="random-init")),
    columns=tuple(
        Column(
            f"ρ of {name} with {place}", f"spearman/{figure}/{place}", plot=place == "margin", limits=(-1, 1)
        )
        for place in ("margin", "radius")
        for name, (figure, _) in _MEASURES.items()
    ),
    findings=tuple(_sign(name, sign) for name, (_, sign) in _MEASURES.items()),
    about="Raw pixels have no posterior, and so no row.",
    published=Published(
        "signs alone: mean σ² and NLL fall with the margin, KL and anisotropy rise"
    ),
)  # fmt: skip
