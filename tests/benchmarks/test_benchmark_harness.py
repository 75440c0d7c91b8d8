"""The harness on a clock and candidates of the test's own: nothing here depends on how fast a machine is."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import harness  # noqa: E402


class FakeClock:
    """A clock that candidates move by as much as they are said to take."""

    def __init__(self) -> None:
        self.now = 100.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def candidate(self, name: str, seconds: list[float]):
        remaining = iter(seconds)

        def run() -> None:
            self.calls.append(name)
            self.now += next(remaining)

        return run


def drifting() -> tuple[harness.Result, FakeClock]:
    """A machine that slows down fourfold, and B that always takes 1.5 times as long as A."""
    clock = FakeClock()
    pace = [50.0, 1.0, 2.0, 3.0, 4.0]  # the first is a cold start
    result = harness.compare(
        "drift",
        {"A": clock.candidate("A", pace), "B": clock.candidate("B", [1.5 * p for p in pace])},
        reference="A",
        repeats=4,
        warmup=1,
        clock=clock,
    )
    return result, clock


def test_candidates_take_turns_and_the_warmup_does_not_count():
    result, clock = drifting()
    assert clock.calls == ["A", "B"] * 5
    assert result.seconds["A"] == pytest.approx([1, 2, 3, 4])
    assert result.seconds["B"] == pytest.approx([1.5, 3, 4.5, 6])


def test_a_drift_widens_the_times_and_not_the_ratio():
    result, _ = drifting()
    ratio = result.ratio("B")
    assert ratio.median == pytest.approx(1.5)
    assert ratio.max == pytest.approx(ratio.min)
    assert result.time("B").max == pytest.approx(4 * result.time("B").min)
    assert result.ratio("A") == harness.Spread(1, 1, 1, 1, 1)


def test_the_median_ratio_is_taken_over_pairs_not_of_medians():
    result = harness.Result("x", {"A": [1.0, 10.0, 2.0], "B": [2.0, 10.0, 8.0]}, reference="A")
    assert result.ratio("B").median == 2.0  # of 2, 1 and 4; the medians are 2 and 8
    assert result.pairwise("B", lambda mine, theirs: mine - theirs).median == 1.0


def test_what_is_no_json_is_not_written(tmp_path):
    result, _ = drifting()
    result.figures["rho"] = float("nan")
    with pytest.raises(ValueError, match="not JSON compliant"):
        harness.write(result, tmp_path / "drift.json", ["drift"])
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("count", [1, 2, 3, 4, 9, 10])
def test_spread_against_numpy(count):
    values = np.random.default_rng(count).normal(size=count)
    spread = harness.Spread.of(values.tolist())
    expected = np.quantile(values, [0.5, 0, 0.25, 0.75, 1])
    np.testing.assert_allclose([spread.median, spread.min, spread.q1, spread.q3, spread.max], expected)


def test_compare_refuses_what_gives_no_ratio():
    with pytest.raises(ValueError, match="reference 'C' is not among"):
        harness.compare("x", {"A": list, "B": list}, reference="C", repeats=1)
    with pytest.raises(ValueError, match="repeats must be at least 1"):
        harness.compare("x", {"A": list}, reference="A", repeats=0)


def test_targets_are_met_up_to_their_limit():
    result = harness.Result("x")
    result.target("at the limit", 1.1, 1.1)
    result.target("above it", 1.2, 1.1, "s")
    assert [target["met"] for target in result.targets] == [True, False]
    assert "above it: 1.2 s (at most 1.1) MISSED" in str(result)


def test_the_file_holds_the_result_and_what_it_ran_on(tmp_path):
    result, _ = drifting()
    result.figures["batch_size"] = 8
    result.target("B / A", result.ratio("B").median, 2)
    path = tmp_path / "new" / "drift.json"
    harness.write(result, path, ["/somewhere/drift.py", "--repeats", "4"])
    record = json.loads(path.read_text(encoding="utf-8"))
    assert set(record) == {
        *("date", "command", "environment", "benchmark", "reference"),
        *("warmup", "candidates", "targets", "figures"),
    }
    assert record["command"] == "python benchmarks/drift.py --repeats 4"
    assert record["figures"] == {"batch_size": 8}
    assert record["targets"][0]["met"] is True
    assert set(record["candidates"]["B"]) == {"seconds", "ratio", "all_seconds"}
    assert record["candidates"]["B"]["ratio"]["median"] == pytest.approx(1.5)
    assert record["candidates"]["B"]["all_seconds"] == pytest.approx([1.5, 3, 4.5, 6])
    assert set(record["environment"]) == {
        *("cpu", "cpu_flags", "cores", "threads", "gpu", "load", "python", "torch", "probjepa", "commit"),
    }
    assert [file.name for file in path.parent.iterdir()] == ["drift.json"]  # no temporary file is left


def test_a_result_that_goes_on_keeps_its_figures_and_says_what_made_them(tmp_path):
    path = tmp_path / "r.json"
    for run in range(3):
        result = harness.Result.resumed("r", path)
        assert result.figures == {f"figure {i}": i for i in range(run)}
        result.figures[f"figure {run}"] = run
        for _ in range(2):  # within a run the file is written again and again
            harness.write(result, path, ["r.py", str(run)])
    record = json.loads(path.read_text(encoding="utf-8"))
    made = [*record["earlier"], record]
    assert [of["command"] for of in made] == [f"python benchmarks/r.py {run}" for run in range(3)]
    assert all(of["environment"]["cores"] and of["date"] for of in made)


def test_the_command_names_no_place_on_this_machine():
    argv = [
        "/home/me/benchmarks/decode.py",
        "--data-root",
        "/data/sets",
        "--out=/tmp/x.json",
        "--threads",
        "2",
    ]
    expected = "python benchmarks/decode.py --data-root DIR --out=DIR --threads 2"
    assert harness.command_line(argv) == expected
    assert harness.command_line(["decode.py", "--data-root", "../shared/data"]).endswith("../shared/data")


def test_options_that_all_benchmarks_share(tmp_path):
    parser = harness.arguments("what", "name", repeats=7)
    defaults = parser.parse_args([])
    assert (defaults.repeats, defaults.device) == (7, "cpu")
    assert defaults.out == BENCHMARKS / "results" / "name.json"
    assert parser.parse_args(["--data-root", str(tmp_path)]).data_root == tmp_path
    assert not hasattr(harness.arguments("what", "name").parse_args([]), "repeats")


def test_a_place_that_is_no_file_is_told_before_the_work(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        harness.parse(harness.arguments("what", "name"), ["--out", str(tmp_path)])
    assert ended.value.code == 2
    assert f"{tmp_path} is a folder: give the name of a file" in capsys.readouterr().err
    assert harness.parse(harness.arguments("what", "name"), ["--threads", "1"]).threads == 1


def test_every_benchmark_and_every_result_is_in_the_readme():
    readme = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    scripts = [path.name for path in BENCHMARKS.glob("*.py")]
    results = [path.name for path in (BENCHMARKS / "results").glob("*.json")]
    assert "harness.py" in scripts
    assert [name for name in scripts + results if name not in readme] == []
