"""What a result was made of, as tables: nested settings, and the sets it was computed on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from probjepa.report.page import Section, Table

_SHORT = 8  # rows; a longer table of settings is set in two columns
_MOST = 200  # skipped files shown: metrics.json and skipped.txt have all
_CLASSES = 50  # of a target shown: metrics.json has all
_HASH = 16  # hex digits shown: metrics.json has all


def provenance_section(result: Mapping[str, Any], text: str) -> Section | None:
    """Return the sets, the classes of a table's target, and the settings of an evaluation, if it has any."""
    sets, classes, settings = (result.get(key) or {} for key in ("sets", "classes", "settings"))
    left_out = result.get("left_out_as_in_train") or {}
    if isinstance(left_out, int):  # of a table, the test rows
        left_out = {"test": left_out, "calibration": result.get("calibration_left_out_as_in_train")}
    skipped = result.get("skipped") or {}
    items = [sets_table(sets, left_out, skipped)] if sets else []
    if any(not isinstance(lines, int) and lines for lines in skipped.values()):
        items.append(skipped_table(skipped))
    if classes:
        rows = [[name, count] for name, count in classes.items()]
        caption = f"Classes of the target.{_first(_CLASSES, len(rows))}"
        items.append(Table(["class", "training rows"], rows[:_CLASSES], caption, folded="Classes"))
    if settings:
        items += settings_tables(settings, "Settings of the model and of this evaluation")
    if "reencode" in result:
        text += " " + codec_note(result["reencode"])
    return Section("Provenance", text, items) if items else None


def flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted name, text) for every leaf of nested settings."""
    for name, value in settings.items():
        full = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{full}.")
        elif isinstance(value, (list, tuple)):
            yield full, ", ".join(map(str, value)) or "–"
        else:
            yield full, "–" if value is None or value == {} else str(value)


def settings_tables(settings: Mapping[str, Any], caption: str) -> list[Table]:
    """Return nested settings as one table of dotted name and value, or two side by side if they are many."""
    rows = list(flatten(settings))
    columns = ("setting", "value")
    if len(rows) <= _SHORT:
        return [Table(columns, rows, caption)]
    half = (len(rows) + 1) // 2
    return [
        Table(columns, rows[:half], caption, width="half"),
        Table(columns, rows[half:], f"{caption} (continued)", width="half"),
    ]


def sets_table(
    sets: Mapping[str, Mapping[str, Any]], left_out: Mapping[str, int], skipped: Mapping[str, Any]
) -> Table:
    """Return a row a set: its name, size, shape and hash, and what of it was not used.

    Parameters
    ----------
    sets
        role → {name, images, shape, sha256}, or for tables {name, rows, columns, sha256}
    left_out
        role → images or rows that are also in the reference set
    skipped
        name → the images that could not be read, or their number
    """
    unit = "rows" if any("rows" in about for about in sets.values()) else "images"
    rows = [
        [
            role,
            about.get("name", "–"),
            about.get(unit),
            _shape(about),
            str(about.get("sha256", "–"))[:_HASH],
            left_out.get(role),
            _count(skipped.get(str(about.get("name")), 0)),
        ]
        for role, about in sets.items()
    ]
    content = "cells" if unit == "rows" else "pixels"
    return Table(
        ("set", "source", unit, "shape", "SHA-256", "left out", "skipped"),
        rows,
        f"{unit.capitalize()} used, and the start of the hash of their names and {content}. Left out: also "
        "in the reference set; skipped: could not be read.",
    )


def skipped_table(skipped: Mapping[str, Any]) -> Table:
    """Return a row for each file that was left out of a set (name → a line each), the first 200."""
    rows = [[name, line] for name, lines in skipped.items() if not isinstance(lines, int) for line in lines]
    text = f"What was left out of each set when it was opened, and why.{_first(_MOST, len(rows))}"
    return Table(("set", "file and reason"), rows[:_MOST], text, folded="Skipped files")


def codec_note(reencode: str | None) -> str:
    """Say which codec all sets went through, or that they went through none and what that may mean."""
    if reencode is not None:
        return f"Every set was re-encoded alike ({reencode}), so that none is told apart by its files' codec."
    return (
        "The sets were not re-encoded: where some come from JPEG files and others do not, a score may tell "
        "them apart by the codec alone, which --reencode jpeg:75 rules out."
    )


def _first(shown: int, count: int) -> str:
    return f" The first {shown} of {count:,}." if count > shown else ""


def _shape(about: Mapping[str, Any]) -> str:
    if "columns" in about:
        return f"{about['columns']} columns"
    return "\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}".join(map(str, about.get("shape") or ())) or "–"


def _count(entry: Any) -> int:
    return entry if isinstance(entry, int) else len(entry)
