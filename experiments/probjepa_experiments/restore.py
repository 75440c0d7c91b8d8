"""Cells from published results: ``python -m probjepa_experiments.restore RESULTS.json … CELLS``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from probjepa.errors import ArtifactError, ProbjepaError
from probjepa.terminal import say
from probjepa_experiments.runner import write_json

USAGE = "usage: python -m probjepa_experiments.restore RESULTS.json … CELLS"


def restore(results: Path, cells: Path) -> tuple[int, int]:
    """Write the finished cells of a metrics.json into a folder, as ``--cells`` has them.

    So a long experiment goes on where its folder of cells is lost, or on another machine. What is there is
    kept. Their pictures are not in a metrics.json: a page that is made of restored cells has none. Returned
    are how many were written, and how many do not say what code they are of: those would be run again.

    Raises
    ------
    ArtifactError
        for a file that is no metrics.json, or one none of whose cells says what code it is of
    """
    try:
        metrics = json.loads(results.read_text(encoding="utf-8"))
        found = {cell["key"]: cell for cell in metrics["cells"]}
        codes = metrics.get("code", {})
        known = {key: cell for key, cell in found.items() if cell.get("code") in codes}
        if any(Path(key).name != key for key in found):
            raise ValueError("a cell's key is no file's name")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{results} is no metrics.json: {error}") from None
    if found and not known:
        raise ArtifactError(f"{results}: its cells do not say what code they are of: run them again")
    written = 0
    for key, cell in known.items():
        place = cells / f"{key}.json"
        if not place.exists():
            own = {name: value for name, value in cell.items() if name not in ("row", "key")}
            write_json(place, {**own, "code": codes[cell["code"]]})
            written += 1
    return written, len(found) - len(known)


def main(arguments: Sequence[str]) -> int:
    """Write the cells; 2 and one line where that fails."""
    if len(arguments) < 2:
        say(USAGE, error=True)
        return 2
    *results, cells = map(Path, arguments)
    try:
        for path in results:
            written, unknown = restore(path, cells)
            left = f"; {unknown} do not say what code they are of: left out" if unknown else ""
            say(f"{path}: {written} cells written to {cells}{left}")
    except ProbjepaError as error:
        say(str(error), error=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
