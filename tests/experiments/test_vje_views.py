"""More views an image: every row costs the same passes, and differs in views and rate alone."""

from itertools import product

from experiment_tables import trainings

from probjepa_experiments.vje import H
from probjepa_experiments.vje_views import EPOCHS, RATES, STUDY, VIEWS, better, label, within


def test_rows_differ_in_views_and_rate_at_equal_passes():
    rows = trainings(STUDY)
    assert {row.fit["views"] * row.fit["epochs"] for row in rows} == {2 * EPOCHS}
    assert {(row.fit["views"], row.fit["learning_rate"]) for row in rows} == {*product(VIEWS, RATES)}
    assert all(row.settings == {} and row.method == "vje" for row in rows)
    assert all(set(row.fit) == {"views", "epochs", "learning_rate"} for row in rows)


def test_the_accuracies_are_of_images_that_no_table_reports_on():
    assert STUDY.data == {"small": ("cifar10-validation",)}


def test_findings_compare_the_best_rates():
    figures = {label(views, rate): 0.3 for views in VIEWS for rate in RATES}

    def look(row, column):
        assert column == H
        return figures[row]

    assert not better(8).holds(look) and not within(8).holds(look)
    figures[label(8, RATES[0])] = 0.32
    assert better(8).holds(look) and not better(4).holds(look) and not within(8).holds(look)
    figures[label(8, RATES[1])] = 0.33
    assert within(8).holds(look)
    figures[label(2, RATES[-1])] = 0.325
    assert not better(8).holds(look)
