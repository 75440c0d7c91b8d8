"""One self-contained HTML page: its parts as dataclasses, and a renderer."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from probjepa.errors import ConfigError
from probjepa.plots.style import number

_TEMPLATE = Path(__file__).with_name("template.html")
_LARGEST_TILE = 96  # pixels; a gallery is for the eye, and the page carries every byte of it

Width = Literal["full", "half", "third"]
Tone = Literal["plain", "good", "warn"]
Better = Literal["max", "min"]


@dataclass(frozen=True)
class Value:
    """A measured number with its interval, e.g. ``Value(0.91, 0.90, 0.92)``.

    ``percent=True`` prints 100 times the value with one decimal; otherwise ``form`` says how. NaN prints as
    a dash.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    percent: bool = False
    form: str = ".3f"

    @classmethod
    def of(cls, entry: Any, percent: bool = False) -> Value:
        """Read a figure of metrics.json: {"value", "low", "high"}, a bare number, or None for unknown."""
        parts = entry if isinstance(entry, Mapping) else {"value": entry}
        value, low, high = (
            math.nan if parts.get(key) is None else float(parts[key]) for key in ("value", "low", "high")
        )
        return cls(value, low, high, percent)

    @property
    def text(self) -> str:
        """The number alone."""
        return self._format(self.value)

    @property
    def known(self) -> bool:
        """Whether there is a number."""
        return math.isfinite(self.value)

    @property
    def interval(self) -> str:
        """The interval as ``low–high``, or nothing where it is unknown."""
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            return ""
        return f"{self._format(self.low)}{' to ' if self.low < 0 else '–'}{self._format(self.high)}"

    def _format(self, x: float) -> str:
        if not math.isfinite(x):
            return "–"
        return number(100 * x, ".1f") if self.percent else number(x, self.form)


@dataclass(frozen=True)
class Figure:
    """A picture with the caption that says how to read it and the text that stands in for it."""

    image: bytes
    mime: str
    caption: str
    alt: str
    width: Width = "full"

    @property
    def uri(self) -> str:
        """The picture as a data URI."""
        return _data_uri(self.image, self.mime)


@dataclass(frozen=True)
class Table:
    """A table whose first column heads its rows.

    Cells are text, numbers, None or `Value`. ``best`` names the columns in which the best number is set in
    bold and which way is better. ``folded`` puts the table behind that line, to be opened by a click;
    ``width`` is its share of the page; ``turned`` lays its columns out as lines, where there are too many.
    ``notes`` has a mapping a row, from the cells that are set off to what stands below them.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str
    best: Mapping[str, Better] = field(default_factory=dict)
    folded: str = ""
    width: Width = "full"
    turned: bool = False
    notes: Sequence[Mapping[int, str]] = ()

    def __post_init__(self) -> None:
        wrong = next((row for row in self.rows if len(row) != len(self.columns)), None)
        if wrong is not None:
            raise ConfigError(
                f"table '{self.caption}': a row has {len(wrong)} cells for {len(self.columns)} columns; give "
                "one each"
            )

    @property
    def heads(self) -> list[str]:
        """What heads the columns on the page; an arrow stays with its last word."""
        heads = [self.columns[0], *(str(row[0]) for row in self.rows)] if self.turned else self.columns
        return [re.sub(" ([↑↓])$", "\N{NO-BREAK SPACE}\\1", head) for head in heads]

    @property
    def cells(self) -> list[list[dict[str, Any]]]:
        """The rows as the template wants them: text, interval, whether a number, whether the best."""
        best = {i: self._best(i, self.best[name]) for i, name in enumerate(self.columns) if name in self.best}
        grid = [
            [
                {**_cell(x), "best": best.get(i) is not None and _number(x) == best[i]}
                for i, x in enumerate(row)
            ]
            for row in self.rows
        ]
        for row, notes in zip(grid, self.notes, strict=False):
            for column, note in notes.items():
                row[column] |= {"best": True, "interval": note}
        if not self.turned:
            return grid
        first = [{**_cell(name), "best": False} for name in self.columns]
        return [list(line) for line in zip(first, *grid, strict=True)][1:]

    @property
    def numeric(self) -> list[bool]:
        """For each column on the page, whether it holds numbers, which are set flush right."""
        lines = self.cells
        return [any(line[i]["number"] for line in lines) for i in range(len(self.heads))]

    def _best(self, column: int, way: str) -> float | None:
        known = [x for row in self.rows if (x := _number(row[column])) is not None]
        if len(known) < 2:  # alone, a number is not the best of anything
            return None
        return max(known) if way == "max" else min(known)


def grid(
    head: str,
    rows: Mapping[str, Mapping[str, Any]],
    columns: Mapping[str, str],
    caption: str,
    *,
    percent: Container[str] = (),
    folded: str = "",
    width: Width = "full",
) -> Table:
    """Return a table of figures of metrics.json.

    Parameters
    ----------
    head
        what heads the rows
    rows
        name → column → figure (see :meth:`Value.of`), or another cell, such as why there is none
    columns
        column → its title; an arrow in it (↑, ↓) marks the best number. Columns that no row has are left out
    caption, folded, width
        as of a :class:`Table`
    percent
        columns that are shown in %
    """
    known = {key: title for key, title in columns.items() if any(key in row for row in rows.values())}

    def cell(entry: Any, key: str) -> Any:
        plain = not isinstance(entry, Mapping) and (key not in percent or isinstance(entry, str))
        return entry if plain else Value.of(entry, key in percent)

    cells = [[name, *(cell(row.get(key), key) for key in known)] for name, row in rows.items()]
    best: dict[str, Better] = {title: "max" for title in known.values() if "↑" in title}
    best |= {title: "min" for title in known.values() if "↓" in title}
    return Table([head, *known.values()], cells, caption, best, folded, width)


@dataclass(frozen=True)
class Gallery:
    """Small images in a grid: ``images`` uint8 (N, C, H, W), one caption each."""

    images: NDArray[np.uint8]
    captions: Sequence[str]
    title: str

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != np.uint8:
            raise ConfigError(
                f"gallery '{self.title}': images are {self.images.dtype} {self.images.shape}; give uint8 (N, "
                "C, H, W)"
            )
        if len(self.captions) != len(self.images):
            raise ConfigError(
                f"gallery '{self.title}': {len(self.captions)} captions for {len(self.images)} images; give "
                "one each"
            )

    @property
    def tiles(self) -> list[tuple[str, str]]:
        """(data URI, caption) of every image."""
        return [
            (_data_uri(_png(image), "image/png"), caption)
            for image, caption in zip(self.images, self.captions, strict=True)
        ]

    @property
    def pixelated(self) -> bool:
        """Whether the images are so small that their pixels should be shown as squares."""
        return bool(max(self.images.shape[2:]) <= _LARGEST_TILE)


@dataclass(frozen=True)
class Card:
    """A headline number: what it is, its value, and a note (its interval, its meaning)."""

    label: str
    value: str
    note: str = ""
    tone: Tone = "plain"


@dataclass(frozen=True)
class Section:
    """A titled part of the page: how to read it, then figures, tables and galleries."""

    title: str
    text: str
    items: Sequence[Figure | Table | Gallery] = ()


def render(
    title: str,
    cards: Sequence[Card],
    sections: Sequence[Section],
    *,
    subtitle: str = "",
    footer: Mapping[str, str] | None = None,
) -> str:
    """Return the page as HTML that needs no other file and no network.

    Parameters
    ----------
    title, subtitle
        the heading and the line under it
    cards
        headline numbers, shown at the top
    sections
        the body, also listed in the table of contents
    footer
        provenance in pairs (version, hardware, time)

    Every text is escaped; names from a user's data are safe to pass on.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.tests["figure"] = lambda item: isinstance(item, Figure)
    environment.tests["table"] = lambda item: isinstance(item, Table)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    html = template.render(
        title=title,
        subtitle=subtitle,
        cards=cards,
        # rows of equal length where that is possible, so that no card stands alone
        across=len(cards) if len(cards) <= 5 else 3 if len(cards) == 6 else 4,
        sections=sections,
        footer=dict(footer or {}),
    )
    # file names from a disk may hold bytes that are no text; one odd name must not cost the page
    return html.encode("utf-8", errors="replace").decode("utf-8")


def _data_uri(content: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode('ascii')}"


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float | np.integer | np.floating) and not isinstance(x, bool)


def _number(cell: Any) -> float | None:
    """The number that a cell is compared by, or None."""
    x = cell.value if isinstance(cell, Value) else cell
    if not _is_number(x):
        return None
    return float(x) if math.isfinite(x) else None


def _cell(x: Any) -> dict[str, Any]:
    if isinstance(x, Value):
        return {"text": x.text, "interval": x.interval, "number": True}
    if x is None:
        return {"text": "–", "interval": "", "number": False}
    if not _is_number(x):
        return {"text": str(x), "interval": "", "number": False}
    whole = isinstance(x, (int, np.integer))
    text = f"{x:,}".replace("-", "−") if whole else number(x, ".4g") if math.isfinite(x) else "–"
    return {"text": text, "interval": "", "number": True}


def _png(image: NDArray[np.uint8]) -> bytes:
    """One uint8 image (C, H, W) as PNG: one or two channels as grey, three or more as red, green, blue."""
    from PIL import Image

    picture = (
        Image.fromarray(image[0]) if len(image) < 3 else Image.fromarray(image[:3].transpose(1, 2, 0).copy())
    )
    picture.thumbnail((2 * _LARGEST_TILE, 2 * _LARGEST_TILE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
