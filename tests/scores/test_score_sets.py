"""Scores of sets: the model's own densities row by row, and detectors against numpy and scikit-learn."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from sklearn.mixture import GaussianMixture

from probjepa import VJE, open_encoder
from probjepa.data import ImageSet
from probjepa.distributions import PolarStudentTMixture
from probjepa.errors import ConfigError, DataError
from probjepa.jacobian import jepa_score_details
from probjepa.methods import Method
from probjepa.scores import SCORES, SetScorer, encode, score_class, score_set
from probjepa.scores.base import Score
from probjepa.scores.combined import Combined
from probjepa.scores.detectors import KNNScore, MixtureScore, knn_neighbour
from probjepa.scores.jepa import Jepa
from probjepa.scores.own import Own
from probjepa.scores.sets import draw
from probjepa.scores.table import available, detectors, leaves_one_out


def images(n, seed, size=8):
    pixels = torch.randint(
        0, 256, (n, 1, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    return ImageSet(pixels, None, [str(i) for i in range(n)], name=f"noise {seed}")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return VJE("convnet", channels=1, image_size=8, backbone_options={"widths": (8, 16)}).train()


@pytest.fixture(scope="module")
def held_out():
    return images(13, 1)


@pytest.fixture(scope="module")
def reference():
    return images(40, 2)


def embeddings(model, images):
    return model.embed(images.images).double().numpy()


@pytest.mark.parametrize("progress", [False, True])
def test_encode_is_features_in_batches(model, held_out, progress):
    found, expected = (
        encode(model, held_out, batch_size=5, progress=progress),
        model.features(held_out.images),
    )
    assert list(found) == list(expected) == ["h", "mu", "variance"]
    for key, value in found.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected[key], rtol=0, atol=1e-5)
    assert model.training  # as it was


@pytest.mark.parametrize(("options", "bar"), [({}, False), ({"progress": True}, True)])
def test_encode_says_what_it_encodes(model, held_out, monkeypatch, options, bar):
    said = []
    monkeypatch.setattr(
        "probjepa.scores.sets.tracked", lambda items, *what, shown: said.append((*what, shown)) or items
    )
    encode(model, held_out, batch_size=5, **options)
    assert said == [("encoding noise 1", 3, bar)]  # three batches


@pytest.fixture
def read(monkeypatch):
    """What methods are asked for: how many rows, in batches of how many, and whether they are scored."""
    asked, features = [], Method.features

    def watched(self, x, batch_size=None, *, scored=None):
        asked.append((len(x), batch_size, scored))
        return features(self, x, batch_size or 512)

    monkeypatch.setattr(Method, "features", watched)
    return asked


@pytest.mark.parametrize(("options", "scored"), [({}, True), ({"scored": False}, False)])
def test_encode_asks_for_no_more_than_is_needed(model, held_out, read, options, scored):
    encode(model, held_out, batch_size=5, **options)
    assert read == [(5, 5, scored), (5, 5, scored), (3, 5, scored)]


def test_a_set_is_encoded_once_and_the_reference_too(model, held_out, reference, read):
    plain, model, half = Plain().eval(), deepcopy(model).eval(), held_out.subset(range(6))
    for encoder, score, own in ((plain, "knn", False), (model, "knn", True), (plain, "predictive", True)):
        scorer = SetScorer(encoder, score, reference=reference)
        assert scorer.embeddings is None
        for data in (held_out, half):
            scorer(data)
            h = encoder.features_of(encoder(encoder.preprocess(data.images)))["h"]
            torch.testing.assert_close(scorer.embeddings, h.detach(), rtol=0, atol=1e-5)
        assert [(rows, scored) for rows, _, scored in read] == [(13, own), (40, False), (6, own)]
        read.clear()
    SetScorer(model, "likelihood")(held_out)
    assert (read[-1][0], read[-1][2]) == (13, True)  # one image was read before, for the names of the scores


def test_jepa_reads_embeddings_only_for_measures_of_uncertainty(model, held_out, read):
    model, few = deepcopy(model).eval(), held_out.subset(range(2))
    scorer = SetScorer(Plain().eval(), "jepa")
    found, parts = scorer(few)
    assert read == [] and scorer.embeddings is None and found.shape == (2,)
    assert list(parts) == ["log_volume", "latent", "sigma_max", "sigma_min"]
    found, parts = SetScorer(model, "jepa")(few)
    np.testing.assert_allclose(found, jepa_score_details(model, few).score)
    assert set(model.uncertainty(few.images)) < set(parts)


@pytest.mark.parametrize(("options", "shown"), [({}, False), ({"progress": True}, True)])
def test_a_score_shows_a_bar_where_it_is_asked_for(model, monkeypatch, options, shown):
    made = []
    monkeypatch.setattr(Jepa, "__init__", lambda self, model, **given: made.append(given))
    SetScorer(model, "jepa", **options)
    assert made == [{"seed": 0, "progress": shown}]


def test_likelihood_and_its_parts(model, held_out):
    score, parts = score_set(model, held_out, "likelihood")
    assert (score.shape, score.dtype) == ((13,), np.float64)
    np.testing.assert_allclose(score, model.score_samples(held_out.images), rtol=1e-6)
    for name, value in model.uncertainty(held_out.images).items():
        np.testing.assert_allclose(parts[name], value, rtol=1e-5)


def test_predictive(model, held_out, reference):
    score, parts = score_set(model, held_out, "predictive", reference=reference)
    expected = model.score_samples(held_out.images, score="predictive", reference=reference.images)
    np.testing.assert_allclose(score, expected, rtol=1e-6)
    np.testing.assert_allclose(
        parts["h_norm"], np.linalg.norm(embeddings(model, held_out), axis=1), rtol=1e-6
    )


def test_knn(model, held_out, reference):
    score, parts = score_set(model, held_out, "knn", reference=reference)
    h, known = embeddings(model, held_out), embeddings(model, reference)
    h, known = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (h, known))
    distances = np.linalg.norm(h[:, None] - known[None], axis=2)
    np.testing.assert_allclose(score, -distances.min(1), rtol=1e-6)  # 0.1 % of 40 rows is the nearest
    uncertain = model.uncertainty(held_out.images)
    assert set(parts) == set(uncertain)
    for name, value in uncertain.items():
        np.testing.assert_allclose(parts[name], value, rtol=1e-5)


def test_mahalanobis(model, held_out, reference):
    score, _ = score_set(model, held_out, "mahalanobis", reference=reference)
    oracle = LedoitWolf().fit(embeddings(model, reference))
    np.testing.assert_allclose(score, -oracle.mahalanobis(embeddings(model, held_out)), rtol=1e-6)


def test_gmm(model, held_out, reference):
    score, _ = score_set(model, held_out, "gmm", reference=reference)
    oracle = GaussianMixture(4, covariance_type="diag", random_state=0)  # a tenth of the rows
    oracle.fit(embeddings(model, reference))
    np.testing.assert_allclose(score, oracle.score_samples(embeddings(model, held_out)), rtol=1e-6)


def test_neighbours_and_components_grow_with_the_set():
    assert knn_neighbour(50_000) == 50
    assert knn_neighbour(1_281_167) == 1281
    assert [knn_neighbour(n) for n in (1, 499, 2499)] == [1, 1, 2]
    assert [MixtureScore().make(n).n_components for n in (5, 50, 10_000)] == [1, 5, 10]
    assert MixtureScore(seed=7).make(50).seed == 7
    assert KNNScore().make(3000).k == 3


@pytest.mark.parametrize("turned", [False, True])
def test_a_reference_of_the_scored_rows_leaves_each_out(model, reference, turned):
    """kNN as a loop over the rows; predictive as the density of the others, at the scale of all."""
    same = reference.subset(torch.arange(len(reference)).flip(0)) if turned else reference
    found = score_set(model, same, "knn", reference=reference)[0]
    for row in range(3):
        others = [other for other in range(len(same)) if other != row]
        alone = score_set(model, same.subset([row]), "knn", reference=same.subset(others))[0]
        np.testing.assert_allclose(found[row], alone[0], rtol=1e-5)
    found, parts = score_set(model, same, "predictive", reference=reference)
    density = model.predictive(model.features(same.images))
    keep = torch.arange(1, len(same))
    others = PolarStudentTMixture(density.centers[keep], density.scale_squared[keep], 1.0, density.scale)
    np.testing.assert_allclose(found[0], others.log_prob(density.centers[:1])[0], rtol=1e-6)
    assert "mean_variance" in parts


def test_copies_stay_when_a_row_is_left_out(model, reference):
    twice = reference.subset([0, 0, 1, 2, 3])
    found = score_set(model, twice, "knn", reference=twice)[0]
    assert found[0] == found[1] == 0 and (found[2:] < 0).all()


def test_calibration_rows_are_scored_against_all_when_the_scored_rows_are_the_reference(
    model, reference, held_out
):
    scorer = SetScorer(model, "knn", reference=reference)
    before = scorer(held_out)[0]
    scorer(reference)
    np.testing.assert_array_equal(scorer(held_out)[0], before)


@pytest.mark.parametrize("score", ["knn", "predictive", "mahalanobis"])
def test_calibration_rows_and_parts_of_the_inputs_may_not_be_the_reference(model, reference, score):
    scorer = SetScorer(model, score, reference=reference)
    some = reference.subset(range(3))
    for data, count in ((reference, 40), (some, 3)):
        for options, what in (
            ({"calibration": True}, "calibration images"),
            ({"part": True}, "images to score"),
        ):
            with pytest.raises(DataError, match=f"{count} of {count} {what} are in the reference"):
                scorer(data, **options)


@pytest.mark.parametrize("score", ["mahalanobis", "gmm", "fisher"])
def test_other_scores_refuse_their_reference(model, reference, score):
    with pytest.raises(DataError, match="40 of 40 images to score are in the reference"):
        score_set(model, reference, score, reference=reference)


WITH_REFERENCE = [name for name in SCORES if "reference" in score_class(name).needs]


@pytest.mark.parametrize("score", WITH_REFERENCE)
def test_a_row_of_the_reference_is_refused(model, held_out, reference, score):
    both = ImageSet(torch.cat([held_out.images, reference.images[7:9]]), None, [str(i) for i in range(15)])
    with pytest.raises(DataError, match="2 of 15 images to score are in the reference") as error:
        score_set(model, both, score, reference=reference)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("score", detectors())
def test_an_embedding_of_the_reference_is_refused(held_out, reference, score, monkeypatch):
    """Two images that differ, and that the encoder cannot tell apart."""

    def features(self, images, batch_size=512, *, scored=True):
        values = images.flatten(1).float()
        values[:, 0] = 0
        return {"h": values}

    monkeypatch.setattr(Plain, "features", features)
    twin = reference.images[7:8].clone()
    twin[0, 0, 0, 0] ^= 1
    both = ImageSet(torch.cat([held_out.images, twin]), None, [str(i) for i in range(14)])
    name = {"knn": "KNN", "mahalanobis": "Mahalanobis", "gmm": "GaussianMixture"}[score]
    with pytest.raises(
        DataError, match=f"1 of 14 embeddings to score are among those that {name} was fitted on"
    ) as e:
        score_set(Plain(), both, score, reference=reference)
    assert "\n" not in str(e.value)
    assert np.isfinite(score_set(Plain(), held_out, score, reference=reference)[0]).all()


@pytest.mark.parametrize("score", WITH_REFERENCE)
def test_a_missing_reference(model, held_out, score):
    with pytest.raises(ConfigError, match=f"'{score}' needs a reference set: pass --reference"):
        score_set(model, held_out, score)


class Plain(Method):
    name = "plain"

    def __init__(self):
        super().__init__("convnet", backbone_options={"widths": (8,)}, channels=1, image_size=8)


def test_wrong_scores(model, held_out, reference):
    with pytest.raises(ConfigError, match="unknown score 'knnn', did you mean 'knn'"):
        score_set(model, held_out, "knnn", reference=reference)
    with pytest.raises(ConfigError, match="uses no reference set"):
        score_set(model, held_out, "likelihood", reference=reference)
    gaussian = VJE("convnet", channels=1, image_size=8, df=float("inf"))
    assert "predictive" not in available(gaussian, but=Combined)
    with pytest.raises(ConfigError, match="polar Student-t densities: it needs likelihood='polar'"):
        score_set(gaussian, held_out, "predictive", reference=reference)


def test_a_method_without_a_likelihood_has_the_detectors(held_out, reference, monkeypatch):
    plain = Plain()
    for score in [*detectors(), "predictive"]:
        assert np.isfinite(score_set(plain, held_out, score, reference=reference)[0]).all()
    monkeypatch.setattr(Plain, "features", None)  # the refusal comes before any work
    with pytest.raises(ConfigError, match=r"Plain has no likelihood.*use predictive, knn, mahalanobis, gmm"):
        score_set(plain, held_out, "likelihood")


def test_predictive_of_any_encoder_is_the_density_of_its_neighbours(held_out, reference):
    plain = Plain()
    found, parts = score_set(plain, held_out, "predictive", reference=reference)
    density = PolarStudentTMixture.of_neighbours(plain.embed(reference.images))
    np.testing.assert_allclose(found, density.log_prob(plain.embed(held_out.images)))
    assert list(parts) == ["h_norm"]
    same, _ = score_set(plain, reference, "predictive", reference=reference)
    np.testing.assert_allclose(same, density.leave_one_out())


def test_predictive_of_a_frozen_vje_is_the_density_of_its_neighbours(held_out, reference):
    frozen = VJE(Plain(), freeze=True, df=3.0, seed=0).eval()
    found, _ = score_set(frozen, held_out, "predictive", reference=reference)
    density = PolarStudentTMixture.of_neighbours(frozen.embed(reference.images), 3.0)
    np.testing.assert_allclose(found, density.log_prob(frozen.embed(held_out.images)))


def test_a_part_of_the_models_own_is_a_score(model, held_out):
    own = model.ood_scores(model.features(held_out.images))
    for name in set(own) - set(SCORES):
        score, parts = score_set(model, held_out, name)
        np.testing.assert_allclose(score, own[name].numpy(), rtol=1e-6)
        assert set(parts) == set(model.uncertainty(held_out.images))
        kind = Own.named(name)
        assert (kind.__name__, kind.name, kind.summary) == ("Own", name, f"the model's own '{name}'")


@pytest.mark.parametrize(("options", "shown"), [({}, False), ({"progress": True}, True)])
def test_a_bar_is_shown_where_it_is_asked_for(model, held_out, reference, monkeypatch, options, shown):
    asked = []
    monkeypatch.setattr(
        "probjepa.scores.sets.tracked", lambda items, what, total, *, shown: asked.append(shown) or items
    )
    SetScorer(model, "knn", reference=reference, **options)(held_out)
    assert asked == [shown, shown]  # of the set and of the reference


def test_every_detector_needs_a_reference_and_nothing_else():
    assert detectors() == ["knn", "mahalanobis", "gmm"]


def test_the_scores_that_a_model_has(model):
    own, combined = ["likelihood", "predictive"], ["fisher", "bonferroni", "harmonic"]
    assert list(available(model, but=Combined)) == [*own, *detectors()]
    assert list(available(model, but=Combined, gradients=True)) == [*own, "jepa", *detectors()]
    assert list(available(model, but=Own)) == ["predictive", *detectors(), *combined]
    assert list(available(None, but=Combined, gradients=True)) == detectors()
    assert available(model, but=Combined)["knn"] is KNNScore


def test_scores_that_compare_the_rows_of_a_reference():
    assert [name for name in SCORES if leaves_one_out(name)] == ["predictive", "knn"]
    assert leaves_one_out(KNNScore) and not leaves_one_out(MixtureScore)
    assert not leaves_one_out("radial")  # a model's own


def test_a_part_of_the_reference_is_the_score_of_those_rows():
    """Drawn by the seed, fitted as if it were given alone; a reference that is no larger is taken whole."""
    encoder = open_encoder(torch.nn.Flatten(), image_size=8)
    pixels = torch.randint(
        0, 256, (60, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(3)
    )
    known, asked = pixels[:40], pixels[40:]
    found, _ = SetScorer(encoder, "knn", reference=known, reference_size=10, seed=2)(asked)
    rows = draw(40, 10, 2)
    assert len(set(rows.tolist())) == 10 and not np.array_equal(rows, draw(40, 10, 3))
    assert len(draw(40, 2, 0)) == 2  # the least
    assert len(set(draw(40, 39, 0).tolist())) == 39
    assert draw(40, 40, 0) is draw(40, None, 0) is None  # all
    for size in ("12", 12.5):
        with pytest.raises(ConfigError, match="the setting reference_size takes a whole number or null"):
            draw(40, size, 0)
    expected, _ = SetScorer(encoder, "knn", reference=known[rows])(asked)
    np.testing.assert_array_equal(found, expected)
    whole, _ = SetScorer(encoder, "knn", reference=known, reference_size=40)(asked)
    np.testing.assert_array_equal(whole, SetScorer(encoder, "knn", reference=known)(asked)[0])
    assert not np.array_equal(whole, found)
    for reference, size, data in ((known, 1, asked), (None, 5, asked), (known, 5, known)):
        with pytest.raises(ConfigError, match="reference"):
            SetScorer(encoder, "knn", reference=reference, reference_size=size)(data)


@pytest.mark.parametrize("score", ["likelihood", "knn", "fisher", "gmm"])
@pytest.mark.parametrize("seed", [-1, 10**23, 0.5])
def test_a_seed_is_a_whole_number_from_0(model, score, seed):
    known = None if score == "likelihood" else images(20, 1)
    more = {"reference_size": 10} if score == "knn" else {}
    with pytest.raises(ConfigError, match="seed"):
        SetScorer(model, score, reference=known, seed=seed, **more)


def test_an_empty_set_and_an_empty_reference_are_one_line(model, held_out, reference):
    for data, known in ((held_out.subset([]), None), (held_out, reference.subset([]))):
        with pytest.raises(DataError, match=r"nothing to score|reference set is empty") as error:
            score_set(model, data, "likelihood" if known is None else "knn", reference=known)
        assert "\n" not in str(error.value)


def test_a_model_of_nan_weights_is_one_line(model, held_out):
    broken = deepcopy(model)
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    for call in (lambda: broken.embed(held_out), lambda: score_set(broken, held_out, "likelihood")):
        with pytest.raises(DataError, match=r"NaN or Inf for .* images: check its weights"):
            call()


def test_a_score_that_is_nan_is_one_line(model, held_out):
    class Odd(Score):
        name = "odd"

        def score(self, features):
            return np.full(len(features["inputs"]), np.nan)

    with pytest.raises(DataError, match="the score 'odd' is NaN for"):
        score_set(model, held_out, Odd)
