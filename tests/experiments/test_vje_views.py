"""More views an image: every row of a budget costs the same passes, and nothing else differs."""

import pytest

from probjepa_experiments.vje_views import EPOCHS, FOUND, RATES, STUDY, VIEWS


@pytest.mark.parametrize(("budget", "costs"), [("small", 1), ("medium", 2)])
def test_rows_differ_in_views_and_rate_at_equal_passes(budget, costs):
    rows = STUDY.rows_of(budget)
    passes = {row.fit["views"] * row.fit["epochs"] for row in rows}
    assert len(passes) == costs
    assert {row.fit["views"] for row in rows} == {*VIEWS}
    assert all(row.settings == {} and row.method == "vje" for row in rows)
    assert all(set(row.fit) == {"views", "epochs", "learning_rate"} for row in rows)


def test_the_curve_has_the_rates_that_were_searched():
    assert set(FOUND) == {*VIEWS} and set(FOUND.values()) <= {*RATES}
    curve = STUDY.rows_of("medium")
    assert [row.fit["learning_rate"] for row in curve] == [FOUND[views] for _ in EPOCHS for views in VIEWS]


def test_the_rates_are_chosen_on_images_that_the_curve_does_not_report_on():
    assert STUDY.data == {"small": ("cifar10-validation",), "medium": ("cifar10",)}
