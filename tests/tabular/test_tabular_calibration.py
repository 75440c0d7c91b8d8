"""The calibration of predicted cells against known distributions, scipy and a brute-force search."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from tabular_cases import TINY

from probjepa.metrics.conformal import threshold
from probjepa.tabular import VarTJEPA
from probjepa.tabular.calibration import Calibration, cross_calibrated, hide_together
from probjepa.tabular.tokens import CellDistribution, Layout, Rows

LAYOUT = Layout(numeric=(0, 2), categorical=(1,), cardinalities=(3,), types=(0, 1, 0))


def case(n=4000, seed=0):
    """Predictions, and cells drawn so that the right correction is known."""
    g = torch.Generator().manual_seed(seed)
    mean = torch.randn(n, 2, generator=g)
    variance = 0.1 + torch.rand(n, 2, generator=g)
    noise = torch.randn(n, 2, generator=g)
    # column 0: N(0.5 + 2m, 4v); column 1 does not depend on its prediction
    numeric = torch.stack(
        [0.5 + 2 * mean[:, 0] + 2 * variance[:, 0].sqrt() * noise[:, 0], -1 + 3 * noise[:, 1]], 1
    )
    logits = 2 * torch.randn(n, 4, generator=g) + torch.tensor([0.0, 0.0, 2.0, 5.0])
    chance = -torch.empty(n, 4).exponential_(generator=g).log()  # Gumbel: its argmax is a draw
    codes = (0.5 * logits + chance).argmax(1).add(1).unsqueeze(1)
    return CellDistribution(mean, variance, [logits]), Rows(
        numeric, torch.zeros(n, 2, dtype=torch.bool), codes
    )


def nll(cells, rows):
    normal = stats.norm(cells.mean.numpy(), cells.variance.sqrt().numpy())
    numbers = -normal.logpdf(rows.numeric.numpy()).mean(0)
    category = torch.nn.functional.cross_entropy(cells.logits[0], rows.codes[:, 0] - 1)
    return [*numbers.tolist(), float(category)]


def fitted(cells, rows):
    calibration = Calibration(LAYOUT)
    counts = (rows.codes[:, 0] - 1).bincount(minlength=4)
    calibration.fit([cells], rows, [counts])
    return calibration


def test_the_known_correction_is_found():
    cells, rows = case()
    calibration = fitted(cells, rows)
    assert calibration.shift[0] == pytest.approx(0.5, abs=0.06)
    assert calibration.slope[0, 0] == pytest.approx(2, abs=0.06)
    assert calibration.spread[0] == pytest.approx(4, rel=0.06)
    assert calibration.sharpness[0, 0] == pytest.approx(0.5, abs=0.04)
    assert calibration.prior_weight[0] == pytest.approx(0, abs=0.25)


def test_numbers_are_those_of_highest_likelihood():
    cells, rows = case(300)
    calibration = fitted(cells, rows)
    m, v = cells.mean[:, 0].double().numpy(), cells.variance[:, 0].double().numpy()
    x = rows.numeric[:, 0].double().numpy()

    def loss(a, b, c):
        return -stats.norm(a + b * m, np.sqrt(c * v)).logpdf(x).sum()

    a, b = float(calibration.shift[0]), float(calibration.slope[0, 0])
    c = float(calibration.spread[0]) * (len(x) - 2) / len(x)  # unbiased → maximum likelihood
    best = loss(a, b, c)
    for da, db, dc in [(0.02, 0, 0), (-0.02, 0, 0), (0, 0.02, 0), (0, -0.02, 0), (0, 0, 0.1), (0, 0, -0.1)]:
        assert loss(a + da, b + db, c + dc) > best


@pytest.mark.parametrize("sources", [1, 2, "one, twice", "one that says nothing"])
def test_the_variance_is_unbiased_and_intervals_cover(sources):
    generator, variances, covered = torch.Generator().manual_seed(0), [], []
    kind, sources = sources, {"one, twice": 2, "one that says nothing": 1}.get(sources, sources)
    layout = Layout((0,), (), (), (0,))
    for _ in range(300):
        n, new = 59, 500
        means = torch.randn(sources, n + new, 1, generator=generator)
        means = means[:1].repeat(2, 1, 1) if kind == "one, twice" else means
        means = torch.full_like(means, 0.3) if kind == "one that says nothing" else means
        x = 0.5 + means.mean(0) + torch.randn(n + new, 1, generator=generator)
        rows = Rows(x, torch.zeros(n + new, 1, dtype=torch.bool), torch.zeros(n + new, 0, dtype=torch.long))
        said = [CellDistribution(mean, torch.ones(n + new, 1), []) for mean in means]
        calibration = Calibration(layout, sources)
        calibration.fit([of.at(slice(n)) for of in said], rows.at(slice(n)), [])
        variances.append(float(calibration.spread[0]))
        cells = calibration([of.at(slice(n, None)) for of in said])
        errors = (x[n:] - cells.mean).abs() / cells.variance.sqrt()
        covered.append(float((errors <= calibration.reach[0]).float().mean()))
    assert np.mean(variances) == pytest.approx(1, abs=0.02)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.005)


@pytest.mark.parametrize(
    ("width", "hidden", "reach"),
    [(8, [1, 2, 4, 5, 7, 8], [1, 1 + 1 / 3, 2, 2 + 1 / 3, 3, 4]), (1, [1], [4.0]), (2, [1, 2], [2.0, 4.0])],
)
def test_intervals_widen_with_what_is_hidden(width, hidden, reach):
    calibration = Calibration(Layout(tuple(range(width)), (), (), (0,) * width))
    calibration.reach.copy_(torch.tensor([1.0, 2, 3, 4])[:, None])
    where = torch.arange(width) < torch.tensor(hidden)[:, None]
    torch.testing.assert_close(calibration.reach_of(where, 8), torch.tensor(reach)[:, None].expand(-1, width))


def test_where_more_is_hidden_the_reach_is_a_quantile_of_those_errors():
    g = torch.Generator().manual_seed(0)
    n, width = 400, 8
    layout = Layout(tuple(range(width)), (), (), (0,) * width)
    rows = Rows(
        torch.randn(n, width, generator=g), torch.zeros(n, width, dtype=torch.bool), torch.empty(n, 0)
    )
    rows.missing[:385, 3] = True
    calibration = Calibration(layout)
    cells = CellDistribution(torch.zeros(n, width), torch.full((n, width), 0.25), [])
    patterns = hide_together(layout, rows)
    assert [int(of.sum(1).unique()) for of in patterns] == [4, 7, 8]
    assert all(torch.equal(*pair) for pair in zip(patterns, hide_together(layout, rows), strict=True))
    calibration.widen([[cells]] * 3, rows, patterns)
    for k, where in enumerate(patterns, 1):
        for i in set(range(width)) - {3}:
            errors = np.sort(rows.numeric[where[:, i], i].abs().numpy() / 0.5)
            rank = int(np.ceil(0.95 * (len(errors) + 1)))
            assert float(calibration.reach[k, i]) == pytest.approx(errors[rank - 1])
    np.testing.assert_allclose(calibration.reach[:, 3], stats.norm.ppf(0.975))  # of 15 cells there is none


def test_a_model_that_knew_one_reach_a_column_keeps_it():
    new, old = Calibration(LAYOUT), Calibration(LAYOUT).state_dict()
    old["reach"] = torch.tensor([1.5, 2.5])
    new.load_state_dict(old)
    assert new.reach.tolist() == [[1.5, 2.5]] * 4


@pytest.mark.parametrize("n", [400, 1000])
def test_intervals_cover_where_most_of_a_row_is_missing(n):
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(2, 8))

    def drawn(n):
        factors = rng.normal(size=(n, 2)) ** 3 @ weights
        return pd.DataFrame(factors + 0.05 * rng.normal(size=(n, 8)), columns=[f"c{i}" for i in range(8)])

    model = VarTJEPA(**{**TINY, "max_epochs": 3, "validation_fraction": 0.3}).fit(drawn(n))
    for count in (1, 4, 7, 8):
        rows = drawn(300)
        hide = rng.random((300, 8)).argsort(1) < count
        found = model.impute(rows, hide).cells
        truth = rows.to_numpy()[found["row"], found["feature"].str[1:].astype(int)]
        covered = (truth >= found["low"]) & (truth <= found["high"])
        assert 0.92 < covered.mean() <= 0.99  # by one reach a column .7 with 7 of 8 cells missing


def test_categories_are_those_of_highest_penalised_likelihood():
    cells, rows = case(300)
    calibration = fitted(cells, rows)
    logits, target = cells.logits[0].double(), rows.codes[:, 0] - 1

    def loss(a, b):
        log_p = (a * logits + b * calibration.log_prior.double()).log_softmax(1)
        return float(-log_p.gather(1, target.unsqueeze(1)).sum()) + 0.5 * ((a - 1) ** 2 + b**2)

    a, b = float(calibration.sharpness[0, 0]), float(calibration.prior_weight[0])
    grid = [loss(x, y) for x in np.linspace(0, 1.5, 31) for y in np.linspace(-2, 2, 41)]
    assert loss(a, b) <= min(grid) + 1e-6


def test_held_out_likelihood_rises_and_noise_falls_back_to_the_marginal():
    cells, rows = case(seed=0)
    other, others = case(seed=1)
    calibrated = fitted(cells, rows)([other])
    before, after = nll(other, others), nll(calibrated, others)
    assert all(b > a for b, a in zip(before, after, strict=True))
    # v varies here without meaning, which costs a little beside the marginal N(−1, 9)
    marginal = -stats.norm(-1, 3).logpdf(others.numeric[:, 1].numpy()).mean()
    assert after[1] == pytest.approx(marginal, abs=0.12)


def test_nothing_changes_before_fit_or_with_few_cells():
    cells, rows = case(30)
    for calibration in (Calibration(LAYOUT), fitted(cells, rows)):
        same = calibration([cells])
        torch.testing.assert_close(same.mean, cells.mean)
        torch.testing.assert_close(same.variance, cells.variance)
        torch.testing.assert_close(same.logits[0], cells.logits[0])


@pytest.mark.parametrize("value", [0.0, 1e6])
def test_degenerate_columns_stay_finite(value):
    cells, rows = case(100)
    rows = Rows(torch.full_like(rows.numeric, value), rows.missing, torch.ones_like(rows.codes))
    cells = cells._replace(
        mean=torch.full_like(cells.mean, 3.0), variance=torch.full_like(cells.variance, 1e-4)
    )
    calibrated = fitted(cells, rows)([cells])
    assert calibrated.mean.isfinite().all()
    assert (calibrated.variance > 0).all() and calibrated.variance.isfinite().all()
    assert calibrated.logits[0].isfinite().all()


def noise_table(n, seed):
    random = np.random.default_rng(seed)
    x = random.normal(size=n)
    return pd.DataFrame(
        {
            "x": x,
            "copy": x,
            "noise": random.normal(size=n),
            "coin": random.choice(["a", "b", "c"], n, p=[0.7, 0.2, 0.1]),
        }
    )


def test_cells_that_the_others_say_nothing_of_have_their_marginal():
    model = VarTJEPA(max_epochs=2, dim=16, n_layers=1, ff_dim=32, batch_size=32, random_state=0)
    model.fit(noise_table(1200, 0))
    test = noise_table(600, 1)
    surprise = model.score_features(test).mean()
    assert surprise["noise"] == pytest.approx(0.5 * np.log(2 * np.pi * np.e), abs=0.08)
    assert surprise["coin"] == pytest.approx(stats.entropy([0.7, 0.2, 0.1]), abs=0.06)
    hidden = np.zeros(test.shape, bool)
    hidden[:, 2] = True
    filled = model.impute(test, hidden).cells
    z = (test["noise"].to_numpy() - filled["value"].astype(float)) / filled["std"]
    assert z.std() == pytest.approx(1, abs=0.12)


def test_a_saved_model_keeps_its_calibration(tmp_path):
    model = VarTJEPA(max_epochs=2, dim=8, n_layers=1, ff_dim=8, batch_size=64, random_state=0)
    model.fit(noise_table(600, 0))
    assert float(model.network_.calibration.spread[2]) != 1
    model.save(tmp_path / "m")
    test = noise_table(20, 1)
    np.testing.assert_array_equal(
        VarTJEPA.load(tmp_path / "m").score_samples(test), model.score_samples(test)
    )


def test_rows_that_are_looked_at_are_as_typical_as_new_ones():
    """A threshold among them has its rate; among those that the correction was fitted to it has twice that."""
    n, new, wide, alpha = 60, 500, 16, 0.1
    layout = Layout(tuple(range(wide)), (), (), (0,) * wide)
    g, rates, own = torch.Generator().manual_seed(0), [], []
    for _ in range(40):
        mean = torch.randn(n + new, wide, generator=g)
        tails = torch.randn(4, n + new, wide, generator=g)
        x = 0.3 * mean + tails[0] / (tails[1:].square().mean(0)).sqrt()  # Student's t of 3
        rows = Rows(x, torch.zeros(len(x), wide, dtype=torch.bool), torch.zeros(len(x), 0, dtype=torch.long))
        said = CellDistribution(mean, torch.ones(len(x), wide), [])
        held_out, fit = said.at(torch.arange(n)), rows.at(slice(n))
        calibration = Calibration(layout)
        calibration.fit([held_out], fit, [])

        def scores(cells, x):
            return stats.norm(cells.mean, cells.variance.sqrt()).logpdf(x).mean(1)

        typical = scores(calibration([said.at(torch.arange(n, n + new))]), x[n:])
        [crossed] = cross_calibrated(layout, [held_out], fit, [])
        rates.append(float((typical < threshold(scores(crossed, x[:n]), alpha)).mean()))
        own.append(float((typical < threshold(scores(calibration([held_out]), x[:n]), alpha)).mean()))
    assert np.mean(rates) < 0.11 and np.mean(own) > 0.13


def test_each_row_is_looked_at_by_a_fit_to_the_others():
    cells, rows = case(200)
    counts = [(rows.codes[:, 0] - 1).bincount(minlength=4)]
    [found] = cross_calibrated(LAYOUT, [cells], rows, counts)
    rest = torch.arange(200) % 10 != 3
    other = Calibration(LAYOUT)
    other.fit([cells.at(rest)], rows.at(rest), counts)
    expected = other([cells.at(~rest)])
    for part, whole in zip((*expected[:2], *expected.logits), (*found[:2], *found.logits), strict=True):
        torch.testing.assert_close(whole[3::10], part)


@pytest.mark.parametrize(("n", "corrected"), [(1, False), (49, False), (52, True)])
def test_what_has_too_few_cells_is_corrected_in_no_fit(n, corrected):
    cells, rows = case(n)
    [found] = cross_calibrated(LAYOUT, [cells], rows, [(rows.codes[:, 0] - 1).bincount(minlength=4)])
    for part in (found.mean - cells.mean).abs() > 1e-6, (found.logits[0] - cells.logits[0]).abs() > 1e-6:
        assert part.any(1).all() if corrected else not part.any()
