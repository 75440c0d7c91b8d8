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
from probjepa_experiments.figures import failures, judge, missing_seeds, seeds_run, verdict
from probjepa_experiments.image_budgets import BUDGETS
from probjepa_experiments.page import is_turned, mean_of, number, shown, text_of
from probjepa_experiments.runner import duration
from probjepa_experiments.study import Study

FOLDER = "reproduce"  # under the results: NAME-BUDGET.json, copies of metrics.json
OVERVIEW = "index.md"
_WAITING = ": not run yet"  # as the runner says of a cell
_MOST_EVIDENCE = 8  # figures behind a verdict, beyond which the table must do
# what columns and claims of committed results are called now
_RENAMED = {
    "surest half by": "half coverage by",
    "keeping the half that σ is surest of raises": "half coverage by σ raises",
    "keeping that half raises it": "half coverage by σ raises it",
    "of a row without seeds, Wilson or bootstrap": "of a row of one seed, or without seeds, Wilson or "
    "bootstrap; of two seeds, both figures",
    "bootstrap; of two seeds, none": "bootstrap; of two seeds, both figures",
    '"none of two seeds"': '"of two seeds none, but both figures"',
}
_HEAD = """# Results

What was reproduced of the papers' tables, with what budget, and what was not: a page an experiment, with the
question, the answer, and every figure. Written by
`python -m probjepa_experiments.results_page benchmarks/results docs/results` from the committed
`benchmarks/results/reproduce/*.json`, each a copy of the metrics.json that
`probjepa reproduce NAME --budget BUDGET` leaves.

A cell of a table holds ours, its interval (of two seeds, which have none, both figures; of three that
agree none), and in square brackets the published figure, which is of another budget. In answers "±" is the
standard deviation of the seeds.
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
    pages = {OVERVIEW: f"{_HEAD}\n{_overview(runs)}"}
    for name, study in EXPERIMENTS.items():
        if name in runs:
            pages[f"{name}.md"] = _page(study, [runs[name][b] for b in reversed(BUDGETS) if b in runs[name]])
    return pages


def _read(path: Path) -> Mapping[str, Any]:
    """Read a metrics.json, and judge its figures by today's claims; its columns are as they are today."""
    try:
        text = path.read_text(encoding="utf-8")
        for old, new in _RENAMED.items():
            text = text.replace(old, new)
        metrics: Mapping[str, Any] = json.loads(text)
        name, budget = metrics["experiment"], metrics["budget"]["name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{path} is no metrics.json of an experiment: copy it again ({error!r})"
        ) from error
    if path.stem != f"{name}-{budget}" or name not in EXPERIMENTS or budget not in BUDGETS:
        raise ArtifactError(f"{path} holds {name} with the budget {budget}: name it {name}-{budget}.json")
    study, run = EXPERIMENTS[name], len(seeds_run(metrics["cells"]))
    p_values = {column.label for column in study.columns if column.p_value}
    for dataset, table in metrics["tables"].items():
        for column in table["columns"]:
            column["p_value"] = column["label"] in p_values
        if table["findings"]:
            failed = failures(metrics["cells"], dataset, metrics["seeds"])
            table["findings"] = [judge(finding, table["rows"], run, failed) for finding in study.findings]
    return metrics


def _overview(runs: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    rows = [
        [
            f"[`{name}`]({name}.md)" if name in runs else f"`{name}`",
            study.question,
            *(_run(runs, name, budget) if budget in study.budgets else "–" for budget in BUDGETS),
        ]
        for name, study in EXPERIMENTS.items()
    ]
    lines = []
    for budget in BUDGETS:  # of one name there are several
        titles: dict[str, list[str]] = {}
        for name, of in runs.items():
            if budget in of:
                titles.setdefault(of[budget]["budget"]["title"], []).append(f"`{name}`")
        lines += [f"- **{budget}** of {', '.join(names)}: {title}." for title, names in titles.items()]
    budgets = "\n".join(lines)
    return f"{_table(['experiment', 'question', *BUDGETS], rows)}\n\nWhat the budgets are:\n\n{budgets}\n"


def _run(runs: Mapping[str, Mapping[str, Mapping[str, Any]]], name: str, budget: str) -> str:
    metrics = runs.get(name, {}).get(budget)
    if metrics is None:
        return "not run"
    judged = _judged(metrics)
    words = f"run; {_held(judged)}" if judged else "run"
    return f"[{words}]({name}.md#{budget})" + ", one seed" * (
        len(seeds_run(metrics["cells"])) == 1 and not _is_timed(EXPERIMENTS[name])
    )


def _page(study: Study, runs: Sequence[Mapping[str, Any]]) -> str:
    """The page of an experiment: the question, the answer, and the tables of every budget, the largest first.

    Several seeds decide: the answer is of the largest budget that has them; if none has, of the largest that
    puts a claim to the test.
    """
    judged = next((of for of in runs if _judged(of)), runs[0])
    deciding = next((of for of in runs if _is_decided(of)), judged)
    tables = deciding["tables"].values()
    claims = [line for of in tables for line in _claims(of, f"{of['title']}: " * (len(tables) > 1))]
    lines = [
        f"# {deciding['title']}",
        "",
        f"**Question.** {study.question}",
        "",
        f"**Answer.** {_answer(study, deciding)}",
    ]
    lines += ["", *claims] * bool(claims)
    if deciding is not runs[0]:
        larger = f"There is a larger budget, **{runs[0]['budget']['name']}**, "
        several = len(seeds_run(runs[0]["cells"])) > 1
        larger += "of whose rows the claims' have one seed, or none," if several else "in one seed"
        lines += ["", f"{larger} so far: see its tables below."]
    lines += [f"\n{study.about}"] * bool(study.about)
    shows = any(shown(table, "published") for of in runs for table in of["tables"].values())
    brackets = "in square brackets, of another budget: " * shows
    lines += ["", f"Source: {study.paper}. Published: {brackets}{runs[0]['published_budget']}."]
    return "\n".join([*lines, *(_section(study, of, of is deciding) for of in runs)]) + "\n"


def _is_decided(metrics: Mapping[str, Any]) -> bool:
    """Whether several seeds judged any of its claims; of a study without claims, whether several ran."""
    judged = _judged(metrics)
    return any(of["judged"] > 1 for of in judged) if judged else len(seeds_run(metrics["cells"])) > 1


def _is_timed(study: Study) -> bool:
    """Whether a study is of times, which no seed changes."""
    return all(row.task == "cost" for row in study.rows)


def _judged(metrics: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [of for table in metrics["tables"].values() for of in table["findings"] if of["judged"]]


def _held(judged: Sequence[Mapping[str, Any]]) -> str:
    """How many claims hold in every seed that they were judged in, of how many."""
    held = sum(of["holds"] == of["judged"] for of in judged)
    return f"{held} of {len(judged)} claims {'holds' if held == 1 or len(judged) == 1 else 'hold'}"


def _answer(study: Study, metrics: Mapping[str, Any]) -> str:
    """In a few words: the budget, what the study itself makes of it, and how many of its claims hold."""
    where = f"With the budget **{metrics['budget']['name']}** ({metrics['budget']['title']})"
    claims = _claims_in_words(study, metrics)
    if study.answer is None:
        return f"{where}, {claims or 'no claim was put to the test.'}"
    return f"{where}: {study.answer(metrics['tables'])}. {claims}".rstrip()


def _claims_in_words(study: Study, metrics: Mapping[str, Any]) -> str:
    judged = _judged(metrics)
    if not judged:
        return ""
    claims, once = _held(judged), sum(of["judged"] == 1 for of in judged)
    if _is_timed(study):
        words = f"{claims}; times have no seeds."
    elif once == len(judged):
        words = f"{claims}. They were judged in one seed: figures to look at, not findings."
    else:
        subject = "it was" if claims.endswith("holds") else "they were"
        few = f" Of the {len(judged)}, {once} {'was' if once == 1 else 'were'} judged in one seed alone."
        words = f"{claims} in every seed that {subject} judged in.{few * bool(once)}"
    left = sum(not of["judged"] for table in metrics["tables"].values() for of in table["findings"])
    more = f" {left} more {'was' if left == 1 else 'were'} not judged: a row was not run."
    return words + more * bool(left)


def _claims(table: Mapping[str, Any], of: str = "") -> Iterator[str]:
    columns = {column["label"]: column for column in table["columns"]}
    for finding in filter(lambda one: one["judged"], table["findings"]):
        yield f"- {of}{finding['claim']}: **{verdict(finding)}**{_evidence(finding, columns)}."


def _evidence(finding: Mapping[str, Any], by_label: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures that a finding was judged on, where they are few."""
    found = finding["evidence"]
    if not found or len(found) > _MOST_EVIDENCE:
        return ""
    columns: dict[str, list[str]] = {}
    for one in found:
        value = mean_of(one, by_label[one["column"]])
        columns.setdefault(one["column"], []).append(f"{one['row']}: {value}")
    return f" ({'. '.join(f'{column} – ' + '; '.join(rows) for column, rows in columns.items())})"


def _section(study: Study, metrics: Mapping[str, Any], answered: bool) -> str:
    """What a budget found: how, and each table, with its claims where they do not stand above."""
    budget, seeds = metrics["budget"], seeds_run(metrics["cells"])
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
            figures = (_figure(row["values"][column["label"]], column) for column in columns)
            rows.append([row["label"] + missing_seeds(row, len(seeds)), *figures])
        grid = [[table["title"], *(column["label"] for column in columns)], *rows]
        if is_turned(table, columns):
            grid = [list(line) for line in zip(*grid, strict=True)]
        lines += ["", _table(grid[0], grid[1:])]
        claims = [] if answered else [*_claims(table)]
        lines += ["", *claims] * bool(claims)
    waiting = [line for line in metrics["not_run"] if line.endswith(_WAITING)]
    others = [line for line in metrics["not_run"] if line not in waiting]
    others += [f"{len(waiting)} cells are not run yet"] * bool(waiting)
    lines += ["", *(f"- {line}." for line in others)] * bool(others)
    return "\n".join(lines)


def _figure(of: Mapping[str, Any], column: Mapping[str, Any]) -> str:
    known = of.get("published")
    published = "" if known is None else f" [{number(known, column['percent'])}]"
    return text_of(of, column, " to ") + published


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
