"""Cells from published results: a lost folder of cells is made again, and what another code ran is not."""

import json

import pytest
from experiment_tables import TABLE, measured_by, run

from probjepa.errors import ArtifactError
from probjepa_experiments.restore import USAGE, main, restore
from probjepa_experiments.study import Measured

ran = []


def run_cell(cell, data, folder, budget, progress):
    """Train nothing; what ran is recorded."""
    ran.append(cell.key)
    pictures = {"curves": [1.0]}
    return Measured({"mean variance": float(cell.seed + cell.settings["df"])}, ["a note"], pictures)


FAKE = measured_by(TABLE, run_cell)


@pytest.fixture
def first(tmp_path):
    """What a first run wrote."""
    run(FAKE, tmp_path / "first")
    ran.clear()
    return tmp_path / "first"


def test_published_results_are_gone_on_with_elsewhere(first, tmp_path):
    assert restore(first / "metrics.json", tmp_path / "cells") == (6, 0)
    for path in (first / "cells").iterdir():
        whole = json.loads(path.read_text())
        assert whole.pop("pictures")
        assert json.loads((tmp_path / "cells" / path.name).read_text()) == whole
    again = run(FAKE, tmp_path / "again", cells=tmp_path / "cells")
    assert not ran
    assert again == json.loads((first / "metrics.json").read_text())


def test_what_is_there_is_kept(first, tmp_path):
    place = next((first / "cells").iterdir())
    kept = tmp_path / "cells" / place.name
    kept.parent.mkdir()
    kept.write_text("mine")
    assert restore(first / "metrics.json", tmp_path / "cells") == (5, 0)
    assert kept.read_text() == "mine"


def test_cells_of_another_code_are_run_again(first, tmp_path):
    metrics = json.loads((first / "metrics.json").read_text())
    (mark,) = metrics["code"]
    metrics["code"][mark]["probjepa.metrics"] = "0"
    (first / "metrics.json").write_text(json.dumps(metrics))
    restore(first / "metrics.json", tmp_path / "cells")
    run(FAKE, tmp_path / "again", cells=tmp_path / "cells")
    assert len(ran) == 6


def test_bad_input_is_one_line(first, tmp_path, capsys):
    assert main([]) == main(["one"]) == 2
    assert capsys.readouterr().err.splitlines() == [USAGE] * 2
    absent = tmp_path / "no.json"
    bad = [absent, next((first / "cells").iterdir())]
    for i, text in enumerate(["[]", '{"cells": 1}', '{"cells": ["a"]}', '{"cells": [{"key": "../a"}]}']):
        bad.append(tmp_path / f"{i}.json")
        bad[-1].write_text(text)
    for path in bad:
        assert main([str(path), str(tmp_path / "cells")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"{path} is no metrics.json")
    metrics = json.loads((first / "metrics.json").read_text())
    del metrics["code"]
    absent.write_text(json.dumps(metrics))
    with pytest.raises(ArtifactError, match="do not say what code they are of"):
        restore(absent, tmp_path / "cells")
    assert not (tmp_path / "cells").exists()


def test_cells_that_do_not_say_their_code_are_counted(first, tmp_path, capsys):
    results = first / "metrics.json"
    metrics = json.loads(results.read_text())
    for cell in metrics["cells"][:2]:
        del cell["code"]
    results.write_text(json.dumps(metrics))
    assert main([str(results), str(tmp_path / "cells")]) == 0
    what = "2 do not say what code they are of: left out"
    assert capsys.readouterr().out == f"{results}: 4 cells written to {tmp_path / 'cells'}; {what}\n"
    run(FAKE, tmp_path / "again", cells=tmp_path / "cells")
    assert sorted(ran) == sorted(cell["key"] for cell in metrics["cells"][:2])


def test_it_says_what_it_wrote(first, tmp_path, capsys):
    results = first / "metrics.json"
    assert main([str(results), str(tmp_path / "cells")]) == 0
    assert capsys.readouterr().out == f"{results}: 6 cells written to {tmp_path / 'cells'}\n"
