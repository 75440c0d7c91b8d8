"""Figures: valid pictures from ordinary and degenerate arrays, and numbers that match their oracles."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from probjepa.report.curves import collapse_curves, series, training_curves
from probjepa.report.figures import (
    detector_dots,
    roc_curves,
    score_histograms,
    score_limits,
    variance_histogram,
    variance_spectrum,
)
from probjepa.report.maps import class_map, pca_map, score_map
from probjepa.report.page import Figure
from probjepa.report.style import label, palette

NAN = float("nan")


def text_of(figure: Figure) -> str:
    """Check that a figure is a sound picture and return what is written in it."""
    assert figure.mime == "image/svg+xml"
    assert figure.alt
    root = ET.fromstring(figure.image)
    raw = figure.image.decode()
    assert not re.search(r"\bnan\b|\binf\b", raw.lower())
    assert "prefers-color-scheme:dark" in raw
    assert not [e for e in root.iter() if e.tag.endswith("script")]
    return " ".join("".join(e.itertext()) for e in root.iter() if e.tag.endswith("}text"))


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
def test_score_figures_take_anything(scores: dict[str, np.ndarray]) -> None:
    text_of(score_histograms(scores))
    text_of(roc_curves(scores["in"], {k: v for k, v in scores.items() if k != "in"}))


def test_roc_shows_the_auroc_of_scikit_learn_with_ties() -> None:
    inside, outside = np.round(draws(0, 300)), np.round(draws(1, 200) - 1)
    truth = np.r_[np.zeros(300), np.ones(200)]
    wanted = roc_auc_score(truth, -np.r_[inside, outside])
    assert f"{wanted:.3f}" in text_of(roc_curves(inside, {"out": outside}))


def test_values_that_are_left_out_are_counted() -> None:
    figure = score_histograms({"in": [NAN, 1.0, 2.0], "out": [-np.inf, 0.0]})
    assert "2 values not finite" in figure.caption
    assert "not finite" not in score_histograms(SCORES["ordinary"]).caption


def test_limits_cover_near_sets_and_are_not_ruled_by_far_ones() -> None:
    inside = np.linspace(0, 1, 101)
    low, high = score_limits([inside, inside - 1])
    assert low < -0.98 < 0.99 < high
    low, _ = score_limits([inside, inside - 1e6])
    assert -4 < low < -1


def test_dots_show_every_detector_and_survive_unknown_intervals() -> None:
    auroc = {"knn": (0.91234, 0.9, 0.92), "gmm": (0.5, NAN, NAN), "none": (NAN, NAN, NAN)}
    text = text_of(detector_dots("SVHN", auroc, colour=palette("a")["a"]))
    assert all(part in text for part in ("SVHN", "knn", "0.912", "gmm", "0.500"))
    assert "none" not in text
    assert "no AUROC" in text_of(detector_dots("SVHN", {"none": (NAN, NAN, NAN)}, colour="#000000"))


@pytest.mark.parametrize(
    "variance",
    [
        np.exp(draws(0, 50, 8)),
        np.exp(10 * draws(0, 50, 8)),
        np.ones((5, 4)),
        np.zeros((5, 4)),
        np.ones((1, 1)),
        np.r_[np.ones((3, 2)), [[NAN, 1.0]]],
        np.full((2, 2), NAN),
        np.ones((0, 3)),
    ],
    ids=["spread", "decades", "prior", "zero", "one", "part nan", "all nan", "empty"],
)
def test_variance_figures_take_anything(variance: np.ndarray) -> None:
    text_of(variance_spectrum(variance))
    text_of(variance_histogram(variance))


def test_principal_coordinates_are_those_of_scikit_learn_up_to_sign() -> None:
    x = draws(0, 60, 5) * [1, 5, 2, 0.5, 3]
    ours, theirs = pca_map(x), PCA(2).fit_transform(x)
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=1e-9)
    loadings = np.linalg.lstsq(ours, x - x.mean(0), rcond=None)[0]
    assert (loadings[[0, 1], np.abs(loadings).argmax(1)] > 0).all()
    np.testing.assert_array_equal(ours, pca_map(x))


@pytest.mark.parametrize("shape", [(1, 3), (4, 1), (1, 1)])
def test_principal_coordinates_of_too_little_are_zero_not_an_error(shape: tuple[int, int]) -> None:
    coords = pca_map(draws(0, *shape))
    assert coords.shape == (shape[0], 2)
    assert (coords[:, 1] == 0).all()


@pytest.mark.parametrize("classes", [None, ["<script>", "$x$"], ["only one"]])
def test_class_map_names_the_classes(classes: list[str] | None) -> None:
    labels = np.arange(40) % 2
    text = text_of(class_map(draws(0, 40, 2), labels, classes))
    wanted = classes if classes and len(classes) == 2 else ["0", "1"][1:]
    assert all(name in text for name in wanted)


def test_maps_of_one_class_many_classes_and_nothing_finite() -> None:
    assert "1 class" in text_of(class_map(draws(0, 9, 2), np.zeros(9, int)))
    assert "30 classes" in text_of(class_map(draws(0, 60, 2), np.arange(60) % 30))
    assert "no finite" in text_of(class_map(np.full((3, 2), NAN), np.zeros(3, int)))
    for score in (np.zeros(9), np.full(9, NAN), np.r_[np.inf, np.arange(8)]):
        text_of(score_map(draws(0, 9, 2), score))
    assert "no finite" in text_of(score_map(np.full((3, 2), NAN), np.zeros(3)))


def test_series_average_within_an_epoch_and_drop_what_is_missing() -> None:
    metrics = {"epoch": [1, 1, 2, 3, NAN], "a": [1.0, 3.0, NAN, 7.0, 9.0]}
    epochs, values = series(metrics, "a")
    np.testing.assert_array_equal(epochs, [1, 3])
    np.testing.assert_array_equal(values, [2, 7])
    np.testing.assert_array_equal(series({"a": [1.0, 2.0]}, "a")[0], [0, 1])


def test_curves_draw_what_is_there_in_reading_order() -> None:
    metrics = {
        "epoch": [1.0, 2.0],
        "learning_rate": [0.1, 0.05],
        "train/kl": [2.0, 1.0],
        "train/loss": [3.0, 2.5],
        "train/empty": [NAN, NAN],
        "knn": [0.5, 0.6],
        "effective_rank": [4.0, 4.0],
    }
    titles = [figure.alt.split(" over training")[0] for figure in training_curves(metrics)]
    assert titles == ["loss", "KL", "learning rate"]
    diagnostics = [figure.alt.split(" over training")[0] for figure in collapse_curves(metrics)]
    assert diagnostics == ["Effective rank", "kNN accuracy"]
    for figure in [*training_curves(metrics), *collapse_curves(metrics)]:
        text_of(figure)


def test_one_epoch_is_a_picture_too() -> None:
    (figure,) = training_curves({"epoch": [1.0], "train/loss": [0.0]})
    assert "0" in text_of(figure)
    assert collapse_curves({"epoch": [1.0]}) == []


def test_drawing_leaves_matplotlib_as_it_was_and_repeats_itself() -> None:
    before = dict(mpl.rcParams)
    first = score_histograms(SCORES["ordinary"])
    assert dict(mpl.rcParams) == before
    assert score_histograms(SCORES["ordinary"]).image == first.image


def test_a_set_keeps_its_colour_from_figure_to_figure() -> None:
    colours = palette(["in", "a", "b"])
    assert len(set(colours.values())) == 3
    # the SVG holds variables, so the same light value stands behind the same name in both
    both = score_histograms(SCORES["ordinary"] | {"b": [0.0]}, colours={**colours, "out": colours["a"]})
    alone = roc_curves([1.0, 2.0], {"b": [0.0]}, colours=colours)
    variable = re.search(rf"(--c\d+):{colours['b']}", both.image.decode())
    assert variable is not None
    assert f"var({variable[1]})" in both.image.decode()
    assert f"var({variable[1]})" in alone.image.decode()


@pytest.mark.parametrize(
    "name", ["a\x00b", "line\nbreak", "<b>", "$\\alpha$", "日本語", "", "x" * 99, "\udcff"]
)
def test_odd_names_can_be_drawn(name: str) -> None:
    assert len(label(name)) <= 28
    text_of(score_histograms({name: [1.0, 2.0], "out": [0.0]}, name=name))
    text_of(roc_curves([1.0], {name: [0.0]}, name=name))
