"""What a result was made of, as tables: nested settings, and the sets it was computed on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from probjepa.report.page import Table

_SHORT = 8  # rows; a longer table of settings is set in two columns
_HASH = 16  # hex digits shown: metrics.json has all


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
    """Return a row a set: its name, size, shape and pixel hash, and how many images were not used.

    Parameters
    ----------
    sets
        role → {name, images, shape, sha256}
    left_out
        role → images that are also in the reference set
    skipped
        name → the images that could not be read, or their number
    """
    rows = [
        [
            role,
            about.get("name", "–"),
            about.get("images"),
            "\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}".join(map(str, about.get("shape") or ())) or "–",
            str(about.get("sha256", "–"))[:_HASH],
            left_out.get(role),
            _count(skipped.get(str(about.get("name")), 0)),
        ]
        for role, about in sets.items()
    ]
    return Table(
        ("set", "source", "images", "shape", "SHA-256", "left out", "skipped"),
        rows,
        "Images scored, and the start of the hash of their names and pixels. Left out: also in the reference "
        "set; skipped: could not be read.",
    )


def codec_note(reencode: str | None) -> str:
    """Say which codec all sets went through, or that they went through none and what that may mean."""
    if reencode is not None:
        return f"Every set was re-encoded alike ({reencode}), so that none is told apart by its files' codec."
    return (
        "The sets were not re-encoded: where some come from JPEG files and others do not, a score may tell "
        "them apart by the codec alone, which --reencode jpeg:75 rules out."
    )


def _count(entry: Any) -> int:
    return entry if isinstance(entry, int) else len(entry)
