"""What the benchmark of false alarms says of a threshold."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import table_alarms


def test_the_share_of_new_rows_below_the_threshold():
    model = SimpleNamespace(held_out_scores_=np.arange(39.0), score_samples=lambda rows: rows)
    found = table_alarms.alarms(model, np.array([-1.0, 0.5, 1.0, 2.5, 3.0, 9.0, 9.0, 9.0]))
    assert found["0.05"] == {"flagged": 0.25, "exact": 2 / 40}  # below 1, the second smallest
    assert found["0.1"] == {"flagged": 0.5, "exact": 4 / 40}
    two = [{"alarms": {"0.1": {"flagged": of, "exact": 0.1}}} for of in (0.1, 0.2)]
    mean = table_alarms.summary(two)["0.1"]
    assert mean["flagged"] == pytest.approx(0.15) and mean["error"] == pytest.approx(0.05)
    assert table_alarms.summary(two[:1])["0.1"]["error"] is None
