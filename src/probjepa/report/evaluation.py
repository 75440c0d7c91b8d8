"""The page of one evaluation, of images or of tables, from metrics.json and the arrays beside it.

Every part is optional: what is not there is not shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from probjepa import plots
from probjepa.evaluation.decisions import TEST
from probjepa.evaluation.selective import lead
from probjepa.plots.style import three_digits
from probjepa.report.detection import decisions_section, detection_section, openood_section, scores_section
from probjepa.report.embedding import (
    geometry_section,
    has_rows,
    map_section,
    typical_section,
    variance_section,
)
from probjepa.report.page import Card, Section, Tone, Value, render
from probjepa.report.predictive import predictive_section
from probjepa.report.provenance import provenance_section
from probjepa.report.sections import (
    accuracy_of,
    accuracy_section,
    collapse_section,
    labels_note,
    named,
    selective_section,
)
from probjepa.report.tables import (
    calibration_section,
    main_source,
    mcnemar_section,
    skill_section,
    surprising_section,
)

Result = Mapping[str, Any]


def evaluation_report(
    result: Result, arrays: Mapping[str, Any] | None = None, *, sections: Sequence[Section] = ()
) -> str:
    """Return the page of an evaluation on images.

    Parameters
    ----------
    result
        what metrics.json holds: ``settings``, ``version``, ``hardware``, ``train``, ``test``, ``accuracy``
        and ``balanced_accuracy`` (features → probe → {value, low, high}), ``ood`` (set → score → metric →
        {value, low, high}), ``decisions``, ``collapse``, ``variance``, ``predictive``, ``geometry``,
        ``selective``, ``openood``, ``reencode``
    arrays
        what it does not hold: ``scores`` (score → set → (N,), the held-out set under ``"test"``),
        ``variance`` (N, D), ``embeddings`` (N, D), ``labels`` (N,), ``classes``, ``images`` (an ``Images``,
        read where an image is shown, or uint8 (N, C, H, W)), ``ood_images`` (set → images), ``predictive``
    sections
        further sections, put before the settings
    """
    arrays = arrays or {}
    test = str(result.get("test", TEST))
    if test in (result.get("ood") or {}):  # a set outside that is called like the test set's source
        test += ", held out"
    accuracy, ood, collapse = (result.get(key) or {} for key in ("accuracy", "ood", "collapse"))
    ood = {s: {named(d): metrics for d, metrics in by.items()} for s, by in ood.items()}
    scores = {named(d): by_set for d, by_set in (arrays.get("scores") or {}).items()}
    sets = list(dict.fromkeys([*ood, *(s for by_set in scores.values() for s in by_set if s != TEST)]))
    colours = plots.palette([TEST, *sets])
    dim = next((np.shape(arrays[k])[1] for k in ("embeddings", "variance") if has_rows(arrays.get(k))), None)
    known = [*scores, *(d for by_score in ood.values() for d in by_score)]
    score = next((d for d in ("predictive", "likelihood", *known) if d in known), "")
    posterior, settings = (result.get(key) or {} for key in ("variance", "settings"))
    rows = ((result.get("sets") or {}).get(TEST) or {}).get("images")
    collapsed, tone = collapse_section(collapse, posterior, "the held-out images", dim, settings, rows)
    own = accuracy.get("h") or {}
    knn = next((key for key in own if key.startswith("knn")), "knn20")
    against = {s: Value.of((by_score.get(score) or {}).get("auroc")) for s, by_score in ood.items()}
    cards = [
        *(
            _card(f"Accuracy, {named(k)}", Value.of(own[k], percent=True))
            for k in own
            if k in (knn, "linear")
        ),
        *(_card(f"AUROC against {s}", against[s], f"{score} score") for s in list(against)[:3]),
        _rank_card(collapse, dim, tone),
    ]
    note = labels_note(result.get("labels") or {})
    body = [
        accuracy_section(accuracy, test, note, result.get("balanced_accuracy") or {}),
        detection_section(ood, test, colours),
        decisions_section(result.get("decisions") or {}, named, test, "images"),
        openood_section(result.get("openood") or {}, named),
        scores_section(scores, test, sets, colours),
        typical_section(arrays, scores.get(score, {}), score, test),
        map_section(arrays, scores.get(score, {}).get(TEST)),
        variance_section(arrays),
        predictive_section(result.get("predictive"), arrays.get("predictive")),
        geometry_section(result.get("geometry") or {}),
        selective_section({named(knn): result.get("selective") or {}}),
        collapsed,
        *sections,
        provenance_section(
            result,
            "What was measured, on what, and with which seed and settings: enough to run it again.",
        ),
    ]
    parts = [f"Reference images: {result['train']}."] if result.get("train") else []
    parts += [f"Out of distribution: {', '.join(sets)}."] if sets else []
    return _page(f"Evaluation on {test}", cards, body, result, " ".join(parts))


def table_report(result: Result, arrays: Mapping[str, Any] | None = None) -> str:
    """Return the page of an evaluation on tables: ``metrics`` and ``arrays`` of its ``Evaluation``."""
    arrays = arrays or {}
    accuracy, selective, calibration, collapse, settings = (
        result.get(key) or {} for key in ("accuracy", "selective", "calibration", "collapse", "settings")
    )
    space = "embedding" if "embedding" in selective else "raw"
    selective, calibration = selective.get(space) or {}, calibration.get(space) or {}
    rows = ((result.get("sets") or {}).get(TEST) or {}).get("rows")
    collapsed, tone = collapse_section(collapse, {}, "the test rows", rows=rows)
    cards = [
        _best_card("embedding", accuracy.get("embedding") or {}),
        _best_card("raw features", accuracy.get("raw") or {}),
        _uncertainty_cards(selective, calibration),
        _rank_card(collapse, None, tone),
    ]
    note = labels_note(result.get("labels") or {})
    apart = "validation" in result.get("sets", {})
    held_out = f"{'The validation rows' if apart else 'An eighth of the training rows'} are no part"
    body = [
        accuracy_section(accuracy, str(result.get("test", "the test table")), note),
        mcnemar_section(result.get("mcnemar") or {}),
        selective_section(selective, space),
        calibration_section(calibration),
        decisions_section(result.get("decisions") or {}, named, str(result.get("test", "")), "rows"),
        surprising_section(arrays),
        skill_section(result.get("skill") or []),
        collapsed,
        provenance_section(
            result,
            "Nothing was fitted on a test row by this evaluation; a run's own training table is the user's "
            f"to keep apart. {held_out} of the network's fit, to stop it early.",
        ),
    ]
    known = {"target", "train"} <= result.keys()
    subtitle = f"Predicting the column {result['target']}, labels from {result['train']}." if known else ""
    title = f"{settings.get('model', 'Raw features')} on {result.get('test', 'a table')}"
    return _page(title, cards, body, result, subtitle)


def _page(
    title: str, cards: Sequence[Sequence[Card]], body: Sequence[Section | None], result: Result, subtitle: str
) -> str:
    footer = {key: str(result[key]) for key in ("version", "hardware", "time") if result.get(key)}
    sections = [section for section in body if section is not None]
    return render(
        title, [card for some in cards for card in some], sections, subtitle=subtitle, footer=footer
    )


def _card(label: str, value: Value, note: str = "") -> list[Card]:
    """A card of a known figure, with its interval in the note."""
    interval = f"95 % interval {value.interval}" if value.interval else ""
    text = f"{value.text} %" if value.percent else value.text
    return [Card(label, text, "; ".join(filter(None, (note, interval))))] if value.known else []


def _rank_card(collapse: Result, dim: int | None, tone: Tone) -> list[Card]:
    rank = Value.of(collapse.get("effective_rank"))
    note = f"of {dim} directions" if dim else "directions in use"
    return [Card("Effective rank", three_digits(rank.value), note, tone)] if rank.known else []


def _best_card(title: str, row: Result) -> list[Card]:
    """The card of the classifier with the highest accuracy."""
    known = {
        name: Value.of(x, percent=True)
        for name, of in row.items()
        if isinstance(x := accuracy_of(of), Mapping)
    }
    name = max(known, key=lambda name: known[name].value, default="")
    return _card(f"Accuracy, {title}", known[name], f"best of the classifiers: {name}") if known else []


def _uncertainty_cards(selective: Result, calibration: Result) -> list[Card]:
    """What the leading classifier gains from the model's own uncertainty, or else from its probability."""
    if not selective:
        return []
    classifier = lead(selective)
    source = main_source(selective[classifier])
    half = Value.of(selective[classifier][source]["accuracy_at"]["0.5"], percent=True)
    rho = Value.of(((calibration.get(classifier) or {}).get(source) or {}).get("spearman"))
    return [
        *_card(f"Accuracy at 50 % coverage, by {source}", half, classifier),
        *_card(f"ρ of {source} with error", rho, "Spearman; 0: no relation"),
    ]
