"""Histograms, ROC curves and dots: sound from ordinary and degenerate values, and true to their oracles."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score

from probjepa import plots
from probjepa.plots.scores import score_limits

NAN = float("nan")


def axes() -> Any:
    return Figure().add_subplot()


def written_in(axis: Any) -> str:
    """Check that a picture can be drawn without a warning, and return what is written in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="Glyph")
        axis.figure.savefig(io.BytesIO(), format="png")
    texts = [*axis.texts, axis.title, axis._left_title, axis.xaxis.label, axis.yaxis.label]
    names = [*axis.get_yticklabels(), *axis.get_xticklabels()]
    return " ".join(text.get_text() for text in (*texts, *names))


def draws(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


SCORES = {
    "ordinary": {"in": draws(0, 200), "out": draws(1, 100) - 2},
    "constant": {"in": np.ones(20), "out": np.ones(10)},
    "constant inside": {"in": np.full(20, -3e8), "out": draws(1, 10)},
    "one value": {"in": [0.0], "out": [1.0]},
    "heavy tails": {"in": draws(0, 200), "out": -np.exp(9 * np.abs(draws(1, 100)))},
    "not finite": {"in": [NAN, 1.0, 2.0], "out": [-np.inf, 0.0]},
    "none finite": {"in": [NAN, NAN], "out": [NAN]},
    "empty": {"in": [], "out": []},
    "in alone": {"in": draws(0, 30)},
}


@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES)
def test_score_pictures_take_anything(scores: dict[str, np.ndarray]) -> None:
    for draw in (
        lambda axis: plots.score_histograms(axis, scores),
        lambda axis: plots.histogram(axis, scores["in"]),
        lambda axis: plots.roc(axis, scores["in"], {k: v for k, v in scores.items() if k != "in"}),
    ):
        axis = axes()
        draw(axis)
        assert not {"nan", "inf"} & set(written_in(axis).lower().split())


def test_what_has_nothing_finite_says_so() -> None:
    for draw in (
        lambda axis: plots.score_histograms(axis, SCORES["none finite"]),
        lambda axis: plots.histogram(axis, [NAN]),
        lambda axis: plots.roc(axis, [1.0], {"out": [NAN]}),
    ):
        axis = axes()
        words = draw(axis)
        assert words in written_in(axis) and "no finite" in words


def test_rows_of_histograms_hold_the_shares_of_their_sets() -> None:
    sets = {"in": draws(0, 400), "out": draws(1, 300)}
    axis = axes()
    colours = plots.palette(sets)
    words = plots.score_histograms(axis, sets, colours=colours)
    assert words == f"medians: in {np.median(sets['in']):.4g}, out {np.median(sets['out']):.4g}".replace(
        "-", "−"
    )
    assert [text.get_text() for text in axis.get_yticklabels()] == ["in", "out"]
    assert [text.get_color() for text in axis.get_yticklabels()] == list(colours.values())
    outlines = [patch for patch in axis.patches if not patch.get_fill()]
    heights = {}
    for base, patch, name in zip((1, 0), outlines, sets, strict=True):
        values, edges, baseline = patch.get_data()
        assert baseline == base
        low, high = edges[0], edges[-1]
        counts, _ = np.histogram(np.clip(sets[name], low, high), edges)
        heights[name] = (values - base) / (counts / len(sets[name])).clip(1e-12)
        heights[name] = heights[name][counts > 0]
    # one scale for all rows
    assert np.ptp(np.concatenate(list(heights.values()))) == pytest.approx(0, abs=1e-9)


def test_a_spike_is_cut_and_what_lies_beyond_is_counted() -> None:
    axis = axes()
    plots.score_histograms(axis, {"in": draws(0, 400), "spike": np.zeros(50), "far": np.full(40, -1e6)})
    outlines = [patch.get_data().values.max() for patch in axis.patches if not patch.get_fill()]
    assert outlines[1] == 1.88 and outlines[2] == 0.88  # the tops of their rows
    assert "100 % beyond the axis" in written_in(axis)


@pytest.mark.parametrize("constant", [False, True])
def test_a_histogram_holds_every_value(constant: bool) -> None:
    values = np.r_[np.ones(200) if constant else draws(3, 200), NAN]
    axis = axes()
    words = plots.histogram(axis, values, bins=17)
    assert words == f"median {np.median(values[:-1]):.3g}"
    counts, edges, _ = axis.patches[0].get_data()
    assert counts.sum() == pytest.approx(100)
    assert len(counts) == 17
    assert axis.get_xlim() == (edges[0], edges[-1])
    assert axis.lines[0].get_xdata()[0] == np.median(values[:-1])
    plots.histogram(limited := axes(), values, limits=(-1.0, 1.0))
    assert limited.get_xlim() == (-1, 1)


def test_roc_shows_the_auroc_of_scikit_learn_with_ties() -> None:
    inside, outside = np.round(draws(0, 300)), np.round(draws(1, 200) - 1)
    truth = np.r_[np.zeros(300), np.ones(200)]
    wanted = roc_auc_score(truth, -np.r_[inside, outside])
    words = plots.roc(axis := axes(), inside, {"out": outside})
    assert f"{wanted:.3f}" in written_in(axis)
    assert words == f"AUROC: out {wanted:.3f}"


def test_limits_reach_no_further_than_two_ranges_of_the_first_set() -> None:
    low, high = score_limits([draws(0, 1000), np.full(10, -1e9)])
    assert -13 < low < -10
    assert 2 < high < 4


def test_dots_stand_at_their_values_with_bars_over_their_intervals() -> None:
    rows = {"knn": (0.91234, 0.9, 0.92), "gmm": (0.5, NAN, NAN), "none": (NAN, NAN, NAN)}
    words = plots.dots(axis := axes(), rows, chance=0.5, written=True)
    assert words == "knn 0.912, gmm 0.500"
    text = written_in(axis)
    assert all(part in text for part in ("knn", "0.912", "gmm", "0.500", "none"))
    assert [a.get_fontweight() for a in axis.texts] == ["bold", "normal"]
    drawn = {(line.get_marker(), *line.get_xdata(), *line.get_ydata()) for line in axis.lines}
    assert ("o", 0.91234, 0) in drawn and ("o", 0.5, 1) in drawn
    assert ("None", 0.9, 0.92, 0, 0) in drawn
    assert sum(marker == "o" for marker, *_ in drawn) == 2
    assert axis.get_ylim() == (2.6, -0.6)  # from top to bottom


def test_dots_compare_with_seeds_and_a_published_value() -> None:
    rows = {"a": (0.3, 0.2, 0.4), "b": (0.5, NAN, NAN)}
    plots.dots(axis := axes(), rows, ticks={"a": [0.2, 0.4]}, diamonds={"b": 0.45})
    of = {line.get_marker(): list(line.get_xdata()) for line in axis.lines if len(line.get_xdata())}
    assert of["|"] == [0.2, 0.4] and of["D"] == [0.45]
    plots.dots(empty := axes(), {"none": (NAN, NAN, NAN)}, written=True)
    assert "none" in written_in(empty)


@pytest.mark.parametrize(
    "name", ["a\x00b", "line\nbreak", "<b>", "$\\alpha$", "日本語", "", "x" * 99, "\udcff"]
)
def test_odd_names_are_safe_and_short(name: str) -> None:
    shown = plots.label(name)
    assert len(shown) <= 28 and shown.isprintable()
    assert len(plots.label(name, 12)) <= 12


def test_a_palette_has_a_colour_a_name_in_order() -> None:
    colours = plots.palette(["in", "a", "b"])
    assert len(set(colours.values())) == 3
    longer = plots.palette([*colours, *map(str, range(9))])
    assert {name: longer[name] for name in colours} == colours


def test_a_name_that_begins_with_a_line_stands_in_a_legend() -> None:
    axis = axes()
    plots.lines(axis, {"_a": ([0, 1], [0, 1]), "b": ([0, 1], [1, 0])})
    assert [text.get_text().strip() for text in axis.legend().get_texts()] == ["_a", "b"]


@pytest.mark.parametrize("values", [[1e15, 1e15 + 1], [1e17] * 5, [-1e30] * 3, [1e-30, 2e-30]])
def test_a_histogram_of_nearly_equal_values_of_any_size(values: list[float]) -> None:
    plots.histogram(axis := axes(), values)
    written_in(axis)
    counts, edges, _ = axis.patches[0].get_data()
    assert counts.sum() == pytest.approx(100) and edges[0] <= min(values)
    assert max(values) <= edges[-1]


@pytest.mark.parametrize(
    ("values", "median"),
    [([1.7e308] * 4, "1.7e+308"), ([1.7e308] * 5, "1.7e+308"), ([np.finfo(float).max] * 3, "1.8e+308"),
     ([-1e308, 1e308], "0"), ([-1e308] * 5, "-1e+308"), ([-1.7e308, 0.0, 1.7e308], "0")],
)  # fmt: skip
def test_the_largest_numbers_are_drawn_within_the_picture(values: list[float], median: str) -> None:
    words = plots.histogram(axis := axes(), values)
    written_in(axis)
    counts, edges, _ = axis.patches[0].get_data()
    assert words == f"median {median}" and counts.sum() == pytest.approx(100) and np.isfinite(edges).all()
    low, high = axis.get_xlim()
    assert low <= axis.lines[0].get_xdata()[0] <= high
    words = plots.score_histograms(axis := axes(), {"in": values, "out": [0.0, 1.0]})
    written_in(axis)
    assert "inf" not in words and "nan" not in words
