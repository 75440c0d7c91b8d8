"""Selective prediction of the kNN classifier against brute force."""

import json

import numpy as np
import pytest
import torch

from probjepa import metrics
from probjepa.errors import DataError
from probjepa.evaluation import selective_prediction


def blobs(count, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=count)
    return torch.from_numpy(2 * np.eye(3, 5)[labels] + rng.normal(size=(count, 5))), torch.from_numpy(labels)


BANK, TEST = blobs(150, 0), blobs(61, 1)


def brute_force():
    unit = [x / x.norm(dim=1, keepdim=True) for x in (BANK[0], TEST[0])]
    similarity = (unit[1] @ unit[0].T).numpy()
    right, share, distance = [], [], []
    for row, truth in zip(similarity, TEST[1].tolist(), strict=True):
        nearest = np.argsort(-row)[:20]
        labels = BANK[1].numpy()[nearest]
        votes = {c: ((labels == c).sum(), row[nearest][labels == c].sum()) for c in range(3)}
        winner = max(votes, key=votes.get)
        right.append(winner == truth)
        share.append(votes[winner][0] / 20)
        distance.append(np.sqrt(2 - 2 * row[nearest[-1]]))
    return np.array(right), np.array(share), np.array(distance)


def risks(confidence, right):
    """Mean over many orders among equals of the error of the most confident, at every count."""
    rng = np.random.default_rng(0)
    curves = []
    for _ in range(3000):
        order = np.lexsort((rng.random(len(right)), -confidence))
        curves.append(np.cumsum(~right[order]) / np.arange(1, len(right) + 1))
    return np.mean(curves, 0)


@pytest.fixture(scope="module")
def found():
    rng = np.random.default_rng(5)
    score = rng.normal(size=61)
    return (
        selective_prediction(
            *BANK,
            *TEST,
            scores={"knn": score},
            measures={"twin": -score, "cube": score**3, "other": rng.random(61), "flat": np.ones(61)},
        ),
        score,
    )


def test_curves_against_brute_force(found):
    result, score = found
    right, share, distance = brute_force()
    for source, confidence in {"kNN vote share": share, "kNN distance": -distance, "knn": score}.items():
        expected = risks(confidence, right)
        np.testing.assert_allclose(result[source]["curve"]["risk"], expected, atol=0.02)
        assert result[source]["aurc"] == pytest.approx(expected.mean(), abs=0.005)
    assert result["knn"]["accuracy_at"]["0.5"] == pytest.approx(right[np.argsort(-score)[:31]].mean())
    assert result["knn"]["accuracy_at"]["1.0"] == pytest.approx(right.mean())


def test_random_is_the_error_rate_at_every_coverage(found):
    right = brute_force()[0]
    np.testing.assert_allclose(found[0]["random"]["curve"]["risk"], 1 - right.mean())
    assert set(found[0]["random"]["accuracy_at"]) == {"1.0", "0.9", "0.8", "0.5"}


def test_a_measure_that_orders_as_a_score_does_is_that_score(found):
    assert set(found[0]) == {"kNN vote share", "kNN distance", "knn", "other", "flat", "random"}
    json.dumps(found[0], allow_nan=False)


def test_a_long_curve_is_thinned_and_keeps_its_end():
    test = blobs(1000, 2)
    of = selective_prediction(*BANK, *test, scores={}, measures={})["kNN vote share"]
    assert len(of["curve"]["coverage"]) == len(of["curve"]["risk"]) <= 200
    assert of["curve"]["coverage"][-1] == 1
    assert of["curve"]["risk"][-1] == pytest.approx(1 - of["accuracy_at"]["1.0"])


def test_a_vote_that_is_known_is_taken():
    vote = metrics.knn_vote(*BANK, TEST[0], k=20)
    asked, given = (
        selective_prediction(*BANK, *TEST, scores={}, measures={}, vote=of) for of in (None, vote)
    )
    assert asked == given
    other = selective_prediction(*BANK, *TEST, scores={}, measures={}, vote=(vote[0] * 0, vote[1]))
    right = float((TEST[1] == 0).double().mean())
    assert other["random"]["accuracy_at"]["1.0"] == pytest.approx(right)


def test_rows_of_the_bank_are_refused():
    with pytest.raises(DataError, match="1 of 2 embeddings to score are among those that KNN was fitted on"):
        selective_prediction(
            *BANK, torch.stack([BANK[0][5], TEST[0][0]]), torch.tensor([0, 1]), scores={}, measures={}
        )
