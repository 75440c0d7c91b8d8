"""Which rows are odd, and which of their cells: reductions, standardised surprise, thresholds."""

import json
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from tabular_cases import TINY, mixed_table, related_table

from probjepa.detectors import NotFittedError
from probjepa.errors import ArtifactError, ConfigError, DataError, ProbjepaWarning
from probjepa.metrics.conformal import Rule
from probjepa.tabular import VarTJEPA
from probjepa.tabular.anomalies import Cells, Typical, judged, row_scores
from probjepa.tabular.fitting import split_rows

LEARNS = {**TINY, "max_epochs": 16, "batch_size": 64, "learning_rate": 0.01, "n_targets": 2}


@pytest.fixture(scope="module")
def related():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ProbjepaWarning)
        return VarTJEPA(**LEARNS).fit(related_table(640))


@pytest.fixture(scope="module")
def few():
    return VarTJEPA(**TINY).fit(mixed_table())


def _cells(n=400, seed=0):
    """Three columns: one that always surprises, and by much; one that seldom does; one of which cells are missing."""
    rng = np.random.default_rng(seed)
    surprise = np.stack([rng.normal(9, 5, n), rng.normal(1, 0.2, n), rng.normal(0, 1, n)], 1)
    surprise[::4, 2] = np.nan
    return Cells(surprise, np.tile([2.0, 1.0, 0.5], (n, 1)))


def test_columns_are_on_one_scale():
    cells = _cells()
    standardized = Typical.of(cells, _cells(seed=1)).standardized(cells)
    np.testing.assert_allclose(np.nanmean(standardized, 0), 0, atol=1e-9)
    np.testing.assert_allclose(np.nanstd(standardized, 0), 1)
    assert np.isnan(standardized[::4, 2]).all()
    # what surprises always does not drown the others: each column has the largest cell of as many rows
    complete = ~np.isnan(standardized[:, 2])
    shares = np.bincount(standardized[complete].argmax(1)) / complete.sum()
    assert shares.min() > 0.25


@pytest.mark.parametrize(
    ("rows", "enough"), [(0, [0, 0, 0]), (49, [0, 0, 0]), (66, [1, 1, 0]), (67, [1, 1, 1])]
)
def test_columns_with_few_held_out_cells_fall_back_on_the_fits(rows, enough):
    fit, held_out = _cells(), _cells(seed=1)
    held_out = Cells(*(part[:rows] for part in held_out)) if rows else None
    typical = Typical.of(held_out, fit)
    of_fit = Typical.of(fit, fit)
    assert typical.held_out == [bool(of) for of in enough]
    for i, own in enumerate(typical.held_out):
        assert (typical.mean[i] == of_fit.mean[i]) is not own
    if all(typical.held_out):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            typical.warn(["a", "b", "c"])
    else:
        with pytest.warns(ProbjepaWarning, match="'c'.*fewer than 50 held-out cells"):
            typical.warn(["a", "b", "c"])


@pytest.mark.parametrize("copula", ["alone", "beside", "none"])
def test_another_value_in_a_constant_column_is_odd_and_hides_no_other(copula):
    when = pd.date_range("2021-01-02", periods=120, freq="5h")  # all of January
    table = pd.DataFrame({**related_table(120), "k": 3.0, "gone": np.nan, "when": when})
    model = VarTJEPA(**TINY, copula=copula).fit(table)
    as_it_was = model.score_samples(table)
    for other in (3.001, 4.0, 4e6):
        lost = as_it_was - model.score_samples(table.assign(k=other))
        assert (lost > 0).all() and (lost < 2).all()
        found = model.score_features(table.assign(k=other), standardized=True)["k"]
        np.testing.assert_allclose(found, 5.0, atol=0.01)  # half a nat by the least deviation, 0.1
    for harmless in ({"k": np.float32(3.0)}, {"gone": 7e5}):
        np.testing.assert_allclose(model.score_samples(table.assign(**harmless)), as_it_was, atol=0.5)
    february = model.score_samples(table.assign(when=when + pd.Timedelta(days=31)))
    assert (as_it_was - february < 10).all()
    assert (model.impute(table.assign(k=np.nan)).table["k"] == 3.0).all()


def test_a_model_that_was_saved_before_goes_by_what_was_fitted_to_its_constant_columns(tmp_path):
    table = pd.DataFrame({**related_table(120), "k": 3.0})
    model = VarTJEPA(**TINY).fit(table)
    model.save(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert weights.pop("calibration.constant").tolist() == model.network_.calibration.constant.tolist()
    save_file(weights, tmp_path / "model.safetensors")
    before = VarTJEPA.load(tmp_path)
    assert not before.network_.calibration.constant.any() and model.network_.calibration.constant.any()
    assert before.score_samples(table).mean() != pytest.approx(model.score_samples(table).mean(), abs=0.1)


def test_columns_that_do_not_vary_or_are_empty_have_a_finite_scale():
    flat = np.stack([np.full(60, 0.7), np.full(60, np.nan)], 1)
    typical = Typical.of(Cells(flat, np.zeros((60, 2))), Cells(flat, np.zeros((60, 2))))
    assert typical.mean == pytest.approx([0.7, 0]) and typical.deviation == pytest.approx([0.1, 1])


def test_reductions_of_a_row():
    typical = Typical([0.0] * 5, [1.0] * 5, [True] * 5)
    cells = Cells(np.array([[4.0, -1, 3, 0.5, 2], [np.nan, -1, -2, -3, -1]]), np.zeros((2, 5)))
    assert row_scores(cells, typical, "max").tolist() == [-4, 0]
    np.testing.assert_allclose(row_scores(cells, typical, "top-k"), [-3, 2 / 3])
    np.testing.assert_allclose(row_scores(cells, None), [-1.7, 1.4])
    two = Cells(cells.surprise[:1, :2], cells.expected[:1, :2])
    assert row_scores(two, Typical([0.0] * 2, [1.0] * 2, [True] * 2), "top-k").tolist() == [-1.5]


def test_scores_are_the_reductions_of_the_standardised_cells(related):
    table = related_table(30, seed=3)
    cells = related.score_features(table, standardized=True)
    assert list(cells.columns) == list(table.columns) and cells.index.equals(table.index)
    top = np.sort(cells.to_numpy(), 1)[:, ::-1]
    np.testing.assert_allclose(related.score_samples(table, reduction="max"), -top[:, 0])
    np.testing.assert_allclose(related.score_samples(table, reduction="top-k"), -top[:, :3].mean(1))
    raw = related.score_features(table).to_numpy()
    np.testing.assert_allclose(related.score_samples(table), -raw.mean(1))
    assert related.score(table) == pytest.approx(-raw.mean())


def test_a_cell_is_blamed_for_what_it_adds_to_the_others(related):
    table = related_table(40, seed=8)
    table.loc[3, "noise"] = np.nan
    cells = related.score_features(table, explained=True)
    assert cells.isna().sum().sum() == 1 and np.isnan(cells.loc[3, "noise"])
    network, rows = related.network_, next(related._batches(table))
    found = judged(network, rows, 8)
    beyond = found.surprise - found.expected
    for i in range(0, 40, 7):
        order = np.argsort(-np.nan_to_num(beyond[i], nan=-np.inf))
        for rank, j in enumerate(order[:4]):
            hidden = torch.zeros(40, 4, dtype=torch.bool)
            hidden[:, j] = True
            gain = np.delete((found.filled - judged(network, rows, 8, hidden).filled)[i], j).sum()
            expected = beyond[i, j] + (gain if rank < 3 else 0)
            np.testing.assert_allclose(cells.iloc[i, j], expected, rtol=1e-4, atol=1e-4)
    worst = np.nanmax(cells.to_numpy(), 1)
    scores = related.score_samples(table, reduction="explained")
    np.testing.assert_allclose(scores, related.score_samples(table) - worst / 4)


def test_a_hidden_cell_tells_the_others_nothing(related):
    table = related_table(10, seed=8)
    hidden = torch.zeros(10, 4, dtype=torch.bool)
    hidden[:, 0] = True
    one, other = (
        judged(related.network_, next(related._batches(t)), 8, hidden).surprise[:, 1:]
        for t in (table, table.assign(a=5.0))
    )
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("reduction", ["mean", "max", "top-k", "explained"])
def test_a_broken_cell_is_found(related, reduction):
    table = related_table(300, seed=4)
    broken = table.assign(k=np.where(table["k"] == "up", "down", "up"))
    clear = (table["a"].abs() > 0.7).to_numpy()
    good, bad = (related.score_samples(t, reduction=reduction)[clear] for t in (table, broken))
    assert (bad < np.median(good)).mean() > 0.9
    for scale in ("standardized", "explained"):
        cells = related.score_features(broken, **{scale: True})[clear]
        assert (cells.to_numpy().argmax(1) == list(table.columns).index("k")).mean() > 0.8


def test_rows_of_the_fit_are_called_outliers_by_their_share():
    table, model = mixed_table(100, seed=5), VarTJEPA(**TINY, contamination=0.05)
    labels = model.fit_predict(table)
    assert labels.dtype.kind == "i" and (labels == -1).sum() == 5
    decision = model.decision_function(table)
    np.testing.assert_array_equal(labels == -1, decision < 0)
    np.testing.assert_allclose(decision, model.score_samples(table) - model.offset_)


def test_a_conformal_threshold_keeps_its_rate():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ProbjepaWarning)
        model = VarTJEPA(**{**LEARNS, "max_epochs": 2}, alpha=0.1).fit(related_table(1000))
    assert len(model.held_out_scores_) == 100
    assert (model.held_out_scores_ < model.offset_).sum() == 9  # the 10th of 100: ⌊0.1 · 101⌋
    new = related_table(1000, seed=9)
    flagged = model.predict(new) == -1
    assert 0.02 < flagged.mean() < 0.2
    rule = Rule(0.1).decide(model.score_samples(new), model.held_out_scores_)
    np.testing.assert_array_equal(rule["flagged"], flagged)


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"contamination": 0.0}, ConfigError, "contamination is 0.0: use a share"),
        ({"contamination": 0.6}, ConfigError, "contamination is 0.6: use a share"),
        ({"contamination": "auto"}, ConfigError, "contamination takes a number"),
        ({"alpha": 1.0}, ConfigError, "alpha is 1.0: give a rate"),
        ({"alpha": 0.0}, ConfigError, "alpha is 0.0: give a rate"),
        (
            {"alpha": 0.05},
            DataError,
            r"0 calibration rows are too few for alpha = 0.05: give at least 19.*held out of the fit's \d+ rows by validation_fraction=0.1, where that makes 10 or more: give more rows, or a larger share",
        ),
        ({"alpha": 0.2, "validation_fraction": 0.0}, DataError, "0 calibration rows are too few"),
    ],
)
def test_bad_thresholds_are_one_line_before_the_fit(settings, error, says, monkeypatch):
    monkeypatch.setattr("probjepa.tabular.estimator.FitLoop", None)
    with pytest.raises(error, match=says) as caught:
        VarTJEPA(**TINY, **settings).fit(mixed_table())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("folds", [0, -1, 1.5, 2.0, "x", None])
@pytest.mark.parametrize(
    "use", [VarTJEPA.score_samples, VarTJEPA.score_features, VarTJEPA.uncertainty_features]
)
def test_folds_are_whole_numbers_from_1(related, use, folds):
    with pytest.raises(ConfigError, match=r"folds is .*: use a whole number from 1"):
        use(related, related_table(5), folds=folds)


def test_wrong_reductions(related):
    table = related_table(5)
    with pytest.raises(ConfigError, match="are two scales: use one"):
        related.score_features(table, explained=True, standardized=True)
    with pytest.raises(ConfigError, match="reduction is 'min': use 'mean', 'max', 'top-k', 'explained'"):
        related.score_samples(table, reduction="min")
    with pytest.raises(ConfigError, match="reduction is 'max', and the bound is of rows"):
        related.score_samples(table, kind="elbo", reduction="max")


def test_a_small_fit_says_what_its_scale_is(few):
    table = mixed_table()
    with pytest.warns(ProbjepaWarning, match="columns .* had fewer than 50 held-out cells"):
        scores = few.score_samples(table, reduction="max")
    assert np.isfinite(scores).all()
    assert few.held_out_scores_.shape == (0,)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        few.score_samples(table)  # needs no scale
        few.predict(table)


def test_a_saved_model_keeps_its_threshold(related, tmp_path):
    related.save(tmp_path)
    again, table = VarTJEPA.load(tmp_path), related_table(20, seed=6)
    assert again.offset_ == related.offset_ and again.typical_ == related.typical_
    np.testing.assert_array_equal(again.held_out_scores_, related.held_out_scores_)
    np.testing.assert_array_equal(again.predict(table), related.predict(table))
    for name in ("mean", "max"):
        np.testing.assert_array_equal(
            again.score_samples(table, reduction=name), related.score_samples(table, reduction=name)
        )
    config = json.loads((tmp_path / "config.json").read_text())
    config["typical"]["mean"] = config["typical"]["mean"][:-1]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match="is damaged"):
        VarTJEPA.load(tmp_path)


def test_a_model_saved_before_it_had_a_threshold_scores_and_says_so(related, tmp_path):
    related.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("typical", "offset", "held_out_scores"):
        del config[name]
    for name in ("contamination", "alpha"):
        del config["params"][name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    old, table = VarTJEPA.load(tmp_path), related_table(20, seed=6)
    np.testing.assert_array_equal(old.score_samples(table), related.score_samples(table))
    for use in (old.predict, old.decision_function, lambda t: old.score_samples(t, reduction="max")):
        with pytest.raises(ConfigError, match="was saved before it had"):
            use(table)
    old.save(tmp_path / "again")
    VarTJEPA.load(tmp_path / "again")


def test_missing_cells_are_neither_odd_nor_typical(related):
    table = related_table(50, seed=7)
    hidden = table.assign(noise=np.nan)
    cells = related.score_features(hidden, standardized=True)
    assert cells["noise"].isna().all() and cells.drop(columns="noise").notna().all(axis=None)
    assert np.isfinite(related.score_samples(hidden, reduction="max")).all()
    assert isinstance(cells, pd.DataFrame)


def test_held_out_rows_of_a_copula_alone_are_scored_by_fits_without_them():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(6, 30))

    def drawn(n):
        table = rng.normal(size=(n, 6)) @ weights + 0.05 * rng.normal(size=(n, 30))
        return pd.DataFrame(table, columns=[f"n{i}" for i in range(30)])

    alarms, surprises = [], []
    new = drawn(500)
    for seed in range(3):
        settings = {**TINY, "max_epochs": 1, "random_state": seed, "validation_fraction": 0.4}
        model = VarTJEPA(**settings, alpha=0.1).fit(drawn(80))
        assert model.settings_["copula"] == "alone" and len(model.held_out_scores_) == 32
        assert all(model.typical_.held_out)  # of 80 rows, each predicted by a fit to others
        alarms.append((model.predict(new) == -1).mean())
        surprises.append(model.score_features(new, standardized=True).to_numpy().mean())
    assert np.mean(alarms) < 0.16  # 0.23 by the copula that was fitted to the held-out rows, too
    assert abs(np.mean(surprises)) < 0.5


@pytest.mark.parametrize("rows", [300, 800])
def test_rare_categories_and_long_tails_raise_no_false_alarms(rows):
    def drawn(rng, n):
        words = {f"c{i}": [f"v{v}" for v in np.minimum(rng.zipf(1.5, n), 10**6)] for i in range(3)}
        return pd.DataFrame(words | {"tailed": np.exp(2 * rng.normal(size=n))})

    alarms = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        settings = {**TINY, "max_epochs": 1, "random_state": seed, "validation_fraction": 0.2}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ProbjepaWarning)
            model = VarTJEPA(**settings, alpha=0.1).fit(drawn(rng, rows))
            alarms.append((model.predict(drawn(rng, 1000)) == -1).mean())
    assert 0.05 < np.mean(alarms) < 0.13  # 0.25 and 0.16 where held-out rows know their own


def test_all_held_out_rows_of_a_wide_table_calibrate_the_fit(monkeypatch):
    settings = {**TINY, "max_epochs": 1, "validation_fraction": 0.3}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ProbjepaWarning)
        whole = VarTJEPA(**settings, alpha=0.02).fit(related_table(600))
        monkeypatch.setattr("probjepa.tabular.estimator._TOKENS", 100)  # as if of 600 columns
        pieces = VarTJEPA(**settings, alpha=0.02).fit(related_table(600))
    assert len(pieces.held_out_scores_) == 180 and all(pieces.typical_.held_out)
    assert [of.cells for of in pieces.skill_] == [180] * 4
    np.testing.assert_allclose(pieces.held_out_scores_, whole.held_out_scores_, rtol=1e-4, atol=1e-4)


def test_what_fails_after_the_fit_leaves_no_half_of_it(monkeypatch):
    def fails(*args):
        raise DataError("too few")

    model = VarTJEPA(**TINY, alpha=0.2, validation_fraction=0.5)
    monkeypatch.setattr("probjepa.tabular.var_t_jepa.threshold", fails)
    with pytest.raises(DataError, match="too few"):
        model.fit(mixed_table())
    assert not [name for name in vars(model) if name.endswith("_")]
    with pytest.raises(NotFittedError):
        model.transform(mixed_table())


def test_a_value_that_held_out_rows_have_once_is_odd_by_its_cell():
    """What standardises cells is of the correction that they are predicted by: another may not know such."""
    rng = np.random.default_rng(0)
    n = 700
    table = pd.DataFrame({"a": rng.normal(size=n), "b": rng.normal(size=n)})
    held_out = split_rows(n, 0.2, int(np.random.RandomState(0).randint(2**31 - 1)))[1]
    table["rare"] = 0.0
    table.loc[int(held_out[5]), "rare"] = 1.0
    settings = TINY | {"max_epochs": 1, "validation_fraction": 0.2, "random_state": 0}
    model = VarTJEPA(**settings).fit(table)
    rows = table.drop(index=int(held_out[5]))[:40].reset_index(drop=True)
    rows.loc[3, "rare"] = 1.0
    assert model.score_samples(rows, reduction="max").argmin() == 3
    assert model.score_features(rows, standardized=True).loc[3, "rare"] > 5
