"""Maps: the plane against scikit-learn and numpy, and points that are drawn where they lie."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from sklearn.decomposition import PCA

from probjepa import plots
from probjepa.plots.maps import extent_of, peak

NAN = float("nan")
RANDOM = np.random.default_rng(0)


def axes(**options: Any) -> Any:
    return Figure(layout="constrained").add_subplot(**options)


def drawn(axis: Any) -> Any:
    axis.figure.savefig(io.BytesIO(), format="png")
    return axis


def draws(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def test_plane_is_an_orthonormal_basis_of_the_main_directions() -> None:
    x = RANDOM.normal(size=(200, 5)) * [5, 3, 2, 1, 0.1] + 7
    plane = plots.Plane(x)
    assert plane.directions @ plane.directions.T == pytest.approx(np.eye(3), abs=1e-10)
    variance = np.linalg.eigvalsh(np.cov(x.T))[::-1]
    coords = plane(x)
    assert np.cov(coords.T) == pytest.approx(np.diag(variance[:3]), abs=1e-9)
    assert plane.share == pytest.approx(variance[:2].sum() / variance.sum())
    assert coords.mean(0) == pytest.approx(np.zeros(3), abs=1e-9)
    # other points are carried by the plane, whatever their shape
    assert plane(x.reshape(40, 5, 5)) == pytest.approx(coords.reshape(40, 5, 3))
    assert plots.Plane(x[:, :2])(x[:, :2])[:, 2] == pytest.approx(np.zeros(200))


def test_principal_coordinates_are_those_of_scikit_learn_up_to_sign() -> None:
    x = draws(0, 60, 5) * [1, 5, 2, 0.5, 3]
    ours, theirs = plots.Plane(x)(x), PCA(3).fit_transform(x)
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=1e-9)
    loadings = np.linalg.lstsq(ours, x - x.mean(0), rcond=None)[0]
    assert (loadings[range(3), np.abs(loadings).argmax(1)] > 0).all()
    np.testing.assert_array_equal(ours, plots.Plane(x)(x))


@pytest.mark.parametrize("shape", [(1, 3), (4, 1), (1, 1)])
def test_principal_coordinates_of_too_little_are_zero_not_an_error(shape: tuple[int, int]) -> None:
    x = draws(0, *shape)
    coords = plots.Plane(x)(x)
    assert coords.shape == (shape[0], 3)
    assert (coords[:, 1:] == 0).all()


@pytest.mark.parametrize("classes", [None, ["<script>", "$x$"], ["only one"]])
def test_class_map_names_the_classes_at_their_medians(classes: list[str] | None) -> None:
    labels, xy = np.arange(40) % 2, draws(0, 40, 2)
    plots.class_map(axis := axes(), xy, labels, classes)
    drawn(axis)
    texts = [text.get_text() for text in axis.texts]
    assert (
        texts
        == {None: ["0", "1"], "<script>": classes, "only one": ["only one", "1"]}[classes and classes[0]]
    )
    for text, value in zip(axis.texts, (0, 1), strict=True):
        assert text.get_position() == pytest.approx(np.median(xy[labels == value], axis=0))


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["b", "a"], ["a", "b"]),
        ([0.0, NAN], ["0.0", "unlabelled"]),
        ([-1, 7], ["7", "unlabelled"]),
        (["a", None], ["a", "unlabelled"]),
        (["b", 10, 9], ["9", "10", "b"]),
        ([*np.float32([0.2, 0.1])], ["0.1", "0.2"]),
        ([*np.array(["2021", "2020"], "M8[D]").astype("M8[s]")], ["2020-01-01…00:00", "2021-01-01…00:00"]),
    ],
)
def test_class_map_takes_labels_of_any_type(labels: list[Any], names: list[str]) -> None:
    given = np.array(labels * 20, object if {str, type(None)} & {*map(type, labels)} else None)
    plots.class_map(axis := axes(), draws(0, len(given), 2), given)
    drawn(axis)
    assert [text.get_text() for text in axis.texts] == names


def test_class_map_names_classes_of_numbers_among_objects() -> None:
    labels = np.ma.array([0, 1, 5] * 20, mask=[False, False, True] * 20)  # as numpy.ma's become
    for given in (labels, np.array([0, 1, -1] * 20, object)):
        plots.class_map(axis := axes(), draws(0, 60, 2), given, ["cat", "dog"])
        assert [text.get_text() for text in axis.texts] == ["cat", "dog", "unlabelled"]


def test_maps_of_one_class_many_classes_and_nothing_finite() -> None:
    titles = []
    for xy, labels in (
        (draws(0, 9, 2), np.zeros(9, int)),
        (draws(0, 60, 2), np.arange(60) % 30),
        (np.full((3, 2), NAN), np.zeros(3, int)),
    ):
        words = plots.class_map(axis := axes(), xy, labels)
        drawn(axis)
        titles.append((words, len(axis.texts)))
    assert titles == [("9 points of 1 class", 1), ("60 points of 30 classes", 0), ("no finite points", 1)]
    for score in (np.zeros(9), np.full(9, NAN), np.r_[np.inf, np.arange(8)]):
        plots.score_map(axis := axes(), draws(0, 9, 2), score)
        drawn(axis)
        assert sum(len(points.get_offsets()) for points in axis.collections) == 9
    plots.score_map(axis := axes(), np.full((3, 2), NAN), np.zeros(3))
    assert axis.texts[0].get_text() == "no finite points"


def test_the_least_typical_are_drawn_on_top() -> None:
    xy, score = draws(0, 30, 2), draws(1, 30)
    plots.score_map(axis := axes(), xy, score)
    np.testing.assert_allclose(axis.collections[1].get_offsets(), xy[np.argsort(-score)])


def test_peak_counts_the_fullest_cell() -> None:
    assert peak(np.concatenate([np.zeros((30, 2)), RANDOM.uniform(-5, 5, (40, 2))])) >= 30


def test_densities_share_one_scale_and_hold_the_points_within() -> None:
    clouds = {"Targets": draws(0, 500, 3), "Samples": 2 * draws(1, 500, 2)}
    figure = Figure()
    panels = figure.subplots(1, 2)
    assert plots.hexbins(panels, clouds) == "Targets, Samples"
    left, right, bottom, top = extent_of(*clouds.values())
    for axis, (name, coords) in zip(panels, clouds.items(), strict=True):
        drawn(axis)
        assert axis.get_title() == name
        assert (*axis.get_xlim(), *axis.get_ylim()) == (left, right, bottom, top)
        x, y = coords[:, 0], coords[:, 1]
        inside = (x >= left) & (x <= right) & (y >= bottom) & (y <= top)
        assert axis.collections[0].get_array().sum() == inside.sum() >= 0.98 * len(coords)
    assert panels[0].collections[0].norm.vmax == panels[1].collections[0].norm.vmax


def test_clouds_are_named_and_sized() -> None:
    clouds = {"targets": draws(0, 20, 3), "<means>": draws(1, 5, 3)}
    sizes = {"<means>": np.arange(5.0)}
    colours = plots.palette(clouds)
    words = plots.points(axis := axes(), clouds, colours=colours, extent=(-3, 3, -3, 3), sizes=sizes)
    assert words == "targets, <means>"
    drawn(axis)
    np.testing.assert_allclose(axis.collections[0].get_offsets(), clouds["targets"][:, :2])
    np.testing.assert_allclose(axis.collections[1].get_sizes(), np.arange(5.0))
    assert [text.get_text() for text in axis.figure.legends[0].get_texts()] == list(clouds)
    plots.cloud(space := axes(projection="3d"), *(draws(i, 20, 3) for i in range(2)))
    drawn(space)
    plots.cloud(space := axes(projection="3d"), np.zeros((4, 3)), np.zeros((4, 3)))
    drawn(space)
