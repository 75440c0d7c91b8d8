"""Every entry of SCORES keeps one contract; a score of another package is an entry like any other."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.ensemble import IsolationForest
from torch import nn

from probjepa import VJE, jacobian
from probjepa.cli import run
from probjepa.data import ImageSet
from probjepa.errors import ConfigError, DataError
from probjepa.evaluation import evaluate
from probjepa.scores import SCORES, Score, SetScorer, score_class, score_set
from probjepa.scores.combined import Combined
from probjepa.scores.detectors import KNNScore
from probjepa.scores.sets import draw
from probjepa.tabular import TJEPA, VarTJEPA

DIM = 6


def model_of(kind):
    """VJE reads features that are given to it; tanh has its largest Jacobian at 0."""
    torch.manual_seed(0)
    return nn.Tanh() if "gradients" in kind.needs else VJE("convnet", channels=1, image_size=8).eval()


def features(count, seed, typical=True):
    """Embeddings about one direction, equal to their latents; untypical ones have other directions."""
    random = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, DIM, generator=random)
    mu = torch.eye(DIM)[0] + 0.1 * noise
    h = mu if typical else mu.roll(2, 1) * 3
    return {
        "h": h,
        "mu": mu,
        "variance": torch.full_like(mu, 0.5),
        "inputs": 0.1 * noise + (0 if typical else 2),
    }


def reference():
    """Features of a reference, without the inputs that they are of."""
    return {name: values for name, values in features(60, 1).items() if name != "inputs"}


def fitted(kind, seed=0):
    score = kind(model_of(kind), seed=seed)
    return score.fit(reference()) if "reference" in kind.needs else score


@pytest.fixture(params=SCORES)
def kind(request):
    return score_class(request.param)


def test_an_entry_says_what_it_is(kind):
    assert SCORES[kind.name] is kind
    assert kind.summary
    assert "\n" not in kind.summary
    assert kind.needs <= {"reference", "gradients"}
    assert kind.paper == "" or kind.paper.startswith("https://")
    model = model_of(kind)
    assert repr(kind(model, seed=7)) == f"{kind.__name__}({type(model).__name__}, seed=7)"


def test_one_finite_number_an_input_whatever_their_order(kind):
    some = features(20, 2)
    score, again = fitted(kind).score(some), fitted(kind).score(some)
    assert (score.shape, score.dtype) == ((20,), np.float64)
    assert np.isfinite(score).all()
    np.testing.assert_array_equal(score, again)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    turned = fitted(kind).score({name: values[order] for name, values in some.items()})
    np.testing.assert_allclose(turned, score[order], rtol=1e-6, atol=1e-9)


def test_higher_is_more_typical(kind):
    score = fitted(kind)
    assert score.score(features(20, 2)).min() > score.score(features(20, 3, typical=False)).max()


def test_parts_have_a_value_an_input_and_columns_the_scores_name(kind):
    score, some = fitted(kind), features(20, 2)
    assert all(part.shape == (20,) for part in score.parts(some).values())
    columns = score.columns(some)
    assert next(iter(columns)) == kind.name
    assert all(column.shape == (20,) for column in columns.values())


def test_a_reference_that_is_needed_is_asked_for(kind):
    score = kind(model_of(kind))
    if "reference" in kind.needs:
        with pytest.raises(ConfigError, match=f"'{kind.name}' needs a reference set"):
            score.score(features(20, 2))
    assert np.isfinite(score.fit(reference()).score(features(20, 2))).all()


def test_jepa_score_takes_one_pass_until_it_is_fitted_anew(monkeypatch):
    passes = []
    details = jacobian.jepa_score_details
    monkeypatch.setattr(
        jacobian, "jepa_score_details", lambda *args, **more: passes.append(1) or details(*args, **more)
    )
    score, some = score_class("jepa")(nn.Tanh()), features(20, 2)
    bare = score.score(some)
    assert score.parts(some)["log_volume"] == pytest.approx(bare)
    assert list(score.columns(some)) == ["jepa"]
    assert len(passes) == 1
    known = features(60, 1)
    whole = score.fit(known).columns(some)
    assert len(passes) == 2
    assert whole["jepa"] == pytest.approx(bare)
    expected = details(nn.Tanh(), some["inputs"], latent=known["h"])
    assert whole["jepa + latent"] == pytest.approx(expected.score)
    for name in ("log_volume", "latent", "sigma_max", "sigma_min"):
        np.testing.assert_allclose(score.parts(some)[name], getattr(expected, name), err_msg=name)
    assert len(passes) == 2
    score.score(features(20, 3))
    assert len(passes) == 3


@pytest.mark.parametrize("progress", [False, True])
def test_jepa_score_shows_a_bar_where_it_is_asked_for(monkeypatch, progress):
    shown, details = [], jacobian.jepa_score_details

    def watched(*args, progress=False, **more):
        shown.append(progress)
        return details(*args, **more)

    monkeypatch.setattr(jacobian, "jepa_score_details", watched)
    score_class("jepa")(nn.Tanh(), progress=progress).score(features(3, 2))
    assert shown == [progress]


@pytest.mark.parametrize("model", [None, object()])
def test_a_model_without_a_score_is_told_so(kind, model):
    bare = kind.lacking(model)
    combined = issubclass(kind, Combined)  # of what there is
    assert (bare is None) == (combined or (not kind.own and "gradients" not in kind.needs))
    assert bare is None or f"{type(model).__name__} has no likelihood for the score '{kind.name}'" in bare


def test_what_a_score_that_says_nothing_of_itself_is():
    class Bare(Score):
        name = "bare"

        def score(self, features):
            return np.zeros(len(features["h"]))

    score = Bare()
    assert (score.summary, score.paper, score.needs, score.own) == ("", "", frozenset(), False)
    assert (score.model, score.seed, score.progress) == (None, 0, False)
    assert score.fit(features(2, 0)) is score
    assert score.left_out() is None and score.parts(features(2, 0)) == {}
    assert repr(score) == "Bare(NoneType, seed=0)"


# --- scores of another package ---------------------------------------------------------------------------


class Norm(Score):
    """A score that needs nothing."""

    name, summary = "norm", "negative length of the embedding"

    def score(self, features):
        return -np.linalg.norm(features["h"], axis=1)


class Forest(IsolationForest):
    """A detector in scikit-learn's manner, with a seed."""


class Distance:
    """A detector with fit and score_samples, and nothing else."""

    def fit(self, h):
        self.mean = np.mean(h, 0)
        return self

    def score_samples(self, h):
        return -np.linalg.norm(np.asarray(h) - self.mean, axis=1)


class Seeded:
    """Returns its seed.

    In numbers of another kind.
    """

    def __init__(self, seed=None):
        self.seed = seed

    def fit(self, h):
        return self

    def score_samples(self, h):
        return np.full(len(h), self.seed, dtype=np.float32)


def test_a_detector_of_ones_own_is_a_score():
    for kind, name, summary in (
        (Seeded, "Seeded", "Returns its seed."),
        (Distance, "Distance", Distance.__doc__),
    ):
        made = score_class(kind)
        assert (made.__name__, made.name, made.summary) == (name, name, summary)
    score = score_class(Seeded)(seed=7).fit(reference()).score(features(20, 2))
    assert score.dtype == np.float64 and (score == 7).all()
    assert score_class(type("Silent", (), {})).summary == ""


def test_an_unknown_score_has_the_nearest_one_suggested():
    with pytest.raises(ConfigError, match=r"unknown score 'fischer', did you mean 'fisher'\?"):
        score_class("fischer")


def test_an_installed_package_adds_scores(tmp_path, monkeypatch):
    (tmp_path / "lengths.py").write_text("class Length:\n    pass\n")
    information = tmp_path / "lengths-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: lengths\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[probjepa.scores]\nlength = lengths:Length\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(SCORES, "_installed", None)
    assert "length" in SCORES and SCORES.path("length") == "lengths:Length"


@pytest.fixture
def registered():
    outside = {"norm": Norm, "forest": Forest, "distance": Distance}
    for name, kind in outside.items():
        SCORES.register(name, kind)
    yield list(outside)
    for name in outside:
        SCORES.remove(name)


def images(count, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 1, 8, 8), dtype=np.uint8)
    return ImageSet(torch.from_numpy(pixels), None, [str(i) for i in range(count)], name=f"noise {seed}")


@pytest.fixture(scope="module")
def vje():
    torch.manual_seed(0)
    return VJE("convnet", channels=1, image_size=8, backbone_options={"widths": (8, 16)}).eval()


def test_scores_from_outside_are_scores_of_sets(vje, registered):
    known, held_out = images(40, 1), images(9, 2)
    h = vje.embed(held_out.images).numpy()
    assert score_class("forest").summary == "A detector in scikit-learn's manner, with a seed."
    np.testing.assert_allclose(score_set(vje, held_out, "norm")[0], -np.linalg.norm(h, axis=1), rtol=1e-6)
    bank = vje.embed(known.images).numpy()
    for seed in (0, 1):
        expected = IsolationForest(random_state=seed).fit(bank).score_samples(h)
        found, parts = score_set(vje, held_out, "forest", reference=known, seed=seed)
        np.testing.assert_allclose(found, expected)
        assert set(parts) == set(vje.uncertainty(held_out.images))
    by_name = score_set(vje, held_out, "distance", reference=known)[0]
    np.testing.assert_allclose(by_name, -np.linalg.norm(h - bank.mean(0), axis=1), rtol=1e-5)
    np.testing.assert_array_equal(by_name, score_set(vje, held_out, Distance, reference=known)[0])
    with pytest.raises(ConfigError, match="'distance' needs a reference set"):
        score_set(vje, held_out, "distance")


def test_scores_from_outside_are_evaluated(vje, registered):
    known, held_out, far = images(40, 1), images(12, 2), images(12, 3)
    found = evaluate(vje, known, held_out, {"far": far}, n_bootstrap=5)
    assert set(registered) < set(found.metrics["ood"]["far"])
    expected = score_set(vje, far, "forest", reference=known)[0]
    np.testing.assert_allclose(found.arrays["scores"]["forest"]["far"], expected)
    json.dumps(found.metrics)


def test_scores_from_outside_are_scores_of_commands(vje, registered, tmp_path):
    vje.save_pretrained(tmp_path / "model")
    for name, seed in (("known", 1), ("far", 2)):
        np.save(tmp_path / f"{name}.npy", images(30, seed).images[:, 0].numpy())
    for name in registered:
        reference = [] if name == "norm" else ["--reference", str(tmp_path / "known.npy")]
        out = tmp_path / f"{name}.parquet"
        data = ["--data", str(tmp_path / "far.npy"), "--out", str(out), "--score", name, "-q"]
        assert run(["score", str(tmp_path / "model"), *data, *reference, "--device", "cpu"]) == 0
        assert len(pd.read_parquet(out)["score"]) == 30


# --- tables ----------------------------------------------------------------------------------------------


TINY = {"max_epochs": 1, "dim": 8, "n_layers": 1, "n_heads": 2, "ff_dim": 8, "device": "cpu"}


def table(rows, seed):
    random = np.random.default_rng(seed)
    return pd.DataFrame(
        {"number": random.normal(size=rows), "place": random.choice(["here", "there", None], rows)}
    )


def test_a_table_is_scored_as_images_are(registered):
    known, held_out = table(80, 0), table(9, 1)
    model = VarTJEPA(random_state=0, **TINY).fit(known)
    score, parts = score_set(model, held_out, "likelihood")
    np.testing.assert_array_equal(score, model.score_samples(held_out))
    surprise = model.score_features(held_out)
    assert list(parts) == [
        "uncertainty", "predictive_entropy", *(f"surprise.{name}" for name in surprise.columns),
    ]  # fmt: skip
    np.testing.assert_array_equal(parts.pop("uncertainty"), model.uncertainty(held_out))
    entropy = parts.pop("predictive_entropy")
    np.testing.assert_allclose(entropy, model.uncertainty(held_out, "predictive"), rtol=1e-12)
    np.testing.assert_array_equal(np.stack(list(parts.values()), 1), surprise.to_numpy())
    for name in ("knn", "mahalanobis", "gmm", *registered):
        reference = None if name == "norm" else known
        found, parts = score_set(model, held_out, name, reference=reference, seed=3)
        expected = score_class(name)(seed=3)
        if reference is not None:
            expected.fit({"h": model.transform(known)})
        np.testing.assert_array_equal(found, expected.score({"h": model.transform(held_out)}))
        assert list(parts) == ["uncertainty"]


@pytest.mark.parametrize("frame", ["pandas", "polars", "turned"])
def test_embeddings_may_be_a_frame_or_a_view(frame, monkeypatch):
    known, held_out = table(80, 0), table(9, 1)
    model = VarTJEPA(random_state=0, **TINY).fit(known)
    names = ("likelihood", "knn", "gmm")

    def scores():
        references = [None if name == "likelihood" else known for name in names]
        pairs = zip(names, references, strict=True)
        return [score_set(model, held_out, name, reference=of)[0] for name, of in pairs]

    wanted = scores()
    if frame == "turned":  # torch takes no negative stride
        embed, score = model.transform, model.score_samples
        monkeypatch.setattr(model, "transform", lambda rows: embed(rows)[:, ::-1].copy()[:, ::-1])
        monkeypatch.setattr(model, "score_samples", lambda rows: score(rows)[::-1].copy()[::-1])
    else:
        model.set_output(transform=frame)
    for one, other in zip(scores(), wanted, strict=True):
        np.testing.assert_array_equal(one, other)


class Sums:
    """A fitted estimator of tables with a density; it says what it was asked for."""

    def __init__(self):
        self.asked = []

    def transform(self, table):
        return np.array(table, order="C")

    def score_samples(self, table):
        self.asked.append(len(table))
        return np.array(table).sum(1)

    def score_features(self, table):
        return table.add(1)


def numbers(rows, seed):
    return pd.DataFrame(np.random.default_rng(seed).normal(size=(rows, 3)), columns=list("abc"))


def test_the_density_of_a_table_is_read_for_the_scores_that_are_made_of_it():
    model, known, asked = Sums(), numbers(40, 0), numbers(9, 1)
    found, parts = SetScorer(model, "knn", reference=known)(asked)
    np.testing.assert_array_equal(found, KNNScore().fit({"h": known}).score({"h": asked}))
    assert parts == {} and model.asked == []
    found, parts = SetScorer(model, "likelihood")(asked)
    np.testing.assert_array_equal(found, asked.sum(axis=1))
    assert list(parts) == ["surprise.a", "surprise.b", "surprise.c"] and model.asked == [9]
    np.testing.assert_array_equal(parts["surprise.b"], asked["b"] + 1)


def test_a_part_of_a_table_is_the_reference_or_the_table_itself():
    model, known, asked = Sums(), numbers(40, 0), numbers(9, 1)
    found, _ = SetScorer(model, "knn", reference=known, reference_size=10, seed=2)(asked)
    expected, _ = SetScorer(model, "knn", reference=known.iloc[draw(40, 10, 2)])(asked)
    np.testing.assert_array_equal(found, expected)
    found, _ = SetScorer(model, "knn", reference=known)(known.copy())
    np.testing.assert_array_equal(found, KNNScore().fit({"h": known}).left_out())
    with pytest.raises(DataError, match="40 of 40 embeddings to score are among"):
        SetScorer(model, "knn", reference=known)(known.iloc[::-1])


def test_a_score_of_tables_may_need_what_an_estimator_has(registered):
    class Summed(Norm):
        @classmethod
        def lacking(cls, model):
            return None if isinstance(getattr(model, "estimator", None), Sums) else "no sums"

    SCORES.register("summed", Summed)
    try:
        asked = numbers(9, 1)
        found, _ = score_set(Sums(), asked, "summed")
        np.testing.assert_allclose(found, -np.linalg.norm(asked, axis=1))
    finally:
        SCORES.remove("summed")


@pytest.mark.parametrize(
    ("score", "said"),
    [
        ("likelihood", "TJEPA has no likelihood for the score 'likelihood': use knn, mahalanobis, gmm"),
        ("knn", "--score knn needs --reference, a table of typical rows"),
        ("jepa", "unknown score of tables 'jepa'"),
        (
            "predictive",
            r"unknown score of tables 'predictive' \(known: bonferroni, fisher, gmm, harmonic, knn, mahalanobis\)$",
        ),
    ],
)
def test_what_a_table_cannot_be_scored_by(score, said):
    model = TJEPA(random_state=0, **TINY).fit(table(80, 0))
    with pytest.raises(ConfigError, match=said):
        score_set(model, table(9, 1), score)


def test_scikit_learns_detectors_take_any_seed():
    kind = score_class(Forest)
    found, same = (kind(seed=seed).fit(reference()).score(features(20, 2)) for seed in (2**32 + 7, 7))
    np.testing.assert_array_equal(found, same)
