"""What an evaluation leaves, and what one that is cut short leaves of an older one."""

from pathlib import Path

import pyarrow as pa
import pytest

from probjepa.evaluation.figures import Evaluation
from probjepa.report.summary import write_pages


def evaluation(value):
    return Evaluation({"value": value}, {"rows": pa.table({"score": [float(value)]})})


def contents(out):
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.mark.parametrize("moves", [1, 2, 3])
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
    assert "report.html" not in contents(tmp_path / "out")
    write_pages(evaluation(1), tmp_path / "out", "page 1")
    assert contents(tmp_path / "out") == whole
