"""Figures of the page: sound, self-contained pictures with captions, from ordinary and degenerate arrays."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

from probjepa import plots
from probjepa.report.detection import detection_section, histograms, scores_section
from probjepa.report.embedding import map_section, variance_section
from probjepa.report.figures import left_out, picture
from probjepa.report.page import Figure
from probjepa.report.training import collapse_curves, series, training_curves

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


SCORES = {"in": draws(0, 200), "out": draws(1, 100) - 2}


def test_a_picture_is_svg_with_its_caption_and_its_size() -> None:
    def draw(axis: Any) -> str:
        axis.plot([1, 2])
        return "a line"

    figure = picture("<T>", draw, "how", width="half", height=100, xlabel="$x$")
    text = text_of(figure)
    assert "<T>" in text and "$x$" in text
    assert (figure.caption, figure.alt, figure.width) == ("how", "<T>: a line", "half")
    assert 'viewBox="0 0 402 100"' in figure.image.decode()


def test_panels_stand_side_by_side_on_one_scale() -> None:
    def draw(axes: Any) -> str:
        first, second = axes
        first.plot([1, 2])
        second.plot([0, 9])
        assert first.get_ylim() == second.get_ylim()
        return "two lines"

    figure = picture("T", draw, panels=2)
    text_of(figure)
    assert figure.alt == "T: two lines" and 'viewBox="0 0 820 300"' in figure.image.decode()


@pytest.mark.parametrize("width", ["full", "half", "third"])
@pytest.mark.parametrize(
    "name",
    ["a", "imagenet-o, far", "predictive density", "describable_textures, 47 classes", "far " * 5, "W" * 60],
)
@pytest.mark.parametrize(
    "draw",
    [
        lambda axis: plots.dots(axis, {"JEPA-SCORE + latent": (0.9, 0.8, 1.0)}, written=True),
        lambda axis: plots.dots(axis, {"JEPA-SCORE + latent (normal)": (0.9, 0.8, 1.0)}),  # pushes the axes
        lambda axis: plots.roc(axis, [0.0, 1.0, 2.0], {"far": [1.0, 3.0]}),  # a square amid the picture
    ],
)
def test_a_title_ends_within_the_picture(
    width: Any, name: str, draw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("probjepa.report.figures._svg", lambda figure: drawn.append(figure) or "")
    figure = picture(name, draw, width=width)
    (axis,) = drawn[0].axes
    drawn[0].draw_without_rendering()
    text = axis.get_title("left")
    assert axis._left_title.get_window_extent().x1 <= drawn[0].bbox.x1
    assert text == name or ("…" in text and text[0] == name[0] and text[-5:] == name[-5:])
    assert figure.alt.startswith(f"{name}: ")


def test_the_auroc_of_a_set_stands_under_its_name_in_its_colour() -> None:
    by_score = {"knn": {"auroc": {"value": 0.9, "low": 0.8, "high": 0.95}}}
    section = detection_section({"far": by_score}, "photos", {"far": plots.palette("ab")["b"]})
    assert section is not None
    dots = section.items[0]
    assert isinstance(dots, Figure)
    (title,) = re.findall(r"<text style=\"([^\"]*)\"[^>]*>far</text>", dots.image.decode())
    assert "fill: var(--c5)" in title  # the second of the colours, after the four neutral ones


def test_the_text_is_in_the_pages_font_and_says_what_it_said() -> None:
    raw = picture("#0067a5 font-family: x", lambda axis: plots.histogram(axis, [1.0, 2.0])).image.decode()
    assert "DejaVu" not in raw and "system-ui" in raw
    assert ">#0067a5 font-family: x</text>" in raw


def test_values_that_are_left_out_are_counted() -> None:
    assert left_out([NAN, 1.0], [[-np.inf, 0.0]]) == " Left out: 2 values not finite."
    assert left_out([NAN]) == " Left out: 1 value not finite."
    assert left_out([1.0], []) == ""
    sets = {"in": [NAN, 1.0, 2.0], "out": [-np.inf, 0.0]}
    assert "2 values not finite" in histograms("knn", sets, plots.palette(sets)).caption
    assert "not finite" not in histograms("knn", SCORES, plots.palette(SCORES)).caption


def test_histograms_tell_the_medians_to_who_cannot_see() -> None:
    figure = histograms("knn", {"in": [1.0, 2.0, 4.0], "none": [NAN]}, plots.palette(["in", "none"]))
    text_of(figure)
    assert figure.alt == "knn: medians: in 2"


@pytest.mark.parametrize(
    "variance",
    [np.exp(draws(0, 50, 8)), np.ones((1, 1)), np.r_[np.ones((3, 2)), [[NAN, 1.0]]], np.full((2, 2), NAN)],
    ids=["spread", "one", "part nan", "all nan"],
)
def test_variance_figures_take_anything(variance: np.ndarray) -> None:
    section = variance_section({"variance": variance})
    assert section is not None and len(section.items) == 2
    for figure in section.items:
        assert isinstance(figure, Figure)
        text_of(figure)
    missing = int((~np.isfinite(variance)).sum())
    assert ("not finite" in section.items[0].caption) == bool(missing)
    assert variance_section({"variance": np.ones((0, 3))}) is None


def test_the_map_says_how_much_it_shows() -> None:
    x = draws(0, 300, 4) * [4, 3, 1e-6, 1e-6]
    section = map_section({"embeddings": x, "labels": np.arange(300) % 2, "classes": ["a", "<b>"]}, x[:, 0])
    assert section is not None and "100 % of its variance" in section.text
    by_class, by_score = section.items
    assert "<b>" in text_of(by_class)
    assert "less typical" in text_of(by_score)
    assert map_section({"embeddings": x}, None) is None
    assert map_section({"embeddings": x[:2], "labels": [0, 1]}, x[:2, 0]) is None
    assert map_section({"embeddings": x * NAN, "labels": np.zeros(300)}, None) is None


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
    titles = [figure.alt.split(":")[0] for figure in training_curves(metrics)]
    assert titles == ["loss", "KL", "learning rate"]
    assert training_curves(metrics)[0].alt == "loss: from 3 to 2.5"
    diagnostics = [figure.alt.split(":")[0] for figure in collapse_curves(metrics)]
    assert diagnostics == ["Effective rank", "kNN accuracy"]
    for figure in [*training_curves(metrics), *collapse_curves(metrics)]:
        text_of(figure)


def test_one_epoch_is_a_picture_too() -> None:
    (figure,) = training_curves({"epoch": [1.0], "train/loss": [0.0]})
    assert "0" in text_of(figure)
    assert collapse_curves({"epoch": [1.0]}) == []


def test_drawing_leaves_matplotlib_as_it_was_and_repeats_itself() -> None:
    before = dict(mpl.rcParams)
    first = histograms("knn", SCORES, plots.palette(SCORES))
    assert dict(mpl.rcParams) == before
    assert histograms("knn", SCORES, plots.palette(SCORES)).image == first.image


def test_a_set_keeps_its_colour_from_figure_to_figure() -> None:
    colours = plots.palette(["test", "a", "b"])
    section = scores_section({"knn": {"test": [1.0, 2.0], "b": [0.0]}}, "photos", ["b"], colours)
    assert section is not None
    # the SVG holds variables, so the same light value stands behind the same name in both
    for figure in section.items:
        raw = figure.image.decode()
        variable = re.search(rf"(--c\d+):{colours['b']}", raw)
        assert variable is not None and f"var({variable[1]})" in raw


@pytest.mark.parametrize(
    "name", ["a\x00b", "line\nbreak", "<b>", "$\\alpha$", "日本語", "", "x" * 99, "\udcff"]
)
def test_odd_names_can_be_drawn(name: str) -> None:
    section = scores_section(
        {name: {"test": [1.0, 2.0], name: [0.0]}}, name, [name], plots.palette(["test", name])
    )
    assert section is not None
    for figure in section.items:
        text_of(figure)
