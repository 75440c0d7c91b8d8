"""One score of several: against plain loops, and by what is promised whatever the scores are."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import probjepa as pj
from probjepa.data import ImageSet
from probjepa.detectors import KNN, GaussianMixture, Mahalanobis
from probjepa.errors import DataError
from probjepa.scores import SCORES, Score, combined, score_class, score_set
from probjepa.scores.combined import Combined, _log_p
from probjepa.scores.detectors import KNNScore

KINDS = [name for name in SCORES if issubclass(score_class(name), Combined)]


def rows(count, seed, shift=0.0):
    return {"h": torch.from_numpy(np.random.default_rng(seed).normal(size=(count, 5)) + shift)}


def test_the_combinations_are_entries():
    assert KINDS == ["fisher", "bonferroni", "harmonic"]


@pytest.mark.parametrize("name", KINDS)
def test_against_a_plain_loop(name):
    """Detectors of an encoder without scores of its own, fitted to four fifths, ranked among the last."""
    known, asked = rows(100, 0)["h"].numpy(), rows(30, 1)["h"].numpy()
    order = np.random.default_rng(4).permutation(100)
    rest, held = known[np.sort(order[20:])], known[np.sort(order[:20])]
    detectors = {
        "knn": KNN(1),
        "mahalanobis": Mahalanobis("ledoit-wolf"),
        "gmm": GaussianMixture(8, covariance_type="diag", seed=4),
    }
    ranked, extended = {}, []
    for of, detector in detectors.items():
        detector.fit(rest)
        c, s = detector.score_samples(held), detector.score_samples(asked)
        ranked[of] = [(1 + sum(x <= y for x in c)) / 21 for y in s]
        far = [max(min(c) - y, 0) / (np.median(c) - min(c)) for y in s]
        extended.append([p * math.exp(-d) for p, d in zip(ranked[of], far, strict=True)])
    score = score_class(name)(seed=4).fit({"h": torch.from_numpy(known)})
    features = {"h": torch.from_numpy(asked)}
    combine = {
        "fisher": lambda p: math.log(math.prod(p)),
        "bonferroni": lambda p: math.log(min(p)),
        "harmonic": lambda p: math.log(stats.hmean(p)),
    }
    expected = [combine[name](p) for p in zip(*extended, strict=True)]
    np.testing.assert_allclose(score.score(features), expected, rtol=1e-9, atol=1e-12)
    for of, p in score.parts(features).items():
        np.testing.assert_allclose(p, ranked[of.removeprefix("p_value.")])
    columns = score.columns(features)
    assert list(columns) == [name, *(other for other in KINDS if other != name)]
    for other, column in columns.items():
        expected = [combine[other](p) for p in zip(*extended, strict=True)]
        np.testing.assert_allclose(column, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.1])
@pytest.mark.parametrize("name", KINDS)
def test_false_alarms_are_beta_binomial_though_the_scores_depend_on_each_other(name, alpha):
    """Over 200 random splits of typical rows into calibration and test rows."""
    scores = score_class(name)(seed=0).fit(rows(120, 2)).score(rows(3000, 3))
    rng, n, m, alarms = np.random.default_rng(5), 400, 50, []
    for _ in range(200):
        split = scores[rng.permutation(len(scores))[: n + m]]
        alarms.append(int((split[n:] < pj.threshold(split[:n], alpha)).sum()))
    rank = math.floor(alpha * (n + 1) + 1e-9)
    law = stats.betabinom(m, rank, n + 1 - rank)
    assert law.ppf(0.0001) <= min(alarms) and max(alarms) <= law.ppf(0.9999)
    assert np.mean(alarms) < law.mean() + 4 * law.std() / math.sqrt(200)


@pytest.mark.parametrize("name", KINDS)
def test_far_rows_keep_their_order_and_equal_rows_of_the_reference_are_no_obstacle(name):
    known = rows(60, 6)["h"]
    score = score_class(name)(seed=0).fit({"h": torch.cat([known, known[:20]])})
    far = torch.stack([torch.full((5,), float(distance)) for distance in (10, 20, 40, 80)])
    far[:, 0] *= -1
    found = score.score({"h": far})
    assert np.isfinite(found).all() and (np.diff(found) < 0).all()
    with pytest.raises(
        DataError, match=f"1 of 1 embeddings to score are among those that the score '{name}' was"
    ):
        score.score({"h": known[:1]})
    for few in (known[:1], known[:1].expand(9, 5)):
        with pytest.raises(DataError, match=f"'{name}' holds out a part of its reference"):
            score_class(name)().fit({"h": few})


class Height(Score):
    name = "height"
    asked = 0

    def score(self, features):
        type(self).asked += 1
        return np.asarray(features["h"])[:, 0]


@pytest.mark.parametrize(("count", "held"), [(11, 3), (9_995, 1999), (10_001, 2000), (10_500, 2000)])
def test_a_fifth_is_held_out_and_2000_rows_at_most(count, held, monkeypatch):
    """The least p-value is one over their number and one; a set is scored once for all that is asked of it."""
    monkeypatch.setattr(combined, "available", lambda model, *, but: {"height": Height})
    score = score_class("fisher")().fit(rows(count, 7))
    some = {"h": torch.full((1, 5), -99.0)}
    Height.asked = 0
    for _ in range(2):
        assert score.parts(some) == {"p_value.height": pytest.approx(1 / (held + 1))}
        assert score.score(some) == score.columns(some)["fisher"] < math.log(1 / (held + 1))
    assert Height.asked == 1


def test_held_out_rows_of_equal_scores_have_no_scale():
    """Below the lowest of them log p falls on by the difference itself."""
    log_p, p = _log_p(np.array([0.0, -3.0, 2.0]), np.array([0.0, 0.0, 0.0, 1.0]))
    np.testing.assert_allclose(p, [4 / 5, 1 / 5, 1])
    np.testing.assert_allclose(log_p, [math.log(4 / 5), math.log(1 / 5) - 3, 0])


def images(count, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 1, 8, 8), dtype=np.uint8)
    return ImageSet(torch.from_numpy(pixels), None, [str(i) for i in range(count)], name=f"noise {seed}")


def test_a_model_brings_its_own_scores():
    model = pj.VJE("convnet", channels=1, image_size=8, backbone_options={"widths": (8, 16)}, seed=0).eval()
    found, parts = score_set(model, images(9, 0), "fisher", reference=images(50, 1))
    names = ["likelihood", "predictive", "knn", "mahalanobis", "gmm"]
    p = np.stack([parts[f"p_value.{name}"] for name in names])
    assert (found <= np.log(p).sum(0) + 1e-9).all() and set(model.uncertainty(images(1, 0).images)) < set(
        parts
    )


def test_a_table_brings_its_own_scores():
    random = np.random.default_rng(0)
    known, asked = (pd.DataFrame({"a": random.normal(size=n), "b": random.normal(size=n)}) for n in (60, 7))
    tiny = {"max_epochs": 1, "dim": 8, "n_layers": 1, "n_heads": 2, "ff_dim": 8, "device": "cpu"}
    for model, own in (
        (pj.VarTJEPA(random_state=0, **tiny), ["likelihood"]),
        (pj.TJEPA(random_state=0, **tiny), []),
    ):
        parts = score_set(model.fit(known), asked, "fisher", reference=known)[1]
        found = [name.removeprefix("p_value.") for name in parts if name.startswith("p_value.")]
        assert found == [*own, "knn", "mahalanobis", "gmm"]


def test_a_score_goes_by_the_name_that_it_is_registered_by():
    SCORES.register("knn again", KNNScore)
    try:
        model = pj.VJE(
            "convnet", channels=1, image_size=8, backbone_options={"widths": (8, 16)}, seed=0
        ).eval()
        parts = score_set(model, images(9, 0), "fisher", reference=images(50, 1))[1]
    finally:
        SCORES.remove("knn again")
    np.testing.assert_array_equal(parts["p_value.knn again"], parts["p_value.knn"])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("held", "log_p"),
    [
        ([-np.inf, 0.0, 1.0], [-math.log(2), -math.log(2), 0]),
        ([-np.inf, -np.inf, -np.inf], [0, 0, 0]),
        ([0.0, np.inf, np.inf], [-np.inf, -math.log(4) - 3, -math.log(2)]),
        ([0.0, 1.0, 2.0], [-np.inf, -math.log(4) - 3, 0]),
    ],
)
def test_infinite_scores_have_a_rank(held, log_p):
    """Nothing is below −∞; a scale that is no number is 1."""
    found, p = _log_p(np.array([-np.inf, -3.0, 5.0]), np.array(held))
    np.testing.assert_allclose(found, log_p)
    assert (p > 0).all()
