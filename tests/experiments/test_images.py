"""What a cell is known by, and that every declared table can be built."""

import json
import math
from dataclasses import replace

import pytest
from experiment_tables import TABLE, run

from probjepa.errors import ConfigError
from probjepa.registry import EXPERIMENTS
from probjepa_experiments.figures import expand
from probjepa_experiments.image_budgets import BUDGETS, QUICK
from probjepa_experiments.images import build
from probjepa_experiments.study import Data, NotMeasuredError, Row

DECLARED = {name: EXPERIMENTS[name] for name in EXPERIMENTS}
# a cell of vje-projector is a method that is altered after it is built
IMAGES = [name for name in DECLARED if name.startswith("vje-") and name != "vje-projector"]


def cell_of(row, budget=QUICK, dataset="digits", seed=0, mark="abc"):
    return TABLE.cell_of(row, budget, dataset, Data(mark, (1, 16)), seed)


def test_a_default_that_is_spelt_out_is_the_same_cell():
    plain = cell_of(Row("a")).key
    assert (
        cell_of(Row("another label", settings={"df": 1, "draws": 1, "target": "stop-gradient"})).key == plain
    )
    assert cell_of(Row("a", score="knn")).key == plain  # a row may read another figure of the same training


@pytest.mark.parametrize(
    "change",
    [
        {"row": Row("a", settings={"df": 3})},
        {"row": Row("a", settings={"df": math.inf})},
        {"row": Row("a", settings={"radial": False})},
        {"row": Row("a", settings={"kl_weight": 0.5})},
        {"row": Row("a", fit={"learning_rate": 0.01})},
        {"row": Row("a", fit={"weight_decay": 0.0})},
        {"row": Row("a", task="random-init")},
        {"row": Row("a", "simsiam")},
        {"budget": replace(QUICK, fit={**QUICK.fit, "epochs": 61})},
        {"budget": replace(QUICK, settings={**QUICK.settings, "backbone_options": {"widths": (16, 32, 65)}})},
        {"budget": replace(QUICK, name="small")},
        {"dataset": "cifar10"},
        {"seed": 1},
        {"mark": "abd"},
    ],
    ids=str,
)
def test_whatever_changes_the_figures_changes_the_key(change):
    changed = cell_of(**{"row": Row("a"), **change})
    assert changed.key.rpartition("-")[2] != cell_of(Row("a")).key.rpartition("-")[2]


def test_keys_are_readable_and_identities_are_json():
    cell = cell_of(Row("ν = ∞", settings={"df": math.inf, "target": "ema"}))
    assert cell.key.startswith("vje-df=inf-target=ema-digits-quick-s0-")
    assert json.loads(json.dumps(cell.identity, allow_nan=False)) == cell.identity


def test_the_recipe_of_each_method_is_its_own_and_the_rest_is_equal():
    vje, lejepa = cell_of(Row("a")), cell_of(Row("b", "lejepa"))
    assert (vje.fit.get("optimizer", "sgd"), lejepa.fit["optimizer"]) == ("sgd", "adamw")
    assert vje.fit["learning_rate"] != lejepa.fit["learning_rate"]
    for name in QUICK.fit:
        assert vje.fit[name] == lejepa.fit[name]


def test_an_unknown_setting_or_budget_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="vje has no setting degrees"):
        cell_of(Row("a", settings={"degrees": 3}))
    with pytest.raises(ConfigError, match="unknown budget 'quik', did you mean 'quick'"):
        run(TABLE, tmp_path / "out", budget="quik")
    with pytest.raises(ConfigError, match="test-table runs as quick or full, not 'small'"):
        run(
            replace(TABLE, budgets={name: BUDGETS[name] for name in ("quick", "full")}),
            tmp_path / "out",
            budget="small",
        )


@pytest.mark.parametrize(("name", "budget"), [(n, b) for n, study in DECLARED.items() for b in study.budgets])
def test_declarations_are_valid(name, budget):
    experiment = DECLARED[name]
    assert experiment.name == name
    assert experiment.budget(budget).name == budget
    assert set(experiment.data or experiment.budgets) == set(experiment.budgets) <= set(BUDGETS)
    assert experiment.sources_of(budget)
    rows = experiment.rows_of(budget)
    assert len({row.label for row in rows}) == len(rows) > 1
    columns = [column.label for column in expand(experiment.columns, ["noise"])]
    assert len(set(columns)) == len(columns)
    for data, row, column in experiment.published.figures:
        assert any(data in experiment.sources_of(name) for name in experiment.budgets)
        assert row in {row.label for row in experiment.rows}
        assert column in columns
    assert experiment.published.budget


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("budget", BUDGETS)
def test_every_cell_of_images_can_be_built(name, budget):
    experiment = DECLARED[name]
    spent = BUDGETS[budget]
    small = {"backbone": "convnet", "backbone_options": {"widths": (4,)}}  # a ResNet a row would take minutes
    built = set()
    for row in experiment.rows_of(budget):
        cell = experiment.cell_of(row, spent, "digits", Data("", (1, 16)), 0)
        thin = {key: 16 for key in cell.settings if key.endswith("_dim") and cell.settings[key]}
        if cell.key not in built:
            method = build(cell.method, {**cell.settings, **small, **thin}, 0)
            assert method.name == row.method
            built.add(cell.key)


@pytest.mark.parametrize("name", DECLARED)
def test_findings_read_rows_and_columns_that_there_are(name):
    experiment = DECLARED[name]
    ood = ["unseen classes", "natural patches", "noise"]
    columns = {column.label for column in expand(experiment.columns, ood)}
    rows = {budget: {row.label for row in experiment.rows_of(budget)} for budget in experiment.budgets}
    every = set().union(*rows.values())
    assert experiment.findings or experiment.ranked

    def judged(finding, budget):
        def look(row, column):
            assert row in every
            assert column in columns
            if row not in rows[budget]:
                raise NotMeasuredError
            return 0.5

        try:
            return finding.holds(look) in (True, False)
        except NotMeasuredError:
            return False

    for finding in experiment.findings:
        assert any(judged(finding, budget) for budget in (["quick"] if finding.asserted else rows))
