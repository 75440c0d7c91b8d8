"""The figures written before the house was rebuilt are those of today.

Written again since: I-JEPA's two, when its masks were mended; the demo's, when the last digits of the
likelihood's kernel had changed (its first epoch's loss is the same to seven digits, and what seeds do not
agree upon moved).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from figures import figures

HERE = Path(__file__).parent


@pytest.mark.slow
def test_figures_are_those_written_before_the_rebuilding() -> None:
    wanted = json.loads((HERE / "figures.json").read_text(encoding="utf-8"))
    found = figures()
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert found[name].keys() >= values.keys(), name  # a table may have gained columns
        # another processor adds up in another order; these two short trainings amplify it
        rel = 0.15 if name in ("train/byol", "train/barlow-twins") else 1e-2
        for key, value in values.items():
            assert found[name][key] == pytest.approx(value, rel=rel, abs=1e-4), (name, key)


@pytest.mark.nightly
def test_the_demo_has_the_figures_written_before_the_rebuilding(tmp_path: Path) -> None:
    from probjepa.demo import run_demo

    run_demo(tmp_path / "demo", progress=False)
    found = json.loads((tmp_path / "demo" / "metrics.json").read_text(encoding="utf-8"))
    wanted = json.loads((HERE / "demo.json").read_text(encoding="utf-8"))

    def compare(a: object, b: object, path: str) -> None:
        if isinstance(b, dict):
            assert isinstance(a, dict)
            assert b.keys() <= a.keys(), path
            for key, value in b.items():
                compare(a[key], value, f"{path}/{key}")
        else:
            # 3,600 steps amplify the order in which a processor adds up
            assert a == pytest.approx(b, rel=0.02, abs=0.02), path

    compare(found, wanted, "")
