"""Sections on geometry and selection: their findings follow from the numbers, their pictures are sound."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pytest

from probjepa.metrics import risk_coverage, uncertainty_geometry
from probjepa.report.geometry import geometry_section, selective_section
from probjepa.report.page import Figure, Table, render


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


def test_geometry_names_what_holds_and_what_does_not():
    section = geometry_section(
        geometry(mean_variance=FALLS, nll=FLAT, kl=RISES, anisotropy=FALLS, mine=RISES, constant=rho(None))
    )
    assert section is not None
    assert "3 class centroids" in section.text
    assert "negative for 12.5 %" in section.text
    assert "As it grows: mean σ² falls, KL to the prior rises, as expected; " in section.text
    assert "; anisotropy of σ² falls, against expectation; no clear trend in NLL." in section.text
    assert "mine" not in section.text

    figure, table = section.items
    assert isinstance(figure, Figure) and isinstance(table, Table)
    drawn = written_in(figure)
    assert all(name in drawn for name in ("mean σ²", "NLL", "KL to the prior", "anisotropy of σ²", "mine"))
    assert "mean σ² −0.30" in figure.alt
    rows = {row[0]: list(row[1:]) for row in table.rows}
    assert rows["mean σ²"][:2] == ["falls", "falls"]
    assert rows["NLL"][:2] == ["falls", "unclear"]
    assert rows["KL to the prior"][:2] == ["rises", "rises"]
    assert rows["anisotropy of σ²"][:2] == ["rises", "falls"]
    assert rows["mine"][:2] == [None, "rises"]
    assert rows["constant"][1:3] == ["unclear", "–"]
    assert rows["mean σ²"][2] == "−0.30 (−0.40 to −0.20)"
    assert rows["mean σ²"][4:] == [1.5, 2.5, 3.5]


def test_geometry_of_the_metric_itself():
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=400)
    mean = rng.normal(size=(4, 6))[labels] + rng.normal(size=(400, 6))
    found = uncertainty_geometry(mean, labels, {"kl": rng.normal(size=400)}, n_bootstrap=50)
    section = geometry_section(json.loads(json.dumps(found)))
    assert section is not None
    value = f"{found['spearman']['kl']['margin']['value']:.2f}".replace("-", "−")
    assert f"KL to the prior {value}" in section.items[0].alt
    assert "Uncertainty and the classes" in render("page", [], [section])


def test_nothing_to_say_is_no_section():
    assert geometry_section({}) is None
    assert geometry_section({"classes": 2, "spearman": {}}) is None
    assert selective_section({}) is None


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


def test_selection_names_the_best_and_the_useless():
    result = {name: selective(order, RIGHT) for name, order in ORDERS.items()}
    section = selective_section(json.loads(json.dumps(result)))
    assert section is not None
    assert (
        "The best confidence here is probe: answering the surest 50 % takes accuracy from 75.0 to 100.0 %"
        in section.text
    )
    assert section.text.endswith("no better than withholding at random: mean σ².")
    figure, table = section.items
    drawn = written_in(figure)
    assert all(name in drawn for name in ("probe", "mean σ²", "odd <b>"))
    assert "Dashed" in figure.caption
    assert "<b>" not in render("page", [], [section])
    assert table.columns[3:] == ["accuracy, 100 % answered", "accuracy, 90 % answered",
                                 "accuracy, 80 % answered", "accuracy, 50 % answered"]  # fmt: skip
    for row, (_, of) in zip(table.rows, result.items(), strict=True):
        assert row[1:3] == [of["aurc"], of["excess_aurc"]]
        assert [cell.value for cell in row[3:]] == [
            of["accuracy_at"][s] for s in ("1.0", "0.9", "0.8", "0.5")
        ]
    best = [[cell["best"] for cell in row] for row in table.cells]
    assert best[0][1] and best[0][2] and best[0][-1] and not any(best[1])
    assert not any(row[3] for row in best)  # all answered: there is nothing to choose


def test_withholding_at_random_is_the_dashed_line_and_no_rival():
    result = {name: selective(order, RIGHT) for name, order in {**ORDERS, "random": np.zeros(200)}.items()}
    section = selective_section(result)
    assert section is not None
    assert section.text.endswith("no better than withholding at random: mean σ².")
    drawn = written_in(section.items[0])
    assert "at random" in drawn
    assert drawn.index("probe") < drawn.index("odd") < drawn.index("mean σ²")  # the best first
    assert [row[0] for row in section.items[1].rows][-1] == "random"


def test_more_sources_than_colours_stay_apart():
    many = {f"source {i}": selective(np.random.default_rng(i).normal(size=200), RIGHT) for i in range(11)}
    figure = selective_section(many).items[0]
    drawn = re.findall(r"(stroke-dasharray[^;]*;[^;]*;)? stroke: var\(--c(\d+)\)", figure.image.decode())
    curves = {(dashes, colour) for dashes, colour in drawn if int(colour) >= 4}  # the first four are neutral
    assert len({colour for _, colour in curves}) == 8 and len(curves) == 11


def test_selection_that_gains_nothing_says_so():
    section = selective_section({"kl": selective(np.arange(200), RIGHT)})
    assert section is not None and "By none of these" in section.text


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
    section = selective_section(result)
    assert section is not None
    assert not re.search(r"\bnan\b", section.text)
    for item in section.items:
        if isinstance(item, Figure):
            written_in(item)
            assert "Dashed" not in item.caption or len(result) == 1
    render("page", [], [section])
