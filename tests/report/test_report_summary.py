"""What an evaluation leaves, and what one that is cut short leaves of an older one."""

from pathlib import Path

import pyarrow as pa
import pytest

from probjepa.evaluation.figures import Evaluation
from probjepa.evaluation.selective import lead
from probjepa.report.summary import print_table_summary, write_pages


def evaluation(value):
    return Evaluation({"value": value}, {"rows": pa.table({"score": [float(value)]})})


def contents(out):
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.mark.parametrize("moves", [1, 2, 3, 4])
def test_a_page_stands_beside_its_own_figures_alone(moves, tmp_path, monkeypatch):
    write_pages(evaluation(1), tmp_path / "new", "page 1")
    whole = contents(tmp_path / "new")
    write_pages(evaluation(0), tmp_path / "out", "page 0")
    replace, done = Path.replace, []

    def counted(self, target):
        if Path(target).parent == tmp_path / "out":
            done.append(target)
            if len(done) == moves:
                raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", counted)
    with pytest.raises(KeyboardInterrupt):
        write_pages(evaluation(1), tmp_path / "out", "page 1")
    monkeypatch.undo()
    assert ("report.html" in (left := contents(tmp_path / "out"))) == (moves == 1)  # before there is a mark
    assert moves > 1 or left["report.html"] == b"page 0"
    write_pages(evaluation(1), tmp_path / "out", "page 1")
    assert contents(tmp_path / "out") == whole


def test_the_classifier_that_stands_for_all_is_the_most_accurate(capsys):
    def at(accuracy):
        half = {"value": accuracy}
        return {
            "source": {"accuracy_at": {"1.0": {"value": accuracy}, "0.5": half}, "aurc": {"value": 0.125}}
        }

    selective = {"first": at(0.5), "best": at(0.75), "unknown": at(None), "last": at(0.625)}
    assert lead(selective) == "best"
    metrics = {
        "settings": {"seeds": [0], "predictors": []}, "accuracy": {}, "left_out_as_in_train": 0, "test_rows_also_in": {"validation": 7, "calibration": 0},
        "labels": {"unlabelled": {}, "classes_not_in_train": []},
    }  # fmt: skip
    print_table_summary(metrics | {"selective": {"embedding": selective}})
    shown = capsys.readouterr().out
    assert "best on the embedding" in shown and "75.0" in shown
    assert "7 test rows equal a row of the validation table" in shown and "calibration" not in shown
    print_table_summary(metrics | {"selective": {"embedding": {}}})
    assert "on the embedding" not in capsys.readouterr().out
