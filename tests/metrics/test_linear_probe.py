"""The linear probe against scikit-learn and its own optimum."""

import inspect

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from probjepa.errors import ConfigError, DataError, ProbjepaWarning
from probjepa.metrics import linear_probe
from probjepa.metrics.linear import linear_predict


def blobs(n, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=n)
    return (np.eye(3, 5)[labels] * 1.5 + rng.normal(size=(n, 5))) * [1, 10, 100, 1, 1] + 50, labels


TRAIN, TEST = blobs(400, 0), blobs(500, 1)


@pytest.mark.parametrize("weight_decay", [None, 0.0, 0.5])
def test_lbfgs_is_scikit_learns_regression_on_standardised_features(weight_decay):
    # mean loss + ½·decay·‖W‖² is C·Σ loss + ½‖W‖² with C = 1/(decay·N)
    inverse = {None: 1.0, 0.0: np.inf, 0.5: 1 / (0.5 * 400)}[weight_decay]
    expected = make_pipeline(StandardScaler(), LogisticRegression(C=inverse)).fit(*TRAIN).score(*TEST)
    assert linear_probe(*TRAIN, *TEST, weight_decay=weight_decay) == pytest.approx(expected, abs=0.003)


def test_too_few_steps_are_said_in_our_words_alone(monkeypatch):
    monkeypatch.setattr("probjepa.metrics.linear._STEPS", 2)
    with pytest.warns() as caught:
        linear_probe(*TRAIN, *TEST)
    (said,) = caught
    assert said.category is ProbjepaWarning
    assert "L-BFGS ended after 2 steps, before it had converged" in str(said.message)


@pytest.mark.parametrize("settings", [{}, {"method": "sgd", "weight_decay": 1 / 400}], ids=str)
def test_a_test_set_of_another_mean_is_read_by_the_trainings(settings):
    """Rows of one class, moved: their own mean and spread would move them back."""
    x, y = TEST[0][TEST[1] == 2] * 1.3, TEST[1][TEST[1] == 2]
    expected = make_pipeline(StandardScaler(), LogisticRegression()).fit(*TRAIN).score(x, y)
    own = LogisticRegression().fit(StandardScaler().fit_transform(TRAIN[0]), TRAIN[1])
    assert abs(own.score(StandardScaler().fit_transform(x), y) - expected) > 0.1
    assert linear_probe(*TRAIN, x, y, **settings) == pytest.approx(expected, abs=0.02)


def test_sgd_reaches_the_same_optimum():
    exact = linear_probe(*TRAIN, *TEST, weight_decay=0.01)
    sgd = linear_probe(*TRAIN, *TEST, method="sgd", weight_decay=0.01, batch_size=100)
    assert 0.6 < exact < 0.95
    assert sgd == pytest.approx(exact, abs=0.01)


def test_sgd_is_seeded_and_works_without_grad_mode():
    def probe(seed):
        return linear_probe(
            *TRAIN, *TEST, method="sgd", epochs=2, batch_size=16, learning_rate=1.0, seed=seed
        )

    with torch.inference_mode():
        x, y = (torch.tensor(of) for of in TRAIN)
        within = linear_probe(x, y, *TEST, method="sgd", epochs=2, batch_size=16, learning_rate=1.0, seed=0)
    with torch.no_grad():
        assert probe(0) == probe(0) == within
    assert len({probe(seed) for seed in range(5)}) > 1


@pytest.mark.parametrize("method", ["lbfgs", "sgd"])
def test_labels_and_features_of_every_kind(method):
    names = np.array(["ant", "bee", "cat"])
    plain = linear_probe(*TRAIN, *TEST, method=method, epochs=20)
    named = linear_probe(TRAIN[0], names[TRAIN[1]], TEST[0], names[TEST[1]], method=method, epochs=20)
    assert named == plain
    # a constant feature with rounding noise says nothing
    constant = [np.c_[x, np.full(len(x), 0.1)].astype(np.float32) for x in (TRAIN[0], TEST[0])]
    padded = linear_probe(constant[0], TRAIN[1], constant[1], TEST[1], method=method, epochs=20)
    assert padded == pytest.approx(plain, abs=0.005)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("kind", "unit"),
    [(np.float32, 1e-35), (np.float32, 5e34), *((float, 10.0**k) for k in (-300, -9, 9, 160, 305))],
)
@pytest.mark.parametrize("method", ["lbfgs", "sgd"])
def test_the_unit_of_the_features_does_not_matter(method, kind, unit):
    (x, y), (queries, asked) = TRAIN, TEST
    expected = linear_probe(x.astype(kind), y, queries.astype(kind), asked, method=method, epochs=20)
    units = (x * unit).astype(kind), y, (queries * unit).astype(kind), asked
    assert linear_probe(*units, method=method, epochs=20) == pytest.approx(expected, abs=0.003)
    mixed = np.array([unit, 1, unit, 1, 1])  # each feature has its own
    units = (x * mixed).astype(kind), y, (queries * mixed).astype(kind), asked
    assert linear_probe(*units, method=method, epochs=20) == pytest.approx(expected, abs=0.003)


@pytest.mark.parametrize("method", ["lbfgs", "sgd"])
def test_a_row_that_is_as_far_as_there_are_numbers_is_classified(method):
    x, y = np.array([[-1.0], [1.0], [-2.0], [2.0]]), [0, 1, 0, 1]
    for unit in (1e-300, 1.0, 1e-30):
        found = linear_predict(unit * x, y, [[-1e300], [1e300]], method=method)
        np.testing.assert_array_equal(found, [0, 1])


def test_autocast_leaves_the_probe_alone():
    given = TRAIN[0].astype(np.float32), TRAIN[1], TEST[0].astype(np.float32)
    expected = linear_predict(*given, method="sgd", epochs=20)
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(linear_predict(*given, method="sgd", epochs=20), expected)


def test_the_defaults_are_the_documented_ones():
    assert inspect.unwrap(linear_predict).__kwdefaults__ == {
        "method": "lbfgs", "weight_decay": None, "epochs": 100, "learning_rate": 0.1, "batch_size": 256, "seed": 0
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"method": "adam"}, ConfigError, "'lbfgs' or 'sgd'"),
        ({"weight_decay": -1.0}, ConfigError, "weight_decay"),
        ({"epochs": 0}, ConfigError, "positive"),
        ({"train_labels": np.zeros(400), "test_labels": TEST[1] * 0}, DataError, "at least two classes"),
        ({"test": TEST[0][:, :4]}, DataError, "5-dimensional and the test ones 4"),
        ({"train_labels": TRAIN[1][:399]}, DataError, "399"),
        ({"test_labels": TEST[1][:499]}, DataError, "499"),
        ({"train": np.where(TRAIN[0] > 1e9, 0, np.nan)}, DataError, "in 400 of 400 rows"),
    ],
)
def test_errors(change, error, message):
    arguments = {"train": TRAIN[0], "train_labels": TRAIN[1], "test": TEST[0], "test_labels": TEST[1]}
    with pytest.raises(error, match=message) as caught:
        linear_probe(**{**arguments, **change})
    assert "\n" not in str(caught.value)


def test_two_classes_minimise_the_same_objective_as_more():
    rng = np.random.default_rng(0)
    x, tested = rng.normal(size=(40, 8)), rng.normal(size=(4000, 8))
    y = (x[:, 0] + rng.normal(size=40) > 0.8).astype(int)
    scaler = StandardScaler().fit(x)
    rows, codes = torch.from_numpy(scaler.transform(x)), torch.from_numpy(y)
    weight = torch.zeros(2, 8, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe"
    )

    def objective():
        solver.zero_grad()
        entropy = torch.nn.functional.cross_entropy(rows @ weight.T + bias, codes)
        loss = entropy + 0.5 * 0.3 * weight.square().sum()
        loss.backward()
        return loss

    solver.step(objective)
    logits = torch.from_numpy(scaler.transform(tested)) @ weight.T + bias
    found = linear_predict(x, y, tested, weight_decay=0.3)
    assert (found != logits.argmax(1).numpy()).mean() < 5e-4
