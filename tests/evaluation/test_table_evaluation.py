"""The downstream protocol against brute force, and that no test row reaches a fit."""

from __future__ import annotations

import copy
import sys
import warnings
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import binomtest
from sklearn import config_context
from sklearn.metrics import confusion_matrix, log_loss
from sklearn.neural_network import MLPClassifier

import probjepa as pj
from probjepa.errors import ConfigError, DataError, ProbjepaWarning
from probjepa.evaluation import evaluate_table
from probjepa.evaluation.figures import over_seeds
from probjepa.evaluation.predictors import PREDICTORS, RawFeatures
from probjepa.evaluation.selective import lead, selection_figures
from probjepa.evaluation.table_sets import check_labels
from probjepa.evaluation.tables import evaluate_once
from probjepa.metrics.selective import COVERAGES
from probjepa.report.evaluation import table_report
from probjepa.tabular import TJEPA, VarTJEPA

TINY = {"max_epochs": 1, "dim": 8, "n_layers": 1, "n_heads": 2, "ff_dim": 8, "device": "cpu"}


def table(rows: int = 160, seed: int = 0) -> pd.DataFrame:
    """Two classes that a number and a category tell apart, with missing cells of both."""
    random = np.random.default_rng(seed)
    label = random.integers(2, size=rows)
    number = label * 2.0 + random.normal(size=rows)
    number[random.random(rows) < 0.1] = np.nan
    place = np.where(random.random(rows) < 0.8, np.array(["here", "there"])[label], "else").astype(object)
    place[random.random(rows) < 0.1] = None
    noise = random.normal(size=rows)
    return pd.DataFrame(
        {"number": number, "place": place, "noise": noise, "y": np.array(["no", "yes"])[label]}
    )


def factory(seed: int) -> VarTJEPA:
    return VarTJEPA(random_state=seed, **TINY)


def test_raw_features_by_hand():
    fit = pd.DataFrame({"a": [1.0, 3.0, np.nan], "b": ["x", "y", "x"], "c": [5, 5, 5]})
    raw = RawFeatures().fit(fit)
    # a standardised, whether a is missing, x, y: the constant c and the places that nobody takes are left out
    np.testing.assert_allclose(raw.transform(fit), [[-1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0]])
    new = pd.DataFrame({"a": [2.0], "b": ["z"], "c": [9]})
    np.testing.assert_allclose(raw.transform(new), [[0, 0, 0, 0]])


def test_selection_is_what_counting_gives():
    random = np.random.default_rng(0)
    n = 137
    uncertainty, correct = random.permutation(n).astype(float), random.random(n) < 0.7
    selective, calibration = selection_figures(correct, {"d": uncertainty, "random": np.zeros(n)})
    order = sorted(range(n), key=lambda i: uncertainty[i])
    risk = [np.mean([not correct[i] for i in order[: k + 1]]) for k in range(n)]
    assert selective["d"]["aurc"]["value"] == pytest.approx(np.mean(risk))
    perfect = [max(k - correct.sum(), 0) / k for k in range(1, n + 1)]
    assert selective["d"]["excess_aurc"]["value"] == pytest.approx(np.mean(risk) - np.mean(perfect))
    for share in (1.0, 0.9, 0.8, 0.5):
        answered = order[: int(np.ceil(share * n))]
        expected = np.mean([correct[i] for i in answered])
        assert selective["d"]["accuracy_at"][str(share)]["value"] == pytest.approx(expected)
    for coverage, found in zip(COVERAGES, selective["d"]["risk"], strict=True):
        assert found == pytest.approx(risk[int(np.ceil(round(coverage * n, 6))) - 1])
    np.testing.assert_allclose(selective["random"]["risk"], 1 - correct.mean())
    assert "random" not in calibration
    sizes = [14] * 7 + [13] * 3
    ends = np.cumsum(sizes)
    by_hand = [
        np.mean([correct[i] for i in order[end - size : end]]) for size, end in zip(sizes, ends, strict=True)
    ]
    np.testing.assert_allclose(calibration["d"]["accuracy"], by_hand)
    ranks, wrong = uncertainty - uncertainty.mean(), (~correct) - (~correct).mean()
    rho = ranks @ wrong / np.sqrt((ranks @ ranks) * (wrong @ wrong))
    assert calibration["d"]["spearman"]["value"] == pytest.approx(rho)


def test_tenths_do_not_depend_on_the_order_of_rows_that_are_tied():
    random = np.random.default_rng(0)
    uncertainty, correct = random.integers(0, 3, 90).astype(float), random.random(90) < 0.6
    found = []
    for order in (np.arange(90), np.argsort(correct), np.argsort(~correct)):
        _, calibration = selection_figures(correct[order], {"u": uncertainty[order]})
        found.append(calibration["u"]["accuracy"])
    np.testing.assert_allclose(found, [found[0]] * 3)
    shuffled = []
    for _ in range(3000):
        order = random.permutation(90)
        tenths = np.array_split(order[np.argsort(uncertainty[order], kind="stable")], 10)
        shuffled.append([correct[of].mean() for of in tenths])
    np.testing.assert_allclose(found[0], np.mean(shuffled, 0), atol=0.02)


def test_f1_scores_from_the_confusion_matrix():
    frame = table()
    test = table(60, seed=1)
    outcome = evaluate_once(None, frame, frame[:20], test, "y", seed=0, predictors=["logistic regression"])
    raw = RawFeatures().fit(frame.drop(columns="y"))
    y = (frame["y"] == "yes").to_numpy().astype(int)
    x = raw.transform(frame.drop(columns="y"))
    answers = PREDICTORS["logistic regression"](x, y, x[:20], y[:20], 0)(
        raw.transform(test.drop(columns="y"))
    )
    matrix = confusion_matrix((test["y"] == "yes").astype(int), answers.argmax(1))
    f1 = 2 * np.diag(matrix) / (matrix.sum(0) + matrix.sum(1))
    found = outcome.metrics["accuracy"]["raw"]["logistic regression"]
    assert found["accuracy"]["value"] == pytest.approx(np.trace(matrix) / matrix.sum())
    assert found["macro F1"]["value"] == pytest.approx(f1.mean())
    assert found["weighted F1"]["value"] == pytest.approx((f1 * matrix.sum(1)).sum() / matrix.sum())
    assert found["accuracy"]["low"] < found["accuracy"]["value"] < found["accuracy"]["high"]
    assert found["accuracy"]["value"] > 0.75


@pytest.mark.parametrize("name", list(PREDICTORS))
def test_predictors_learn_and_say_probabilities(name):
    if name == "XGBoost":
        pytest.importorskip("xgboost")
    random = np.random.default_rng(0)
    y = random.integers(3, size=300)
    x = (np.eye(3)[y] * 4 + random.normal(size=(300, 3))).astype(np.float32)
    read = PREDICTORS[name](x[:200], y[:200], x[200:240], y[200:240], 0)
    found = read(x[240:])
    assert found.shape == (60, 3)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    assert (found.argmax(1) == y[240:]).mean() > 0.9
    np.testing.assert_array_equal(
        found, PREDICTORS[name](x[:200], y[:200], x[200:240], y[200:240], 0)(x[240:])
    )


def test_the_network_is_scikit_learns_on_features_scaled_by_the_training_rows():
    """Against a plain loop, on validation rows of another scale."""
    random = np.random.default_rng(1)
    y = random.integers(2, size=160)
    x = (y[:, None] * [2.0, 0.5] + random.normal(size=(160, 2))).astype(np.float32)
    x, y, x_val, y_val = x[:100], y[:100], 3 * x[100:] + 4, y[100:]
    mean, spread = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    network = MLPClassifier((128, 128), random_state=np.random.RandomState(5))
    losses, said = [], []
    for _ in range(200):
        network.partial_fit((x - mean) / spread, y, classes=[0, 1])
        losses.append(log_loss(y_val, network.predict_proba((x_val - mean) / spread)))
        said.append(network.predict_proba((x - mean) / spread))
        if len(losses) > int(np.argmin(losses)) + 10:
            break
    found = PREDICTORS["MLP"](x, y, x_val, y_val, 5)(x)
    np.testing.assert_allclose(found, said[int(np.argmin(losses))], atol=1e-4)


def test_no_test_row_reaches_a_fit():
    frame, test = table(), table(40, seed=1)
    changed = test.assign(number=test["number"] * 100 + 7, place="elsewhere", y=test["y"].to_numpy()[::-1])
    options = {"seed": 3, "predictors": ["logistic regression"]}
    one, other = (evaluate_once(factory, frame, frame[:20], of, "y", **options) for of in (test, changed))
    alone = factory(3).fit(frame.drop(columns="y"))
    for name, weight in alone.network_.state_dict().items():
        assert torch.equal(weight, one.arrays["model"].network_.state_dict()[name])
        assert torch.equal(weight, other.arrays["model"].network_.state_dict()[name])
    assert one.arrays["model"].schema_.to_json() == other.arrays["model"].schema_.to_json()
    assert "y" not in one.arrays["model"].schema_.columns


def test_the_validation_rows_are_no_part_of_the_encoders_fit():
    seen = []

    class Spy(VarTJEPA):
        def fit(self, X, y=None):
            seen.append(X)
            return super().fit(X)

    frame = table()
    result = evaluate_table(
        lambda seed: Spy(random_state=seed, **TINY), frame, table(30, seed=1), "y", seeds=(0, 1),
        predictors=["logistic regression"],
    )  # fmt: skip
    assert [len(fit) for fit in seen] == [140, 140]
    assert set(seen[0].index) != set(seen[1].index)
    assert len(result.metrics["accuracy"]["embedding"]["logistic regression"]["accuracy"]["seeds"]) == 2


@pytest.fixture(scope="module")
def evaluation():
    frame = table()
    model = factory(0).fit(frame.drop(columns="y"))
    test = pd.concat([table(50, seed=1), frame[:7]], ignore_index=True)
    return evaluate_table(model, frame, test, "y", predictors=["logistic regression", "MLP"]), frame


def test_rows_of_train_are_left_out_and_counted(evaluation):
    result, _ = evaluation
    assert result.metrics["left_out_as_in_train"] == 7
    assert result.metrics["sets"]["test"]["rows"] == 50 == len(result.arrays["frame"])


def test_every_source_stands_beside_every_classifier(evaluation):
    result, _ = evaluation
    sources = {
        "maximum class probability", "model uncertainty", "model uncertainty, decoded",
        "model uncertainty, predictive", "−log-likelihood", "kNN distance, embedding", "kNN distance, raw", "Isolation Forest, raw", "random",
    }  # fmt: skip
    for space in ("raw", "embedding", "raw + embedding"):
        for predictor in ("logistic regression", "MLP"):
            found = result.metrics["selective"][space][predictor]
            assert set(found) == sources
            accuracy = result.metrics["accuracy"][space][predictor]["accuracy"]["value"]
            assert found["random"]["aurc"]["value"] == pytest.approx(1 - accuracy)
    assert result.arrays["surprise"].shape == (50, 3)


def test_each_classifier_is_tested_beside_itself_on_raw_features():
    frame, test = table(), table(60, seed=1)
    found = evaluate_once(factory, frame, frame[:20], test, "y", seed=0, predictors=["logistic regression"])
    name, truth = "logistic regression", test["y"].to_numpy()
    right = {space: of[name] == truth for space, of in found.arrays["predicted"].items()}
    assert list(found.metrics["mcnemar"]) == ["embedding", "raw + embedding"]
    for space, of in found.metrics["mcnemar"].items():
        gained, lost = (of[name][key]["value"] for key in ("gained", "lost"))
        assert gained == (right[space] & ~right["raw"]).sum() and lost == (right["raw"] & ~right[space]).sum()
        assert of[name]["p"]["value"] == pytest.approx(binomtest(int(gained), int(gained + lost)).pvalue)


def test_every_score_of_every_row_and_its_false_alarms(evaluation):
    result, _ = evaluation
    rows = result.arrays["rows"].to_pandas()
    scores = ["likelihood", "knn", "mahalanobis", "gmm", "fisher", "bonferroni", "harmonic"]
    assert list(rows) == ["id", "set", "label", "prediction", "uncertainty", *scores]
    np.testing.assert_array_equal(rows["likelihood"], result.arrays["score"])
    np.testing.assert_array_equal(rows["uncertainty"], result.arrays["uncertainty"])
    assert rows["label"].tolist() == result.arrays["labels"].tolist()
    chosen = result.metrics["prediction"]
    assert chosen == {"features": "embedding", "predictor": lead(result.metrics["selective"]["embedding"])}
    by_name = {
        name: of["accuracy"]["value"]
        for name, of in result.metrics["accuracy"]["embedding"].items()
        if "accuracy" in of
    }
    right = by_name[chosen["predictor"]]
    assert right == max(by_name.values())
    assert (rows["label"] == rows["prediction"]).mean() == pytest.approx(right)
    found = result.metrics["decisions"]
    assert list(found["flagged"]) == scores and found["rows"]["split"]
    page = table_report(result.metrics, result.arrays)
    assert "what may be expected" in page and "Balanced accuracy" in page


def test_a_calibration_table_gives_the_thresholds():
    model = factory(0).fit(table(160).drop(columns="y"))
    train, test, held_out = table(120, seed=1), table(40, seed=2), table(50, seed=3)
    options = {"predictors": ["logistic regression"], "seeds": (0,)}
    found = evaluate_table(model, train, test, "y", calibration=held_out, **options)
    least = pj.threshold(model.score_samples(held_out.drop(columns="y")), 0.1)
    rate = found.metrics["decisions"]["flagged"]["likelihood"]["0.1"]["test"]["value"]
    assert rate == pytest.approx((model.score_samples(test.drop(columns="y")) < least).mean())
    assert found.metrics["decisions"]["rows"] == {"calibration": 50, "test": 40, "split": False}
    with pytest.raises(DataError, match="40 of 40 test rows are in the calibration set"):
        evaluate_table(model, train, test, "y", calibration=test, **options)
    with pytest.raises(DataError, match="the calibration table has other columns"):
        evaluate_table(model, train, test, "y", calibration=test[["noise"]], **options)


def test_held_out_rows_of_few_values_may_equal_test_rows():
    """The same answers by others, of which train has none."""
    train, test, held, stop = (
        pd.DataFrame(np.random.default_rng(seed).integers(0, 3, (60, 3)) + at, columns=list("abc")).assign(
            y=["even", "odd"] * 30
        )
        for seed, at in enumerate((10, 0, 0, 0))
    )
    options = {"predictors": ["logistic regression"], "validation": stop}
    found = evaluate_table(None, train, test, "y", calibration=held, **options).metrics
    cells = [[list(row) for row in frame[list("abc")].to_numpy()] for frame in (test, held, stop)]
    shared = [sum(row in others for row in cells[0]) for others in cells[1:]]
    shared = dict(zip(("calibration", "validation"), shared, strict=True))
    assert found["test_rows_also_in"] == {"train": 0, **shared}
    with pytest.raises(DataError, match="60 of 60 test rows are in the validation set"):
        evaluate_table(None, train, test, "y", **options | {"validation": test})


def test_test_rows_of_few_values_may_equal_training_rows():
    """Of 27 answers all were given before: none is left out. A row of the table itself is."""
    train, test, held = (
        pd.DataFrame(np.random.default_rng(seed).integers(0, 3, (90, 3)), columns=list("abc")).assign(
            y=["even", "odd"] * 45
        )
        for seed in range(3)
    )
    options = {"predictors": ["logistic regression"], "calibration": held}
    found = evaluate_table(None, train, test, "y", **options).metrics
    assert found["left_out_as_in_train"] == found["calibration_left_out_as_in_train"] == 0
    assert found["sets"]["test"]["rows"] == 90 and found["test_rows_also_in"]["train"] > 80
    with pytest.raises(DataError, match="every row of test also stands in train"):
        evaluate_table(None, train, train[::-1], "y", **options)


def test_calibration_rows_of_train_are_left_out_and_counted():
    model = factory(0).fit(table(160).drop(columns="y"))
    train, test, held_out = table(120, seed=1), table(40, seed=2), table(50, seed=3)
    options = {"predictors": ["logistic regression"]}
    both = pd.concat([train[:7], held_out], ignore_index=True)
    with pytest.warns(ProbjepaWarning, match="stand in train: 7 of 57. They are left out"):
        found = evaluate_table(model, train, test, "y", calibration=both, **options)
    assert found.metrics["decisions"]["rows"]["calibration"] == 50
    assert found.metrics["sets"]["calibration"]["rows"] == 50
    assert found.metrics["calibration_left_out_as_in_train"] == 7
    alone = evaluate_table(model, train, test, "y", calibration=held_out, **options)
    assert found.metrics["decisions"] == alone.metrics["decisions"]
    with pytest.raises(DataError, match="every calibration row also stands in train"):
        evaluate_table(model, train, test, "y", calibration=train, **options)


def test_scores_that_a_collapsed_encoder_leaves_out_are_said():
    class Collapsed(VarTJEPA):
        def transform(self, X):
            return np.zeros_like(super().transform(X))

    train, test = table(120, seed=1), table(40, seed=2)
    model = Collapsed(random_state=0, **TINY).fit(train.drop(columns="y"))
    with pytest.warns(ProbjepaWarning, match="a held-out one: 105. There is no other: no score"):
        found = evaluate_table(model, train, test, "y", predictors=["logistic regression"])
    assert found.metrics["decisions"] == {}


def test_test_rows_do_not_choose_an_epoch():
    train, test, held_out = table(120, seed=1), table(40, seed=2), table(50, seed=3)
    options = {"predictors": ["logistic regression"]}
    evaluate_table(None, train, test, "y", validation=held_out, **options)
    both = pd.concat([held_out, test[:3]])
    with pytest.raises(DataError, match="3 of 40 test rows are in the validation set"):
        evaluate_table(None, train, test, "y", validation=both, **options)
    with pytest.raises(DataError, match="the validation table has other columns"):
        evaluate_table(None, train, test, "y", validation=held_out[["noise", "y"]], **options)


def test_rows_keep_their_names():
    train, test = table(120, seed=1), table(30, seed=2)
    test = pd.concat([train[:2], test]).set_axis([f"r{i}" for i in range(32)])
    found = evaluate_table(None, train, test, "y", predictors=["logistic regression"])
    assert found.arrays["rows"]["id"].to_pylist() == [f"r{i}" for i in range(2, 32)]
    assert found.metrics["decisions"] == {}


def test_t_jepa_has_no_uncertainty_of_its_own():
    frame = table(80)
    model = TJEPA(random_state=0, **TINY).fit(frame.drop(columns="y"))
    found = evaluate_table(model, frame, table(30, seed=1), "y", predictors=["logistic regression"])
    assert "model uncertainty" not in found.metrics["selective"]["embedding"]["logistic regression"]
    assert "surprise" not in found.arrays


def test_a_missing_library_is_said_not_replaced(monkeypatch):
    monkeypatch.setitem(sys.modules, "xgboost", None)
    result = evaluate_table(
        None, table(), table(30, seed=1), "y", predictors=["XGBoost", "logistic regression"]
    )
    assert result.metrics["accuracy"]["raw"]["XGBoost"] == {"not run": "install probjepa[xgboost]"}
    assert "XGBoost" not in result.metrics["selective"]["raw"]


def broken(case):
    frame, test = table(), table(30, seed=1)
    return {
        "no target": (frame, test, "z"),
        "no target in test": (frame, test.drop(columns="y"), "y"),
        "one class": (frame[frame["y"] == "no"], test, "y"),
        "NaN target": (frame.assign(y=None), test, "y"),
        "continuous": (frame.dropna(), test.dropna(), "number"),
        "other columns": (frame, test.rename(columns={"noise": "sound"}), "y"),
        "all in train": (frame, frame[:9], "y"),
    }[case]


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("no target", "train has no column 'z' to predict"),
        ("no target in test", "test has no column 'y'"),
        ("one class", "has one class, 'no'"),
        ("NaN target", "missing in every row"),
        ("continuous", "continuous numbers"),
        ("other columns", "missing: 'noise'; unexpected: 'sound'"),
        ("all in train", "every row of test also stands in train"),
    ],
)
def test_bad_tables_are_one_line(case, said):
    with pytest.raises(DataError) as caught:
        evaluate_table(None, *broken(case), predictors=["logistic regression"])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_settings():
    with pytest.raises(ConfigError, match="did you mean 'MLP'"):
        evaluate_table(None, table(), table(9, 1), "y", predictors=["MLPP"])
    with pytest.raises(ConfigError, match="seeds is empty"):
        evaluate_table(None, table(), table(9, 1), "y", seeds=())


def test_figures_over_seeds():
    each = [{"a": {"value": x, "low": None, "high": None}, "curve": [x, 2 * x]} for x in (1.0, 2.0, 4.0)]
    found = over_seeds(each)
    from scipy import stats

    low, high = stats.t.interval(0.95, 2, loc=7 / 3, scale=stats.sem([1, 2, 4]))
    assert (found["a"]["low"], found["a"]["high"]) == pytest.approx((low, high))
    assert found["curve"] == pytest.approx([7 / 3, 14 / 3])
    assert over_seeds(each[:2])["a"] == {"value": 1.5, "low": None, "high": None, "seeds": [1.0, 2.0]}
    agreed = over_seeds([{"value": 0.9833, "low": 0.9, "high": 1.0}] * 3)
    assert agreed == {"value": pytest.approx(0.9833), "low": None, "high": None, "seeds": [0.9833] * 3}
    own = {"value": 0.5, "low": 0.4, "high": 0.6}
    assert over_seeds([own]) == {**own, "seeds": [0.5]}


def test_intervals_over_seeds_stay_within_their_figures():
    def one(x):
        of = {"value": x, "low": None, "high": None}
        nested = {"accuracy": {"raw": {"MLP": {"accuracy": of, "macro F1": of}}}}
        selected = {"s": {"aurc": of, "accuracy_at": {"0.5": of}}}
        return {**nested, "selective": selected, "mcnemar": {"lost": of}, "spearman": of, "other": of}

    found = over_seeds([one(x) for x in (0.9, 0.99, 1.0)])
    for of in found["accuracy"]["raw"]["MLP"].values():
        assert of["high"] == 1 and 0 < of["low"] < 0.9
    assert found["selective"]["s"]["aurc"]["high"] == 1
    assert found["selective"]["s"]["accuracy_at"]["0.5"]["high"] == found["spearman"]["high"] == 1
    assert found["other"]["high"] > 1 and found["mcnemar"]["lost"]["high"] > 1
    assert over_seeds([one(x) for x in (0.0, 0.0, 1.0)])["mcnemar"]["lost"]["low"] == 0


def test_a_figure_that_a_seed_lacks_is_of_the_others():
    def of(x):
        return {"value": x, "low": None, "high": None}

    with_both, without = {"a": {"spearman": of(0.5)}, "b": of(1.0)}, {"b": of(2.0)}
    found = over_seeds([with_both, without])
    assert found["a"]["spearman"]["seeds"] == [0.5] and found["b"]["seeds"] == [1.0, 2.0]
    assert over_seeds([without, with_both])["a"] == found["a"]
    assert over_seeds([{"a": None}, {"a": None}]) == {"a": None}


@pytest.mark.usefixtures("few_epochs")
def test_seeds_of_64_bits():
    options = {"predictors": ["logistic regression", "MLP"]}
    train, test = table(80), table(30, seed=1)
    one, other = (
        evaluate_once(None, train, train[:20], test, "y", seed=seed, **options).metrics
        for seed in (5, 2**32 + 5)
    )
    assert one["accuracy"] == other["accuracy"]


def test_the_ps_of_several_seeds_have_no_mean():
    each = [{"p": {"value": p, "low": None, "high": None}} for p in (0.01, 0.5, None)]
    assert over_seeds(each)["p"] == {"value": None, "low": None, "high": None, "seeds": [0.01, 0.5, None]}
    assert over_seeds(each[:1])["p"]["value"] == 0.01


@cache
def clean_accuracy():
    found = evaluate_table(None, table(seed=0), table(60, seed=1), "y", predictors=["logistic regression"])
    return found.metrics["accuracy"]


@pytest.mark.parametrize("nothing", [None, np.nan])
def test_rows_without_a_class_are_left_out_and_counted(nothing):
    train, test = table(seed=0), table(60, seed=1)
    more, more_test = (
        pd.concat([of, table(9, seed=5 + i)], ignore_index=True) for i, of in enumerate((train, test))
    )
    more.loc[len(train) :, "y"] = nothing
    more_test.loc[len(test) :, "y"] = nothing
    found = evaluate_table(None, more, more_test, "y", predictors=["logistic regression"]).metrics
    assert found["labels"]["unlabelled"] == {"train": 9, "test": 9}
    assert found["accuracy"] == clean_accuracy()


@pytest.mark.parametrize("kind", [int, float, str, "category", "Int64", object])
def test_classes_are_one_whatever_their_type(kind):
    train, test = (
        table(n, seed=seed).assign(y=lambda f: (f.y == "yes").astype(int)) for n, seed in ((160, 0), (60, 1))
    )
    test["y"] = test["y"].astype(kind)
    found = evaluate_table(None, train, test, "y", predictors=["logistic regression"]).metrics
    assert found["accuracy"] == clean_accuracy() and found["labels"]["classes_not_in_train"] == []


def test_many_whole_numbers_are_said_to_be_taken_for_classes():
    frame = table().assign(y=np.arange(160) * 7)
    with pytest.warns(
        ProbjepaWarning, match="'y' of train has 160 different whole numbers, each of them taken"
    ):
        assert len(set(check_labels(frame, "y", "train"))) == 160
    with pytest.raises(DataError, match="'y' of train holds continuous numbers"):
        check_labels(frame.astype({"y": float}), "y", "train")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in (int, float):
            assert len(set(check_labels(frame[:100].astype({"y": kind}), "y", "train"))) == 100
        assert len(set(check_labels(frame.astype({"y": str}), "y", "train"))) == 160


def test_classes_that_are_large_numbers_stay_apart():
    frame = pd.DataFrame({"y": [1.0, 2e19, 3e19, -0.0, -3e19]})
    found = check_labels(frame, "y", "train").tolist()
    assert found == ["1", str(2 * 10**19), str(3 * 10**19), "0", str(-3 * 10**19)]
    sparse = pd.DataFrame({"y": pd.arrays.SparseArray([0.0, 1.0, 0.0])})
    assert check_labels(sparse, "y", "train").tolist() == ["0", "1", "0"]
    objects = pd.DataFrame({"y": pd.Series([-1, 2**63, 2**63 + 1, 5.0], dtype=object)})
    assert check_labels(objects, "y", "train").tolist() == ["-1", str(2**63), str(2**63 + 1), "5"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match="continuous numbers"):
            check_labels(pd.DataFrame({"y": [1.0, np.inf]}), "y", "train")


def test_classes_that_train_lacks_are_named_or_refused():
    train, test = table(seed=0), table(60, seed=1)
    test.loc[:4, "y"] = "maybe"
    with pytest.warns(ProbjepaWarning, match="column 'y' of test: the training labels lack maybe"):
        found = evaluate_table(None, train, test, "y", predictors=["logistic regression"]).metrics
    assert found["labels"]["classes_not_in_train"] == ["maybe"]
    with pytest.warns(ProbjepaWarning):
        one = evaluate_table(None, train, test[:6], "y", predictors=["logistic regression"]).metrics
    assert one["accuracy"]["raw"]["logistic regression"]["accuracy"]["value"] <= 1 / 6
    with pytest.raises(DataError, match=r"no class \(maybe\) is among"):
        evaluate_table(None, train, test[:5], "y")


@pytest.mark.usefixtures("few_epochs")
@pytest.mark.parametrize("frame", ["pandas", "polars"])
def test_frames_from_transform_change_nothing(frame):
    train, test = table(), table(60, 1)
    plain = factory(0).fit(train.drop(columns="y"))
    wanted = evaluate_table(plain, train, test, target="y").metrics
    configured = copy.deepcopy(plain).set_output(transform=frame)
    assert not isinstance(configured.transform(test.drop(columns="y")), np.ndarray)
    found = evaluate_table(configured, train, test, target="y").metrics
    with config_context(transform_output=frame):
        everywhere = evaluate_table(copy.deepcopy(plain), train, test, target="y").metrics
    for name in ("accuracy", "selective", "calibration", "mcnemar", "collapse"):
        assert found[name] == everywhere[name] == wanted[name]


@pytest.mark.parametrize("kind", ["category", object, "Int64"])
def test_classes_are_numbers_whatever_holds_them(kind):
    known = pd.DataFrame({"y": pd.Series([0.0, 1.0, 2.0] * 3).astype(kind)})
    assert check_labels(known, "y", "t").tolist() == ["0", "1", "2"] * 3
    mixed = pd.DataFrame({"y": pd.Series([1, 1.0, "b", "1"], dtype=object)})
    assert check_labels(mixed, "y", "t").tolist() == ["1", "1", "b", "1"]
    many = pd.DataFrame({"y": pd.Series(np.random.default_rng(0).normal(size=20)).astype("category")})
    with pytest.raises(DataError, match="holds continuous numbers"):
        check_labels(many, "y", "t")


def test_missing_cells_and_sparse_columns_are_evaluated():
    train, test = table(), table(seed=1)
    for frame in (train, test):
        frame["whole"] = pd.array([pd.NA, 1, 2, 3] * (len(frame) // 4), dtype="Int64")
        frame["rare"] = pd.arrays.SparseArray(np.random.default_rng(len(frame)).normal(size=len(frame)))
    found = evaluate_table(
        lambda seed: VarTJEPA(random_state=seed, **TINY), train, test, "y", predictors=["logistic regression"]
    )
    assert "missing" in table_report(found.metrics, found.arrays)
