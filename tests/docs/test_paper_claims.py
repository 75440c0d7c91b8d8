"""docs/claims.md says of every claim what became of it, and of nothing else than the committed results."""

import json
import re
import statistics
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from probjepa.registry import EXPERIMENTS
from probjepa_experiments.image_budgets import BUDGETS

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
MEASURED = ("reproduced", "reproduced in part", "not reproduced", "one seed")
VERDICTS = (*MEASURED, "not reachable here", "not run")


def rows():
    """Return the page's claims: claim, place, verdict with its reason, ours, files."""
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in PAGE.splitlines()]
    return [line for line in cells if len(line) == 5 and line[2] != "verdict"]


def files(text):
    return re.findall(r"`([\w./-]+\.json)`", text)


@cache
def several(file):
    """Return the mean, in both roundings, and the deviation of every figure of several seeds."""
    known = [
        [of for of in seeds if of is not None] for seeds in _seeds(json.loads((RESULTS / file).read_text()))
    ]
    known = [of for of in known if len(of) > 1]
    return [(average(of), statistics.stdev(of)) for of in known for average in (statistics.mean, np.mean)]


@cache
def written(file, digits):
    """Return the same as texts of so many digits, as they are and in per cent."""
    return {
        f"{scale * mean:.{digits}f} ± {scale * deviation:.{digits}f}"
        for mean, deviation in several(file)
        for scale in (1, 100)
    }


def _seeds(found):
    """Yield the list "seeds" of every figure, at any depth: beside each is its "value" or "mean"."""
    for value in found.values() if isinstance(found, dict) else found if isinstance(found, list) else ():
        yield from _seeds(value)
    if isinstance(found, dict) and isinstance(found.get("seeds"), list) and {"value", "mean"} & found.keys():
        yield found["seeds"]


def test_every_claim_has_a_verdict_of_the_list():
    verdicts = [row[2].split(":")[0] for row in rows()]
    assert [of for of in verdicts if of not in VERDICTS] == []
    legend = re.findall(r"^\| ([a-z ]+) \| [^|]+ \|$", PAGE, re.MULTILINE)
    assert legend == ["verdict", *VERDICTS]


def test_the_page_counts_its_own_verdicts():
    counts = Counter(row[2].split(":")[0] for row in rows())
    stated = {name: int(n) for n, name in re.findall(r"\*\*(\d+) ([a-z ]+)\*\*", PAGE)}
    assert stated == {"lines": len(rows()), **counts}


def test_what_was_measured_names_its_file_and_every_file_is_there():
    assert [row[0] for row in rows() if row[2].split(":")[0] in MEASURED and not files(row[4])] == []
    assert [name for name in files(PAGE) if not (RESULTS / name).is_file()] == []


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_is_named_with_its_largest_budget(name):
    assert f"`{name}`" in PAGE
    run = [f"reproduce/{name}-{budget}.json" for budget in BUDGETS]
    run = [file for file in run if (RESULTS / file).is_file()]
    assert not run or f"`{run[-1]}`" in PAGE


def test_means_and_deviations_are_those_of_the_files():
    wrong = []
    for claim, _, _, ours, named in rows():
        for mean, deviation in re.findall(r"(−?\d+\.\d+) ± (\d+\.\d+)", ours):
            text = f"{mean.replace('−', '-')} ± {deviation}"
            digits = len(mean.split(".")[1])
            if not any(text in written(file, digits) for file in files(named)):
                wrong.append((claim, text))
    assert wrong == []
