"""The fingerprint of the code behind a cell: what changes it, what does not, and what a stale cell does."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from experiment_tables import measured_by, run

import probjepa
import probjepa_experiments
from probjepa_experiments import code
from probjepa_experiments.study import Budget, Column, Measured, Measurement, Row, Study
from undrawn import _undrawn  # noqa: F401

ROOTS = ("probjepa_experiments.images", "probjepa.methods.vje")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package's source, which may be changed, in the place of the package's own."""
    for each in (probjepa, probjepa_experiments):
        source = Path(each.__file__).parent
        shutil.copytree(
            source, tmp_path / source.name, ignore=shutil.ignore_patterns("__pycache__", "*.html")
        )

    def source_of(name):
        place = tmp_path.joinpath(*name.split("."))
        files = (place / "__init__.py", place.with_name(f"{place.name}.py"))
        return next((file.read_text(encoding="utf-8") for file in files if file.is_file()), None)

    monkeypatch.setattr(code, "source_of", source_of)
    code.parsed.cache_clear()
    yield tmp_path / "probjepa"
    code.parsed.cache_clear()


def change(file, old, new):
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
    code.parsed.cache_clear()


def append(file, line):
    file.write_text(f"{file.read_text(encoding='utf-8')}\n{line}\n", encoding="utf-8")
    code.parsed.cache_clear()


def test_the_closure_holds_what_decides_numbers_and_nothing_else():
    found = code.fingerprint(ROOTS)
    for name in (
        "scores.sets", "metrics.ood", "metrics.knn", "methods.vje", "distributions.student_t",
        "training.runs", "data.images", "data.views", "detectors",
    ):  # fmt: skip
        assert f"probjepa.{name}" in found, name
    assert "probjepa_experiments.measure" in found
    for name in found:
        room = name.split(".")[1]
        assert room not in ("cli", "report", "plots", "errors", "files", "registry", "loading"), name
    # another method is none of its business, nor is the table of their names
    assert not {"probjepa.methods.byol", "probjepa.methods", "probjepa"} & set(found)
    assert "probjepa.methods.byol" in code.fingerprint((*ROOTS, "probjepa.methods.byol"))


def test_a_module_that_is_a_root_by_two_names_counts_once(package):
    assert code.fingerprint(ROOTS) == code.fingerprint((*reversed(ROOTS), ROOTS[0]))


def test_what_a_late_package_names_is_followed(package):
    (package / "study.py").write_text("import probjepa as pj\n\ndef run():\n    return pj.fit\n")
    found = code.fingerprint(["probjepa.study"])
    assert "probjepa.training.runs" in found
    assert "probjepa.heads.realnvp" not in found


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("metrics/ood.py", '"""', '"""Other words. '),
        ("metrics/ood.py", "\nimport", "\n# a comment\nimport"),
        ("metrics/ood.py", "\nimport numpy as np", "\n\n\nimport  numpy  as  np"),
        ("report/page.py", "\nimport", "\nCHANGED = 1\nimport"),
        ("errors.py", "class ProbjepaError", "CHANGED = 1\n\n\nclass ProbjepaError"),
        ("methods/byol.py", "\nimport", "\nCHANGED = 1\nimport"),
        ("methods/__init__.py", '    "method",\n    {', '    "method",\n    {"new": "elsewhere.new:New",'),
    ],
)
def test_what_decides_no_number_does_not_count(package, module, old, new):
    before = code.fingerprint(ROOTS)
    change(package / module, old, new)
    assert code.fingerprint(ROOTS) == before


def test_what_decides_numbers_counts(package):
    before = code.fingerprint(ROOTS)
    append(package / "scores" / "sets.py", "CHANGED = 1")
    assert code.changed(before, code.fingerprint(ROOTS)) == ["probjepa.scores.sets"]
    (package / "methods" / "extra.py").write_text("X = 1\n")
    change(
        package / "methods" / "vje.py", "\nimport torch\n", "\nimport torch\nimport probjepa.methods.extra\n"
    )
    assert "probjepa.methods.extra" in code.changed(before, code.fingerprint(ROOTS))


def test_a_package_of_ones_own_is_read_too(tmp_path, monkeypatch):
    home = tmp_path / "mine"
    home.mkdir()
    (home / "__init__.py").write_text("")
    (home / "study.py").write_text("from mine.loss import loss\nfrom probjepa.metrics import ood_metrics\n")
    (home / "loss.py").write_text("def loss():\n    return 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = code.fingerprint(["mine.study"])
    assert {"mine.study", "mine.loss", "probjepa.metrics.ood"} <= set(found)


# what becomes of stale cells

ran = []


def run_cell(cell, data, folder, budget, progress):
    ran.append(cell.label)
    if cell.label == "stops":
        raise KeyboardInterrupt
    return Measured({"x": float(cell.seed)})


STUDY = Study(
    name="stale",
    title="A study",
    paper="none",
    question="Is it old?",
    measurement=Measurement(run_cell, roots=("probjepa.scores.sets",)),
    rows=(Row("one"), Row("two", settings={"k": 2})),
    columns=(Column("x", "x"),),
    budgets={"quick": Budget("quick", "nothing", seeds=1)},
)


@pytest.fixture(autouse=True)
def fresh():
    ran.clear()


def test_a_cell_of_other_code_is_run_again_and_says_of_which(package, tmp_path, capsys):
    shared = tmp_path / "cells"
    run(STUDY, tmp_path / "a", cells=shared)
    run(STUDY, tmp_path / "b", cells=shared, progress=True)
    assert ran == ["one", "two"]
    assert "one, drawn data, seed 0: kept; 1 left" in capsys.readouterr().err
    change(package / "scores" / "sets.py", '"""', '"""Other words. ')
    run(STUDY, tmp_path / "c", cells=shared)
    assert ran == ["one", "two"]
    append(package / "scores" / "sets.py", "CHANGED = 1")
    run(STUDY, tmp_path / "d", cells=shared, progress=True)
    assert ran == ["one", "two"] * 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "one, drawn data, seed 0: stale: code of probjepa.scores.sets changed; run again"
    assert lines[1].startswith("one, drawn data, seed 0: 0 s; 1 left")
    run(STUDY, tmp_path / "e", cells=shared)
    assert len(ran) == 4  # they are of today's code now


def test_cells_from_before_codes_were_kept_are_stale_with_one_line(tmp_path, capsys):
    shared = tmp_path / "cells"
    run(STUDY, tmp_path / "a", cells=shared)
    for file in shared.iterdir():
        cell = json.loads(file.read_text())
        del cell["code"]
        file.write_text(json.dumps(cell))
    run(STUDY, tmp_path / "b", cells=shared, progress=True)
    assert ran == ["one", "two"] * 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "stale" in line]
    assert lines == [f"{shared} holds cells that do not say what code they are of: stale, run again"]


def test_two_studies_share_a_cell_and_one_that_was_killed_goes_on(tmp_path):
    shared = tmp_path / "cells"
    killed = replace(STUDY, rows=(*STUDY.rows, Row("stops", settings={"k": 3})))
    with pytest.raises(KeyboardInterrupt):
        run(killed, tmp_path / "a", cells=shared)
    assert not (tmp_path / "a" / "metrics.json").exists()
    more = replace(STUDY, title="another", rows=(Row("base"), Row("two more", settings={"k": 2})))
    metrics = run(more, tmp_path / "b", cells=shared)
    assert ran == ["one", "two", "stops"]
    assert [row["values"]["x"]["value"] for row in metrics["tables"]["drawn"]["rows"]] == [0.0, 0.0]
    assert {cell["code"] for cell in metrics["cells"]} == set(metrics["code"])


def test_a_training_that_other_code_left_half_done_is_not_gone_on_with(package, tmp_path):
    seen = []

    def training(cell, data, folder, budget, progress):
        seen.append((folder, folder.exists()))
        folder.mkdir(parents=True, exist_ok=True)
        raise KeyboardInterrupt

    study = measured_by(STUDY, training)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(study, tmp_path / "a")
    append(package / "scores" / "sets.py", "CHANGED = 1")
    with pytest.raises(KeyboardInterrupt):
        run(study, tmp_path / "a")
    assert [was_there for _, was_there in seen] == [False, True, False]
    assert seen[0][0] == seen[1][0] != seen[2][0]


def test_budgets_are_in_the_cells_and_not_in_their_code():
    """A rate or a budget more makes no cell stale: each spells out what it takes of them."""
    for runs in ("images", "views_cells", "ijepa_cells", "projector_cells"):
        assert "probjepa_experiments.image_budgets" not in code.fingerprint([f"probjepa_experiments.{runs}"])
