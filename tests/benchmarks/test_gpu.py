"""The GPU's benchmark, tiny and on the CPU: every part runs, and what is there is not run again."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import gpu


def run(monkeypatch, out, *words):
    argv = ["gpu.py", "--dry-run", "--threads", "1", "--workers", "0", "--out", str(out), *words]
    monkeypatch.setattr(sys, "argv", argv)
    gpu.main()
    return json.loads(out.read_text())


@pytest.mark.nightly
def test_every_part_runs_without_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "LONG", "scores_are or views or learned_there")
    record = run(monkeypatch, tmp_path / "gpu.json")
    assert record["dry_run"]
    assert list(record["parts"]) == list(gpu.PARTS)
    assert all(part["finished"] for part in record["parts"].values())
    assert set(record["parts"]["correctness"]["figures"].values()) == {"passed"}
    trained = [
        figures for name, figures in record["parts"]["throughput"]["figures"].items() if "lightly" not in name
    ]
    assert len(trained) == 4
    assert all(figures["images_per_second"]["median"] > 0 for figures in trained)
    accuracy = record["parts"]["jepa-score"]["figures"]["accuracy"]
    assert accuracy["gpu"] == pytest.approx(accuracy["cpu"], rel=1e-4)
    assert {"training", "evaluation"} <= set(record["parts"]["train"]["figures"])


def test_a_finished_part_is_kept_and_one_that_was_cut_short_goes_on(tmp_path, monkeypatch):
    told = []

    def part(args, kept):
        for name in ("one", "two"):
            if name not in kept:
                told.append(name)
                yield name, len(told)
                if stop:
                    raise KeyboardInterrupt

    monkeypatch.setattr(gpu, "PARTS", {"correctness": part})
    out, stop = tmp_path / "gpu.json", True
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, out)
    assert json.loads(out.read_text())["parts"]["correctness"]["figures"] == {"one": 1}
    stop = False
    for _ in range(2):
        assert run(monkeypatch, out)["parts"]["correctness"]["figures"] == {"one": 1, "two": 2}
    assert told == ["one", "two"]


def test_a_part_that_cannot_run_says_why():
    def measure():
        raise ImportError("no lightly")

    assert gpu.attempt(measure) == {"failed": "ImportError: no lightly"}
