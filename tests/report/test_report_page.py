"""The page: escaping, self-containment, tables, galleries."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from probjepa.errors import ConfigError
from probjepa.report.page import Card, Figure, Gallery, Section, Table, Value, grid, render

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


class Page(HTMLParser):
    """Collects the start tags and the text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def page_of(*items: Figure | Table | Gallery) -> Page:
    return Page(render("T", [], [Section("S", "text", items)]))


def test_hostile_names_stay_text_everywhere() -> None:
    images = np.zeros((1, 1, 4, 4), np.uint8)
    items = [
        Table([HOSTILE, "b"], [[HOSTILE, HOSTILE]], HOSTILE, folded=HOSTILE),
        Gallery(images, [HOSTILE], HOSTILE),
        Figure(b"<svg/>", "image/svg+xml", HOSTILE, HOSTILE),
    ]
    html = render(
        HOSTILE,
        [Card(HOSTILE, HOSTILE, HOSTILE)],
        [Section(HOSTILE, HOSTILE, items)],
        subtitle=HOSTILE,
        footer={HOSTILE: HOSTILE},
    )
    page = Page(html)
    assert not page.all("script")
    assert all((image["src"] or "").startswith("data:image/") for image in page.all("img"))
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert page.text.count(HOSTILE) >= 12


def test_nothing_is_fetched_from_elsewhere() -> None:
    figure = Figure(b"<svg/>", "image/svg+xml", "c", "a")
    html = render("T", [Card("l", "1")], [Section("S", "text", [figure])], footer={"v": "1"})
    page = Page(html)
    links = [attrs[key] for _, attrs in page.tags for key in ("src", "href", "srcset") if key in attrs]
    assert links
    assert all((link or "").startswith(("#", "data:")) for link in links)
    assert not re.search(r"https?://|@import|url\(", html)
    assert not page.all("script")


def test_contents_point_at_the_sections_and_images_have_alt_text() -> None:
    figure = Figure(b"<svg/>", "image/svg+xml", "", "what it shows")
    gallery = Gallery(np.zeros((2, 3, 4, 4), np.uint8), ["a", "b"], "G")
    page = Page(render("T", [], [Section("One", "x", [figure]), Section("Two", "y", [gallery])]))
    sections = [attrs["id"] for attrs in page.all("section")]
    targets = [(a["href"] or "").removeprefix("#") for a in page.all("a")]
    assert set(sections) == {"s1", "s2"}
    assert set(sections) < set(targets)
    assert [image["alt"] for image in page.all("img")] == ["what it shows", "G: a", "G: b"]


@pytest.mark.parametrize(("way", "winner"), [("max", "0.900"), ("min", "0.100")])
def test_best_of_a_column_is_marked(way: str, winner: str) -> None:
    rows = [["a", Value(0.1, 0.05, 0.15)], ["b", Value(0.9)], ["c", Value(float("nan"))]]
    html = render("T", [], [Section("S", "t", [Table(["", "x"], rows, "c", {"x": way})])])  # type: ignore[dict-item]
    marked = re.findall(r'<td class="[^"]*best[^"]*"><span class="point">([^<]*)', html)
    assert marked == [winner]
    assert "0.050–0.150" in html


def test_ties_are_all_best_and_one_number_alone_is_not() -> None:
    tie = Table(["", "x"], [["a", 1.0], ["b", 1.0]], "c", {"x": "max"})
    alone = Table(["", "x"], [["a", 1.0], ["b", None]], "c", {"x": "max"})
    assert [row[1]["best"] for row in tie.cells] == [True, True]
    assert [row[1]["best"] for row in alone.cells] == [False, False]


def test_a_turned_table_has_its_columns_as_lines_and_marks_the_same_cells() -> None:
    rows = [["a", Value(0.1), "p"], ["b", Value(0.9), None]]
    plain, turned = (Table(["row", "x", "y"], rows, "c", {"x": "max"}, turned=way) for way in (False, True))
    assert turned.heads == ["row", "a", "b"]
    assert [[cell["text"] for cell in line] for line in turned.cells] == [
        ["x", "0.100", "0.900"],
        ["y", "p", "–"],
    ]
    assert [cell["best"] for cell in turned.cells[0]] == [False, False, True]
    assert (plain.numeric, turned.numeric) == ([False, True, False], [False, True, True])


@pytest.mark.parametrize(
    ("value", "text", "interval"),
    [
        (Value(0.1234), "0.123", ""),
        (Value(0.1234, 0.1, 0.2, percent=True), "12.3", "10.0–20.0"),
        (Value(float("nan"), 0.1, 0.2), "–", "0.100–0.200"),
        (Value(float("inf")), "–", ""),
        (Value(-0.25, -0.5, 0.125), "−0.250", "−0.500 to 0.125"),
    ],
)
def test_values_print_with_their_interval(value: Value, text: str, interval: str) -> None:
    assert (value.text, value.interval) == (text, interval)


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ({"value": 0.5, "low": 0.4, "high": 0.6}, Value(0.5, 0.4, 0.6)),
        ({"value": 0.5, "low": None, "high": None}, Value(0.5)),
        (0.5, Value(0.5)),
        (1, Value(1.0)),
        (None, Value(float("nan"))),
        ({"value": None}, Value(float("nan"))),
    ],
)
def test_values_are_read_as_metrics_json_has_them(entry: object, value: Value) -> None:
    found = Value.of(entry)
    assert repr(found) == repr(value)
    assert found.known == np.isfinite(value.value)
    assert Value.of(entry, percent=True).percent


def test_a_grid_has_what_is_known_and_marks_the_best_by_its_arrow() -> None:
    rows = {
        "a": {"x": {"value": 0.25, "low": 0.2, "high": 0.3}, "y": 0.123456},
        "b": {"x": 0.5, "y": "not run"},
    }
    columns = {"x": "X ↓", "y": "Y ↑", "z": "Z"}
    table = grid("row", rows, columns, "c", percent=["x"], folded="f")
    assert list(table.columns) == ["row", "X ↓", "Y ↑"]
    assert [[cell["text"] for cell in line] for line in table.cells] == [
        ["a", "25.0", "0.1235"],
        ["b", "50.0", "not run"],
    ]
    assert table.cells[0][1]["interval"] == "20.0–30.0"
    assert table.best == {"X ↓": "min", "Y ↑": "max"}
    assert table.folded == "f"


def test_noted_cells_are_set_off_with_their_notes_and_no_others() -> None:
    table = Table(["", "x", "y"], [["a", 1, 2], ["b", 3, 4]], "c", notes=[{2: "odd <b>"}, {}])
    assert [[cell["best"] for cell in line] for line in table.cells] == [[False, False, True], [False] * 3]
    assert table.cells[0][2]["interval"] == "odd <b>"
    assert "odd &lt;b&gt;" in render("T", [], [Section("S", "t", [table])])


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_gallery_tiles_are_the_images(channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, channels, 5, 7), dtype=np.uint8)
    for image, (uri, caption) in zip(images, Gallery(images, ["a", "b"], "G").tiles, strict=True):
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))))
        wanted = image[0] if channels < 3 else image[:3].transpose(1, 2, 0)
        np.testing.assert_array_equal(shown, wanted)
        assert caption in "ab"


def test_large_gallery_images_are_made_small() -> None:
    gallery = Gallery(np.zeros((1, 3, 600, 400), np.uint8), [""], "G")
    size = Image.open(io.BytesIO(base64.b64decode(gallery.tiles[0][0].split(",", 1)[1]))).size
    assert max(size) <= 192
    assert not gallery.pixelated


@pytest.mark.parametrize(
    "make",
    [
        lambda: Table(["a", "b"], [["x"]], "c"),
        lambda: Gallery(np.zeros((1, 4, 4), np.uint8), [""], "G"),
        lambda: Gallery(np.zeros((1, 1, 4, 4)), [""], "G"),  # type: ignore[arg-type]
        lambda: Gallery(np.zeros((2, 1, 4, 4), np.uint8), [""], "G"),
    ],
)
def test_wrong_shapes_are_one_line_errors(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_file_name_that_is_no_text_does_not_cost_the_page() -> None:
    html = render("run-\udcff", [], [])
    assert html.encode("utf-8")
    assert not page_of().all("img")
