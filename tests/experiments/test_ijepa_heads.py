"""The table of I-JEPA's heads: its rows, a cell that resumes, a failure that is recorded, its pictures."""

import json
from dataclasses import replace

import pytest
import torch

from probjepa.demo import demo_sets
from probjepa.errors import ConfigError, ProbjepaError
from probjepa.registry import EXPERIMENTS
from probjepa.training.interrupt import Interrupted
from probjepa_experiments import ijepa_cells, ijepa_heads
from probjepa_experiments.datasets import DataSet
from probjepa_experiments.ijepa_heads import BUDGETS, HEADS, STUDY
from probjepa_experiments.images import build
from probjepa_experiments.runner import figure
from probjepa_experiments.study import Data, NotMeasuredError

QUICK = BUDGETS["quick"]
TINY = replace(
    QUICK,
    settings={"backbone": "vit", "backbone_options": {"patch_size": 4, "width": 8, "depth": 1, "heads": 2}},
    fit={**QUICK.fit, "epochs": 2, "batch_size": 32},
    n_bootstrap=10,
)


@pytest.fixture(scope="module")
def data():
    train, test, _ = demo_sets()
    return DataSet("mark", (1, 16), train=train.subset(range(96)), test=test.subset(range(40)), ood={})


def cell(label, budget=TINY, **settings):
    row = next(row for row in STUDY.rows if row.label == label and budget.name in row.budgets)
    row = replace(row, settings={**row.settings, **settings})
    return STUDY.cell_of(row, budget, "digits", Data("mark", (1, 16)), 0)


def run_cell(one, data, folder, budget=TINY):
    return ijepa_cells.run(one, data, folder, budget, False)


def test_every_budget_has_every_row_and_heads_differ_in_nothing_else():
    assert EXPERIMENTS["ijepa-heads"] is STUDY
    for name, budget in BUDGETS.items():
        rows = STUDY.rows_of(name)
        assert [row.label for row in rows[: len(HEADS)]] == list(HEADS)
        shape = (1, 16) if name == "quick" else (3, 64)
        made = [STUDY.cell_of(row, budget, "x", Data("mark", shape), 0) for row in rows[: len(HEADS)]]
        for one in made:
            assert isinstance(build(one.method, one.settings, one.seed), torch.nn.Module)
            assert one.fit == made[0].fit  # the learning rate among them
            shared = [
                {k: v for k, v in each.settings.items() if not k.startswith("head")}
                for each in (one, made[0])
            ]
            assert shared[0] == shared[1]
        assert len({one.key for one in made}) == len(made)
    with pytest.raises(ConfigError, match="unknown budget 'huge'"):
        STUDY.budget("huge")


def test_the_point_and_the_gaussian_are_also_trained_at_twice_the_rate():
    rows = {row.label: row for row in STUDY.rows_of("small")}
    extra = [label for label in rows if label.endswith(", twice the rate")]
    assert extra == ["deterministic, smooth L1, twice the rate", "gaussian, twice the rate"]
    for label in extra:
        twice, once = (
            STUDY.cell_of(rows[name], BUDGETS["small"], "x", Data("mark", (3, 64)), 0)
            for name in (label, label.removesuffix(", twice the rate"))
        )
        assert twice.settings == once.settings
        assert twice.fit == {**once.fit, "learning_rate": 2 * once.fit["learning_rate"]}


def test_heads_are_judged_at_the_better_of_their_rates():
    figures = {
        ("mdn", ijepa_heads.KNN): 0.1,
        (f"mdn{ijepa_heads.OTHER_RATE}", ijepa_heads.KNN): 0.2,
        ("gaussian", ijepa_heads.KNN): 0.15,
    }

    def look(row, column):
        if (row, column) not in figures:
            raise NotMeasuredError
        return figures[row, column]

    assert ijepa_heads.best(look, "mdn") == 0.2
    assert ijepa_heads.best(look, "gaussian") == 0.15
    with pytest.raises(NotMeasuredError):
        ijepa_heads.best(look, "realnvp")


def test_at_the_medium_budget_every_head_has_two_rates():
    budget = BUDGETS["medium"]
    rows = STUDY.rows_of("medium")
    trained = [row for row in rows if row.task == "train"]
    assert len(trained) == 2 * len(HEADS)
    for name in HEADS:
        once, twice = (
            STUDY.cell_of(row, budget, "x", Data("mark", (3, 64)), 0)
            for row in trained
            if row.label.removesuffix(ijepa_heads.OTHER_RATE) == name
        )
        assert once.settings == twice.settings
        assert [once.fit["learning_rate"], twice.fit["learning_rate"]] == [1e-3, 2e-3]
    encoder = build(once.method, once.settings, 0).encoder
    assert 1.4e6 < sum(weight.numel() for weight in encoder.parameters()) < 1.7e6


def test_a_stopped_cell_goes_on_to_the_same_figures(data, tmp_path, monkeypatch):
    one = cell("mdn")
    whole = run_cell(one, data, tmp_path / "whole")
    from lightning.pytorch import Callback

    class Stop(Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 1:
                raise Interrupted("stopped: there")

    original = ijepa_cells.trained
    monkeypatch.setattr(
        ijepa_cells, "trained", lambda *a, **options: original(*a, **options, callbacks=[Stop()])
    )
    with pytest.raises(Interrupted, match="stopped: there"):
        run_cell(one, data, tmp_path / "cut")
    monkeypatch.undo()
    again = run_cell(one, data, tmp_path / "cut")

    def untimed(result):
        kept = {k: v for k, v in result.figures.items() if "ratio" not in k and "sampling" not in k}
        return kept, result.pictures, result.notes

    assert untimed(again) == untimed(whole)
    assert whole.pictures["curves"]["epoch"] == [1, 2]
    assert None not in whole.pictures["curves"]["knn"]
    figures = whole.figures
    assert {"nll", "energy", "cosine", "step ratio", "sampling", "mixture entropy"} <= set(figures)
    assert figures["step ratio"]["low"] <= figures["step ratio"]["value"] <= figures["step ratio"]["high"]
    json.dumps([{name: figure(value) for name, value in figures.items()}, whole.pictures], allow_nan=False)


def test_a_training_that_diverges_is_recorded(data, tmp_path):
    bad = cell("deterministic, smooth L1", replace(TINY, fit={**TINY.fit, "learning_rate": 1e30}))
    with pytest.raises(ProbjepaError, match="not finite"):
        run_cell(bad, data, tmp_path / "run")


def test_baselines_have_accuracies_and_no_predictions(data, tmp_path):
    fresh = run_cell(cell(ijepa_heads.RANDOM), data, tmp_path / "a")
    assert set(fresh.figures) == {"knn20/h", "linear/h", "effective rank", "target std"}
    pixels = run_cell(cell(ijepa_heads.PIXELS), data, tmp_path / "b")
    assert set(pixels.figures) == {"knn20/h", "linear/h"}
    from sklearn.neighbors import KNeighborsClassifier

    x, y = (of.images.flatten(1).double() / 255 for of in (data.train, data.test))
    mean, std = x.mean(), x.std()
    x, y = ((of - mean) / std for of in (x, y))
    x, y = (of / of.norm(dim=1, keepdim=True) for of in (x, y))
    votes = KNeighborsClassifier(20).fit(x, data.train.labels)
    share = votes.score(y, data.test.labels)
    assert pixels.figures["knn20/h"]["value"] == pytest.approx(share, abs=2.5 / 40)  # votes may tie


def test_pictures_are_of_the_first_seed_of_each_head():
    def result(row, seed):
        points = [[float(seed), 0.1 * i, 0.2 * i * i] for i in range(30)]
        curves = {"epoch": [1, 2], "loss": [1.0, 0.5], "knn": [None, 0.5], "target_std": [0.5, 0.5]}
        return {"row": row, "pictures": {"targets": points, "samples": points, "curves": curves}}

    results = [result(row, seed) for row in ("mdn", "diffusion") for seed in (0, 1)]
    results.append({"row": "raw pixels", "pictures": {}})
    grid, training = ijepa_heads.sections(results)
    assert len(grid.items) == 2 * 2  # in the plane and in space
    assert len(training.items) == 1 + 2  # the kNN curves, and a loss a head
    assert "mdn 50, diffusion 50" in training.items[0].alt
    assert ijepa_heads.sections(results[-1:]) == []
