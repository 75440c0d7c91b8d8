"""The runner of the papers' tables: keys, resuming, sharing, failing, missing data, aggregation, findings."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from probjepa.errors import ArtifactError, ConfigError, DataError, ProbjepaError
from probjepa.experiments import EXPERIMENTS, budgets, cells, grid
from probjepa.experiments.budgets import BUDGETS, QUICK
from probjepa.experiments.cells import build, make_cell
from probjepa.experiments.datasets import RANDOM_PIXELS, open_data_set
from probjepa.experiments.declare import LEARNED, OOD, Column, Experiment, Finding, Row
from probjepa.experiments.results_page import main as write_results_page
from probjepa.experiments.results_page import results_page
from probjepa.training import Interrupted

TINY = replace(
    QUICK,
    title="tiny",
    backbone_options={"widths": (4, 8)},
    methods={"vje": {"hidden_dim": 8}},
    fit={**QUICK.fit, "epochs": 1},
    seeds=2,
    images=3 * 128,
    n_bootstrap=5,
    cost={"image_size": 8, "channels": 1, "batch_size": 4, "rounds": 2},
)
DECLARED = {name: EXPERIMENTS[name] for name in EXPERIMENTS if isinstance(EXPERIMENTS[name], Experiment)}
TABLE = Experiment(
    name="test-table",
    title="A table",
    paper="none",
    question="Does it run?",
    rows=(Row("one"), Row("two", settings={"df": 3})),
    columns=LEARNED,
    findings=(Finding("σ² is a variance", lambda r: r("one", "mean σ²") > 0, asserted=True),),
    published={("digits", "one", "mean σ²"): 0.5},
    published_budget="a larger one",
)


def cell_of(row, budget=QUICK, dataset="digits", seed=0, mark="abc"):
    return make_cell(row, budget, dataset, (1, 16), seed, mark)


def run(experiment, out, **changes):
    options = {"data_root": None, "budget": "quick", "cells": None, "seed": 0, "overwrite": False}
    experiment(out, **{**options, "progress": False, **changes})
    return json.loads((out / "metrics.json").read_text())


@pytest.fixture
def fake(monkeypatch):
    """Cells that train nothing: σ² = seed + df; what ran is recorded."""
    ran = []

    def run_cell(cell, data, folder, **_):
        ran.append(cell.key)
        value = float(cell.seed + cell.settings["df"])
        return {
            "cell": cell.identity,
            "figures": {"mean variance": {"value": value, "low": value - 1, "high": value + 1}},
            "failed": None,
            "notes": [],
            "seconds": 1.0,
            "hardware": "a machine",
            "versions": {"probjepa": "0", "torch": "0", "python": "0"},
        }

    monkeypatch.setattr(grid, "run_cell", run_cell)
    return ran


# keys


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
        {"budget": replace(QUICK, backbone_options={"widths": (16, 32, 65)})},
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
        run(replace(TABLE, data={"quik": ("digits",)}), tmp_path / "out", budget="quik")


# declarations


@pytest.mark.parametrize("name", DECLARED)
@pytest.mark.parametrize("budget", BUDGETS)
def test_declarations_are_valid(name, budget):
    experiment = DECLARED[name]
    assert experiment.name == name
    rows = experiment.rows_of(budget)
    assert len({row.label for row in rows}) == len(rows) > 1
    spent = BUDGETS[budget]
    small = {"backbone": "convnet", "backbone_options": {"widths": (4,)}}  # a ResNet a row would take minutes
    built = set()
    for row in rows:
        cell = make_cell(row, spent, "digits", (1, 16), 0, "")
        thin = {key: 16 for key in cell.settings if key.endswith("_dim") and cell.settings[key]}
        if cell.key not in built:
            method = build(replace(cell, settings={**cell.settings, **small, **thin}))
            assert method.name == row.method
            built.add(cell.key)
    labels = {column.label for column in grid.expand(experiment.columns, ["noise"])}
    for data, row, column in experiment.published:
        assert any(data in names for names in experiment.data.values())
        assert row in {row.label for row in experiment.rows}
        assert column in labels
    assert experiment.published_budget
    assert set(experiment.data) == set(BUDGETS)


@pytest.mark.parametrize("name", DECLARED)
def test_findings_read_rows_and_columns_that_there_are(name):
    experiment = DECLARED[name]
    ood = ["unseen classes", "natural patches", "noise"]
    columns = {column.label for column in grid.expand(experiment.columns, ood)}
    rows = {row.label for row in experiment.rows_of("quick")}
    assert experiment.findings
    full = {row.label for row in experiment.rows_of("full")}
    for finding in experiment.findings:

        def look(row, column, known=rows if finding.asserted else full):
            assert row in known
            assert column in columns
            return 0.5

        assert finding.holds(look) in (True, False)


# running


def test_finished_cells_are_kept_and_shared(tmp_path, fake):
    shared = tmp_path / "cells"
    first = run(TABLE, tmp_path / "a", cells=shared)
    assert len(fake) == len(set(fake)) == 6  # two rows, three seeds
    assert {path.stem for path in shared.iterdir()} == set(fake)
    other = replace(TABLE, name="other", rows=(Row("base"), Row("seven", settings={"df": 7})))
    second = run(other, tmp_path / "b", cells=shared)
    assert len(fake) == 9  # the base was trained for the first table
    values = [metrics["tables"]["digits"]["rows"][0]["values"]["mean σ²"] for metrics in (first, second)]
    assert values[0]["seeds"] == values[1]["seeds"] == [1.0, 2.0, 3.0]

    with pytest.raises(ArtifactError, match="--overwrite"):
        run(TABLE, tmp_path / "a", cells=shared)
    run(TABLE, tmp_path / "a", cells=shared, overwrite=True)
    assert len(fake) == 9


def test_an_unfinished_study_goes_on_and_a_damaged_cell_is_run_again(tmp_path, fake):
    out = tmp_path / "a"
    whole = run(TABLE, out)
    (out / "metrics.json").unlink()
    lost, damaged, foreign, *_ = sorted((out / "cells").iterdir())
    lost.unlink()
    damaged.write_text(damaged.read_text()[:100])
    content = json.loads(foreign.read_text())
    content["cell"]["settings"]["kl_weight"] = 9.0
    foreign.write_text(json.dumps(content))
    del fake[:]
    assert run(TABLE, out) == whole
    assert set(fake) == {lost.stem, damaged.stem, foreign.stem}


def test_a_folder_of_something_else_is_refused(tmp_path, fake):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="exists already"):
        run(TABLE, tmp_path)
    assert not fake


def test_rows_that_read_one_training_share_it(tmp_path, fake):
    rows = (Row("one", score="knn"), Row("two", score="likelihood"))
    run(replace(TABLE, rows=rows, findings=()), tmp_path / "a")
    assert len(fake) == 3


def test_missing_data_are_reported_and_the_rest_goes_on(tmp_path, fake):
    experiment = replace(TABLE, data={"quick": ("cifar10", "digits")})
    metrics = run(experiment, tmp_path / "a", data_root=tmp_path)
    assert list(metrics["tables"]) == ["digits"]
    (line,) = metrics["not_run"]
    assert line == f"CIFAR-10: not run: no {tmp_path / 'cifar10' / 'train.parquet'}"
    assert "CIFAR-10: not run" in (tmp_path / "a" / "report.html").read_text()
    with pytest.raises(DataError, match=r"test-table has no data \(CIFAR-10: no .*: pass --data-root"):
        run(replace(TABLE, data={"quick": ("cifar10",)}), tmp_path / "b", data_root=tmp_path)
    with pytest.raises(DataError, match="no --data-root"):
        run(replace(TABLE, data={"quick": ("cifar10",)}), tmp_path / "b")


# bringing together


def test_three_seeds_have_students_interval():
    values = [0.3, 0.5, 0.9]
    found = grid.aggregate([{"value": v, "low": 0.0, "high": 1.0} for v in values])
    mean, error = np.mean(values), stats.sem(values)
    assert found["value"] == pytest.approx(mean)
    assert (found["low"], found["high"]) == pytest.approx(stats.t.interval(0.95, 2, mean, error))
    assert found["seeds"] == values


def test_one_seed_has_its_own_interval_and_two_have_none():
    one, missing = {"value": 0.3, "low": 0.2, "high": 0.4}, None
    assert grid.aggregate([missing, one]) == {**one, "seeds": [None, 0.3]}
    two = grid.aggregate(
        [one, {"value": 0.5, "low": 0.4, "high": 0.6}, {"value": None, "low": None, "high": None}]
    )
    assert two == {"value": pytest.approx(0.4), "low": None, "high": None, "seeds": [0.3, 0.5, None]}
    assert grid.aggregate([missing])["value"] is None


def rows_of(**seeds):
    return [{"label": label, "values": {"x": grid.aggregate([v and {"value": v, "low": None, "high": None}
                                                             for v in of])}} for label, of in seeds.items()]  # fmt: skip


def test_findings_are_judged_seed_by_seed():
    finding = Finding("a is above b", lambda r: r("a", "x") > r("b", "x"))
    held = grid.judge(finding, rows_of(a=[2.0, 3.0, 4.0], b=[1.0, 1.0, 1.0]))
    assert (held["holds"], held["judged"], grid.verdict(held)) == (3, 3, "holds, all 3 seeds")
    mixed = grid.judge(finding, rows_of(a=[2.0, 3.0, 0.5], b=[1.0, 1.0, 1.0]))
    assert grid.verdict(mixed) == "holds in 2 of 3 seeds"
    part = grid.judge(finding, rows_of(a=[0.2, None, 0.5], b=[1.0, 1.0, 1.0]))
    assert (part["judged"], grid.verdict(part)) == (2, "does not hold, all 2 seeds")
    assert grid.verdict(grid.judge(finding, rows_of(a=[1.0]))) == "not judged"
    # one without seeds is compared with every seed
    assert grid.judge(finding, rows_of(a=[2.0, 0.5, 3.0], b=[1.0]))["holds"] == 2
    assert held["evidence"] == [
        {"row": "a", "column": "x", "value": 3.0},
        {"row": "b", "column": "x", "value": 1.0},
    ]


def test_columns_of_out_of_distribution_sets_are_spelt_out():
    columns = grid.expand([Column("plain", "p"), OOD], ["noise", "svhn"])
    assert [column.label for column in columns] == ["plain", "AUROC, noise", "AUROC, svhn"]
    assert columns[2].figure == "auroc/svhn/{score}"


# the real thing, three steps a cell


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(budgets.BUDGETS, "quick", TINY)


@pytest.fixture(scope="module")
def digits():
    return open_data_set("digits", None, TINY.images)


def test_data_are_disjoint_and_of_the_size_asked_for(digits):
    assert len(digits.train) == 384
    assert torch.bincount(digits.train.labels).tolist()[:8] == pytest.approx([48] * 8, abs=2)
    pixels = {bytes(image) for image in digits.train.images.numpy()}
    for images in (digits.test, *digits.ood.values()):
        assert not any(bytes(image) in pixels for image in images.images.numpy())
    assert open_data_set("digits", None, TINY.images).fingerprint == digits.fingerprint
    assert open_data_set("digits", None, 300).fingerprint != digits.fingerprint


def test_a_tiny_table_from_training_to_page(tmp_path, tiny, capsys):
    rows = (
        Row("VJE, likelihood", score="likelihood"),
        Row("VJE-EMA, knn", settings={"target": "ema"}, score="knn"),
        Row("VI-SimSiam, likelihood", "vi-simsiam", settings={"projector_dim": 8, "predictor_dim": 4},
            score="likelihood"),
        Row("random", task="random-init", score="knn"),
        Row("pixels", task="raw-pixels", score="knn"),
    )  # fmt: skip
    columns = (*LEARNED, Column("EMA", "knn20/ema-h"), OOD, Column("ρ", "spearman/kl/margin"))
    metrics = run(replace(TABLE, rows=rows, columns=columns, findings=()), tmp_path / "out")
    table = {row["label"]: row["values"] for row in metrics["tables"]["digits"]["rows"]}
    assert all(row["failed"] == [] for row in metrics["tables"]["digits"]["rows"])
    for name, values in table.items():
        assert 0 <= values["kNN on h, %"]["value"] <= 1
        assert 0 <= values["AUROC, noise"]["value"] <= 1
        assert (values["mean σ²"]["value"] is not None) == name.startswith(("VJE", "random"))
        assert (values["EMA"]["value"] is not None) == name.startswith("VJE-EMA")
        assert (values["ρ"]["value"] is not None) == name.startswith(("VJE", "random"))
    # scikit-learn's digits are easily told apart by their pixels
    assert table["pixels"]["kNN on h, %"]["value"] > 0.9
    assert len(table["pixels"]["kNN on h, %"]["seeds"]) == 1
    assert len(table["random"]["kNN on h, %"]["seeds"]) == 2
    html = (tmp_path / "out" / "report.html").read_text()
    assert html.count("data:image/svg") + html.count("<svg") >= 3
    assert "VI-SimSiam, likelihood" in capsys.readouterr().out
    assert not (tmp_path / "out" / "runs").exists()

    results = tmp_path / "results" / "reproduce"
    results.mkdir(parents=True)
    renamed = {**metrics, "experiment": "vje-draws"}
    (results / "vje-draws-quick.json").write_text(json.dumps(renamed))
    page = tmp_path / "results.md"
    assert write_results_page([str(tmp_path / "results"), str(page)]) == 0
    text = page.read_text()
    assert text == results_page(tmp_path / "results")
    assert "| VJE, likelihood |" in text
    assert text.count("not run") >= 10
    (results / "vje-draws-full.json").write_text(json.dumps(renamed))
    with pytest.raises(ArtifactError, match=r"name it vje-draws-quick\.json"):
        results_page(tmp_path / "results")


def test_a_run_that_was_cut_short_goes_on(tmp_path, tiny, digits, monkeypatch):
    (cell,) = [c for c in grid.plan(TABLE, TINY, "digits", digits, 0) if c.label == "one" and c.seed == 0]
    whole = cells.run_cell(cell, digits, tmp_path / "whole", n_bootstrap=5, progress=False)

    import probjepa.training

    fit, resumed = probjepa.training.fit, []

    def interrupted(*args, resume, **options):
        resumed.append(resume)
        if len(resumed) == 1:
            options["callbacks"] = [StopAfter(2)]
            import lightning.pytorch as L

            assert isinstance(options["callbacks"][0], L.Callback)
        return fit(*args, resume=resume, **options)

    monkeypatch.setattr(probjepa.training, "fit", interrupted)
    out = tmp_path / "out"
    with pytest.raises(Interrupted, match="run the same command again"):
        run(replace(TABLE, rows=TABLE.rows[:1]), out)
    assert (out / "runs" / cell.key / "checkpoints" / "last.ckpt").is_file()
    assert not (out / "metrics.json").exists()
    metrics = run(replace(TABLE, rows=TABLE.rows[:1]), out)
    assert resumed == [False, True, False]
    assert metrics["cells"][0]["figures"] == whole["figures"]


def StopAfter(step):
    import os
    import signal

    import lightning.pytorch as L

    class Stop(L.Callback):
        def on_train_batch_start(self, trainer, *_):
            if trainer.global_step == step - 1:
                os.kill(os.getpid(), signal.SIGINT)

    return Stop()


def test_a_cell_that_diverges_is_recorded_as_failed(tmp_path, tiny, capsys):
    rows = (Row("fine"), Row("wild", fit={"learning_rate": 1e30}))
    metrics = run(replace(TABLE, rows=rows, findings=TABLE.findings), tmp_path / "out", progress=True)
    fine, wild = metrics["tables"]["digits"]["rows"]
    assert (len(fine["failed"]), len(wild["failed"])) == (0, 2)
    assert "not finite" in wild["failed"][0]
    assert wild["values"]["kNN on h, %"]["value"] is None
    html = (tmp_path / "out" / "report.html").read_text()
    assert "wild (2 failed)" in html
    assert "not finite" in html
    lines = capsys.readouterr().err.splitlines()
    assert [line.rpartition("; ")[2] for line in lines if " left" in line] == [
        "3 left",
        "2 left",
        "1 left",
        "0 left",
    ]
    # it is not tried again
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").iterdir()}
    run(replace(TABLE, rows=rows), tmp_path / "out", overwrite=True)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").iterdir()}


def test_what_the_user_must_act_on_is_raised(tmp_path, tiny):
    with pytest.raises(ConfigError, match="batch_size"):
        run(replace(TABLE, rows=(Row("one", fit={"batch_size": 10_000}),)), tmp_path / "out")


def test_the_cost_of_a_step(tmp_path, tiny):
    thin = {"projector_dim": 8, "predictor_dim": 4}
    budgets.BUDGETS["quick"].methods["simsiam"] = thin
    experiment = replace(
        EXPERIMENTS["vje-compute"],
        rows=(Row("VJE", task="cost"), Row("SimSiam", "simsiam", task="cost", settings=thin)),
        findings=(),
    )
    metrics = run(experiment, tmp_path / "out")
    vje, simsiam = (row["values"] for row in metrics["tables"][RANDOM_PIXELS]["rows"])
    # conv 4 + 8 with batch norms, the inference network 8→8→8 with layer norms and two heads
    encoder = (4 * 9 + 8) + (4 * 8 * 9 + 16)
    inference = 2 * (8 * 8 + 16) + 2 * (8 * 8 + 8)
    assert vje["parameters, M"]["value"] == pytest.approx((encoder + inference) / 1e6)
    projector = 8 * 8 + 16 + 8 * 8
    predictor = 8 * 4 + 8 + 4 * 8 + 8
    assert simsiam["parameters, M"]["value"] == pytest.approx((encoder + projector + predictor) / 1e6)
    # two views of four images, 2 operations a multiply-add; forward, and the gradients of weights and inputs
    conv1, conv2 = 8 * 8 * 9 * 4, 4 * 4 * 9 * 4 * 8
    forward = 8 * 2 * (conv1 + conv2 + 4 * 8 * 8)
    assert vje["GFLOP a step"]["value"] == pytest.approx((3 * forward - 8 * 2 * conv1) / 1e9)
    assert (
        vje["step / SimSiam's"]["low"] <= vje["step / SimSiam's"]["value"] <= vje["step / SimSiam's"]["high"]
    )
    assert any("memory: not measured" in note for cell in metrics["cells"] for note in cell["notes"])


def test_an_evaluation_that_fails_is_noted_and_the_rest_is_measured(tmp_path, digits, monkeypatch):
    from probjepa.experiments import measure

    def collapsed(*_):
        raise ProbjepaError("the embeddings do not vary")

    monkeypatch.setattr(measure, "label_free_scores", collapsed)
    (cell, *_) = grid.plan(TABLE, TINY, "digits", digits, 0)
    method = build(cell)
    method.calibrate(digits.train.images)
    figures, notes = measure.measure(method.eval(), digits, seed=0, n_bootstrap=5)
    assert notes == ["AUROC: the embeddings do not vary"]
    assert {"knn20/h", "mean variance"} <= set(figures)


def test_results_page_is_that_of_the_committed_results():
    from pathlib import Path

    root = Path(__file__).parents[2]
    assert (root / "docs" / "results.md").read_text(encoding="utf-8") == results_page(
        root / "benchmarks" / "results"
    )
