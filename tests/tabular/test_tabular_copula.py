"""The copula of a table's cells against the Gaussian's own formulas, and where it is taken."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.covariance import ledoit_wolf_shrinkage

import probjepa as pj
from probjepa.errors import ConfigError, ProbjepaWarning
from probjepa.tabular import VarTJEPA
from probjepa.tabular.calibration import Calibration
from probjepa.tabular.copula import Copula, bins_for
from probjepa.tabular.fitting import stretched
from probjepa.tabular.presets import PRESETS
from probjepa.tabular.tokens import (
    CellDistribution,
    FeatureTokenizer,
    Layout,
    Rows,
    by_bins,
    by_group,
    normal_edges,
)

NUMBERS = Layout(numeric=(0, 1, 2), categorical=(), cardinalities=(), types=(0, 0, 0))
MIXED = Layout(numeric=(1,), categorical=(0, 2), cardinalities=(3, 6), types=(1, 0, 1))
FAST = {"max_epochs": 1, "dim": 8, "n_layers": 1, "ff_dim": 8, "random_state": 0}


def numbers(values):
    values = torch.as_tensor(values, dtype=torch.float32)
    return Rows(values.nan_to_num(), values.isnan(), torch.zeros(len(values), 0, dtype=torch.long))


def gaussian(n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.multivariate_normal([0.5, -1, 2], [[1, 0.6, -0.3], [0.6, 2, 0.4], [-0.3, 0.4, 1.5]], n)


def hidden(rows, *columns):
    out = torch.zeros(len(rows), rows.numeric.shape[1] + rows.codes.shape[1], dtype=torch.bool)
    out[:, list(columns)] = True
    return out


@pytest.mark.parametrize("asked", [(0,), (1,), (0, 2), (0, 1, 2)])
def test_hidden_numbers_have_their_conditional_distribution(asked):
    x = gaussian(3000)
    copula = Copula(NUMBERS)
    copula.fit(numbers(x))
    mean, covariance = copula.mean.numpy(), copula.precision.inverse().numpy()
    np.testing.assert_allclose(mean, x.mean(0), atol=1e-6)
    np.testing.assert_allclose(covariance, np.cov(x.T, bias=True), atol=0.02)  # shrunk a little
    cells = copula.predict(numbers(x), hidden(numbers(x), *asked))
    a, b = list(asked), [i for i in range(3) if i not in asked]
    slope = (
        covariance[np.ix_(a, b)] @ np.linalg.pinv(covariance[np.ix_(b, b)]) if b else np.zeros((len(a), 0))
    )
    expected = mean[a] + (x[:, b] - mean[b]) @ slope.T
    left = covariance[np.ix_(a, a)] - slope @ covariance[np.ix_(b, a)]
    np.testing.assert_allclose(cells.mean[:, a], expected, atol=1e-5)
    np.testing.assert_allclose(
        cells.variance[:, a], np.broadcast_to(left.diagonal(), expected.shape), rtol=1e-5
    )


def test_missing_cells_do_not_bend_the_covariance():
    x = gaussian(4000)
    # the more, the larger another column is: the rows that are whole are no fair sample
    lacking = np.random.default_rng(1).random(4000) < 1 / (1 + np.exp(-2 * x[:, 1]))
    x_seen = np.where(np.arange(3) == 0, np.where(lacking[:, None], np.nan, x), x)
    copula = Copula(NUMBERS)
    copula.fit(numbers(x_seen))
    np.testing.assert_allclose(copula.mean.numpy(), x.mean(0), atol=0.05)
    np.testing.assert_allclose(copula.precision.inverse().numpy(), np.cov(x.T), atol=0.15)
    assert abs(np.nanmean(x_seen[:, 0]) - x[:, 0].mean()) > 0.12


def test_missing_cells_are_as_expectation_maximisation_row_by_row_and_patterns_go_together(monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 3)) @ rng.normal(size=(3, 10)) + 0.3 * rng.normal(size=(120, 10))
    x[rng.random(x.shape) < 0.3] = np.nan
    x[5] = np.nan
    x, seen = x.astype(np.float32).astype(float), ~np.isnan(x)
    first, scale = np.nanmean(x, 0), np.nanstd(x, 0)
    z = (x - first) / scale
    filled, extra, before = np.nan_to_num(z), np.zeros((10, 10)), np.zeros((10, 10))
    step = np.inf
    for turn in range(21):
        centre = filled.mean(0)
        second = np.cov(filled.T, bias=True) + extra
        weight = max(ledoit_wolf_shrinkage(filled), 1e-4)
        covariance = (1 - weight) * second + weight * second.trace() / 10 * np.eye(10)
        moved = np.linalg.norm(covariance - before) / np.linalg.norm(covariance)
        if moved < 1e-3 or moved > step or turn == 20:
            break
        before, step = covariance, moved if turn else np.inf
        extra = np.zeros((10, 10))
        for i, (row, s) in enumerate(zip(z, seen, strict=True)):
            h = ~s
            slope = covariance[np.ix_(h, s)] @ np.linalg.inv(covariance[np.ix_(s, s)])
            filled[i, h] = centre[h] + slope @ (row[s] - centre[s])
            extra[np.ix_(h, h)] += (covariance[np.ix_(h, h)] - slope @ covariance[np.ix_(s, h)]) / len(z)
    calls, plain = [], torch.linalg.cholesky
    monkeypatch.setattr(torch.linalg, "cholesky", lambda of: calls.append(len(of)) or plain(of))
    copula = Copula(Layout(tuple(range(10)), (), (), (0,) * 10))
    copula.fit(numbers(x))
    np.testing.assert_allclose(copula.mean.numpy(), first + scale * centre, rtol=1e-6, atol=1e-8)
    expected = np.linalg.inv(covariance * np.outer(scale, scale))
    np.testing.assert_allclose(copula.precision.numpy(), expected, rtol=1e-6, atol=1e-8)
    assert turn > 5
    assert len(calls) < turn * 12  # a call for each number of hidden columns, and not for each row


def test_a_sum_is_learned_from_rows_of_which_half_the_cells_are_missing():
    rng = np.random.default_rng(0)
    parts = rng.normal(size=(6000, 3))
    whole = (parts.sum(1, keepdims=True) + 0.1 * rng.normal(size=(6000, 1))) / 3**0.5
    x = np.hstack([whole, parts])
    copula = Copula(Layout((0, 1, 2, 3), (), (), (0,) * 4))
    copula.fit(numbers(np.where(rng.random((4000, 4)) < 0.5, np.nan, x[:4000])))
    cells = copula.predict(numbers(x[4000:]), hidden(numbers(x[4000:]), 0))
    error = float((cells.mean[:, 0] - torch.from_numpy(x[4000:, 0])).square().mean().sqrt())
    assert error < 0.14  # 0.06 at best; 0.23 where it stops after five steps


def test_categories_are_predicted_from_numbers_and_categories():
    rng = np.random.default_rng(0)
    group, coin = rng.integers(0, 3, 2000), rng.integers(0, 2, 2000)
    codes = torch.tensor(np.stack([group, 2 * group + coin], 1) + 2)
    x = torch.tensor(group - 1 + 0.1 * rng.normal(size=2000), dtype=torch.float32)
    rows = Rows(x.unsqueeze(1), torch.zeros(2000, 1, dtype=torch.bool), codes)
    copula = Copula(MIXED)
    copula.fit(rows)
    of_group = copula.predict(rows, hidden(rows, 0)).logits[0].softmax(1)
    assert of_group.shape == (2000, 4)  # "unknown" is the first
    assert float((of_group.argmax(1) == codes[:, 0] - 1).float().mean()) > 0.99
    of_both = copula.predict(rows, hidden(rows, 2)).logits[1].softmax(1)
    pair = 1 + 2 * torch.tensor(group)
    there = torch.stack([of_both.gather(1, (pair + k).unsqueeze(1)) for k in (0, 1)]).squeeze(-1)
    torch.testing.assert_close(there, torch.full_like(there, 0.5), atol=0.06, rtol=0)


def test_an_unknown_category_is_as_one_that_is_missing():
    rng = np.random.default_rng(0)
    codes = torch.tensor(rng.integers(2, 5, (300, 2)))
    codes[:, 1] = codes[:, 0]
    rows = Rows(torch.randn(300, 1), torch.zeros(300, 1, dtype=torch.bool), codes)
    copula = Copula(MIXED)
    copula.fit(rows)
    said = [
        copula.predict(Rows(*(part[:1] for part in rows[:2]), torch.tensor([[code, 2]])), hidden(rows, 2)[:1])
        for code in (0, 1, 2)
    ]
    assert torch.equal(said[0].logits[1], said[1].logits[1])
    assert not torch.equal(said[0].logits[1], said[2].logits[1])


def test_with_bins_it_bends():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(2000, 3))
    a[:, 1] = np.abs(a[:, 0]) + 0.1 * a[:, 1]
    rows = numbers(a)
    left = []
    for bins in (0, 8):
        copula = Copula(NUMBERS, bins)
        copula.fit(rows)
        left.append(float((copula.predict(rows, hidden(rows, 1)).mean[:, 1] - rows.numeric[:, 1]).var()))
    assert left[0] > 0.9 * a[:, 1].var() and left[1] < 0.1 * a[:, 1].var()


def test_rows_are_predicted_by_fits_to_others():
    noise = numbers(np.random.default_rng(0).normal(size=(40, 30)))
    layout = Layout(tuple(range(30)), (), (), (0,) * 30)
    copula = Copula(layout)
    [found] = copula.out_of_fold(noise, lambda at: [by_group(layout, 30, noise.at(at), copula.predict)])
    own = float((found.mean - noise.numeric).square().mean())
    assert own > 0.95  # of noise nothing can be said
    again = Copula(layout)
    again.fit(noise)
    assert torch.equal(again.precision, copula.precision)
    part = torch.arange(40) % 10
    again.fit(Rows(*(of[part != 3] for of in noise)))
    where = hidden(noise, 4)
    torch.testing.assert_close(again.predict(noise, where).mean[13, 4], found.mean[13, 4])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "values", [[[1.0, 1, 1]], [[0.0, 1, 2]] * 2, [[0.0, 1, 2]] * 5, [[np.nan] * 3] * 4, np.eye(3) * 1e4]
)
def test_odd_tables_stay_finite(values):
    rows = numbers(np.asarray(values, dtype=float))
    for bins in (0, 8):
        copula = Copula(NUMBERS, bins)
        predict = partial(by_group, NUMBERS, 3, predict=copula.predict)
        [cells] = copula.out_of_fold(rows, lambda at, predict=predict: [predict(rows.at(at))])
        assert cells.mean.isfinite().all() and (cells.variance > 0).all() and cells.variance.isfinite().all()


@pytest.mark.parametrize("sizes", [(65, 3), (3, 300), (65,), (65, 70)])
def test_a_feature_of_many_categories_takes_no_part(sizes):
    n = len(sizes)
    layout = Layout((0,), tuple(range(1, n + 1)), sizes, (0, *(1,) * n))
    random = np.random.default_rng(0)
    codes = np.stack([random.integers(2, size + 2, 400) for size in sizes], 1)
    rows = Rows(*numbers(random.normal(size=(400, 1)))[:2], torch.as_tensor(codes))
    copula = Copula(layout)
    copula.fit(rows)
    cells = copula.predict(rows, hidden(rows, *range(n + 1)))
    for size, logits in zip(sizes, cells.logits, strict=True):
        p = logits.exp()
        torch.testing.assert_close(p.sum(1), torch.ones(400))
        if size > 64:
            torch.testing.assert_close(p[:, 1:], torch.full((400, size), 1 / size), rtol=1e-3, atol=0)


# --- parts of a number ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bins", [1, 2, 7, 16])
def test_the_parts_of_a_number_add_up_to_it(bins):
    edges = normal_edges(bins)
    assert torch.distributions.Normal(0, 1).cdf(edges).tolist() == pytest.approx(
        [k / bins for k in range(1, bins)], abs=1e-6
    )
    x = torch.tensor([-9.0, -1.3, -0.01, 0.0, 0.4, 2.0, 1e4])
    parts = by_bins(x, edges)
    assert parts.shape == (7, bins)
    torch.testing.assert_close(parts.sum(-1), x)
    assert (parts * x.sign().unsqueeze(1) >= 0).all()  # nothing beyond 0 or x


def test_tokens_of_bins_start_as_a_straight_line():
    rows = numbers(gaussian(20))
    torch.manual_seed(0)
    straight = FeatureTokenizer(NUMBERS, 8)
    torch.manual_seed(0)
    bent = FeatureTokenizer(NUMBERS, 8, 16)
    torch.testing.assert_close(bent(rows), straight(rows))


# --- two sources ----------------------------------------------------------------------------------------


def sources(n=5000):
    g = torch.Generator().manual_seed(0)
    m = torch.randn(2, n, 2, generator=g)
    logits = 2 * torch.randn(2, n, 4, generator=g)
    x = torch.stack([1 + 0.3 * m[0, :, 0] + 0.7 * m[1, :, 0], m[1, :, 1] - 0.5 * m[0, :, 1]], 1)
    x = x + 0.5 * torch.randn(n, 2, generator=g)
    chance = -torch.empty(n, 4).exponential_(generator=g).log()
    codes = (0.3 * logits[0] + 0.9 * logits[1] + chance).argmax(1).add(1).unsqueeze(1)
    cells = [
        CellDistribution(a, torch.ones(n, 2) * v, [b]) for a, b, v in zip(m, logits, (1, 2), strict=True)
    ]
    return cells, Rows(x, torch.zeros(n, 2, dtype=torch.bool), codes)


def test_sources_are_pooled_as_held_out_cells_ask():
    cells, rows = sources()
    layout = Layout(numeric=(0, 1), categorical=(2,), cardinalities=(3,), types=(0, 0, 1))
    calibration = Calibration(layout, 2)
    before = calibration(cells)
    assert torch.equal(before.mean, cells[0].mean) and torch.equal(before.logits[0], cells[0].logits[0])
    calibration.fit(cells, rows, [(rows.codes[:, 0] - 1).bincount(minlength=4)])
    torch.testing.assert_close(calibration.slope[:, 0], torch.tensor([0.3, 0.7]), atol=0.03, rtol=0)
    torch.testing.assert_close(calibration.slope[:, 1], torch.tensor([0.0, 1.0]), atol=0.03, rtol=0)
    assert float(calibration.slope[0, 1]) == 0  # never against a source
    torch.testing.assert_close(calibration.sharpness[:, 0], torch.tensor([0.3, 0.9]), atol=0.06, rtol=0)
    said = calibration(cells)
    error = (rows.numeric - said.mean)[:, 0]
    assert float(said.variance[0, 0]) == pytest.approx(float(error.var()), rel=0.02)
    inside = error.abs() <= calibration.reach[0, 0] * said.variance[:, 0].sqrt()
    assert float(inside.float().mean()) == pytest.approx(0.95, abs=0.002)


# --- where it is taken ----------------------------------------------------------------------------------


def table(n, seed=0):
    x = gaussian(n, seed)
    return pd.DataFrame(
        {"a": x[:, 0], "b": np.exp(2 * x[:, 1]), "c": x[:, 2], "k": np.where(x[:, 0] > 0, "p", "q")}
    )


@pytest.mark.parametrize(("n", "taken"), [(499, "alone"), (500, "beside")])
def test_a_table_of_few_rows_is_the_copulas_alone_and_it_says_so(n, taken, tmp_path, recwarn):
    model = VarTJEPA(**FAST).fit(table(n))
    assert model.settings_["copula"] == taken
    said = [
        str(of.message) for of in recwarn if of.category is ProbjepaWarning and "copula" in str(of.message)
    ]
    assert [f"the table has {n} rows" in of for of in said] == ([True] if taken == "alone" else [])
    model.save(tmp_path / "m")
    test = table(50, 1)
    np.testing.assert_array_equal(pj.load(tmp_path / "m").score_samples(test), model.score_samples(test))
    assert len(model.skill_) == 4


def test_published_presets_have_none():
    assert all(of["copula"] == "none" and of["n_bins"] == of["min_steps"] == 0 for name, of in PRESETS.items()
               if name != "small")  # fmt: skip
    model = VarTJEPA("adult", **FAST, n_heads=2).fit(table(100))
    assert model.network_.copula is None and model.network_.tokenizer.weight.ndim == 2


def test_a_table_that_is_too_wide_has_none():
    wide = Layout(tuple(range(600)), (), (), (0,) * 600)
    assert bins_for(wide, 10_000) is None and bins_for(NUMBERS, 999) == 0 and bins_for(NUMBERS, 3000) == 16
    assert bins_for(Layout(tuple(range(50)), (), (), (0,) * 50), 3000) == 8  # 16 would be too wide
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(30, 513)))
    with pytest.raises(ConfigError, match="too wide"):
        VarTJEPA(**FAST, copula="alone").fit(frame)


@pytest.mark.parametrize("copula", ["both", 1])
def test_another_copula_is_one_line(copula):
    with pytest.raises(ConfigError, match="copula"):
        VarTJEPA(**FAST, copula=copula).fit(table(20))


def test_what_is_imputed_is_the_mean_within_an_interval():
    train, test = table(450), table(400, 1)
    model = VarTJEPA(**FAST).fit(train)
    where = np.zeros(test.shape, bool)
    where[:, 1] = True
    cells = model.impute(test, where).cells
    truth, value = test["b"].to_numpy(), cells["value"].to_numpy(float)
    assert (cells["low"] < cells["median"]).all() and (cells["median"] < cells["high"]).all()
    assert (value > cells["median"]).mean() > 0.95  # of a long tail to the right
    assert ((value - truth) ** 2).mean() < ((cells["median"] - truth) ** 2).mean()
    assert ((cells["low"] <= truth) & (truth <= cells["high"])).mean() == pytest.approx(0.95, abs=0.03)


def test_a_fit_has_its_least_steps_and_not_more_than_its_most():
    small = dict(PRESETS["small"])
    found = stretched(small, 640)  # 9 steps an epoch, 180 in all
    assert found["max_epochs"] * 9 == pytest.approx(small["min_steps"], abs=9)
    times = found["max_epochs"] / small["max_epochs"]
    for name in ("patience", "warmup_epochs"):
        assert found[name] == pytest.approx(times * small[name], rel=0.05)
    assert stretched(small, 10_000) == small
    many = stretched(small, 100_000)  # 1,407 steps an epoch
    assert many["max_epochs"] == 3 and many["warmup_epochs"] == pytest.approx(2 * 3500 / (20 * 1407))
    assert stretched(dict(PRESETS["adult"]), 100_000) == PRESETS["adult"]
    model = VarTJEPA(dim=8, n_layers=1, ff_dim=8, min_steps=30, batch_size=100, random_state=0)
    model.set_params(max_epochs=2).fit(table(200))
    assert len(model.history_) == 2  # those that are given stay


@pytest.mark.parametrize("spoil", [lambda of: of.neg_(), lambda of: of.fill_(float("nan"))])
def test_a_damaged_copula_is_not_loaded(spoil):
    copula = Copula(NUMBERS, 4)
    copula.fit(numbers(gaussian(50)))
    again = Copula(NUMBERS, 4)
    again.load_state_dict(copula.state_dict())
    assert torch.equal(again.precision, copula.precision)
    spoil(copula.precision)
    with pytest.raises(RuntimeError, match="precision of the copula is not positive definite"):
        again.load_state_dict(copula.state_dict())
