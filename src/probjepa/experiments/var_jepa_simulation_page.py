"""The page of Var-JEPA's simulation study."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from probjepa.experiments.grid import verdict
from probjepa.experiments.grid_page import dots, evidence
from probjepa.experiments.var_jepa_simulation import OURS, VARIANTS
from probjepa.report.page import Card, Section, Table, Value, render
from probjepa.report.provenance import settings_tables

Metrics = Mapping[str, Any]


def page(metrics: Metrics) -> str:
    """Return the study's page from its metrics."""
    (table,) = metrics["tables"].values()
    columns = [column for column in table["columns"] if _published(table, column)]
    heads = ["variant", *(head for c in columns for head in (c["label"], "published"))]
    rows = []
    for row in table["rows"]:
        values = [row["values"][column["label"]] for column in columns]
        shown = zip(values, columns, strict=True)
        rows.append([row["label"], *(cell for of, c in shown for cell in _beside(of, c["percent"]))])
    others = [column for column in table["columns"] if column not in columns]
    more = [
        [row["label"], *(_beside(row["values"][c["label"]], c["percent"])[0] for c in others)]
        for row in table["rows"]
    ]
    findings = table["findings"]
    held = sum(f["holds"] == f["judged"] for f in findings)
    return render(
        metrics["title"],
        [
            Card("Findings that hold", f"{held} of {len(findings)}", "in every seed",
                 "good" if held == len(findings) else "warn"),
            Card("Budget", metrics["budget"]["name"], metrics["budget"]["title"]),
        ],
        [
            Section(
                "Ours beside the published",
                "Means over the seeds with 95 % intervals (Student's t, from three seeds on). The probe is a "
                "logistic regression on the standardised posterior means of s_x, which finds the mixture's "
                "component; the other three are of held-out draws of q(s_x|x): the KL to N(0, I) of the "
                "normal with their mean and covariance, and how far these two are from 0 and I.",
                [
                    Table(heads, rows, f"{metrics['budget']['title']}; published: "
                          f"{metrics['published_budget']}."),
                    *(dots(c["label"], table["rows"], c["percent"]) for c in columns),
                    Table(["variant", *(c["label"] for c in others)], more,
                          "The probe on draws in place of means; the mean variance of q(s_x|x) (1: collapsed "
                          "onto the prior); the evidence lower bound of log p(x, y), whatever the weights."),
                ],
            ),
            Section(
                "Findings",
                "What the paper says or follows from it, and whether it holds here, seed by seed.",
                [Table(["finding", "verdict", "means over the seeds"],
                       [[f["claim"], verdict(f), evidence(f)] for f in findings], "Findings.")],
            ),
            Section(
                "Settings",
                f"What the letters {', '.join(OURS)} stand for is ours: the published figures that we have "
                "are of the other five. Also ours: the number of pairs, Xavier-uniform weights of the data's "
                "frozen maps, a learned standard deviation for each decoder, GELU, and SIGReg as a plain "
                "mean over directions and frequencies. The weights, the decoders' scale and SIGReg's form "
                "were settled on trial runs of one or two other draws, by what came nearest to the published "
                "figures; then the seeds were run once.",
                [
                    *settings_tables(metrics["budget"]["fit"], "What all variants have in common."),
                    Table(["variant", "weights other than 1"],
                          [[name, ", ".join(f"{k} {v:g}" for k, v in weights.items())]
                           for name, weights in VARIANTS.values()],
                          "The variants."),
                ],
            ),
        ],
        subtitle=f"{metrics['question']} {metrics['paper']}.",
        footer={
            "experiment": metrics["experiment"],
            "seeds": ", ".join(map(str, metrics["seeds"])),
            **{key: ", ".join(sorted({of[key] for of in metrics["versions"]}))
               for key in ("probjepa", "torch")},
            "hardware": "; ".join(metrics["hardware"]),
            "CPU time of all cells": f"{metrics['seconds']:,.0f} s",
        },
    )  # fmt: skip


def _published(table: Mapping[str, Any], column: Mapping[str, Any]) -> bool:
    return any("published" in row["values"][column["label"]] for row in table["rows"])


def _beside(of: Mapping[str, Any], percent: bool) -> tuple[Value, str | None]:
    low, high = (math.nan if of[key] is None else of[key] for key in ("low", "high"))
    published = of.get("published")
    shown = None if published is None else f"{100 * published:.1f}" if percent else f"{published:.3f}"
    return Value(of["value"], low, high, percent=percent), shown
