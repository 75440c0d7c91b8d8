"""What a fit says that it learned of each column: against known answers, and kept with the model."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

import probjepa as pj
from probjepa.errors import ProbjepaWarning
from probjepa.tabular import VarTJEPA
from probjepa.tabular.calibration import cross_calibrated
from probjepa.tabular.skill import Skill, measure
from probjepa.tabular.tokens import CellDistribution, Layout, Rows

LAYOUT = Layout(numeric=(0, 2), categorical=(1, 3), cardinalities=(2, 2), types=(0, 1, 0, 1))


def case(n=4000):
    """Number 0 and category 1 are half known, number 2 and category 3 are noise."""
    g = torch.Generator().manual_seed(0)
    known = torch.randn(n, 2, generator=g)
    numeric = torch.stack([known[:, 0] + torch.randn(n, generator=g), torch.randn(n, generator=g)], 1)
    code = torch.randint(2, 4, (n, 2), generator=g)
    right = torch.rand(n, generator=g) < 0.8
    said = torch.where(right, code[:, 0], 5 - code[:, 0])
    logits = [
        torch.full((n, 3), -9.0).scatter(1, (said - 1).unsqueeze(1), 1.0),
        torch.randn(n, 3, generator=g),
    ]
    logits[0][:, 1:] += 9 * (logits[0][:, 1:] < 0)  # the other known class at 0
    cells = CellDistribution(known, torch.ones(n, 2), logits)
    return cells, Rows(numeric, torch.zeros(n, 2, dtype=torch.bool), code)


def measured(cells, rows):
    counts = [(of - 1).bincount(minlength=3) for of in rows.codes.unbind(1)]
    [said] = cross_calibrated(LAYOUT, [cells], rows, counts)
    return measure(LAYOUT, ["a", "b", "c", "d"], said, rows, rows, counts)


def test_the_gain_is_that_of_the_known_structure():
    a, b, c, d = measured(*case())
    assert [of.feature for of in (a, b, c, d)] == ["a", "b", "c", "d"]
    assert a.nats == pytest.approx(0.5 * math.log(2), abs=0.04)
    assert a.explained == pytest.approx(0.5, abs=0.05)
    chance = math.log(2) + 0.8 * math.log(0.8) + 0.2 * math.log(0.2)
    assert b.nats == pytest.approx(chance, abs=0.04)
    assert b.explained == pytest.approx(0.6, abs=0.06)  # a fifth wrong, where the mode has a half
    assert [of.none for of in (a, b, c, d)] == [False, False, True, True]
    assert c.nats == pytest.approx(0, abs=0.01) and abs(c.explained) < 0.02


@pytest.mark.parametrize("n", [20, 4000])
def test_few_cells_and_columns_that_do_not_vary_say_nothing(n):
    cells, rows = case(n)
    rows.numeric[:, 1], rows.codes[:, 1] = 3.0, 2
    for of in measured(cells, rows)[2:] if n > 100 else measured(cells, rows):
        assert (of.nats, of.explained, of.none, of.cells) == (None, None, False, n)


def test_a_fit_says_which_columns_it_knows_and_impute_says_so(tmp_path):
    random = np.random.default_rng(0)
    table = pd.DataFrame({"x": random.normal(size=1200)})
    table["copy"], table["noise"] = 2 * table["x"], random.normal(size=1200)
    model = VarTJEPA(
        max_epochs=3, dim=16, n_layers=1, ff_dim=16, batch_size=32, learning_rate=1e-2, random_state=0
    )
    with pytest.warns(ProbjepaWarning, match=r"nothing was learned of 1 of 3 columns \('noise'\)"):
        model.fit(table)
    skill = {of.feature: of for of in model.skill_}
    assert skill["copy"].nats > 0.3, skill
    table.iloc[:3, 1:] = np.nan
    cells = model.impute(table).cells
    assert dict(zip(cells["feature"], cells["marginal"], strict=True)) == {"copy": False, "noise": True}
    model.save(tmp_path / "m")
    again = pj.load(tmp_path / "m")
    assert again.skill_ == model.skill_ and isinstance(again.skill_[0], Skill)
    assert again.impute(table).cells.equals(cells)
