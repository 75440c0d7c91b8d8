"""VJE's settings for few images: each row differs in one of them, and no test image decides."""

from experiment_tables import trainings

from probjepa_experiments.datasets import SOURCES
from probjepa_experiments.study import Row
from probjepa_experiments.vje import H
from probjepa_experiments.vje_defaults import BEST, RATES, RECIPE, SMALL, STUDY, above, rate_label


def test_each_row_differs_from_the_best_rate_in_one_setting():
    rows = {row.label: row for row in trainings(STUDY)}
    for label, row in rows.items():
        fit = {key: value for key, value in row.fit.items() if key != "learning_rate"}
        changed = {**row.settings, **fit, **({} if row.fit["learning_rate"] == BEST else {"rate": 0})}
        if label == rate_label(BEST):
            assert changed == {}
        elif "recipe" in label:
            assert row.fit["learning_rate"] == 0.05 and row.fit["batch_size"] == 256
        elif row.fit.get("views"):  # as many passes of the encoder
            assert row.fit["views"] * row.fit["epochs"] == 2 * SMALL.fit["epochs"]
        else:
            assert len(changed) == 1, label
    assert RECIPE in rows and {rate_label(rate) for rate in RATES} <= set(rows)


def test_the_baselines_stand_beside_them():
    assert {row.task for row in STUDY.rows if isinstance(row, Row)} == {"train", "random-init", "raw-pixels"}


def test_the_accuracies_are_of_images_that_no_table_reports_on():
    for name in STUDY.data["small"]:
        assert SOURCES[name].validation
        assert SOURCES[name].others == ()


def test_scikit_learns_digits_are_split_without_a_file():
    found = SOURCES["digits-validation"].open(None)
    assert found.shape == (1, 28)
    assert (len(found.train), len(found.test), dict(found.ood)) == (1438, 359, {})
    assert {*found.train.labels.tolist()} == {*found.test.labels.tolist()} == set(range(10))


def test_a_finding_is_a_margin_of_knn():
    figures = {"a": 0.5, "b": 0.39}
    look = lambda row, column: figures[row] if column == H else None  # noqa: E731
    assert above("a", "b").holds(look) and above("a", "b", 0.1).holds(look)
    assert not above("a", "b", 0.12).holds(look) and not above("b", "a").holds(look)
    assert above("a", "b", 0.1).claim == "a is above b by 10 points"
