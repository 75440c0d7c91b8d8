"""The evaluation protocol: nothing fitted is scored, and every figure is the plain library's."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

import probjepa
from probjepa.data import ImageSet
from probjepa.errors import ConfigError, DataError
from probjepa.evaluation import describe, evaluate


def images(count, seed, labels=True, low=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(low, 256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    classes = torch.randint(0, 3, (count,), generator=generator) if labels else None
    return ImageSet(pixels, classes, [str(i) for i in range(count)], None, f"set {seed}")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    method = probjepa.VJE("convnet", channels=1, image_size=16, backbone_options={"widths": (8, 16)})
    return method.eval()


@pytest.fixture(scope="module")
def result(model):
    return evaluate(model, images(60, 0), images(40, 1), {"far": images(30, 2, low=200)}, n_bootstrap=50)


def test_metrics_are_json_and_complete(result):
    metrics = json.loads(json.dumps(result.metrics, allow_nan=False))
    assert set(metrics["accuracy"]) == {"h", "mu", "random-init", "raw pixels"}
    assert {
        "likelihood",
        "predictive",
        "knn",
        "mahalanobis",
        "gmm",
        "knn, random-init",
        "knn, raw pixels",
    } == set(metrics["ood"]["far"])
    assert metrics["left_out_as_in_train"] == {"test": 0, "far": 0}
    assert metrics["hardware"]
    assert metrics["version"] == probjepa.__version__


def test_figures_against_scikit_learn(model, result):
    train, test = images(60, 0), images(40, 1)
    for space, key in (("h", "h"), ("mu", "mu")):
        bank, query = (model.features(s.images)[key].numpy() for s in (train, test))
        nearest = KNeighborsClassifier(20, metric="cosine").fit(bank, train.labels)
        counts = nearest.predict_proba(query)
        clear = np.sort(counts, 1)[:, -1] > np.sort(counts, 1)[:, -2]  # ties are broken otherwise here
        hits = (nearest.predict(query) == test.labels.numpy())[clear].sum()
        value = result.metrics["accuracy"][space]["knn20"]["value"] * len(test)
        assert hits <= round(value) <= hits + (~clear).sum()
    for detector, of in result.arrays["scores"].items():
        truth = np.r_[np.zeros(40), np.ones(30)]
        expected = roc_auc_score(truth, -np.r_[of["test"], of["far"]])
        assert result.metrics["ood"]["far"][detector]["auroc"]["value"] == pytest.approx(expected)


def test_rows_of_train_are_left_out_and_counted(model):
    train, test = images(60, 0), images(40, 1)
    mixed = ImageSet(
        torch.cat([test.images, train.images[:5]]),
        torch.cat([test.labels, train.labels[:5]]),
        [str(i) for i in range(45)],
    )
    found = evaluate(model, train, mixed, n_bootstrap=10)
    assert found.metrics["left_out_as_in_train"] == {"test": 5}
    clean = evaluate(model, train, test, n_bootstrap=10)
    assert found.metrics["accuracy"] == clean.metrics["accuracy"]


def test_a_set_evaluated_on_itself_is_refused(model):
    with pytest.raises(DataError, match="also in"):
        evaluate(model, images(60, 0), images(60, 0))


def test_the_name_test_is_taken(model):
    with pytest.raises(ConfigError, match="name the OOD set differently"):
        evaluate(model, images(60, 0), images(40, 1), {"test": images(30, 2)})


def test_without_labels_there_are_no_accuracies(model):
    found = evaluate(model, images(60, 0, labels=False), images(40, 1), n_bootstrap=10)
    assert found.metrics["accuracy"] == {}


def test_a_backbone_of_ones_own_has_no_random_baseline():
    torch.manual_seed(0)
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8))
    own = probjepa.VJE(encoder, channels=1, image_size=8).eval()
    found = evaluate(own, images(60, 0), images(40, 1), {"far": images(30, 2)}, n_bootstrap=10)
    assert "random-init" not in found.metrics["accuracy"]
    assert "knn, random-init" not in found.metrics["ood"]["far"]


def test_the_evaluation_is_reproducible(model, result):
    again = evaluate(model, images(60, 0), images(40, 1), {"far": images(30, 2, low=200)}, n_bootstrap=50)
    assert again.metrics == result.metrics


def test_describe_hashes_the_pixels():
    one, other = images(10, 0), images(10, 0)
    assert describe(one) == describe(other)
    other.images[3, 0, 0, 0] ^= 1
    assert describe(one)["sha256"] != describe(other)["sha256"]


def test_jepa_score_stands_beside_the_others(model):
    train, test, far = images(60, 0), images(12, 1), images(12, 2, low=200)
    found = evaluate(model, train, test, {"far": far}, n_bootstrap=10, jepa=True)
    scores = found.arrays["scores"]
    np.testing.assert_allclose(
        scores["jepa"]["far"], probjepa.jepa_score(model, far.images).numpy(), atol=1e-6
    )
    latent = model.embed(train.images)
    expected = probjepa.jepa_score(model, test.images, latent=latent).numpy()
    np.testing.assert_allclose(scores["jepa + latent"]["test"], expected, atol=1e-6)
    assert {"jepa", "jepa + latent"} <= set(found.metrics["ood"]["far"])
