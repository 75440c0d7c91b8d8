"""A small study and a small budget that the tests of the runner share."""

import json
from dataclasses import replace

from probjepa_experiments.image_budgets import QUICK
from probjepa_experiments.study import Finding, Published, Row
from probjepa_experiments.vje import LEARNED, image_study

TINY = replace(
    QUICK,
    title="tiny",
    settings={"backbone": "convnet", "backbone_options": {"widths": (4, 8)}},
    methods={"vje": {"hidden_dim": 8}},
    fit={**QUICK.fit, "epochs": 1},
    seeds=2,
    rows=3 * 128,
    n_bootstrap=5,
    cost={"image_size": 8, "channels": 1, "batch_size": 4, "rounds": 2},
)
TABLE = image_study(
    name="test-table",
    title="A table",
    paper="none",
    question="Does it run?",
    rows=(Row("one"), Row("two", settings={"df": 3})),
    columns=LEARNED,
    findings=(Finding("σ² is a variance", lambda r: r("one", "mean σ²") > 0, asserted=True),),
    published=Published("a larger one", {("digits", "one", "mean σ²"): 0.5}),
)


def with_budget(study, budget):
    """The study with another budget of that name."""
    return replace(study, budgets={**study.budgets, budget.name: budget})


def trainings(study):
    """The rows that are trained: all but those that training must beat."""
    return [row for row in study.rows if row.task == "train"]


def measured_by(study, run, **changes):
    """The study with other work: what it is called with is what a study's ``run`` is."""
    return replace(study, measurement=replace(study.measurement, run=run, **changes))


def run(study, out, **changes):
    options = {"data_root": None, "budget": "quick", "cells": None, "seed": 0, "overwrite": False}
    study(out, **{**options, "progress": False, **changes})
    return json.loads((out / "metrics.json").read_text())
