"""Cells that are trained, three steps each: from the data to the pages."""

import io
import json
import os
import re
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import lightning.pytorch as L
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from experiment_tables import TABLE, TINY, run, with_budget
from PIL import Image

import probjepa.training
from probjepa.data import open_images
from probjepa.errors import ArtifactError, ConfigError, DataError, ProbjepaError
from probjepa.registry import EXPERIMENTS
from probjepa.training import Interrupted
from probjepa_experiments import datasets, images, measure, runner
from probjepa_experiments.cost import RANDOM_PIXELS, in_turns
from probjepa_experiments.datasets import SOURCES
from probjepa_experiments.results_page import main as write_results_pages
from probjepa_experiments.results_page import results_pages
from probjepa_experiments.study import Column, Row
from probjepa_experiments.vje import FLOORS, LEARNED, PROBES, H
from probjepa_experiments.vje_uncertainty import AUROC, FPR95

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
TABLE = with_budget(TABLE, TINY)


@pytest.fixture(scope="module")
def digits():
    return SOURCES["digits"].open(None, TINY.rows)


def test_data_are_disjoint_and_of_the_size_asked_for(digits):
    assert len(digits.train) == 384
    assert torch.bincount(digits.train.labels).tolist()[:8] == pytest.approx([48] * 8, abs=2)
    pixels = {bytes(image) for image in digits.train.images.numpy()}
    for held_out in (digits.test, *digits.ood.values()):
        assert not any(bytes(image) in pixels for image in held_out.images.numpy())
    assert SOURCES["digits"].open(None, TINY.rows).fingerprint == digits.fingerprint
    assert SOURCES["digits"].open(None, 300).fingerprint != digits.fingerprint


def test_a_tiny_table_from_training_to_page(tmp_path, capsys):
    rows = (
        Row("VJE, likelihood", score="likelihood"),
        Row("VJE-EMA, knn", settings={"target": "ema"}, score="knn"),
        Row("VI-SimSiam, likelihood", "vi-simsiam", settings={"projector_dim": 8, "predictor_dim": 4},
            score="likelihood"),
        Row("random", task="random-init", score="knn"),
        Row("pixels", task="raw-pixels", score="knn"),
    )  # fmt: skip
    columns = (
        *LEARNED,
        Column("EMA", "knn20/ema-h"),
        *PROBES,
        AUROC,
        FPR95,
        Column("ρ", "spearman/kl/margin"),
    )
    metrics = run(replace(TABLE, rows=rows, columns=columns, findings=()), tmp_path / "out")
    table = {row["label"]: row["values"] for row in metrics["tables"]["digits"]["rows"]}
    assert all(row["failed"] == [] for row in metrics["tables"]["digits"]["rows"])
    for name, values in table.items():
        assert 0 <= values["kNN on h, %"]["value"] <= 1
        assert 0 <= values["AUROC, noise"]["value"] <= 1
        assert 0 <= values["FPR95, noise"]["value"] <= 1
        assert 0.125 < values["linear probe on h, %"]["value"] <= 1
        assert (values["linear probe on EMA h, %"]["value"] is not None) == name.startswith("VJE-EMA")
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
    assert write_results_pages([str(tmp_path / "results"), str(tmp_path / "pages")]) == 0
    pages = {path.name: path.read_text() for path in (tmp_path / "pages").iterdir()}
    assert pages == results_pages(tmp_path / "results")
    assert sorted(pages) == ["index.md", "vje-draws.md"]
    assert pages["index.md"].count("| not run") >= 10
    (adbench,) = (line for line in pages["index.md"].splitlines() if line.startswith("| `adbench`"))
    assert adbench.endswith("| not run | not run | – | not run |")  # it has no medium
    page = pages["vje-draws.md"]
    assert "| VJE, likelihood |" in page
    question, answer, command, table = map(
        page.index, ("**Question.**", "**Answer.**", "- Command:", "| VJE")
    )
    assert question < answer < command < table
    (results / "vje-draws-full.json").write_text(json.dumps(renamed))
    with pytest.raises(ArtifactError, match=r"name it vje-draws-quick\.json"):
        results_pages(tmp_path / "results")


def json_of(measured):
    return {name: runner.figure(value) for name, value in measured.figures.items()}


class StopAfter(L.Callback):
    """Press Ctrl-C in the middle of a step."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step - 1:
            os.kill(os.getpid(), signal.SIGINT)


def test_a_run_that_was_cut_short_goes_on(tmp_path, digits, monkeypatch):
    (cell,) = [c for c in runner.plan(TABLE, TINY, "digits", digits, [0]) if c.label == "one"]
    whole = images.run(cell, digits, tmp_path / "whole", TINY, False)

    # killed after the training and before its cell was written; and before there was anything
    again = images.run(cell, digits, tmp_path / "whole", TINY, False)
    assert again == whole
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / ".config.yaml.tmp").write_text("")
    assert images.run(cell, digits, tmp_path / "bare", TINY, False) == whole

    fit, resumed = probjepa.training.fit, []

    def interrupted(*args, resume, **options):
        resumed.append(resume)
        if len(resumed) == 1:
            options["callbacks"] = [StopAfter(2)]
        return fit(*args, resume=resume, **options)

    monkeypatch.setattr(probjepa.training, "fit", interrupted)
    out = tmp_path / "out"
    with pytest.raises(Interrupted, match="run the same command again"):
        run(replace(TABLE, rows=TABLE.rows[:1]), out)
    (begun,) = (out / "runs").iterdir()
    assert begun.name.startswith(f"{cell.key}-")
    assert not (out / "metrics.json").exists()
    run(replace(TABLE, rows=TABLE.rows[:1]), out, finished_only=True)  # a look at it
    assert (begun / "checkpoints" / "last.ckpt").is_file()
    metrics = run(replace(TABLE, rows=TABLE.rows[:1]), out)
    assert resumed == [False, True, False]
    assert metrics["cells"][0]["figures"] == json_of(whole)


def test_a_torn_checkpoint_is_named_and_overwriting_helps(tmp_path, monkeypatch):
    one = with_budget(replace(TABLE, rows=TABLE.rows[:1]), replace(TINY, seeds=1))
    out, fit = tmp_path / "out", probjepa.training.fit
    monkeypatch.setattr(probjepa.training, "fit", partial(fit, callbacks=[StopAfter(2)]))
    with pytest.raises(Interrupted):
        run(one, out)
    monkeypatch.undo()
    (torn,) = (out / "runs").rglob("last.ckpt")
    torn.write_bytes(torn.read_bytes()[:100])
    with pytest.raises(ArtifactError, match=r"damaged .* start from scratch with overwrite"):
        run(one, out)
    assert run(one, out, overwrite=True)["tables"]


def test_a_cell_that_diverges_is_recorded_as_failed(tmp_path, capsys):
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
    assert [line.rpartition("; ")[2].partition(",")[0] for line in lines if " left" in line] == [
        "3 left",
        "2 left",
        "1 left",
        "0 left",
    ]
    # it is not tried again
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").iterdir()}
    run(replace(TABLE, rows=rows), tmp_path / "out", overwrite=True)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").iterdir()}


def test_what_the_user_must_act_on_is_raised(tmp_path):
    with pytest.raises(ConfigError, match="batch_size"):
        run(replace(TABLE, rows=(Row("one", fit={"batch_size": 10_000}),)), tmp_path / "out")


def test_the_cost_of_a_step(tmp_path):
    thin = {"projector_dim": 8, "predictor_dim": 4}
    experiment = replace(
        with_budget(EXPERIMENTS["vje-compute"], replace(TINY, methods={**TINY.methods, "simsiam": thin})),
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


def test_the_steps_of_both_are_told_apart():
    now = [0.0]

    def takes(seconds):
        def work():
            now[0] += seconds

        return work

    mine, theirs = in_turns(takes(3.0), takes(1.0), torch.device("cpu"), rounds=5, clock=lambda: now[0])
    assert mine == [3.0] * 5
    assert theirs == [1.0] * 5


def test_an_evaluation_that_fails_is_noted_and_the_rest_is_measured(tmp_path, digits, monkeypatch):
    def collapsed(*_, **__):
        raise ProbjepaError("the embeddings do not vary")

    monkeypatch.setattr(measure, "label_free_scores", collapsed)
    (cell, *_) = runner.plan(TABLE, TINY, "digits", digits, [0])
    method = images.build(cell.method, cell.settings, cell.seed)
    method.calibrate(digits.train.images)
    measured = measure.measure(method.eval(), digits, seed=0, n_bootstrap=5)
    assert measured.notes == ["AUROC: the embeddings do not vary"]
    assert {"knn20/h", "mean variance"} <= set(measured.figures)


def test_results_pages_are_those_of_the_committed_results():
    pages = {page.name: page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "results").iterdir()}
    assert pages == results_pages(RESULTS)


@pytest.mark.parametrize("name", ["vje-table2", "vje-geometry", "ijepa-heads", "vje-defaults"])
def test_a_page_answers_by_several_seeds_with_the_figures_of_its_claims(name):
    page = results_pages(RESULTS)[f"{name}.md"]
    answer, *sections = page.split("\n## ")
    claims = [line for line in answer.splitlines() if line.startswith("- ")]
    held, judged = map(int, re.search(r"(\d+) of (\d+) claims?", answer).groups())
    assert len(claims) == judged
    assert (
        sum(
            bool(re.search(r"\*\*holds(, all \d seeds|, both seeds|, \d of \d seeds judged.*)?\*\*", line))
            for line in claims
        )
        == held
    )
    assert re.search(r"\*\* \(.* – .*: -?\d", claims[0])
    budget = re.search(r"With the budget \*\*(\w+)", answer)[1]
    several = [of.partition("\n")[0] for of in sections if "; seeds " in of]
    if name == "ijepa-heads":  # at the medium budget two of its rows alone have a second seed
        several.remove("medium")
    assert budget == (several or ["medium"])[0]


@pytest.mark.parametrize("seeds", [1, 3])
def test_seeds_of_the_rows_that_no_claim_reads_do_not_answer(tmp_path, seeds):
    committed = RESULTS / "reproduce" / "vje-isotropic-quick.json"
    folder = tmp_path / "reproduce"
    folder.mkdir()
    metrics = json.loads(committed.read_text())
    (folder / committed.name).write_text(json.dumps(metrics))
    metrics["budget"]["name"] = "medium"
    (table,) = metrics["tables"].values()
    for row in table["rows"]:
        if row["label"].startswith("isotropic"):
            for of in row["values"].values():
                of["seeds"][seeds:] = [None] * (3 - seeds)
    (folder / "vje-isotropic-medium.json").write_text(json.dumps(metrics))
    answer = results_pages(tmp_path)["vje-isotropic.md"].partition("\n## ")[0]
    assert f"With the budget **{'quick' if seeds == 1 else 'medium'}**" in answer
    assert ("**medium**, of whose rows the claims' have one seed, or none, so far" in answer) == (seeds == 1)


def test_committed_figures_are_judged_by_todays_claims(tmp_path):
    as_it_is, results = (tmp_path / name / "reproduce" for name in ("as it is", "fewer claims"))
    committed = RESULTS / "reproduce" / "ijepa-heads-small.json"
    metrics = json.loads(committed.read_text())
    for folder in (as_it_is, results):
        folder.mkdir(parents=True)
        (folder / committed.name).write_text(json.dumps(metrics))
        for table in metrics["tables"].values():
            table["findings"] = table["findings"][:1]
    pages = [results_pages(of.parent)["ijepa-heads.md"] for of in (results, as_it_is)]
    assert pages[0] == pages[1]
    assert "five points above raw pixels" in pages[0]


def test_pages_say_which_rows_and_verdicts_are_of_fewer_seeds():
    pages = results_pages(RESULTS)
    assert "| rate 0.002 (1 of 3 seeds) | 31.9 (31.0 to 32.8) |" in pages["vje-defaults.md"]
    assert "| rate 0.0056 | 33.1 (31.4 to 34.7) |" in pages["vje-defaults.md"]
    assert "| ν = ∞ (2 of 3 seeds, 1 failed) | 46.7 (46.7, 46.8) |" in pages["vje-df-sweep.md"]
    judged = "**does not hold, 2 of 3 seeds judged, 1 failed** (kNN on h, % – ν = ∞: 46.7 ± 0.1; ν = 1: 47.6 ± 0.8)"
    assert judged in pages["vje-df-sweep.md"]
    assert "XGB beside raw, McNemar's p – raw + Var-T-JEPA: 0.96, 0.016, 0.00014)" in pages["var-t-jepa.md"]
    assert "| 0.022, 0.0055, 8.1e-05 | 0.96, 0.016, 0.00014 |" in pages["var-t-jepa.md"]


def test_a_set_that_is_not_there_says_where_it_belongs(tmp_path):
    with pytest.raises(
        DataError, match=r"CIFAR-10: no .*train\.parquet: put it there, or pass another --data"
    ):
        SOURCES["cifar10"].open(tmp_path)
    with pytest.raises(DataError, match=r"SVHN: no --data-root, which holds svhn/train\.parquet"):
        SOURCES["svhn"].open()


def write_set(path, codec, labels, size=32, seed=0):
    """A parquet file as Hugging Face lays it out."""
    random = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    images = []
    for _ in labels:
        file = io.BytesIO()
        smooth = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((size, size))
        smooth.save(file, codec, **({"quality": 75} if codec == "JPEG" else {}))
        images.append({"bytes": file.getvalue(), "path": None})
    pq.write_table(pa.table({"img": images, "label": list(labels)}), path)


@pytest.mark.parametrize("codec", ["JPEG", "PNG"])
def test_sets_from_files_share_one_codec(tmp_path, monkeypatch, codec):
    monkeypatch.setattr(datasets, "NOISE_IMAGES", 20)
    labels = [number % 10 for number in range(40)]
    write_set(tmp_path / "cifar10" / "train.parquet", codec, labels)
    write_set(tmp_path / "cifar10" / "test.parquet", codec, labels[:20], seed=1)
    write_set(tmp_path / "cifar100" / "test.parquet", "PNG", labels[:10], seed=2)
    found = SOURCES["cifar10"].open(tmp_path, rows=20)
    assert (len(found.train), len(found.test)) == (20, 20)
    assert torch.bincount(found.train.labels).tolist() == [2] * 10
    assert set(found.ood) == {"cifar100", "digits", "noise"}
    absent = ["Tiny ImageNet, 100 classes", "ten of DTD's textures", "SVHN"]
    assert [line.partition(" as ")[0] for line in found.not_run] == absent
    raw = open_images(tmp_path / "cifar100" / "test.parquet", size=32, channels=3)
    assert found.ood["cifar100"].images.equal(raw.images) == (codec == "PNG")

    eight = SOURCES["cifar10-8"].open(tmp_path)
    assert set(eight.train.labels.tolist()) == set(eight.test.labels.tolist()) == set(range(8))
    assert set(eight.ood["unseen classes"].labels.tolist()) == {8, 9}


def test_test_images_that_were_trained_on_are_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "NOISE_IMAGES", 20)
    write_set(tmp_path / "cifar10" / "train.parquet", "PNG", range(10))
    write_set(tmp_path / "cifar10" / "test.parquet", "PNG", list(range(10)) * 2)  # its first ten are the same
    assert len(SOURCES["cifar10"].open(tmp_path).test) == 10


def test_a_validation_set_is_of_training_images(tmp_path):
    write_set(tmp_path / "cifar10" / "train.parquet", "PNG", list(range(10)) * 10)
    write_set(tmp_path / "cifar10" / "test.parquet", "PNG", range(10), seed=1)
    found = SOURCES["cifar10-validation"].open(tmp_path)
    assert (len(found.train), len(found.test)) == (80, 20)
    of_files = open_images(tmp_path / "cifar10" / "train.parquet", size=32, channels=3)
    known = {bytes(image) for image in of_files.images.numpy()}
    assert {bytes(image) for image in found.test.images.numpy()} <= known
    assert [*torch.bincount(found.test.labels)] == [2] * 10


def test_only_what_is_asked_for_is_measured(digits):
    one = replace(TABLE.cell_of(Row("random", task="random-init"), TINY, "digits", digits, 0))
    model = images.trained(one, digits, Path("unused"))
    found = measure.measure(model, digits, seed=0, n_bootstrap=5, only=("kNN", "posterior")).figures
    assert {"knn20/h", "mean variance", "effective rank"} <= set(found)
    assert not any(name.startswith(("auroc", "spearman")) for name in found)


@pytest.mark.parametrize("name", ["vje-rates", "vje-views", "vje-reasons", "vje-projector"])
def test_what_training_must_beat_is_in_tables_of_trainings(name, tmp_path):
    tiny = {"data": {"quick": ("digits",)}, "budgets": {"quick": TINY}}
    found = run(replace(EXPERIMENTS[name], rows=FLOORS, findings=(), **tiny), tmp_path)
    (table,) = found["tables"].values()
    random, pixels = (row["values"] for row in table["rows"])
    assert not any(row["failed"] for row in table["rows"])
    assert random[H]["value"] != pixels[H]["value"] > 0.5
    assert random["effective rank"]["value"] > 1


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name.startswith("vje-")])
def test_what_training_must_beat_stands_in_every_table(name):
    tasks = {row.task for row in EXPERIMENTS[name].rows}
    # what a step costs is no accuracy, and pixels have no posterior
    without = {"vje-compute": {"train", "random-init", "raw-pixels"}, "vje-geometry": {"raw-pixels"}}
    assert {"random-init", "raw-pixels"} - without.get(name, set()) <= tasks


def test_raw_pixels_are_measured_as_pixels(digits):
    cell = TABLE.cell_of(Row("pixels", task="raw-pixels"), TINY, "digits", digits, 0)
    figures = images.run_embeddings(cell, digits, Path("unused"), TINY, False).figures
    assert figures["knn20/h"] == images.run(cell, digits, Path("unused"), TINY, False).figures["knn20/h"]
