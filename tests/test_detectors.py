"""Detectors: one contract for all, and each against SciPy, scikit-learn or brute force."""

import math
import pickle
import tracemalloc
import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from scipy.spatial.distance import cdist
from sklearn.base import clone
from sklearn.covariance import LedoitWolf, ShrunkCovariance
from sklearn.exceptions import ConvergenceWarning, NotFittedError, SkipTestWarning
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture as SklearnGaussianMixture
from sklearn.utils.estimator_checks import parametrize_with_checks

from probjepa.detectors import KNN, GaussianMixture, Mahalanobis, base, mixture
from probjepa.errors import ConfigError, DataError

RNG = np.random.default_rng(0)
MIXING = RNG.normal(size=(5, 5))
FIT, TEST, AWAY = (RNG.normal(shift, 1, (n, 5)) @ MIXING for n, shift in ((400, 0), (150, 0), (150, 2)))
DETECTORS = [
    KNN(k=5),
    KNN(k=3, normalize=False),
    Mahalanobis(),
    Mahalanobis(shrinkage="ledoit-wolf"),
    GaussianMixture(n_components=2),
]
# scikit-learn's checks that cannot pass, each with its reason: there are none. KNN(k=1) would fail three of them:
# each row of its fit is its own nearest neighbour, so that no score of theirs is below another.
EXPECTED_FAILURES: dict[str, str] = {}
every_detector = pytest.mark.parametrize("detector", DETECTORS, ids=repr)


@every_detector
def test_contract(detector):
    twin = clone(detector)
    assert twin is not detector
    assert twin.get_params() == detector.get_params()
    assert twin.fit(FIT) is twin
    scores = twin.score_samples(TEST)
    assert scores.shape == (150,)
    assert scores.dtype == np.float64
    assert np.isfinite(scores).all()
    # each row is scored alone, and the same from arrays, lists and tensors
    np.testing.assert_allclose(twin.score_samples(TEST[::-1])[::-1], scores, rtol=1e-10)
    np.testing.assert_allclose(twin.score_samples(TEST[:1].tolist()), scores[:1], rtol=1e-10)
    tensors = clone(detector).fit(torch.from_numpy(FIT).requires_grad_())
    np.testing.assert_array_equal(tensors.score_samples(torch.from_numpy(TEST)), scores)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(twin)).score_samples(TEST), scores)
    # a second fit forgets the first
    np.testing.assert_allclose(twin.fit(AWAY).fit(FIT).score_samples(TEST), scores)


@every_detector
def test_typical_rows_score_higher(detector):
    # away in direction as well as in distance: the normalised detectors see only the first
    centre, turned = np.eye(5)[0] * 8, np.eye(5)[1] * 8
    detector = clone(detector).fit(FIT + centre)
    scores = np.concatenate([detector.score_samples(TEST + centre), detector.score_samples(AWAY + turned)])
    assert roc_auc_score(np.repeat([1, 0], 150), scores) > 0.9


@parametrize_with_checks(DETECTORS, expected_failed_checks=lambda detector: EXPECTED_FAILURES)
def test_scikit_learns_checks(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkipTestWarning)
        check(estimator)


@every_detector
def test_rows_of_the_fit_are_scored(detector):
    detector = clone(detector).fit(FIT)
    mixed = np.concatenate([TEST[:10], FIT[[3, 77]], TEST[10:20]])
    scores = detector.score_samples(mixed)
    np.testing.assert_allclose(scores[[*range(10), *range(12, 22)]], detector.score_samples(TEST[:20]))
    np.testing.assert_allclose(scores[10:12], detector.score_samples(FIT)[[3, 77]])


@every_detector
@pytest.mark.parametrize("contamination", [0.05, 0.1, 0.5])
def test_the_threshold_is_a_quantile_of_the_scores_of_the_fit(detector, contamination):
    detector = clone(detector).set_params(contamination=contamination).fit(FIT)
    scores = detector.score_samples(FIT)
    assert detector.offset_ == pytest.approx(np.quantile(scores, contamination))
    predicted = detector.predict(FIT)
    assert (predicted == -1).sum() == pytest.approx(contamination * 400, abs=1)
    np.testing.assert_array_equal(predicted, clone(detector).fit_predict(FIT))
    np.testing.assert_allclose(
        detector.decision_function(TEST), detector.score_samples(TEST) - detector.offset_
    )
    assert set(detector.predict(np.concatenate([TEST, 50 * AWAY]))) <= {-1, 1}


def test_a_score_on_the_threshold_is_typical():
    """Each row of the fit is its own nearest neighbour: every score is 0, and so is the threshold."""
    detector = KNN(1).fit(FIT)
    assert detector.offset_ == 0 and (detector.predict(FIT) == 1).all()


@pytest.mark.parametrize(
    ("bare", "said"),
    [
        (KNN, KNN(50, normalize=True, contamination=0.1)),
        (Mahalanobis, Mahalanobis(None, contamination=0.1)),
        (partial(GaussianMixture, 6), GaussianMixture(6, covariance_type="full", seed=0, contamination=0.1)),
    ],
)
def test_what_is_not_said(bare, said):
    found, expected = bare().fit(FIT), said.fit(FIT)
    np.testing.assert_array_equal(found.score_samples(TEST), expected.score_samples(TEST))
    assert found.offset_ == expected.offset_


def test_the_threshold_of_a_large_fit_is_that_of_a_share_of_it(monkeypatch):
    rows = np.random.default_rng(1).normal(size=(5000, 3))
    whole = KNN(5, normalize=False).fit(rows)
    flagged = (whole.predict(rows) == -1).mean()
    # 1,024 rows: a standard error of 0.9 points
    assert flagged == pytest.approx(0.1, abs=0.03) and flagged != 0.1
    monkeypatch.setattr(base, "THRESHOLD_ROWS", 5000)
    assert (KNN(5, normalize=False).fit(rows).predict(rows) == -1).mean() == pytest.approx(0.1, abs=1e-9)


@every_detector
def test_names_of_columns_are_kept(detector):
    frame = pd.DataFrame(FIT, columns=list("abcde"))
    fitted = clone(detector).fit(frame)
    assert fitted.n_features_in_ == 5 and fitted.feature_names_in_.tolist() == list("abcde")
    np.testing.assert_allclose(fitted.score_samples(frame), clone(detector).fit(FIT).score_samples(FIT))
    with pytest.raises(DataError, match="feature names should match"):
        fitted.score_samples(frame.rename(columns={"a": "z"}))


@every_detector
def test_wrong_inputs(detector):
    holes = np.where(np.arange(400)[:, None] < 7, np.nan, FIT)
    for message, call in {
        "not fitted: call fit": lambda: clone(detector).score_samples(TEST),
        "to fit has NaN or Inf in 7 of 400 rows": lambda: clone(detector).fit(holes),
        "to score has NaN or Inf in 7 of 400 rows": lambda: clone(detector).fit(FIT).score_samples(holes),
        r"X has 4 features, but \w+ is expecting 5 features as input: embed": lambda: (
            clone(detector).fit(FIT).score_samples(TEST[:, :4])
        ),
        r"give one row a sample, \(N, D\)": lambda: clone(detector).fit(FIT[0]),
        r"to fit has shape \(2, 200, 5\): give one row": lambda: clone(detector).fit(FIT.reshape(2, 200, 5)),
        "is empty": lambda: clone(detector).fit(FIT[:0]),
        "give numbers": lambda: clone(detector).fit(np.full((9, 5), "a")),
        r"one label a row, \(400,\)": lambda: clone(detector).fit(FIT, np.zeros(399)),
    }.items():
        with pytest.raises((DataError, ConfigError), match=message) as error:
            call()
        assert "\n" not in str(error.value)


@every_detector
def test_a_failed_fit_stays_unfitted(detector):
    twin = clone(detector)
    with pytest.raises(DataError):
        twin.fit(FIT * np.nan)
    for error in (ConfigError, NotFittedError):
        with pytest.raises(error, match="not fitted"):
            twin.score_samples(TEST)


@pytest.mark.parametrize("k", [1, 4, 400])
@pytest.mark.parametrize("chunk_size", [11, 160, 4096])
@pytest.mark.parametrize("normalize", [True, False])
def test_knn_is_the_distance_to_the_kth_neighbour(k, chunk_size, normalize):
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) if normalize else rows for rows in (TEST, FIT)]
    expected = -np.sort(cdist(*unit), axis=1)[:, k - 1]
    found = KNN(k, normalize=normalize, chunk_size=chunk_size).fit(FIT).score_samples(TEST)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("k", [1, 5, 350, 400])
def test_knn_looks_through_blocks_that_hold_fewer_rows_than_k(k, monkeypatch):
    expected = KNN(k).fit(FIT).score_samples(TEST[:6])
    for rows, chunk_size in ((300, 40), (300, 4096), (130, 4096)):  # the last block has 100 rows, or 10
        monkeypatch.setattr(base, "_BLOCK", rows * 5)
        found = KNN(k, chunk_size=chunk_size).fit(FIT).score_samples(TEST[:6])
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_row_of_zeros_has_no_direction():
    """It stays where it is, at distance 1 of all others."""
    rows = np.concatenate([np.zeros((1, 5)), 1e-3 * FIT])
    np.testing.assert_allclose(KNN(1).fit(rows[1:]).score_samples(rows[:1]), -1)
    np.testing.assert_allclose(KNN(1).fit(rows).score_samples(rows[:1]), 0)


@pytest.mark.parametrize("k", [1, 3, 29])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("chunk_size", [7, 4096])
def test_knn_leaves_each_row_of_the_fit_out(k, normalize, chunk_size):
    rows = np.random.default_rng(0).normal(size=(30, 4))
    rows[7] = rows[3]  # a copy is another row
    found = KNN(k, normalize=normalize, chunk_size=chunk_size).fit(rows).leave_one_out()
    for row in range(30):
        others = KNN(k, normalize=normalize).fit(np.delete(rows, row, 0))
        np.testing.assert_allclose(found[row], others.score_samples(rows[[row]])[0], atol=1e-12)
    with pytest.raises(ConfigError, match="30, and a row of the fit has 29 others"):
        KNN(30).fit(rows).leave_one_out()
    with pytest.raises(NotFittedError):
        KNN(30).leave_one_out()


def test_a_row_is_told_from_one_that_is_nearer_than_the_search_can_tell():
    """Of two rows 2·10⁻⁹ apart each is as likely to be found first."""
    rows = np.random.default_rng(0).normal(size=(20, 4))
    pairs = np.concatenate([rows, rows + 1e-9])
    for chunk_size in (7, 4096):
        found = KNN(1, normalize=False, chunk_size=chunk_size).fit(pairs).leave_one_out()
        np.testing.assert_allclose(found, -2e-9, rtol=1e-6)


def test_knn_keeps_tiny_distances_far_from_the_origin():
    steps = np.arange(1, 6)[:, None] * 1e-4
    bank = np.concatenate([1e6 + steps, 1e6 - steps], axis=0).repeat(3, axis=1)
    found = KNN(k=2, normalize=False).fit(bank).score_samples(np.full((1, 3), 1e6))
    assert found.item() == pytest.approx(-1e-4 * np.sqrt(3), rel=1e-5)


def test_mahalanobis_is_scipys_distance():
    covariance = np.cov(FIT.T, bias=True)
    expected = -(
        cdist(TEST, FIT.mean(0, keepdims=True), "mahalanobis", VI=np.linalg.inv(covariance))[:, 0] ** 2
    )
    np.testing.assert_allclose(Mahalanobis().fit(FIT).score_samples(TEST), expected, rtol=1e-9)
    # the score does not depend on the units or the origin of the features
    moved = [rows * [1, 10, 1e3, 1e-3, 1] + 1e3 for rows in (FIT, TEST)]
    np.testing.assert_allclose(Mahalanobis().fit(moved[0]).score_samples(moved[1]), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("shrinkage", "oracle"),
    [
        (0.3, ShrunkCovariance(shrinkage=0.3)),
        (1.0, ShrunkCovariance(shrinkage=1.0)),
        ("ledoit-wolf", LedoitWolf()),
    ],
)
@pytest.mark.parametrize("n", [4, 400])
def test_mahalanobis_shrinkage_is_scikit_learns(shrinkage, oracle, n):
    expected = -oracle.fit(FIT[:n]).mahalanobis(TEST)
    found = Mahalanobis(shrinkage=shrinkage).fit(FIT[:n]).score_samples(TEST)
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_mahalanobis_with_labels_ties_the_covariance():
    labels = np.array(["a", "b", "c"])[np.arange(400) % 3]
    rows = FIT + 10 * (labels == "b")[:, None] - 5 * (labels == "c")[:, None]
    means = np.stack([rows[labels == name].mean(0) for name in "abc"])
    pooled = sum((labels == name).mean() * np.cov(rows[labels == name].T, bias=True) for name in "abc")
    expected = -(cdist(TEST, means, "mahalanobis", VI=np.linalg.inv(pooled)).min(1) ** 2)
    np.testing.assert_allclose(Mahalanobis().fit(rows, labels).score_samples(TEST), expected, rtol=1e-9)


@pytest.mark.parametrize("none", [-1, None, math.nan])
def test_mahalanobis_leaves_rows_in_no_class_out(none):
    known = np.arange(400) % 4 < 3
    labels = np.array([0, 1, 2, none], dtype=object)[np.arange(400) % 4]
    rows = FIT + 10 * np.eye(5)[np.arange(400) % 4]
    expected = Mahalanobis().fit(rows[known], labels[known].astype(int)).score_samples(TEST)
    for found in (Mahalanobis().fit(rows, labels), Mahalanobis().partial_fit(rows, labels)):
        np.testing.assert_allclose(found.score_samples(TEST), expected, rtol=1e-10)


def test_mahalanobis_makes_its_covariance_once(monkeypatch):
    made, settle = [], Mahalanobis._settle
    monkeypatch.setattr(Mahalanobis, "_settle", lambda *given: made.append(1) or settle(*given))
    for fit, before in ((Mahalanobis().partial_fit, 0), (Mahalanobis().fit, 1)):
        detector = fit(FIT)
        assert len(made) == before
        for _ in range(2):
            detector.score_samples(TEST)
        assert len(made) == 1
        made.clear()


@pytest.mark.parametrize("classes", [1, 3])
def test_mahalanobis_needs_more_rows_than_dimensions(classes):
    enough = 5 + classes
    labels = np.arange(enough) % classes
    Mahalanobis().fit(FIT[:enough], labels)
    for shrinkage in (None, 0.0):
        means = "their mean" if classes == 1 else "their 3 class means"
        with pytest.raises(
            ConfigError,
            match=rf"{enough - 1} embeddings around {means} give .* at least {enough} rows, or use shrinkage=",
        ) as error:
            Mahalanobis(shrinkage).fit(FIT[: enough - 1], labels[:-1])
        assert "\n" not in str(error.value)
    Mahalanobis("ledoit-wolf").fit(FIT[: enough - 1], labels[:-1])


def test_mahalanobis_refuses_a_singular_covariance():
    twice = np.concatenate([FIT, FIT[:, :1]], axis=1)
    with pytest.raises(ConfigError, match="singular"):
        Mahalanobis().fit(twice)
    for shrinkage in (None, 0.5, "ledoit-wolf"):
        for shape, value in (((10, 3), 0.1), ((10, 1), 0.0), ((1000, 3), 1e6 / 3)):
            with pytest.raises(DataError, match="do not vary"):
                Mahalanobis(shrinkage).fit(np.full(shape, value))
    # rows on a line vary; features of very different sizes hide the zero in rounding
    for seed in range(6):
        large, small = np.random.default_rng(seed).normal(size=(2, 50))
        for columns in ((large, 2 * large, 3 * large), (1e6 * large, 1e6 * large, small)):
            with pytest.raises(ConfigError, match="singular"):
                Mahalanobis().fit(np.stack(columns, 1))
    assert np.isfinite(Mahalanobis(0.1).fit(twice).score_samples(twice + 1)).all()


def test_mahalanobis_of_rows_that_hardly_vary():
    """Neither the size of the numbers nor that of their differences matters, down to rounding."""
    expected = Mahalanobis().fit(FIT).score_samples(TEST)
    np.testing.assert_allclose(Mahalanobis().fit(1e-6 * FIT).score_samples(1e-6 * TEST), expected, rtol=1e-8)
    found = Mahalanobis().fit(1 + 1e-10 * FIT).score_samples(1 + 1e-10 * TEST)
    np.testing.assert_allclose(found, expected, rtol=1e-3)


@pytest.mark.parametrize(("options", "added"), [({}, 1e-6), ({"reg_covar": 0.5}, 0.5)])
def test_gaussian_mixture_of_one_is_scipys_normal(options, added):
    density = stats.multivariate_normal(FIT.mean(0), np.cov(FIT.T, bias=True) + added * np.eye(5))
    found = GaussianMixture(**options).fit(FIT).score_samples(TEST)
    np.testing.assert_allclose(found, density.logpdf(TEST), rtol=1e-9)


def test_gaussian_mixture_is_scikit_learns():
    found = GaussianMixture(3, seed=5).fit(FIT).score_samples(TEST)
    own = SklearnGaussianMixture(3, random_state=5).fit(FIT)
    np.testing.assert_array_equal(found, own.score_samples(TEST))
    assert np.isfinite(GaussianMixture(2).fit(FIT[:2]).score_samples(TEST)).all()


def test_gaussian_mixture_may_have_a_component_a_row():
    rows = np.arange(4.0)[:, None]
    found = GaussianMixture(4).fit(rows).score_samples(rows)
    np.testing.assert_allclose(found, stats.norm(0, 1e-3).logpdf(0) - math.log(4))


def test_gaussian_mixture_finds_two_clusters_and_is_seeded():
    rows = np.concatenate([RNG.normal(-20, 1, (3000, 1)), RNG.normal(20, 2, (1000, 1))])
    at = np.array([[-20.0], [-18.0], [0.0], [20.0]])
    truth = np.logaddexp(
        stats.norm(-20, 1).logpdf(at) + np.log(0.75), stats.norm(20, 2).logpdf(at) + np.log(0.25)
    )
    found = GaussianMixture(2).fit(rows).score_samples(at)
    np.testing.assert_allclose(found[[0, 1, 3]], truth[[0, 1, 3], 0], atol=0.1)
    assert found.argmin() == 2
    several = {seed: GaussianMixture(6, seed=seed).fit(FIT).score_samples(TEST) for seed in (1, 2)}
    np.testing.assert_array_equal(GaussianMixture(6, seed=1).fit(FIT).score_samples(TEST), several[1])
    assert not np.allclose(several[1], several[2])


@pytest.mark.parametrize(
    ("detector", "rows", "message"),
    [
        (KNN(k=11), 10, "k is 11 with 10 embeddings"),
        (KNN(k=0), 10, "k is 0"),
        (KNN(k=1, chunk_size=0), 10, "chunk_size"),
        (KNN(k=1, contamination=0.0), 10, "contamination is 0.0"),
        (Mahalanobis(contamination=0.6), 10, "contamination is 0.6"),
        (Mahalanobis(shrinkage="oas"), 10, "takes a number or 'ledoit-wolf' or null, got 'oas'"),
        (Mahalanobis(shrinkage=1.5), 10, "from 0 to 1"),
        (GaussianMixture(n_components=11), 10, "n_components is 11 with 10"),
        (GaussianMixture(covariance_type="round"), 10, "takes 'full' or 'tied' or .*round"),
        (GaussianMixture(), 1, "at least 2 embeddings"),
    ],
)
def test_wrong_settings(detector, rows, message):
    with pytest.raises((ConfigError, DataError), match=message) as error:
        detector.fit(FIT[:rows])
    assert "\n" not in str(error.value)


@pytest.fixture
def mapped(tmp_path):
    def mapped(rows):
        file = tmp_path / f"{rows.dtype}-{len(rows)}.npy"
        np.save(file, rows)
        return np.load(file, mmap_mode="r")

    return mapped


@every_detector
@pytest.mark.parametrize("block", [350, 10**6])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_mapped_file_is_an_array(detector, block, dtype, mapped, monkeypatch):
    monkeypatch.setattr(base, "_BLOCK", block)  # 70 rows, or all
    rows, queries = FIT.astype(dtype), TEST.astype(dtype)
    # the squares of a mixture are summed around another point
    tolerance = 1e-9 if isinstance(detector, GaussianMixture) else 0
    twin, whole = clone(detector).fit(mapped(rows)), clone(detector).fit(rows)
    for asked in (queries, mapped(queries)):
        np.testing.assert_allclose(twin.score_samples(asked), whole.score_samples(queries), rtol=tolerance)
    assert twin.offset_ == pytest.approx(whole.offset_, rel=tolerance) and twin.n_features_in_ == 5
    if isinstance(detector, KNN):
        np.testing.assert_array_equal(twin.leave_one_out(), whole.leave_one_out())
    copied = pickle.loads(pickle.dumps(twin)).score_samples(queries)
    np.testing.assert_allclose(copied, twin.score_samples(queries), rtol=1e-9)
    # blocks are a matter of memory alone
    monkeypatch.setattr(base, "_BLOCK", 2**22)
    again = clone(detector).fit(rows).score_samples(queries)
    np.testing.assert_allclose(twin.score_samples(queries), again, rtol=1e-6 if dtype == np.float32 else 1e-9)


@every_detector
def test_a_mapped_file_is_checked(detector, mapped):
    holes = np.where(np.arange(400)[:, None] < 7, np.nan, FIT)
    for message, call in {
        "to fit has NaN or Inf in 7 of 400 rows": lambda: clone(detector).fit(mapped(holes)),
        r"give one row a sample, \(N, D\)": lambda: clone(detector).fit(mapped(FIT)[0]),
        "expecting 5 features as input: embed": lambda: (
            clone(detector).fit(FIT).score_samples(mapped(TEST)[:, :4])
        ),
    }.items():
        with pytest.raises(DataError, match=message):
            call()


@every_detector
def test_memory_does_not_grow_with_a_mapped_file(detector, mapped, monkeypatch):
    monkeypatch.setattr(base, "_BLOCK", 2**14)
    monkeypatch.setattr(mixture, "_START_ROWS", 2000)
    rows = np.random.default_rng(0).normal(size=(40_000, 16)).astype(np.float32)
    file = mapped(rows)
    clone(detector).fit(rows[:100]).score_samples(rows[:10])
    tracemalloc.start()
    clone(detector).fit(file).score_samples(rows[:64])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40_000 * 16 * 8 / 3


@pytest.mark.parametrize("shrinkage", [None, 0.3, "ledoit-wolf"])
@pytest.mark.parametrize("labelled", [False, True])
def test_parts_of_a_fit_are_the_fit(shrinkage, labelled):
    rows = FIT + 5 * np.eye(5)[np.arange(400) % 5]
    y = np.array(["a", "b", "c", None], dtype=object)[np.arange(400) % 4] if labelled else None
    whole = Mahalanobis(shrinkage).fit(rows, y)
    parts = [slice(0, 3), slice(3, 250), slice(250, 400)]  # the first alone gives no covariance
    of = lambda part: (rows[part], None if y is None else y[part])  # noqa: E731
    partial, merged = Mahalanobis(shrinkage), Mahalanobis(shrinkage)
    for part in parts:
        assert partial.partial_fit(*of(part)) is partial
        merged.merge(Mahalanobis(shrinkage).partial_fit(*of(part)))
    if labelled and shrinkage == "ledoit-wolf":
        with pytest.raises(ConfigError, match="cannot be put together from parts: use a number"):
            partial.score_samples(TEST)
        return
    for found in (partial, merged, pickle.loads(pickle.dumps(partial))):
        np.testing.assert_allclose(found.score_samples(TEST), whole.score_samples(TEST), rtol=1e-10)
        assert found.offset_ == pytest.approx(whole.offset_, rel=1e-10)
        np.testing.assert_array_equal(found.predict(TEST), whole.predict(TEST))
    # more rows may come after a score, and a fit starts anew
    np.testing.assert_allclose(
        Mahalanobis(0.3).fit(rows[:250]).partial_fit(rows[250:]).score_samples(TEST),
        Mahalanobis(0.3).fit(rows).score_samples(TEST),
        rtol=1e-10,
    )
    np.testing.assert_array_equal(partial.fit(rows, y).score_samples(TEST), whole.score_samples(TEST))


def test_parts_far_from_one_another_lose_nothing():
    rows = 1e4 + FIT + 1e2 * (np.arange(400) >= 200)[:, None]
    parts = Mahalanobis("ledoit-wolf").partial_fit(rows[:200]).partial_fit(rows[200:])
    whole = Mahalanobis("ledoit-wolf").fit(rows)
    np.testing.assert_allclose(parts.score_samples(rows), whole.score_samples(rows), rtol=1e-8)


def test_the_threshold_of_many_parts_is_of_all_of_them(monkeypatch):
    rows = np.random.default_rng(0).normal(size=(6000, 3)) + np.linspace(0, 3, 6000)[:, None]
    parts = Mahalanobis()
    for start in range(0, 6000, 500):
        parts.partial_fit(rows[start : start + 500])
    assert (parts.predict(rows) == -1).mean() == pytest.approx(0.1, abs=0.03)
    assert len(parts._sample) == 1024


@pytest.mark.parametrize(
    "sizes", [(300, 4000, 1200), (4000, 100, 30), (900, 200), (524, 500), (500, 500, 25)]
)
def test_each_part_has_its_share_of_the_rows_of_the_threshold(sizes):
    """Also where parts are fitted elsewhere and merged."""
    random, share = np.random.default_rng(0), np.array(sizes) / max(sum(sizes), 1024)
    parts, merged = Mahalanobis(), Mahalanobis()
    for number, size in enumerate(sizes):
        rows = np.stack([np.full(size, number), random.normal(size=size)], 1)
        parts.partial_fit(rows)
        merged.merge(Mahalanobis().partial_fit(rows))
    for found in (parts, merged):
        counts = np.bincount(found._sample[:, 0].astype(int))
        assert counts.sum() == min(sum(sizes), 1024)
        np.testing.assert_allclose(counts, 1024 * share, atol=len(sizes))


def test_the_rows_of_the_threshold_are_as_many_as_there_are_where_few_have_a_class():
    """The shares are those of the rows with a class, of which either part has too few."""
    few, most = (np.where(np.arange(900) < count, np.arange(900) % 2, -1) for count in (100, 800))
    for first, second, kept in ((few, most[:300], 724), (most[:300], few, 300)):
        rows = [
            np.random.default_rng(0).normal(part, 1, (len(y), 2)) for part, y in enumerate((first, second))
        ]
        parts = Mahalanobis().partial_fit(rows[0], first).partial_fit(rows[1], second)
        assert len(parts._sample) == 1024
        np.testing.assert_array_equal(parts._sample[kept], rows[1][0])


def test_parts_that_do_not_fit_together_are_one_line():
    parts = Mahalanobis().partial_fit(FIT)
    for message, call in {
        "expecting 5 features": lambda: parts.partial_fit(FIT[:, :4]),
        "has 5 features and the one to merge 4": lambda: parts.merge(Mahalanobis().fit(FIT[:, :4])),
        "give all, or none": lambda: parts.partial_fit(FIT, np.arange(400) % 2),
        "not fitted": lambda: parts.merge(Mahalanobis()),
        "at least 6 rows": lambda: Mahalanobis().partial_fit(FIT[:5]).score_samples(TEST),
        "shrinkage is 'oas': use None, a number": lambda: (
            Mahalanobis("oas").partial_fit(FIT).score_samples(TEST)
        ),
    }.items():
        with pytest.raises((DataError, ConfigError), match=message) as error:
            call()
        assert "\n" not in str(error.value)
    np.testing.assert_array_equal(parts.score_samples(TEST), Mahalanobis().fit(FIT).score_samples(TEST))


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_em_over_blocks_is_scikit_learns(kind, mapped, monkeypatch):
    monkeypatch.setattr(base, "_BLOCK", 35)
    rows, options = np.concatenate([FIT, AWAY, 3 * TEST]), {"covariance_type": kind, "seed": 3}
    expected = GaussianMixture(3, **options).fit(rows).score_samples(TEST)
    for origin in (np.zeros(5), np.array([100, 1e4, 0, -1e4, 3])):  # where scikit-learn's squares lose digits
        found = GaussianMixture(3, **options).fit(mapped(rows + origin)).score_samples(TEST + origin)
        np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_a_mixture_that_cannot_be_fitted(mapped):
    rows = np.repeat(FIT[:2], 40, 0)
    for kind in ("full", "tied", "diag", "spherical"):
        for given in (rows, mapped(rows)):
            with pytest.raises(ConfigError, match=r"be fitted: \w.*[^.]; try fewer components, a") as error:
                GaussianMixture(2, reg_covar=0.0, covariance_type=kind).fit(given)
            assert "\n" not in str(error.value)


def test_k_means_starts_from_16384_of_the_mapped_rows(mapped, monkeypatch):
    started, fit = [], SklearnGaussianMixture.fit
    monkeypatch.setattr(
        SklearnGaussianMixture, "fit", lambda self, rows: started.append(rows) or fit(self, rows)
    )
    GaussianMixture().fit(mapped(np.arange(20_000, dtype=np.float32)[:, None]))
    (rows,) = started
    assert rows.shape == (16_384, 1) and rows.dtype == np.float64
    assert rows[0] == 0 and rows[-1] == 19_999 and set(np.diff(rows[:, 0])) == {1, 2}


def test_em_that_does_not_converge_says_so_where_it_was_called(mapped, monkeypatch):
    monkeypatch.setattr(mixture, "SklearnGaussianMixture", partial(SklearnGaussianMixture, max_iter=2))
    with pytest.warns(ConvergenceWarning, match="EM did not converge in 2 steps: use fewer") as said:
        found = GaussianMixture(6).fit(mapped(FIT)).score_samples(TEST)
    assert [warning.filename for warning in said] == [__file__]
    with pytest.warns(ConvergenceWarning):
        np.testing.assert_allclose(found, GaussianMixture(6).fit(FIT).score_samples(TEST), rtol=1e-6)
