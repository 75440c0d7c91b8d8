"""The figures of the study of tables: rows, columns, the published ones, findings, and their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from probjepa.experiments.declare import Column, Finding
from probjepa.tabular.selection import DECODED, LIKELIHOOD, PROBABILITY, UNCERTAINTY

PREDICTORS = {"logistic regression": "LR", "MLP": "MLP", "XGBoost": "XGB"}
# where doubt may come from, as ``tabular.selection`` names it → as a column does
_DOUBTS = {
    UNCERTAINTY: "by σ",
    DECODED: "by decoded σ",
    LIKELIHOOD: "by likelihood",
    "kNN distance, embedding": "by kNN",
    "kNN distance, raw": "by kNN on raw",
    "Isolation Forest, raw": "by Isolation Forest",
    PROBABILITY: "by p",
    "random": "at random",
}


def _columns() -> tuple[Column, ...]:
    accuracy = [
        Column(f"{short}, %", f"accuracy/{name}", percent=True, better="max")
        for name, short in PREDICTORS.items()
    ]
    aurc = [
        Column(f"AURC {how}, MLP", f"aurc/MLP/{source}", better="min", limits=(0, 1))
        for source, how in _DOUBTS.items()
    ]
    return (
        Column("best of 3, %", "best", percent=True, better="max", plot=True),
        *accuracy,
        Column("MLP macro F1, %", "macro F1/MLP", percent=True, better="max"),
        Column("MLP weighted F1, %", "weighted F1/MLP", percent=True, better="max"),
        Column("MLP, surest half by σ, %", f"half/MLP/{UNCERTAINTY}", percent=True, better="max", plot=True),
        Column("XGB, surest half by σ, %", f"half/XGBoost/{UNCERTAINTY}", percent=True, better="max"),
        Column("MLP, surest half by p, %", f"half/MLP/{PROBABILITY}", percent=True, better="max"),
        *aurc,
        Column("ρ of σ with error, MLP", f"error/MLP/{UNCERTAINTY}", better="max", limits=(-1, 1)),
        Column("ρ of σ with u", f"spearman/{UNCERTAINTY}", better="max", plot=True, limits=(-1, 1)),
        Column("AUC of σ, most ambiguous fifth", f"auc/{UNCERTAINTY}", better="max", limits=(0, 1)),
        Column("ρ of likelihood with u", f"spearman/{LIKELIHOOD}", better="max", limits=(-1, 1)),
        Column("ρ of MLP's p with u", f"spearman/{PROBABILITY}", better="max", limits=(-1, 1)),
        Column("effective rank", "effective rank", limits=(0, None)),
        Column("std of ‖h‖-normed features", "std", limits=(0, None)),
    )


COLUMNS = _columns()
#: with those that are plotted, what a terminal shows
PRINTED = ("MLP, %", "AURC by σ, MLP", "AURC by p, MLP", "effective rank")
# the label of a row → the method whose cell it reads, and the features
ROWS = {
    "raw features": ("raw", "raw"),
    "T-JEPA": ("t-jepa", "embedding"),
    "Var-T-JEPA": ("var-t-jepa", "embedding"),
    "raw + T-JEPA": ("t-jepa", "raw + embedding"),
    "raw + Var-T-JEPA": ("var-t-jepa", "raw + embedding"),
}
_PUBLISHED_ROWS = ("raw features", "T-JEPA", "Var-T-JEPA")
PUBLISHED: dict[tuple[str, str, str], float] = {
    **{
        (table, row, "best of 3, %"): value
        for table, values in {
            "adult": (0.864, 0.854, 0.855), "electricity": (0.917, 0.860, 0.888),
            "credit": (0.820, 0.817, 0.818), "sim": (0.962, 0.851, 0.945),
        }.items()
        for row, value in zip(_PUBLISHED_ROWS, values, strict=True)
    },
    **{
        (table, row, "MLP, %"): value
        for table, values in {
            "adult": (0.849, 0.849, 0.852), "electricity": (0.781, 0.627, 0.790),
            "credit": (0.816, 0.774, 0.818),
        }.items()
        for row, value in zip(_PUBLISHED_ROWS, values, strict=True)
    },
    **{
        (table, "Var-T-JEPA", "MLP, surest half by σ, %"): value
        for table, value in {"adult": 0.921, "electricity": 0.804, "credit": 0.841}.items()
    },
    ("adult", "Var-T-JEPA", "XGB, surest half by σ, %"): 0.928,
    ("electricity", "Var-T-JEPA", "XGB, surest half by σ, %"): 0.891,
}  # fmt: skip
FINDINGS = (
    Finding("Var-T-JEPA is above T-JEPA, by the best classifier",
            lambda r: r("Var-T-JEPA", "best of 3, %") > r("T-JEPA", "best of 3, %")),
    Finding("Var-T-JEPA is not below T-JEPA, by logistic regression",
            lambda r: r("Var-T-JEPA", "LR, %") >= r("T-JEPA", "LR, %")),
    Finding("Var-T-JEPA is not below T-JEPA, by the MLP",
            lambda r: r("Var-T-JEPA", "MLP, %") >= r("T-JEPA", "MLP, %")),
    Finding("Var-T-JEPA is not below T-JEPA, by XGBoost",
            lambda r: r("Var-T-JEPA", "XGB, %") >= r("T-JEPA", "XGB, %")),
    Finding("Var-T-JEPA is within one point of raw features, or above them, by the MLP",
            lambda r: r("Var-T-JEPA", "MLP, %") > r("raw features", "MLP, %") - 0.01),
    Finding("XGBoost loses no more than 0.2 points when embeddings are added to raw features",
            lambda r: r("raw + Var-T-JEPA", "XGB, %") >= r("raw features", "XGB, %") - 0.002),
    Finding("keeping the half that σ is surest of raises the MLP's accuracy",
            lambda r: r("Var-T-JEPA", "MLP, surest half by σ, %") > r("Var-T-JEPA", "MLP, %")),
    Finding("keeping that half raises it by four points or more",
            lambda r: r("Var-T-JEPA", "MLP, surest half by σ, %") >= r("Var-T-JEPA", "MLP, %") + 0.04),
    Finding("σ orders errors better than the MLP's own probability does",
            lambda r: r("Var-T-JEPA", "AURC by σ, MLP") < r("Var-T-JEPA", "AURC by p, MLP")),
    Finding("σ rises with ambiguity: Spearman's ρ with u is above 0.3",
            lambda r: r("Var-T-JEPA", "ρ of σ with u") > 0.3),
    Finding("T-JEPA has not collapsed: its effective rank is above 2",
            lambda r: r("T-JEPA", "effective rank") > 2),
)  # fmt: skip


def flat_figures(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``evaluate_once``'s figures by the names of ``COLUMNS``, each with "features|" before it."""
    flat: dict[str, Any] = {}
    for space, row in figures["accuracy"].items():
        known = {name: of for name, of in row.items() if "accuracy" in of}
        if space == "majority class" or not known:
            continue
        flat[f"{space}|best"] = max((of["accuracy"] for of in known.values()), key=lambda of: of["value"])
        for name, of in known.items():
            flat |= {f"{space}|{score}/{name}": value for score, value in of.items()}
            for source, selected in figures["selective"][space][name].items():
                flat[f"{space}|aurc/{name}/{source}"] = selected["aurc"]
                flat[f"{space}|half/{name}/{source}"] = selected["accuracy_at"]["0.5"]
            for source, judged in figures["calibration"][space][name].items():
                flat[f"{space}|error/{name}/{source}"] = judged["spearman"]
    collapse = figures.get("collapse") or {}
    for key, name in (("effective_rank", "effective rank"), ("std_mean", "std")):
        if key in collapse:
            flat[f"embedding|{name}"] = collapse[key]
    return {key: {k: rounded(x) for k, x in of.items()} for key, of in flat.items()}


def rounded(value: float | None) -> float | None:
    """Return a figure as the JSON keeps it: six digits."""
    return None if value is None else float(f"{value:.6g}")
