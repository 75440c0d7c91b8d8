"""Curves and spectra: what is drawn are the numbers that were given, and degenerate ones are drawn too."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from probjepa import plots
from probjepa.metrics import risk_coverage

NAN = float("nan")
RIGHT = np.arange(200) < 150


def axes() -> Any:
    return Figure().add_subplot()


def drawn(axis: Any) -> Any:
    axis.figure.savefig(io.BytesIO(), format="png")
    return axis


def curve(confidence: Any, right: Any = RIGHT) -> tuple[np.ndarray, np.ndarray]:
    found = risk_coverage(confidence, right)
    return found.coverage, found.risk


def test_risk_is_drawn_over_coverage_from_five_percent_on() -> None:
    curves = {"best": curve(-np.arange(200)), "worst": curve(np.arange(200))}
    axis = axes()
    assert plots.risk_coverage(axis, curves) == "% wrong at the end: best 25, worst 25"
    drawn(axis)
    for line, (coverage, risk) in zip(axis.lines, curves.values(), strict=False):
        kept = coverage >= 0.05
        np.testing.assert_allclose(line.get_xdata(), 100 * coverage[kept])
        np.testing.assert_allclose(line.get_ydata(), 100 * risk[kept])
    assert axis.lines[-1].get_label() == "at random"
    assert set(axis.lines[-1].get_ydata()) == {25.0}
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["best", "worst", "at random"]


def test_answers_of_different_quality_have_no_common_line() -> None:
    plots.risk_coverage(
        axis := axes(), {"a": curve([1, 0], [1, 0]), "b": curve([1, 0], [0, 0])}, legend=False
    )
    assert len(axis.lines) == 2 and axis.get_legend() is None


@pytest.mark.parametrize("confidence", [[1.0], [1.0, 1.0, 1.0]])
def test_a_curve_of_few_answers_can_be_seen(confidence: list[float]) -> None:
    plots.risk_coverage(axis := axes(), {"a": curve(confidence, [True] * len(confidence))})
    drawn(axis)
    assert len(confidence) > 1 or axis.lines[0].get_marker() == "o"


def test_more_names_than_colours_stay_apart() -> None:
    many = {f"source {i}": curve(np.random.default_rng(i).normal(size=200)) for i in range(20)}
    plots.risk_coverage(axis := axes(), many, colours=plots.palette(many))
    looks = {(line.get_color(), str(line._dash_pattern)) for line in axis.lines[:-1]}
    assert len({colour for colour, _ in looks}) == 8 and len(looks) == 20


def test_calibration_draws_the_accuracy_of_every_part() -> None:
    words = plots.calibration(axis := axes(), {"MLP": [0.9, 0.8], "tree": [0.7, 0.6]})
    assert words == "MLP from 90 to 80 %, tree from 70 to 60 %"
    assert [list(line.get_ydata()) for line in axis.lines] == [[90, 80], [70, 60]]
    assert list(axis.lines[0].get_xdata()) == [1, 2]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["MLP", "tree"]


@pytest.mark.parametrize(
    ("values", "end"),
    [([3.0, 2.5], "2.5"), ([1.0, 1.0], "1"), ([0.0], "0"), ([5.0, 1e-9], "≈ 0"), ([-1.0, -2.0], "−2")],
)
def test_a_training_curve_ends_with_its_last_value(values: list[float], end: str) -> None:
    words = plots.training_curve(axis := axes(), range(1, len(values) + 1), values)
    assert words == f"from {values[0]:.4g} to {values[-1]:.4g}"
    drawn(axis)
    assert [text.get_text() for text in axis.texts] == [end]
    assert list(axis.lines[0].get_ydata()) == values
    low, high = axis.get_ylim()
    assert low <= min(values) <= max(values) <= high
    assert min(values) < 0 or low >= 0 or len(set(values)) == 1


def test_a_spectrum_has_its_centre_and_the_middle_of_its_rows() -> None:
    rows = np.random.default_rng(0).random((40, 6))
    words = plots.spectrum(axis := axes(), rows, name="<b>", centre=np.mean)
    assert words == f"<b> from {rows.mean(0)[0]:.3g} to {rows.mean(0)[-1]:.3g}"
    (line,), (band,) = axis.lines, axis.collections
    np.testing.assert_allclose(line.get_ydata(), rows.mean(0))
    edge = band.get_paths()[0].vertices
    low, high = np.quantile(rows, [0.1, 0.9], axis=0)
    assert edge[:, 1].min() == pytest.approx(low.min()) and edge[:, 1].max() == pytest.approx(high.max())
    plots.singular_values(both := axes(), {"a": rows, "b": 0 * rows}, colours=plots.palette("ab"))
    drawn(both)
    assert both.get_yscale() == "log"
    np.testing.assert_allclose(both.lines[0].get_ydata(), np.median(rows, 0))
    assert (both.lines[1].get_ydata() == 1e-6).all()  # as the score clips them


@pytest.mark.parametrize(
    "variance",
    [
        np.exp(np.random.default_rng(0).normal(size=(50, 8))),
        np.exp(10 * np.random.default_rng(0).normal(size=(50, 8))),
        np.ones((5, 4)),
        np.zeros((5, 4)),
        np.ones((1, 1)),
        np.r_[np.ones((3, 2)), [[NAN, 1.0]]],
        np.full((2, 2), NAN),
        np.ones((0, 3)),
    ],
    ids=["spread", "decades", "prior", "zero", "one", "part nan", "all nan", "empty"],
)
def test_a_variance_spectrum_takes_anything(variance: np.ndarray) -> None:
    plots.variance_spectrum(axis := axes(), variance)
    drawn(axis)
    kept = variance[np.isfinite(variance).all(1)]
    if not len(kept):
        assert axis.texts[0].get_text() == "no finite values"
        return
    np.testing.assert_allclose(axis.lines[0].get_ydata(), np.sort(kept.mean(0))[::-1])
    assert set(axis.lines[1].get_ydata()) == {1}  # the prior
