"""Out-of-distribution detection: AUROC of every score, histograms, ROC curves, and OpenOOD's averages."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from probjepa import plots
from probjepa.evaluation.decisions import TEST
from probjepa.report.figures import left_out, picture
from probjepa.report.page import Figure, Section, Table, Value, grid

_METRICS = {
    "auroc": "AUROC ↑",
    "aupr_out": "AUPR-out ↑",
    "aupr_in": "AUPR-in ↑",
    "fpr_at_95_tpr_out": "FPR at 95 % caught ↓",
    "fpr_at_95_tpr_in": "FPR at 95 % kept ↓",
}
_OPENOOD = {
    f"{metric} {group}": f"{title} {group} {arrow}"
    for metric, title, arrow in (("auroc", "AUROC", "↑"), ("fpr_at_95_tpr_out", "FPR95", "↓"))
    for group in ("near", "far", "overall")
}


def detection_section(ood: Mapping[str, Any], test: str, colours: Mapping[str, str]) -> Section | None:
    """Return every score's AUROC and further metrics against each set, or None for an empty ``ood``.

    ``ood`` maps set → score → metric → figure, ``colours`` a set to its colour.
    """
    if not ood:
        return None
    auroc = {s: {d: Value.of(m.get("auroc")) for d, m in by.items()} for s, by in ood.items()}
    scores = list(dict.fromkeys(d for by_score in ood.values() for d in by_score))
    summary = Table(
        ["score", *auroc],
        [[d, *(row.get(d) for row in auroc.values())] for d in scores],
        f"AUROC for telling each set from {test}, with 95 % intervals; the best of each column is marked.",
        dict.fromkeys(auroc, "max"),
    )
    known = [x for row in auroc.values() for v in row.values() for x in (v.value, v.low) if math.isfinite(x)]
    metrics = [
        grid(
            "score", by_score, _METRICS,
            "AUPR-out and AUPR-in are average precision with the out- or the in-distribution set as "
            "positive; FPR is read where 95 % of the outside images are caught, or 95 % of the inside ones "
            "kept.",
            folded=f"All metrics against {name}",
        )
        for name, by_score in ood.items()
    ]  # fmt: skip
    text = (
        "How well each score tells other sets from the held-out images. In the plots, pale bars are 95 % "
        "intervals and the dashed line is chance: left of it, a set looks more typical than the held-out "
        "images themselves."
    )
    dots = [_auroc_dots(s, row, min([*known, 0.5]), colours[s]) for s, row in auroc.items()]
    return Section("Out-of-distribution detection", text, [*dots, summary, *metrics])


def _auroc_dots(name: str, auroc: Mapping[str, Value], least: float, colour: str) -> Figure:
    rows = {d: (v.value, v.low, v.high) for d, v in auroc.items() if v.known}

    def draw(axis: Any) -> str:
        words = plots.dots(axis, rows, colour=colour, chance=0.5, written=True, name_limit=19)
        axis.set_xlim(max(-0.03, least - 0.05), 1)  # one axis for all sets: they compare
        axis.locator_params(axis="x", nbins=3)
        axis.set_title(axis.get_title("left"), color=colour)
        return words

    return picture(name, draw, width="third", height=62 + 20 * len(rows), xlabel="AUROC")


def decisions_section(
    decisions: Mapping[str, Any], named: Callable[[str], str], test: str, unit: str
) -> Section | None:
    """Return at which rates thresholds flag, beside the rates asked for; None where nothing was measured.

    ``decisions`` is what ``evaluation.decisions.flagged_rates`` returns, ``unit`` what the rows are called.
    """
    band, flagged = decisions.get("band") or {}, decisions.get("flagged") or {}
    if not flagged:
        return None
    n, m = (decisions["rows"][key] for key in ("calibration", "test"))
    source = "a random half of them" if decisions["rows"]["split"] else "the calibration set"
    title = "Decisions"
    if not band:
        return Section(title, f"{n:,} {unit} are too few to read a threshold off: no false-alarm rate.", [])
    columns = {key: f"{100 * float(key):g} % asked for" for key in band}
    expected = {key: {**of, "value": of["expected"]} for key, of in band.items()}
    rows = {"what may be expected": expected}
    rows |= {named(score): {key: of[TEST] for key, of in by.items()} for score, by in flagged.items()}
    outside = [
        {
            i: f"{'below' if of['value'] < band[key]['low'] else 'above'} the band"
            for i, (key, of) in enumerate(row.items(), start=1)
            if not band[key]["low"] <= of["value"] <= band[key]["high"]
        }
        for row in rows.values()
    ]
    caption = (
        f"False alarms: the share, in %, of {m:,} typical {unit} of {test} that score below a threshold read "
        f"off {n:,} others, {source}. First line: the mean over such evaluations, and the exact band that 95 "
        "of 100 of them fall into, where both are drawn alike and no scores are equal (then fewer are)."
    )
    table = grid("score", rows, columns, caption, percent=columns)
    items = [replace(table, notes=outside)]
    key = list(band)[-1] if "0.05" not in band else "0.05"
    caught = {named(score): {s: x for s, x in by[key].items() if s != TEST} for score, by in flagged.items()}
    sets = {s: f"{s} ↑" for by in caught.values() for s in by}
    if sets:
        caption = (
            f"Share of each set, in %, that is flagged at {100 * float(key):g} % false alarms asked for."
        )
        items.append(grid("score", caught, sets, caption, percent=sets))
    text = (
        "A threshold turns a score into a decision. The rate of false alarms holds for every score; the "
        "better one catches more of what does not belong. The command score flags so, given calibration rows."
    )
    return Section(title, text, items)


def openood_section(result: Mapping[str, Any], named: Callable[[str], str] = str) -> Section | None:
    """Return near, far and overall averages of every score, or None where there are none.

    ``result`` is what ``evaluation.openood_summary`` returns; ``named`` gives a score's name in words.
    """
    averages = result.get("averages") or {}
    if not averages:
        return None
    rows = {
        named(score): {f"{metric} {group}": x for metric, of in by.items() for group, x in of.items()}
        for score, by in averages.items()
    }
    table = grid(
        "score", rows, _OPENOOD,
        "In %. FPR95: share of the test images flagged where 95 % of the outside images are, as OpenOOD "
        "v1.5 has it. A group is the mean of its sets; overall is the mean of near and far. The best of each "
        "column is marked.",
        percent=_OPENOOD,
    )  # fmt: skip
    counts = Table(
        ["set", "group", "images", "in the protocol"],
        [[name, of["group"], of["images"], of["expected"]] for name, of in result["sets"].items()],
        "Images evaluated, and in the protocol's lists.",
    )
    differences = [[line] for line in result["differences"]]
    departs = Table(["where this evaluation differs from the protocol"], differences, "")
    text = f"{result['protocol']}. Figures compare with published ones as far as the last table lets them."
    return Section("OpenOOD", text, [table, counts, departs])


def scores_section(
    scores: Mapping[str, Mapping[str, Any]], test: str, sets: Sequence[str], colours: Mapping[str, str]
) -> Section | None:
    """Return histograms and ROC curves of the three leading scores, score → set → (N,), or None."""
    ranked = [d for d in ("predictive", "likelihood", "kNN") if d in scores]
    renamed = {test: colours[TEST], **{s: colours[s] for s in sets}}
    items: list[Figure] = []
    for name in list(dict.fromkeys([*ranked, *scores]))[:3]:
        inside = scores[name].get(TEST)
        outside = {s: scores[name][s] for s in sets if s in scores[name]}
        if inside is not None and outside:
            items += [
                histograms(name, {test: inside, **outside}, renamed),
                picture(
                    name,
                    partial(plots.roc, inside=inside, outside=outside, colours=renamed),
                    "The area under each curve stands beside its set; the dashed diagonal is chance."
                    + left_out(inside, *outside.values()),
                    width="half",
                ),
            ]
    text = (
        "How the scores of the held-out images and of the other sets overlap. A good score puts the other "
        "sets to the left, and its ROC curve runs close to the upper left corner."
    )
    return Section("Scores", text, items) if items else None


def histograms(name: str, scores: Mapping[str, Any], colours: Mapping[str, str]) -> Figure:
    """Return a histogram of the score ``name`` for each set, set → (N,), the in-distribution one first."""
    return picture(
        name,
        lambda axis: plots.score_histograms(axis, scores, colours=colours),
        f"Share of each set by score. Filled, behind every row: {next(iter(scores))}. Triangles: medians. "
        "Peaks taller than a row are cut, and the outermost bins hold what lies beyond the axis."
        + left_out(*scores.values()),
        width="half",
        height=max(250, 64 + 42 * len(scores)),  # at least as tall as the ROC beside it
        xlabel="score  (right: more typical)",
    )
