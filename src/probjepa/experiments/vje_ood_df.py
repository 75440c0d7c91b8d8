"""Out-of-distribution detection by VJE's likelihood over its degrees of freedom."""

from __future__ import annotations

from probjepa.experiments.declare import OOD, Experiment, Finding, Row
from probjepa.experiments.vje_df_sweep import DF, label

EXPERIMENT = Experiment(
    name="vje-ood-df",
    title="VJE: out-of-distribution detection by degrees of freedom",
    paper="Joint Embedding Variational Bayes, arXiv 2602.05639",
    question="At which ν does the likelihood tell what it has never seen?",
    rows=tuple(
        Row(f"{label(df)}, {score}", settings={"df": df}, score=score)
        for score in ("likelihood", "knn")
        for df in DF
    ),
    columns=(OOD,),
    findings=(
        Finding(
            "at ν = 50 and ∞ the likelihood is near chance: on noise its AUROC is below that of ν = 1 by 0.1",
            lambda r: (
                max(r(f"{label(df)}, likelihood", "AUROC, noise") for df in DF[-2:])
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
    published_budget="words alone: near chance at ν = 50 and ∞ (ResNet-18, 200 epochs)",
)
