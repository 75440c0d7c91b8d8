"""Sections on geometry and selection: their tables hold the numbers, their pictures are sound."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pytest

from probjepa.metrics import risk_coverage, uncertainty_geometry
from probjepa.report.embedding import geometry_section
from probjepa.report.page import Figure, Table, Value, render
from probjepa.report.sections import selective_section


def written_in(figure: Figure) -> str:
    """Check that a figure is a sound picture and return what is written in it."""
    raw = figure.image.decode()
    assert figure.alt and not re.search(r"\bnan\b|\binf\b", raw.lower())
    assert "prefers-color-scheme:dark" in raw
    return " ".join("".join(e.itertext()) for e in ET.fromstring(raw).iter() if e.tag.endswith("}text"))


def rho(value: float | None, low: float | None = None, high: float | None = None) -> dict[str, float | None]:
    return {"value": value, "low": low, "high": high}


def geometry(**margins: dict[str, float | None]) -> dict[str, Any]:
    return {
        "classes": 3,
        "margin": {"mean": 0.2, "std": 0.1, "negative": 0.125},
        "spearman": {name: {"margin": m, "radius": rho(0.1, 0.05, 0.15)} for name, m in margins.items()},
        "tertiles": {name: [1.5, 2.5, 3.5] for name in margins},
    }


FALLS, RISES, FLAT = rho(-0.3, -0.4, -0.2), rho(0.25, 0.15, 0.35), rho(0.01, -0.1, 0.1)


def test_geometry_shows_what_was_expected_and_what_was_found():
    section = geometry_section(
        geometry(mean_variance=FALLS, nll=FLAT, kl=RISES, anisotropy=FALLS, mine=RISES, constant=rho(None))
    )
    assert section is not None
    assert "3 class centroids" in section.text

    figure, table = section.items
    assert isinstance(figure, Figure) and isinstance(table, Table)
    assert "negative for 12.5 %" in table.caption
    drawn = written_in(figure)
    assert all(name in drawn for name in ("mean σ²", "NLL", "KL to the prior", "anisotropy of σ²", "mine"))
    assert "mean σ² −0.300" in figure.alt
    rows = {row[0]: list(row[1:]) for row in table.rows}
    assert rows["mean σ²"][:2] == ["falls", "falls"]
    assert rows["NLL"][:2] == ["falls", "unclear"]
    assert rows["KL to the prior"][:2] == ["rises", "rises"]
    assert rows["anisotropy of σ²"][:2] == ["rises", "falls"]
    assert rows["mine"][:2] == [None, "rises"]
    assert rows["constant"][1] == "unclear" and rows["constant"][2].text == "–"
    assert rows["mean σ²"][2:4] == [Value(-0.3, -0.4, -0.2), Value(0.1, 0.05, 0.15)]
    cells = {line[0]["text"]: line for line in table.cells}
    assert (cells["mean σ²"][3]["text"], cells["mean σ²"][3]["interval"]) == ("−0.300", "−0.400 to −0.200")
    assert rows["mean σ²"][4:] == [1.5, 2.5, 3.5]


def test_geometry_of_the_metric_itself():
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=400)
    mean = rng.normal(size=(4, 6))[labels] + rng.normal(size=(400, 6))
    found = uncertainty_geometry(mean, labels, {"kl": rng.normal(size=400)}, n_bootstrap=50)
    section = geometry_section(json.loads(json.dumps(found)))
    assert section is not None
    value = f"{found['spearman']['kl']['margin']['value']:.3f}".replace("-", "−")
    assert f"KL to the prior {value}" in section.items[0].alt
    assert "Uncertainty and the classes" in render("page", [], [section])


def test_nothing_to_say_is_no_section():
    assert geometry_section({}) is None
    assert geometry_section({"classes": 2, "spearman": {}}) is None
    assert selective_section({}) is None
    assert selective_section({"kNN": {}}) is None


def selective(confidence: Any, right: Any) -> dict[str, Any]:
    found = risk_coverage(confidence, right)
    accuracy = {"1.0": float(1 - found.risk[-1])} | {str(k): v for k, v in found.accuracy_at.items()}
    return {
        "curve": {"coverage": found.coverage.tolist(), "risk": found.risk.tolist()},
        "aurc": found.aurc,
        "excess_aurc": found.excess_aurc,
        "accuracy_at": accuracy,
    }


RIGHT = np.arange(200) < 150
ORDERS = {
    "probe": -np.arange(200),
    "mean_variance": np.arange(200),
    "odd <b>": np.arange(200) % 7 - np.arange(200),
}


def section_of(**orders: Any) -> Any:
    result = {name: selective(order, RIGHT) for name, order in orders.items()}
    section = selective_section({"kNN": json.loads(json.dumps(result))})
    assert section is not None
    return result, section


def test_selection_shows_every_figure_and_marks_the_best():
    result, section = section_of(**ORDERS)
    figure, table = section.items
    drawn = written_in(figure)
    assert all(name in drawn for name in ("probe", "mean σ²", "odd <b>"))
    assert "at random" in drawn
    assert figure.alt.startswith("Error by coverage: kNN, % wrong at the end: probe 25, ")
    assert "<b>" not in render("page", [], [section])
    assert table.columns[3:] == ["accuracy, 100 % coverage", "accuracy, 90 % coverage ↑",
                                 "accuracy, 80 % coverage ↑", "accuracy, 50 % coverage ↑"]  # fmt: skip
    for row, (_, of) in zip(table.rows, result.items(), strict=True):
        assert row[1:3] == [of["aurc"], of["excess_aurc"]]
        assert [cell.value for cell in row[3:]] == [
            of["accuracy_at"][s] for s in ("1.0", "0.9", "0.8", "0.5")
        ]
    best = [[cell["best"] for cell in row] for row in table.cells]
    assert best[0][1] and best[0][2] and best[0][-1] and not any(best[1])
    assert not any(row[3] for row in best)  # all answered: there is nothing to choose


def test_withholding_at_random_is_the_dashed_line_and_no_rival():
    result, section = section_of(**ORDERS, random=np.zeros(200))
    drawn = written_in(section.items[0])
    assert drawn.count("random") == 1
    rows = {row[0]: row[1] for row in section.items[1].rows}
    assert rows["random"] == result["random"]["aurc"] == pytest.approx(0.25)


def test_the_names_of_many_sources_are_all_within_the_picture(monkeypatch):
    drawn = []
    monkeypatch.setattr("probjepa.report.figures._svg", lambda figure: drawn.append(figure) or "")
    section_of(**{f"source {i}": np.arange(200) % (i + 3) for i in range(20)}, random=np.zeros(200))
    (axis,) = drawn[0].axes
    drawn[0].draw_without_rendering()
    names = axis.get_legend().get_window_extent()
    assert len(axis.get_legend().get_texts()) == 21
    assert names.y0 >= 0 and names.x1 <= drawn[0].bbox.x1
    assert axis.bbox.height > 0.6 * drawn[0].bbox.height


def test_images_and_tables_write_the_same_section():
    of_images = selective(ORDERS["probe"], RIGHT)
    grid = np.array([max(1, round(200 * share)) - 1 for share in np.linspace(0.05, 1, 96)])
    of_tables = {
        "aurc": {"value": of_images["aurc"], "low": None, "high": None},
        "excess_aurc": {"value": of_images["excess_aurc"], "low": None, "high": None},
        "accuracy_at": {s: {"value": x} for s, x in of_images["accuracy_at"].items()},
        "risk": np.array(of_images["curve"]["risk"])[grid].tolist(),
    }
    first, second = (selective_section({"kNN": {"probe": of}}) for of in (of_images, of_tables))
    assert [row[3:] for row in first.items[1].cells] == [row[3:] for row in second.items[1].cells]
    assert [x.value for x in second.items[1].rows[0][1:3]] == first.items[1].rows[0][1:3]
    assert first.items[0].alt == second.items[0].alt


def test_the_classifier_with_the_fewest_errors_comes_first_and_the_others_are_folded():
    good, bad = ({"probe": selective(-np.arange(100), np.arange(100) < right)} for right in (90, 60))
    figure, first, second = selective_section({"tree": bad, "MLP": good}).items
    assert first.caption.startswith("MLP on the embedding.") and not first.folded
    assert second.folded == "tree: all sources of uncertainty"
    drawn = written_in(figure)
    assert drawn.index("tree") < drawn.index("MLP")  # the panels keep their order
    assert figure.alt == (
        "Error by coverage: tree, % wrong at the end: probe 40; MLP, % wrong at the end: probe 10"
    )


@pytest.mark.parametrize(
    "result",
    [
        {"a": selective([1.0], [True])},
        {"a": selective([1.0, 0.0], [False, False]), "b": selective([1.0, 0.0, 3.0], [True, False, True])},
        {"a": {"aurc": 0.1}},
        {"a": {"aurc": None, "curve": None, "accuracy_at": None}},
    ],
)
def test_selection_takes_what_there_is(result: dict[str, Any]):
    section = selective_section({"kNN": result})
    assert section is not None
    for item in section.items:
        if isinstance(item, Figure):
            assert ("at random" in written_in(item)) == (len(result) == 1)
    html = render("page", [], [section])
    assert not re.search(r">\s*nan\s*<", html.lower())
