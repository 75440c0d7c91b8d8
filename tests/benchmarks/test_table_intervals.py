"""What the benchmark of intervals counts, and that it leaves the model as it was."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import table_intervals


class Model:
    """Its intervals are from 0 to the first reach for a row of which one cell is hidden, and to the last."""

    def __init__(self):
        self.network_ = SimpleNamespace(
            calibration=SimpleNamespace(reach=torch.tensor([[0.5], [0.5], [0.8]]))
        )

    def impute(self, rows, hidden):
        reach = self.network_.calibration.reach[2 if hidden.mean() > 0.7 else 0, 0]
        at = np.flatnonzero(hidden[:, 0])
        return SimpleNamespace(
            cells=pd.DataFrame({"row": at, "feature": "x", "low": 0.0, "high": float(reach)})
        )


def test_coverage_by_what_is_hidden():
    model, rows = Model(), pd.DataFrame({"x": np.arange(1000) / 1000})
    found = table_intervals.coverage(model, rows, seed=0)
    assert [*found] == ["0.125", "0.5", "0.875"]
    assert abs(found["0.5"]["x"] - 0.5) < 0.05 and abs(found["0.875"]["x"] - 0.8) < 0.05
    one = table_intervals.by_one_reach(model, rows, seed=0)
    assert abs(one["0.875"]["x"] - 0.5) < 0.05 and one["0.5"] == found["0.5"]
    assert model.network_.calibration.reach[:, 0].tolist() == torch.tensor([0.5, 0.5, 0.8]).tolist()
    total = table_intervals.summary([{"0.5": {"x": 0.9, "y": 1.0}}, {"0.5": {"x": 0.8}}])
    assert total == {"0.5": {"columns": 3, "mean": np.mean([0.9, 1.0, 0.8]), "least": 0.8}}
