"""docs/results.md from committed metrics: ``python -m probjepa_experiments.results_page RESULTS PAGE``."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from probjepa.errors import ArtifactError
from probjepa.files import write_text
from probjepa.registry import EXPERIMENTS
from probjepa_experiments.figures import verdict
from probjepa_experiments.image_budgets import BUDGETS
from probjepa_experiments.page import is_turned, number, shown, text_of

FOLDER = "reproduce"  # under the results: NAME-BUDGET.json, copies of metrics.json
ELSEWHERE = ("jepa-score-gmm",)  # its committed figures are a benchmark's, of a layout of their own
# what columns and claims of committed results are called now
_RENAMED = {
    "surest half by": "half coverage by",
    "keeping the half that σ is surest of raises": "half coverage by σ raises",
    "keeping that half raises it": "half coverage by σ raises it",
}
_HEAD = """# Results

What was reproduced of the papers' tables, with what budget, and what was not. Written by
`python -m probjepa_experiments.results_page benchmarks/results docs/results.md` from the committed
`benchmarks/results/reproduce/*.json`, each a copy of the metrics.json that
`probjepa reproduce NAME --budget BUDGET` leaves.

A cell of a table holds ours, its interval, and in square brackets the published figure, which is of another
budget.
"""


def results_page(results: Path) -> str:
    """Return the page as Markdown.

    Raises
    ------
    ArtifactError
        for a file that is no metrics.json of a known experiment
    """
    runs: dict[str, dict[str, Mapping[str, Any]]] = {}
    for path in sorted((results / FOLDER).glob("*.json")):
        metrics = _read(path)
        runs.setdefault(metrics["experiment"], {})[metrics["budget"]["name"]] = metrics
    questions = {name: EXPERIMENTS[name].question for name in EXPERIMENTS if name not in ELSEWHERE}
    parts = [_HEAD, _overview(questions, runs)]
    for name in questions:
        for budget in BUDGETS:
            if budget in runs.get(name, {}):
                parts.append(_section(runs[name][budget]))
    page = "\n".join(parts)
    for old, new in _RENAMED.items():
        page = page.replace(old, new)
    return page


def _read(path: Path) -> Mapping[str, Any]:
    try:
        metrics: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        name, budget = metrics["experiment"], metrics["budget"]["name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{path} is no metrics.json of an experiment: copy it again ({error!r})"
        ) from error
    if path.stem != f"{name}-{budget}" or name not in EXPERIMENTS or budget not in BUDGETS:
        raise ArtifactError(f"{path} holds {name} with the budget {budget}: name it {name}-{budget}.json")
    return metrics


def _overview(questions: Mapping[str, str], runs: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    rows = [
        [f"`{name}`", question, *(_run(runs, name, budget) for budget in BUDGETS)]
        for name, question in questions.items()
    ]
    budgets = "\n".join(f"- **{budget.name}**: {budget.title}." for budget in BUDGETS.values())
    return (
        f"{_table(['experiment', 'question', *BUDGETS], rows)}\n\nBudgets of the `vje-…` experiments (the "
        f"others state theirs):\n\n{budgets}\n"
    )


def _run(runs: Mapping[str, Mapping[str, Mapping[str, Any]]], name: str, budget: str) -> str:
    metrics = runs.get(name, {}).get(budget)
    if metrics is None:
        return "not run"
    findings = [finding for table in metrics["tables"].values() for finding in table["findings"]]
    judged = [finding for finding in findings if finding["judged"]]
    held = sum(finding["holds"] == finding["judged"] for finding in judged)
    return f"run; {held} of {len(judged)} findings hold" if judged else "run"


def _section(metrics: Mapping[str, Any]) -> str:
    seeds = metrics["seeds"]
    count = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    versions = ", ".join(f"probjepa {of['probjepa']} on torch {of['torch']}" for of in metrics["versions"])
    lines = [
        f"## {metrics['title']} ({metrics['budget']['name']})",
        "",
        f"{metrics['question']} {metrics['paper']}. Ours: {metrics['budget']['title']}; {count}; {versions}; "
        f"{'; '.join(metrics['hardware'])}. Intervals: {metrics.get('intervals', '95 %')}. Published: "
        f"{metrics['published_budget']}.",
    ]
    for table in metrics["tables"].values():
        columns = shown(table)
        rows = []
        for row in table["rows"]:
            failed = f" ({len(row['failed'])} of {row['cells']} failed)" if row["failed"] else ""
            figures = [(row["values"][column["label"]], column["percent"]) for column in columns]
            rows.append([row["label"] + failed, *(_figure(of, percent) for of, percent in figures)])
        grid = [[table["title"], *(column["label"] for column in columns)], *rows]
        if is_turned(table, columns):
            grid = [list(line) for line in zip(*grid, strict=True)]
        lines += ["", _table(grid[0], grid[1:])]
        lines += [""] * bool(table["findings"])
        lines += [f"- {finding['claim']}: **{verdict(finding)}**." for finding in table["findings"]]
    if metrics["not_run"]:
        lines += ["", *(f"- {line}." for line in metrics["not_run"])]
    return "\n".join(lines) + "\n"


def _figure(of: Mapping[str, Any], percent: bool) -> str:
    known = of.get("published")
    return text_of(of, percent, " to ") + ("" if known is None else f" [{number(known, percent)}]")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def main(arguments: Sequence[str]) -> int:
    """Write the page; 2 and one line where that fails."""
    if len(arguments) != 2:
        print("usage: python -m probjepa_experiments.results_page RESULTS PAGE", file=sys.stderr)
        return 2
    try:
        write_text(Path(arguments[1]), results_page(Path(arguments[0])))
    except ArtifactError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
