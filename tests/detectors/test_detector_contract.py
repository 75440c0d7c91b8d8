"""What all detectors keep to: scikit-learn's contract, thresholds, and what is refused in one line."""

import pickle
import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from detector_rows import AWAY, DETECTORS, FIT, TEST, every_detector
from sklearn.base import clone
from sklearn.exceptions import NotFittedError, SkipTestWarning
from sklearn.metrics import roc_auc_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from probjepa.detectors import KNN, GaussianMixture, Mahalanobis, base
from probjepa.errors import ConfigError, DataError

# scikit-learn's checks that cannot pass, each with its reason: there are none. KNN(k=1) would fail three of them:
# each row of its fit is its own nearest neighbour, so that no score of theirs is below another.
EXPECTED_FAILURES: dict[str, str] = {}


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
    with pytest.raises(DataError) as caught:
        fitted.score_samples(frame[list("edcba")])
    assert str(caught.value).endswith("Feature names must be in the same order as they were in fit.")
    assert "\n" not in str(caught.value)


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


@pytest.mark.parametrize(
    ("detector", "rows", "labels"),
    [
        (KNN(50), np.ones((30, 3)), None),
        (Mahalanobis(), np.ones((1, 3)), None),
        (Mahalanobis(), np.ones((40, 3)), np.zeros(7)),
        (GaussianMixture(5), np.ones((3, 3)), None),
    ],
)
def test_a_fit_that_fails_leaves_the_one_before(detector, rows, labels):
    detector.fit(FIT)
    scores, offset = detector.score_samples(TEST), detector.offset_
    with pytest.raises((ConfigError, DataError)):
        detector.fit(rows, labels)
    assert (detector.score_samples(TEST) == scores).all() and detector.offset_ == offset
    with pytest.raises(DataError, match="X has 3 features"):
        detector.score_samples(np.ones((2, 3)))


def test_numbers_that_a_detector_cannot_take_are_not_written_out():
    with pytest.raises(DataError) as error:
        KNN(2).fit(np.ones((200, 30)) + 1j)
    assert len(str(error.value)) < 450
