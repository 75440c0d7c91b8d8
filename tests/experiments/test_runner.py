"""The runner of the papers' tables: resuming, sharing, missing data, aggregation, findings."""

import json
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from experiment_tables import TABLE, measured_by, run
from scipy import stats

from probjepa.claims import ClaimedError
from probjepa.errors import ArtifactError, DataError
from probjepa.training import Interrupted
from probjepa_experiments import figures, runner
from probjepa_experiments.page import mean_of, text_of
from probjepa_experiments.study import Column, Finding, Measured, Row
from probjepa_experiments.vje_uncertainty import AUROC
from undrawn import _undrawn  # noqa: F401

ran = []


def run_cell(cell, data, folder, budget, progress):
    """Train nothing: σ² = seed + df; what ran is recorded."""
    ran.append(cell.key)
    value = float(cell.seed + cell.settings["df"])
    return Measured({"mean variance": {"value": value, "low": value - 1, "high": value + 1}})


FAKE = measured_by(TABLE, run_cell)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Nothing ran yet, and a cell takes as long as any other."""
    ran.clear()
    monkeypatch.setattr(runner.time, "monotonic", lambda: 0.0)


def test_finished_cells_are_kept_and_shared(tmp_path):
    shared = tmp_path / "cells"
    first = run(FAKE, tmp_path / "a", cells=shared)
    assert len(ran) == len(set(ran)) == 6  # two rows, three seeds
    assert {path.stem for path in shared.iterdir()} == set(ran)
    other = replace(FAKE, name="other", rows=(Row("base"), Row("seven", settings={"df": 7})))
    second = run(other, tmp_path / "b", cells=shared)
    assert len(ran) == 9  # the base was trained for the first table
    values = [metrics["tables"]["digits"]["rows"][0]["values"]["mean σ²"] for metrics in (first, second)]
    assert values[0]["seeds"] == values[1]["seeds"] == [1.0, 2.0, 3.0]

    with pytest.raises(ArtifactError, match="--overwrite"):
        run(FAKE, tmp_path / "a", cells=shared)
    run(FAKE, tmp_path / "a", cells=shared, overwrite=True)
    assert len(ran) == 9


def test_it_says_how_long_the_rest_takes(tmp_path, capsys, monkeypatch):
    """By what was like it, and before there is any, by the mean of all: a baseline is soon done."""
    now = [0.0]
    monkeypatch.setattr(runner.time, "monotonic", lambda: now[0])

    def slow(cell, data, folder, budget, progress):
        now[0] += 90.0 if cell.task == "train" else 20.0
        return Measured({})

    rows = (Row("trained"), Row("random", task="random-init"))
    run(replace(measured_by(TABLE, slow), rows=rows, findings=()), tmp_path, progress=True)
    said = [line.rpartition("; ")[2] for line in capsys.readouterr().err.splitlines() if " left" in line]
    assert said == [
        "5 left, about 8 min", "4 left, about 6 min", "3 left, about 4 min",
        "2 left, about 40 s", "1 left, about 20 s", "0 left",
    ]  # fmt: skip
    first = True

    def stopped(cell, data, folder, budget, progress):
        nonlocal first
        if not first:
            raise Interrupted("interrupted after step 3: go on from there")
        first = False
        return slow(cell, data, folder, budget, progress)

    with pytest.raises(Interrupted, match=r"after step 3 of one: .* go on \(5 left, about 8 min\)$"):
        run(replace(measured_by(TABLE, stopped), rows=(Row("one"), Row("two", fit={"epochs": 2})), findings=()),
            tmp_path / "cut")  # fmt: skip
    assert [runner.duration(s) for s in (0, 59.6, 90, 3600, 8000)] == [
        "0 s",
        "1 min",
        "2 min",
        "1 h 0 min",
        "2 h 13 min",
    ]


def test_an_unfinished_study_goes_on_and_a_damaged_cell_is_run_again(tmp_path):
    out = tmp_path / "a"
    whole = run(FAKE, out)
    (out / "metrics.json").unlink()
    runner.write_json(out / "begun.json", {"experiment": FAKE.name})  # as a killed process leaves it
    lost, damaged, foreign, *others = sorted((out / "cells").iterdir())
    lost.unlink()
    damaged.write_text(damaged.read_text()[:100])
    for place, wrong in zip(
        others, ({"seconds": None}, {"notes": None}, {"figures": {"a": 1.0}}), strict=True
    ):
        place.write_text(json.dumps(json.loads(place.read_text()) | wrong))
    content = json.loads(foreign.read_text())
    content["cell"]["settings"]["kl_weight"] = 9.0
    foreign.write_text(json.dumps(content))
    ran.clear()
    assert run(FAKE, out) == whole
    assert set(ran) == {place.stem for place in (lost, damaged, foreign, *others)}
    assert not (out / "begun.json").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"figures": {}}, {"figures": {"mean variance": {"value": 1.0}}}, {"versions": {}}, {"code": "x"},
        {"code": []}, {"pictures": {"scatter": None}}, {"notes": [{}]}, {"seconds": float("nan")},
        {"seconds": -1.0}, {"hardware": 3}, {"versions": {"probjepa": "0.1", "torch": None}}, "deep",
    ],
)  # fmt: skip
def test_a_cell_that_is_damaged_within_is_run_again(tmp_path, wrong):
    shared = tmp_path / "cells"
    whole = run(FAKE, tmp_path / "a", cells=shared)
    place = min(shared.iterdir())
    text = "[" * 100_000 if wrong == "deep" else json.dumps(json.loads(place.read_text()) | wrong)
    place.write_text(text)
    ran.clear()
    assert run(FAKE, tmp_path / "b", cells=shared) == whole
    assert ran == [place.stem]


@pytest.mark.parametrize("finished_only", [False, True])
def test_finished_cells_are_read_where_nothing_can_be_written(tmp_path, monkeypatch, finished_only):
    shared = tmp_path / "cells"
    whole = run(FAKE, tmp_path / "a", cells=shared)
    ran.clear()

    @contextmanager
    def read_only(place):
        raise ArtifactError(f"cannot write {place}: Read-only file system")
        yield

    monkeypatch.setattr(runner, "claimed", read_only)
    assert run(FAKE, tmp_path / "b", cells=shared, finished_only=finished_only) == whole and not ran
    next(shared.iterdir()).unlink()
    with pytest.raises(ArtifactError, match="Read-only"):
        run(FAKE, tmp_path / "c", cells=shared)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "runs" / "mine").mkdir(parents=True)  # as TensorBoard calls its folder
    (tmp_path / "runs" / "mine" / "events").write_text("mine")
    for options in ({}, {"finished_only": True}):
        with pytest.raises(ArtifactError, match="exists already"):
            run(FAKE, tmp_path, **options)
    with pytest.raises(ArtifactError, match="has files of something else"):
        run(FAKE, tmp_path, overwrite=True)
    assert not ran
    out = tmp_path / "out"
    run(FAKE, out)
    (tmp_path / "runs").rename(out / "runs")
    run(FAKE, out, overwrite=True)
    assert (out / "runs" / "mine" / "events").read_text() == "mine"


def test_another_study_does_not_go_on_with_what_is_begun(tmp_path):
    stop = measured_by(TABLE, lambda *_: (_ for _ in ()).throw(Interrupted("interrupted: go on")))
    with pytest.raises(Interrupted):
        run(stop, tmp_path / "out")
    with pytest.raises(ArtifactError, match="exists already"):
        run(replace(FAKE, name="other"), tmp_path / "out")
    assert run(FAKE, tmp_path / "out")["tables"]


@pytest.mark.parametrize(
    ("other", "said"),
    [({"budget": "small"}, "budget quick, seed 0"), ({"seed": 3}, "budget quick, seed 0")],
)
def test_another_budget_or_seed_leaves_what_is_begun(tmp_path, other, said):
    both = replace(
        FAKE,
        budgets={name: FAKE.budgets["quick"] for name in ("quick", "small")},
        data={name: FAKE.data["quick"] for name in ("quick", "small")},
    )
    stop = measured_by(both, lambda *_: (_ for _ in ()).throw(Interrupted("interrupted: go on")))
    out = tmp_path / "out"
    with pytest.raises(Interrupted):
        run(stop, out)
    begun = (out / "begun.json").read_text()
    with pytest.raises(
        ArtifactError, match=f"exists already, with .*{said}.* that was stopped and can go on"
    ):
        run(both, out, **other)
    assert (out / "begun.json").read_text() == begun and not ran
    assert run(both, out)["tables"]  # goes on
    with pytest.raises(ArtifactError, match="exists already"):
        run(both, out, **other)


def test_rows_that_read_one_training_share_it(tmp_path):
    rows = (Row("one", score="knn"), Row("two", score="likelihood"))
    run(replace(FAKE, rows=rows, findings=()), tmp_path / "a")
    assert len(ran) == 3


def test_missing_data_are_reported_and_the_rest_goes_on(tmp_path):
    experiment = replace(FAKE, data={"quick": ("cifar10", "digits")})
    metrics = run(experiment, tmp_path / "a", data_root=tmp_path)
    assert list(metrics["tables"]) == ["digits"]
    (line,) = metrics["not_run"]
    assert line == f"CIFAR-10: not run: no {tmp_path / 'cifar10' / 'train.parquet'}"
    assert "CIFAR-10: not run" in (tmp_path / "a" / "report.html").read_text()
    with pytest.raises(DataError, match=r"test-table has no data \(CIFAR-10: no .*: pass --data-root"):
        run(replace(FAKE, data={"quick": ("cifar10",)}), tmp_path / "b", data_root=tmp_path)
    with pytest.raises(DataError, match="no --data-root"):
        run(replace(FAKE, data={"quick": ("cifar10",)}), tmp_path / "b")


# bringing together


def test_three_seeds_have_students_interval():
    values = [0.3, 0.5, 0.9]
    found = figures.aggregate([{"value": v, "low": 0.0, "high": 1.0} for v in values])
    mean, error = np.mean(values), stats.sem(values)
    assert found["value"] == pytest.approx(mean)
    assert (found["low"], found["high"]) == pytest.approx(stats.t.interval(0.95, 2, mean, error))
    assert found["seeds"] == values
    cut = figures.aggregate([{"value": v, "low": 0.0, "high": 1.0} for v in values], (0, 1))
    assert found["low"] < 0 and found["high"] > 1
    assert (cut["value"], cut["low"], cut["high"]) == (found["value"], 0, 1)
    half_open = figures.aggregate([{"value": v, "low": 0.0, "high": 1.0} for v in values], (0, None))
    assert (half_open["low"], half_open["high"]) == (0, found["high"])
    assert Column("x, %", "x", percent=True).limits == (0, 1)


def test_one_seed_has_its_own_interval_and_two_have_none():
    one, missing = {"value": 0.3, "low": 0.2, "high": 0.4}, None
    assert figures.aggregate([missing, one]) == {**one, "seeds": [None, 0.3]}
    two = figures.aggregate(
        [one, {"value": 0.5, "low": 0.4, "high": 0.6}, {"value": None, "low": None, "high": None}]
    )
    assert two == {"value": pytest.approx(0.4), "low": None, "high": None, "seeds": [0.3, 0.5, None]}
    assert figures.aggregate([missing])["value"] is None


def rows_of(**seeds):
    return [{"label": label, "values": {"x": figures.aggregate([v and {"value": v, "low": None, "high": None}
                                                             for v in of])}} for label, of in seeds.items()]  # fmt: skip


def test_findings_are_judged_seed_by_seed():
    finding = Finding("a is above b", lambda r: r("a", "x") > r("b", "x"))
    held = figures.judge(finding, rows_of(a=[2.0, 3.0, 4.0], b=[1.0, 1.0, 1.0]))
    assert (held["holds"], held["judged"], figures.verdict(held)) == (3, 3, "holds, all 3 seeds")
    mixed = figures.judge(finding, rows_of(a=[2.0, 3.0, 0.5], b=[1.0, 1.0, 1.0]))
    assert figures.verdict(mixed) == "holds in 2 of 3 seeds"
    part = figures.judge(finding, rows_of(a=[0.2, None, 0.5], b=[1.0, 1.0, 1.0]))
    assert (part["judged"], figures.verdict(part)) == (2, "does not hold, both seeds")
    assert figures.verdict(figures.judge(finding, rows_of(a=[1.0]))) == "not judged"
    # one without seeds is compared with every seed
    assert figures.judge(finding, rows_of(a=[2.0, 0.5, 3.0], b=[1.0]))["holds"] == 2
    assert held["evidence"] == [
        {"row": "a", "column": "x", "value": 3.0, "seeds": [2.0, 3.0, 4.0]},
        {"row": "b", "column": "x", "value": 1.0, "seeds": [1.0, 1.0, 1.0]},
    ]


def test_a_verdict_says_which_seeds_were_not_judged_and_its_figures_are_of_the_others():
    finding = Finding("a is above b", lambda r: r("a", "x") > r("b", "x"))
    rows = rows_of(a=[4.0, None, 1.0], b=[1.0, 9.0, 2.0], pixels=[7.0])
    lost = figures.judge(finding, rows, 3, {"a": {1}, "pixels": {0}})
    assert (lost["judged"], lost["failed"]) == (2, 1)
    assert figures.verdict(lost) == "holds in 1 of 2 seeds, 2 of 3 seeds judged, 1 failed"
    assert [of["value"] for of in lost["evidence"]] == [2.5, 1.5]
    assert [of["seeds"] for of in lost["evidence"]] == [[4.0, 1.0], [1.0, 2.0]]
    rows = rows_of(a=[4.0, None, None], b=[1.0, 9.0, 2.0])
    assert figures.verdict(figures.judge(finding, rows, 3)) == "holds, 1 of 3 seeds judged"
    two = rows_of(a=[0.5, None, 1.0], b=[1.0, 9.0, 2.0])
    assert figures.verdict(figures.judge(finding, two, 2)) == "does not hold, both seeds"
    every = figures.judge(finding, rows_of(a=[None, None], b=[1.0, 1.0]), 2, {"a": {0, 1}})
    assert (figures.verdict(every), every["evidence"]) == ("not judged", [])


def test_a_row_of_fewer_seeds_than_the_others_says_so():
    rows = rows_of(whole=[1.0, 2.0, 3.0], one=[1.0, None, None], pixels=[1.0], waiting=[None] * 3)
    rows[1]["values"]["y"] = figures.aggregate(
        [{"value": v, "low": None, "high": None} for v in (1, 2, None)]
    )
    said = [figures.missing_seeds(row | {"failed": []}, 3) for row in rows]
    assert said == ["", " (1 to 2 of 3 seeds)", "", ""]
    assert figures.missing_seeds(rows[1] | {"failed": ["why"]}, 1) == " (1 failed)"
    (two,) = rows_of(two=[1.0, None, 2.0])
    assert figures.missing_seeds(two | {"failed": ["why"]}, 3) == " (2 of 3 seeds, 1 failed)"


def test_rows_of_fewer_seeds_are_marked_wherever_they_are_shown(tmp_path, capsys):
    shared = tmp_path / "cells"
    whole = run(FAKE, tmp_path / "a", cells=shared)
    assert "of 3 seeds" not in (tmp_path / "a" / "report.html").read_text() + capsys.readouterr().out
    for place in shared.iterdir():
        if "df=3" in place.name and "-s0-" not in place.name:
            place.unlink()
    part = run(FAKE, tmp_path / "b", cells=shared, finished_only=True)
    assert "two (1 of 3 seeds)" in (tmp_path / "b" / "report.html").read_text()
    assert "two (1 of 3 seeds)" in capsys.readouterr().out
    assert part["tables"]["digits"]["rows"][0] == whole["tables"]["digits"]["rows"][0]
    assert part["intervals"].endswith(
        "of a row of one seed, or without seeds, Wilson or bootstrap; of two seeds, both figures"
    )


def test_the_failed_seeds_of_a_finding_are_those_of_its_data_set(tmp_path):
    cells = [
        {"row": row, "cell": {"dataset": name, "seed": seed}, "failed": failed}
        for row, name, seed, failed in (
            ("a", "digits", 4.0, "why"), ("a", "digits", 5.0, None), ("a", "sim", 5.0, "why"), ("b", "digits", 6.0, "x"),
        )
    ]  # fmt: skip
    assert figures.failures(cells, "digits", [4, 5, 6]) == {"a": {0}, "b": {2}}
    assert figures.seeds_run(cells) == [4, 5, 6]


def test_of_p_values_each_seed_is_shown():
    column = {"percent": False, "p_value": True}
    of = figures.aggregate(
        [{"value": p, "low": None, "high": None} for p in (0.961183, 0.0159343, 0.000139008)]
    )
    assert text_of(of, column) == mean_of(of, column) == "0.96, 0.016, 0.00014"
    assert text_of(of, column | {"p_value": False}) == "0.326 (-1.041–1.693)"


def test_a_p_value_has_no_interval_over_seeds(tmp_path):
    p = Column("p", "mean variance", p_value=True)
    found = run(replace(FAKE, columns=(*FAKE.columns, p)), tmp_path)["tables"]["digits"]["rows"][0]["values"]
    assert (found["p"]["low"], found["p"]["high"], found["p"]["seeds"]) == (None, None, [1.0, 2.0, 3.0])
    assert found["mean σ²"]["low"] is not None
    assert "1, 2, 3" in (tmp_path / "report.html").read_text()


def test_columns_of_out_of_distribution_sets_are_spelt_out():
    columns = figures.expand([Column("plain", "p"), AUROC], ["noise", "svhn"])
    assert [column.label for column in columns] == ["plain", "AUROC, noise", "AUROC, svhn"]
    assert columns[2].figure == "auroc/svhn/{score}"


@pytest.mark.parametrize("seeded", [False, True], ids=["one opening of the data", "one a seed"])
def test_processes_with_one_folder_of_cells_share_the_work(tmp_path, monkeypatch, seeded):
    """A cell that another process runs is left to it; what it finds is read at the end."""
    shared = tmp_path / "cells"
    study = replace(FAKE, measurement=replace(FAKE.measurement, seeded_data=seeded))
    whole = run(study, tmp_path / "whole", cells=shared)
    places = sorted(shared.iterdir())
    kept = {place: place.read_text() for place in places}
    for place in places:
        place.unlink()
    theirs, looks = next(place for place in places if "-s0-" in place.name), []

    @contextmanager
    def claimed(place):
        if place == theirs and not place.exists():
            raise ClaimedError("another process writes it")
        yield

    def pause(seconds):
        looks.append(set(ran))
        theirs.write_text(kept[theirs])

    ran.clear()
    monkeypatch.setattr(runner, "claimed", claimed)
    monkeypatch.setattr(runner.time, "sleep", pause)
    assert run(study, tmp_path / "a", cells=shared) == whole
    others = {place.stem for place in places} - {theirs.stem}
    assert set(ran) == others
    assert looks == [others]  # all others were done before it waited


def test_the_page_of_what_is_finished_runs_nothing(tmp_path, capsys):
    shared = tmp_path / "cells"
    whole = run(FAKE, tmp_path / "a", cells=shared)
    lost = next(place for place in shared.iterdir() if "-s2-" in place.name and "df=3" in place.name)
    lost.unlink()
    ran.clear()
    capsys.readouterr()
    part = run(FAKE, tmp_path / "b", cells=shared, finished_only=True, progress=True)
    assert not ran
    assert part["not_run"] == ["two, seed 2: not run yet"]
    assert capsys.readouterr().err.splitlines()[-1] == "1 left, about 0 s"
    first, second = (metrics["tables"]["digits"]["rows"] for metrics in (whole, part))
    assert second[0] == first[0]
    assert second[1]["values"]["mean σ²"]["seeds"] == [*first[1]["values"]["mean σ²"]["seeds"][:2], None]
    assert run(FAKE, tmp_path / "b", cells=shared, finished_only=True)["tables"] == part["tables"]
    assert run(FAKE, tmp_path / "b", cells=shared)["tables"] == whole["tables"] and len(ran) == 1
    for options in ({}, {"finished_only": True}):  # it is finished now
        with pytest.raises(ArtifactError, match="exists already"):
            run(FAKE, tmp_path / "b", cells=shared, **options)


@pytest.mark.parametrize("left", [(0,), (2,), (0, 2)])
def test_findings_are_judged_in_the_seeds_that_both_rows_have(tmp_path, left):
    shared = tmp_path / "cells"
    run(FAKE, tmp_path / "a", cells=shared)
    for place in shared.iterdir():
        if "df=3" in place.name and not any(f"-s{seed}-" in place.name for seed in left):
            place.unlink()
    asked = []

    def holds(look):
        asked.append((look("one", "mean σ²"), look("two", "mean σ²")))
        return True

    study = replace(FAKE, findings=(Finding("alike", holds),))
    table = run(study, tmp_path / "b", cells=shared, finished_only=True)["tables"]["digits"]
    assert (table["findings"][0]["holds"], table["findings"][0]["judged"]) == (len(left), len(left))
    one, two = (row["values"]["mean σ²"]["seeds"] for row in table["rows"][:2])
    assert asked == [(one[seed], two[seed]) for seed in left]


def test_the_page_of_what_is_finished_leaves_out_cells_of_older_code(tmp_path):
    shared = tmp_path / "cells"
    run(FAKE, tmp_path / "a", cells=shared)
    old = next(place for place in shared.iterdir() if "-s2-" in place.name and "df=3" in place.name)
    content = json.loads(old.read_text()) | {"code": {"probjepa.views": "0"}}
    old.write_text(json.dumps(content))
    ran.clear()
    part = run(FAKE, tmp_path / "b", cells=shared, finished_only=True)
    assert not ran and json.loads(old.read_text()) == content
    assert part["not_run"] == ["two, seed 2: run with code that has changed since"]
