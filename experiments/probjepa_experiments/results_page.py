"""docs/results from committed metrics: ``python -m probjepa_experiments.results_page RESULTS FOLDER``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from probjepa.errors import ArtifactError
from probjepa.files import write_text
from probjepa.registry import EXPERIMENTS
from probjepa_experiments.figures import verdict
from probjepa_experiments.image_budgets import BUDGETS
from probjepa_experiments.page import is_turned, number, shown, text_of
from probjepa_experiments.runner import duration
from probjepa_experiments.study import Study

FOLDER = "reproduce"  # under the results: NAME-BUDGET.json, copies of metrics.json
OVERVIEW = "index.md"
_MOST_EVIDENCE = 8  # figures behind a verdict, beyond which the table must do
ELSEWHERE = ("jepa-score-gmm",)  # its committed figures are a benchmark's, of a layout of their own
# what columns and claims of committed results are called now
_RENAMED = {
    "surest half by": "half coverage by",
    "keeping the half that σ is surest of raises": "half coverage by σ raises",
    "keeping that half raises it": "half coverage by σ raises it",
}
_HEAD = """# Results

What was reproduced of the papers' tables, with what budget, and what was not: a page an experiment, with the
question, the answer, and every figure. Written by
`python -m probjepa_experiments.results_page benchmarks/results docs/results` from the committed
`benchmarks/results/reproduce/*.json`, each a copy of the metrics.json that
`probjepa reproduce NAME --budget BUDGET` leaves.

A cell of a table holds ours, its interval, and in square brackets the published figure, which is of another
budget.
"""


def results_pages(results: Path) -> dict[str, str]:
    """Return the pages as Markdown, by name: the overview, ``OVERVIEW``, and one of each experiment that ran.

    Raises
    ------
    ArtifactError
        for a file that is no metrics.json of a known experiment
    """
    runs: dict[str, dict[str, Mapping[str, Any]]] = {}
    for path in sorted((results / FOLDER).glob("*.json")):
        metrics = _read(path)
        runs.setdefault(metrics["experiment"], {})[metrics["budget"]["name"]] = metrics
    studies = {name: EXPERIMENTS[name] for name in EXPERIMENTS if name not in ELSEWHERE}
    pages = {OVERVIEW: f"{_HEAD}\n{_overview(studies, runs)}"}
    for name, study in studies.items():
        if name in runs:
            pages[f"{name}.md"] = _page(study, [runs[name][b] for b in reversed(BUDGETS) if b in runs[name]])
    for old, new in _RENAMED.items():
        pages = {name: page.replace(old, new) for name, page in pages.items()}
    return pages


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


def _overview(studies: Mapping[str, Study], runs: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    rows = [
        [
            f"[`{name}`]({name}.md)" if name in runs else f"`{name}`",
            study.question,
            *(_run(runs, name, budget) if budget in study.budgets else "–" for budget in BUDGETS),
        ]
        for name, study in studies.items()
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
    words = f"run; {held} of {len(judged)} findings hold" if judged else "run"
    return f"[{words}]({name}.md#{budget})"


def _page(study: Study, runs: Sequence[Mapping[str, Any]]) -> str:
    """The page of an experiment: the question, the answer of its largest budget, and the tables of all."""
    largest = runs[0]
    lines = [
        f"# {largest['title']}",
        "",
        f"**Question.** {study.question}",
        "",
        f"**Answer.** {_answer(largest)}",
    ]
    tables = largest["tables"].values()
    found = [line for of in tables for line in _findings(of, f"{of['title']}: " * (len(tables) > 1))]
    lines += ["", *found] * bool(found)
    lines += [f"\n{study.about}"] * bool(study.about)
    brackets = "in square brackets, of another budget: " * bool(study.published.figures)
    lines += ["", f"Source: {study.paper}. Published: {brackets}{largest['published_budget']}."]
    return "\n".join([*lines, *(_section(study, of, of is largest) for of in runs)]) + "\n"


def _judged(metrics: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [of for table in metrics["tables"].values() for of in table["findings"] if of["judged"]]


def _answer(metrics: Mapping[str, Any]) -> str:
    """In a sentence: how much of what was claimed holds, and at which budget."""
    budget, judged = metrics["budget"], _judged(metrics)
    where = f"At the largest budget that was run (**{budget['name']}**: {budget['title']})"
    if not judged:
        return f"{where} no claim was put to the test: the tables say what was measured."
    seeds = max(finding["judged"] for finding in judged)
    always = sum(finding["holds"] == finding["judged"] for finding in judged)
    words = f"{where} {always} of {len(judged)} claims hold"
    if seeds == 1:
        return f"{words}. They were judged in one seed: figures to look at, not findings."
    return f"{words} in every seed that they were judged in."


def _findings(table: Mapping[str, Any], of: str = "") -> Iterator[str]:
    percent = {column["label"]: column["percent"] for column in table["columns"]}
    for finding in filter(lambda one: one["judged"], table["findings"]):
        yield f"- {of}{finding['claim']}: **{verdict(finding)}**{_evidence(finding, percent)}."


def _evidence(finding: Mapping[str, Any], percent: Mapping[str, bool]) -> str:
    """The figures that a finding was judged on, means over its seeds, where they are few."""
    found = [one for one in finding["evidence"] if one["value"] is not None]
    if not found or len(found) > _MOST_EVIDENCE:
        return ""
    columns: dict[str, list[str]] = {}
    for one in found:
        value = number(one["value"], percent.get(one["column"], False))
        columns.setdefault(one["column"], []).append(f"{one['row']} {value}")
    return f" ({'; '.join(f'{column}: ' + ', '.join(rows) for column, rows in columns.items())})"


def _section(study: Study, metrics: Mapping[str, Any], answered: bool) -> str:
    """What a budget found: how, and each table, with its claims where they do not stand above."""
    budget, seeds = metrics["budget"], metrics["seeds"]
    data_root = " --data-root DIR" * any(of.files for of in study.sources_of(budget["name"]).values())
    versions = ", ".join(f"probjepa {of['probjepa']} on torch {of['torch']}" for of in metrics["versions"])
    lines = [
        f"\n## {budget['name']}",
        "",
        f"- Command: `probjepa reproduce {study.name} --budget {budget['name']}{data_root}`",
        f"- Budget: {budget['title']}; seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}; "
        f"{duration(metrics['seconds'])} of computing",
        f"- On: {'; '.join(metrics['hardware'])}; {versions}",
        f"- Intervals: {metrics.get('intervals', '95 %')}",
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
        lines += ["", *_findings(table)] * (table["findings"] != [] and not answered)
    if metrics["not_run"]:
        lines += ["", *(f"- {line}." for line in metrics["not_run"])]
    return "\n".join(lines)


def _figure(of: Mapping[str, Any], percent: bool) -> str:
    known = of.get("published")
    return text_of(of, percent, " to ") + ("" if known is None else f" [{number(known, percent)}]")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def main(arguments: Sequence[str]) -> int:
    """Write the pages; 2 and one line where that fails."""
    if len(arguments) != 2:
        print("usage: python -m probjepa_experiments.results_page RESULTS FOLDER", file=sys.stderr)
        return 2
    try:
        for name, page in results_pages(Path(arguments[0])).items():
            write_text(Path(arguments[1]) / name, page)
    except ArtifactError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
