"""The evaluation protocol: nothing fitted is scored, and every figure is the plain library's."""

import dataclasses
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

import probjepa
from probjepa import metrics, open_images
from probjepa.data import ImageSet, StreamedImages, fingerprint, overlap
from probjepa.data.codec import reencode
from probjepa.errors import ConfigError, DataError, ProbjepaWarning
from probjepa.evaluation import describe, evaluate
from probjepa.evaluation.images import _jacobian_arrays
from probjepa.methods import Method, ProbabilisticMethod
from probjepa.report.evaluation import evaluation_report
from probjepa.scores import score_set


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


def test_spectra_are_of_images_from_all_over_a_set(model):
    """A folder's images lie class by class."""
    asked = []

    class Watched(ImageSet):
        def get(self, rows):
            asked.append(torch.arange(len(self))[rows])
            return super().get(rows)

    of = images(200, 0)
    arrays = _jacobian_arrays(model, {"test": Watched(of.images, of.labels, of.ids, None, "watched")}, 0)
    (rows,) = asked
    assert len(rows) == len(arrays["spectra"]["test"]) == 64 and len(rows.unique()) == 64
    assert rows.float().mean() == pytest.approx(100, abs=25)
    # and so are the six whose singular vectors are drawn
    shown = arrays["singular"]["images"]
    resized = model.preprocess(of.images[rows]).flatten(1)
    prepared = torch.tensor(shown).float().flatten(1)
    nearest = [int(torch.corrcoef(torch.cat([one[None], resized]))[0, 1:].argmax()) for one in prepared]
    assert nearest == [0, 10, 20, 30, 40, 50]


def test_metrics_are_json_and_complete(result):
    found = json.loads(json.dumps(result.metrics, allow_nan=False))
    assert set(found["accuracy"]) == {"h", "mu", "random-init", "raw pixels"}
    assert {
        "likelihood",
        "predictive",
        "directional",
        "radial",
        "kl",
        "mean variance",
        "anisotropy",
        "knn",
        "mahalanobis",
        "gmm",
        "fisher",
        "bonferroni",
        "harmonic",
        "knn, random-init",
        "knn, raw pixels",
    } == set(found["ood"]["far"])
    assert found["left_out_as_in_train"] == {"test": 0, "far": 0}
    assert found["hardware"]
    assert found["version"] == probjepa.__version__


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


def test_settings_are_of_their_type(model):
    sets = images(9, 1), images(9, 2)
    for name, value in (("n_bootstrap", "x"), ("reference_size", "12"), ("reference_size", 12.5)):
        with pytest.raises(ConfigError, match=f"the setting {name} takes a whole number"):
            evaluate(model, *sets, **{name: value})
    with pytest.raises(ConfigError, match="ood is a list: give a mapping, name → set"):
        evaluate(model, *sets, [sets[1]])


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


def test_balanced_accuracy_is_scikit_learns(model):
    rare = images(40, 1)
    rare = dataclasses.replace(rare, labels=(rare.labels == 0).long())
    train = images(60, 0)
    train = dataclasses.replace(train, labels=(train.labels == 0).long())
    found = evaluate(model, train, rare, n_bootstrap=5)
    answers = metrics.linear_predict(model.embed(train.images), train.labels, model.embed(rare.images))
    for of, expected in (
        (found.metrics["accuracy"], (answers == rare.labels.numpy()).mean()),
        (found.metrics["balanced_accuracy"], balanced_accuracy_score(rare.labels, answers)),
    ):
        assert of["h"]["linear"]["value"] == pytest.approx(expected)
    assert "Balanced accuracy" in evaluation_report(found.metrics)


@pytest.mark.parametrize("named", [False, True])
def test_every_score_of_every_image_is_a_row(model, named):
    train, test, far = images(60, 0), images(40, 1), images(30, 2, labels=False, low=200)
    held_out = images(50, 3, labels=False)
    if named:
        train, test = (dataclasses.replace(of, classes=["a", "b", "c"]) for of in (train, test))
    found = evaluate(model, train, test, {"far": far}, calibration=held_out, n_bootstrap=5)
    rows = found.arrays["rows"].to_pandas()
    assert rows["set"].value_counts().to_dict() == {"test": 40, "far": 30, "calibration": 50}
    for name, by_set in found.arrays["scores"].items():
        assert set(by_set) == {"test", "far"}
        for of, values in by_set.items():
            np.testing.assert_array_equal(rows.loc[rows["set"] == of, name], values)
    of_test = rows[rows["set"] == "test"]
    assert of_test["id"].tolist() == test.ids
    names = ["a", "b", "c"] if named else ["0", "1", "2"]
    assert of_test["label"].tolist() == [names[i] for i in test.labels]
    right = (of_test["label"] == of_test["prediction"]).mean()
    assert right == pytest.approx(found.metrics["accuracy"]["h"]["knn20"]["value"])
    assert rows.loc[rows["set"] != "test", "label"].isna().all()
    np.testing.assert_allclose(
        of_test["uncertainty"], model.uncertainty(test.images)["mean_variance"], rtol=1e-5
    )


def test_thresholds_are_read_off_the_calibration_set_or_half_of_the_test_set(model, result):
    train, test, far, held_out = images(60, 0), images(40, 1), images(30, 2, low=200), images(50, 3)
    found = evaluate(model, train, test, {"far": far}, calibration=held_out, n_bootstrap=5).metrics
    scores = {of: score_set(model, s, "knn", reference=train)[0] for of, s in
              (("test", test), ("far", far), ("calibration", held_out))}  # fmt: skip
    for alpha in (0.05, 0.1):
        least = probjepa.threshold(scores["calibration"], alpha)
        rates = found["decisions"]["flagged"]["knn"][str(alpha)]
        for of in ("test", "far"):
            assert rates[of]["value"] == pytest.approx((scores[of] < least).mean())
    assert found["decisions"]["rows"] == {"calibration": 50, "test": 40, "split": False}
    assert "far" in found["ood"] and "calibration" not in found["ood"]
    halves = result.metrics["decisions"]
    assert halves["rows"] == {"calibration": 20, "test": 20, "split": True}
    assert set(halves["flagged"]) == set(result.metrics["ood"]["far"])
    assert set(halves["band"]) == {"0.05", "0.1"}  # 20 rows are too few for 0.01
    page = evaluation_report(result.metrics, result.arrays)
    assert "5 % asked for" in page and "what may be expected" in page


def test_test_images_among_another_set_are_said(model):
    test = images(40, 1)
    with pytest.raises(DataError, match="every image of the set 'far' is also a test image"):
        evaluate(model, images(60, 0), test, {"far": test.subset(np.arange(9))})
    both = torch.cat([test.images[:3], images(20, 2, low=200).images])
    with pytest.warns(ProbjepaWarning, match="3 of 23 images of the set 'far' are also test images"):
        evaluate(model, images(60, 0), test, {"far": ImageSet(both, None, [str(i) for i in range(23)])},
                 n_bootstrap=5)  # fmt: skip


def test_too_few_calibration_images_are_refused(model):
    with pytest.raises(DataError, match=r"8 calibration rows are too few for alpha = 0\.1: give at least 9"):
        evaluate(model, images(60, 0), images(40, 1), calibration=images(8, 3))


def test_calibration_images_that_are_evaluated_are_refused(model):
    with pytest.raises(DataError, match="40 of 40 test images are in the calibration set"):
        evaluate(model, images(60, 0), images(40, 1), calibration=images(40, 1))
    with pytest.raises(ConfigError, match="the name of an OOD set is 3: give a text"):
        evaluate(model, images(60, 0), images(40, 1), {3: images(10, 2)})
    with pytest.raises(ConfigError, match="'calibration' is the name of the calibration set"):
        evaluate(model, images(60, 0), images(40, 1), {"calibration": images(9, 2)})


def test_the_evaluation_is_reproducible(model, result):
    again = evaluate(model, images(60, 0), images(40, 1), {"far": images(30, 2, low=200)}, n_bootstrap=50)
    assert again.metrics == result.metrics


def test_own_scores_are_the_methods(model, result):
    far = images(30, 2, low=200).images
    with torch.no_grad():
        own = model.ood_scores(model.features(far))
    for name, values in own.items():
        np.testing.assert_allclose(result.arrays["scores"][name]["far"], values.numpy(), rtol=1e-4)


def test_geometry_is_the_metric_of_the_posterior_means(model, result):
    test = images(40, 1)
    features = model.features(test.images)
    with torch.no_grad():
        measures = {"nll": -model.score_features(features), **model.uncertainty_of_features(features)}
    expected = metrics.uncertainty_geometry(features["mu"], test.labels, measures, n_bootstrap=50)
    found = result.metrics["geometry"]
    assert set(found["spearman"]) == set(measures)
    assert found["margin"] == pytest.approx(expected["margin"], rel=1e-4)
    for name in measures:
        assert found["spearman"][name]["margin"]["value"] == pytest.approx(
            expected["spearman"][name]["margin"]["value"], abs=0.02
        )


@pytest.mark.parametrize("labels", [None, torch.zeros(40, dtype=torch.int64)], ids=["none", "one class"])
def test_without_classes_there_is_no_geometry(model, labels):
    test = dataclasses.replace(images(40, 1), labels=labels)
    found = evaluate(model, images(60, 0), test, n_bootstrap=10).metrics
    assert "geometry" not in found
    assert ("selective" in found) == (labels is not None)


class Plain(Method):
    name = "plain"

    def __init__(self):
        super().__init__("convnet", backbone_options={"widths": (8,)}, channels=1, image_size=16)


class Concentrated(ProbabilisticMethod, Plain):
    """A probabilistic method that is no VJE, with scores and measures of its own."""

    def score_features(self, features):
        return features["h"].double().sum(1)

    def ood_scores(self, features):
        return {"likelihood": self.score_features(features), "concentration": features["h"][:, 0].double()}

    def uncertainty_of_features(self, features):
        return {"spread": features["h"].double().std(1), "dispersion": -features["h"][:, 0].double()}


def without_a_twin(method):
    method.reinitialised = lambda seed=0: (_ for _ in ()).throw(ConfigError("none"))
    return method


def test_different_images_of_one_embedding_are_evaluated():
    train, test = images(60, 0), images(40, 1)
    test.images[3] = train.images[7]
    test.images[3, :, 0] ^= 1  # a row that the encoder does not see
    torch.manual_seed(0)
    method = without_a_twin(Plain()).eval()
    whole = method.encoder.forward
    method.encoder.forward = lambda prepared: whole(prepared[..., 4:, :])  # of 16 rows
    with pytest.warns(
        ProbjepaWarning, match=r"images of set 0 that have the embedding of a held-out one: 1\."
    ):
        found = evaluate(method, train, test, {"far": images(30, 2)}, n_bootstrap=10)
    assert found.metrics["left_out_as_in_train"] == {"test": 0, "far": 0}
    assert found.metrics["settings"]["reference rows of scores"] == 59
    assert len(found.arrays["scores"]["knn"]["test"]) == 40
    of_all = found.metrics["selective"]["kNN distance"]["accuracy_at"]["1.0"]
    assert of_all == found.metrics["accuracy"]["h"]["knn20"]["value"]
    without = train.subset(torch.arange(60) != 7)
    expected = score_set(method, test, "knn", reference=without)[0]
    np.testing.assert_allclose(found.arrays["scores"]["knn"]["test"], expected)


def test_a_collapsed_encoder_is_said():
    method = without_a_twin(Plain()).eval()
    for weight in method.encoder.parameters():
        torch.nn.init.zeros_(weight)
    with pytest.raises(
        DataError, match="every embedding of set 0 is that of a held-out image too: the encoder collapsed"
    ):
        evaluate(method, images(60, 0), images(40, 1), n_bootstrap=10)


def test_a_random_initialisation_that_tells_nothing_apart_has_no_score():
    torch.manual_seed(0)
    method, constant = Plain().eval(), Plain().eval()
    for weight in constant.encoder.parameters():
        torch.nn.init.zeros_(weight)
    method.reinitialised = lambda seed=0: constant
    found = evaluate(method, images(60, 0), images(40, 1), {"far": images(30, 2)}, n_bootstrap=10).metrics
    assert "random-init" in found["accuracy"]
    assert "knn, random-init" not in found["ood"]["far"]
    assert "knn, raw pixels" in found["ood"]["far"]


def test_any_probabilistic_method_brings_its_scores():
    method = without_a_twin(Concentrated())
    found = evaluate(method, images(60, 0), images(40, 1), {"far": images(30, 2)}, n_bootstrap=10)
    assert list(found.metrics["ood"]["far"])[:3] == ["likelihood", "predictive", "concentration"]
    assert "variance" not in found.metrics
    assert set(found.metrics["geometry"]["spearman"]) == {"nll", "spread", "dispersion"}
    # dispersion is concentration turned round
    assert {"spread", "concentration"} <= set(found.metrics["selective"])
    assert "dispersion" not in found.metrics["selective"]


def test_a_plain_method_has_the_detectors_and_baselines():
    method = without_a_twin(Plain())
    found = evaluate(method, images(60, 0), images(40, 1), {"far": images(30, 2)}, n_bootstrap=10).metrics
    assert set(found["ood"]["far"]) == {
        "predictive",
        "knn",
        "mahalanobis",
        "gmm",
        "fisher",
        "bonferroni",
        "harmonic",
        "knn, raw pixels",
    }
    assert "geometry" not in found
    assert {"kNN vote share", "kNN distance", "random", "knn"} <= set(found["selective"])


def test_every_set_is_reencoded_alike(model):
    train, test, far = images(60, 0), images(40, 1), images(30, 2)
    found = evaluate(model, train, test, {"far": far}, n_bootstrap=10, reencode="jpeg:75").metrics
    by_hand = [reencode(s, "jpeg:75") for s in (train, test, far)]
    expected = evaluate(model, *by_hand[:2], {"far": by_hand[2]}, n_bootstrap=10).metrics
    assert (found.pop("reencode"), expected.pop("reencode")) == ("jpeg:75", None)
    assert found == expected
    assert found["sets"]["far"]["sha256"] != describe(far)["sha256"]


def test_openood_sets_are_evaluated_and_averaged(model):
    benchmark = {"tin": images(30, 2), "svhn": images(20, 3), "mnist": images(25, 4)}
    found = evaluate(
        model, images(60, 0), images(40, 1), {"far": images(30, 5)}, openood=benchmark, n_bootstrap=10
    ).metrics
    assert list(found["ood"]) == ["far", "tin", "svhn", "mnist"]
    knn = {name: found["ood"][name]["knn"]["auroc"]["value"] for name in benchmark}
    average = found["openood"]["averages"]["knn"]["auroc"]
    assert average["far"] == pytest.approx((knn["svhn"] + knn["mnist"]) / 2)
    assert average["overall"] == pytest.approx((knn["tin"] + average["far"]) / 2)
    assert {name: of["images"] for name, of in found["openood"]["sets"].items()} == {
        "tin": 30, "mnist": 25, "svhn": 20
    }  # fmt: skip
    # what also stands in the training set is not evaluated, and not counted
    pixels = torch.cat([benchmark["tin"].images, images(60, 0).images[:10]])
    seen = ImageSet(pixels, None, [str(row) for row in range(40)])
    found = evaluate(
        model, images(60, 0), images(40, 1), {}, openood={**benchmark, "tin": seen}, n_bootstrap=10
    ).metrics
    assert found["openood"]["sets"]["tin"]["images"] == found["sets"]["tin"]["images"] == 30
    with pytest.raises(ConfigError, match="'tin' is the name of an OpenOOD set"):
        evaluate(model, images(60, 0), images(40, 1), {"tin": images(5, 6)}, openood=benchmark)


def test_describe_hashes_the_ids_and_the_pixels():
    one, other = images(10, 0), images(10, 0)
    assert describe(one) == describe(other)
    renamed = dataclasses.replace(one, ids=[*one.ids[:-1], "x"])
    assert describe(one)["sha256"] != describe(renamed)["sha256"]
    other.images[3, 0, 0, 0] ^= 1
    assert describe(one)["sha256"] != describe(other)["sha256"]


def test_every_set_carries_the_hash_of_what_was_scored(model):
    train, test = images(60, 0), images(40, 1)
    far = images(30, 2)
    mixed = dataclasses.replace(far, images=torch.cat([far.images[:25], train.images[:5]]))
    found = evaluate(model, train, test, {"far": mixed}, n_bootstrap=10).metrics["sets"]
    assert found["train"]["sha256"] == describe(train)["sha256"]
    assert found["far"]["sha256"] == describe(mixed.subset(slice(0, 25)))["sha256"]
    assert len(found["test"]["sha256"]) == 64


def test_a_streamed_set_is_not_held_in_memory(model, tmp_path, monkeypatch):
    np.save(tmp_path / "far.npy", images(30, 2).images[:, 0].numpy())
    streamed = open_images(tmp_path / "far.npy", memory_limit=0)
    found = evaluate(model, images(60, 0), images(40, 1), {"far": streamed}, n_bootstrap=10)
    shown = []
    monkeypatch.setattr(
        type(streamed), "get", lambda self, rows: shown.append(len(rows)) or self.decoded[rows]
    )
    object.__setattr__(streamed, "decoded", images(30, 2).images)
    evaluation_report(found.metrics, found.arrays)
    assert shown
    assert max(shown) <= 20


def test_shards_are_evaluated_a_batch_at_a_time(model, tmp_path, monkeypatch):
    held = {"train": images(1200, 0), "test": images(60, 1), "far": images(30, 2, low=200)}
    streamed = {}
    for name, of in held.items():
        (tmp_path / name).mkdir()
        encoded = []
        for pixels in of.images[:, 0].numpy():
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG")
            encoded.append({"bytes": file.getvalue()})
        for number, rows in enumerate(np.array_split(np.arange(len(of)), 3)):
            table = {"image": [encoded[row] for row in rows], "label": of.labels[rows].tolist(), "id": rows}
            pq.write_table(pa.table(table), tmp_path / name / f"{number}.parquet")
        streamed[name] = open_images(tmp_path / name, ids="id", memory_limit=0)
        assert isinstance(streamed[name], StreamedImages)
    held = {name: dataclasses.replace(of, name=str(tmp_path / name)) for name, of in held.items()}
    asked, get = [], StreamedImages.get

    def counted(self, indices):
        found = get(self, indices)
        asked.append(len(found))
        return found

    monkeypatch.setattr(StreamedImages, "get", counted)
    for module in (fingerprint, overlap):
        monkeypatch.setattr(module, "_ROWS_AT_A_TIME", 1000)
    options = {"n_bootstrap": 10, "reference_size": 300}
    found = evaluate(model, streamed["train"], streamed["test"], {"far": streamed["far"]}, **options)
    known = evaluate(model, held["train"], held["test"], {"far": held["far"]}, **options)
    assert max(asked) <= 1024
    assert found.metrics == known.metrics
    assert found.arrays["rows"].equals(known.arrays["rows"])


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


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_bootstrap": 0}, "n_bootstrap is 0: use at least 1"),
        ({"reference_size": 1}, "reference_size is 1: give at least 2 rows"),
    ],
    ids=str,
)
def test_settings_are_refused_before_a_set_is_read(model, monkeypatch, wrong, message):
    monkeypatch.setattr(
        "probjepa.evaluation.images.encode", lambda *_, **__: pytest.fail("a set was encoded")
    )
    with pytest.raises(ConfigError, match=message):
        evaluate(model, images(30, 1), images(20, 2), **wrong)


def test_an_empty_set_is_called_empty(model):
    none = images(3, 5).subset(np.zeros(3, dtype=bool))
    with pytest.raises(DataError, match="is empty: give at least one image as other"):
        evaluate(model, images(30, 1), images(20, 2), {"other": none})
