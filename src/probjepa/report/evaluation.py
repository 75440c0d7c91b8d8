"""The report of one evaluation: accuracy, out-of-distribution detection, typicality, uncertainty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from probjepa.report import figures
from probjepa.report.examples import has_rows, map_section, typical_section
from probjepa.report.geometry import geometry_section, selective_section
from probjepa.report.openood import openood_section
from probjepa.report.page import Card, Figure, Section, Table, Value, render
from probjepa.report.predictive import predictive_section
from probjepa.report.provenance import codec_note, sets_table, settings_tables
from probjepa.report.style import palette
from probjepa.report.verdicts import collapse_verdict

IN = "test"  # the key of the in-distribution set among a detector's scores
_OWN = {"h": "h, the embedding", "mu": "μ, the posterior mean"}
_BASELINES = {"random-init": "random initialisation"}
_PROBES = {"knn20": "kNN, k = 20", "knn200": "kNN, k = 200, weighted", "linear": "linear probe"}
_DIAGNOSTICS = {
    "effective_rank": "effective rank",
    "rank_me": "RankMe",
    "std_mean": "mean std of a feature of h/‖h‖",
    "std_min": "least std of a feature of h/‖h‖",
}
_POSTERIOR = {
    "mean": "mean σ²",
    "kl_per_dimension": "KL to the prior, nats per dimension",
    "anisotropy": "anisotropy of σ²",
}
_DETECTORS = {
    "knn": "kNN", "mahalanobis": "Mahalanobis", "gmm": "Gaussian mixture", "jepa": "JEPA-SCORE",
    "jepa + latent": "JEPA-SCORE + latent", "kl": "KL", "mean variance": "mean σ²", "elbo": "ELBO",
}  # fmt: skip
_OOD = {
    "auroc": "AUROC ↑",
    "aupr_out": "AUPR-out ↑",
    "aupr_in": "AUPR-in ↑",
    "fpr_at_95_tpr_out": "FPR at 95 % caught ↓",
    "fpr_at_95_tpr_in": "FPR at 95 % kept ↓",
}


def evaluation_report(
    result: Mapping[str, Any], arrays: Mapping[str, Any] | None = None, *, sections: Sequence[Section] = ()
) -> str:
    """Return the page of one evaluation.

    Parameters
    ----------
    result
        what metrics.json holds: ``settings``, ``version``, ``hardware``, ``train``, ``test``, ``accuracy``
        (features → probe → {value, low, high}), ``ood`` (set → detector → metric → {value, low, high}),
        ``collapse``, ``variance``, ``predictive``, ``geometry``, ``selective``, ``openood``, ``reencode``
    arrays
        what it does not hold: ``scores`` (detector → set → (N,), the held-out set under ``"test"``),
        ``variance`` (N, D), ``embeddings`` (N, D), ``labels`` (N,), ``classes``, ``images`` (an ``Images``,
        read where an image is shown, or uint8 (N, C, H, W)), ``ood_images`` (set → images), ``predictive``
    sections
        further sections, put before the settings

    Every part is optional: what is not there is not shown.
    """
    arrays = arrays or {}
    test = str(result.get("test", IN))
    accuracy, ood, collapse = (result.get(key) or {} for key in ("accuracy", "ood", "collapse"))
    ood = {s: {_named(d): metrics for d, metrics in by.items()} for s, by in ood.items()}
    scores = {_named(d): by_set for d, by_set in (arrays.get("scores") or {}).items()}
    sets = list(dict.fromkeys([*ood, *(s for by_set in scores.values() for s in by_set if s != IN)]))
    colours = palette([IN, *sets])
    dim = next(
        (int(np.shape(arrays[k])[1]) for k in ("embeddings", "variance") if has_rows(arrays.get(k))), None
    )
    detector = _main([*scores, *(d for by_detector in ood.values() for d in by_detector)])
    variance = result.get("variance") or {}
    measured = {
        **collapse,
        "mean_variance": variance.get("mean"),
        "kl_per_dim": variance.get("kl_per_dimension"),
    }
    tone, verdict = collapse_verdict(measured, dim)

    parts: list[Section | None] = [
        _accuracy_section(accuracy, test),
        _ood_section(ood, detector, test, colours),
        openood_section(result.get("openood") or {}, _named),
        _scores_section(scores, test, sets, colours),
        typical_section(arrays, scores.get(detector, {}), detector, test),
        map_section(arrays, scores.get(detector, {}).get(IN)),
        _variance_section(arrays),
        predictive_section(result.get("predictive"), arrays.get("predictive")),
        geometry_section(result.get("geometry") or {}),
        selective_section({_named(s): of for s, of in (result.get("selective") or {}).items()}),
        _collapse_section(collapse, variance, verdict),
        *sections,
        _settings_section(result),
    ]
    return render(
        f"Evaluation on {test}",
        _cards(accuracy, ood, detector, collapse, dim, tone),
        [part for part in parts if part is not None],
        subtitle=_subtitle(result, sets),
        footer={k: str(result[k]) for k in ("version", "hardware", "time") if result.get(k)},
    )


def _cards(
    accuracy: Mapping[str, Any],
    ood: Mapping[str, Any],
    detector: str,
    collapse: Mapping[str, Any],
    dim: int | None,
    tone: Any,
) -> list[Card]:
    cards = []
    for probe in ("knn20", "linear"):
        value = _value((accuracy.get("h") or {}).get(probe), percent=True)
        if math.isfinite(value.value):
            note = f"95 % interval {value.interval}" if value.interval else ""
            cards.append(Card(f"Accuracy, {_PROBES[probe]}", f"{value.text} %", note))
    for name in list(ood)[:3]:
        value = _value((ood[name].get(detector) or {}).get("auroc"))
        if math.isfinite(value.value):
            note = f"{detector} score{f'; 95 % interval {value.interval}' if value.interval else ''}"
            cards.append(Card(f"AUROC against {name}", value.text, note))
    rank = collapse.get("effective_rank")
    if isinstance(rank, (int, float)) and math.isfinite(rank):
        cards.append(Card("Effective rank", f"{rank:.3g}", f"of {dim} directions" if dim else "", tone))
    return cards


def _accuracy_section(accuracy: Mapping[str, Any], test: str) -> Section | None:
    if not accuracy:
        return None
    known = [p for p in dict.fromkeys([*_PROBES, *(p for row in accuracy.values() for p in row)])
             if any(p in row for row in accuracy.values())]  # fmt: skip
    rows = [
        [{**_OWN, **_BASELINES}.get(f, f), *(_value(row.get(p), percent=True) for p in known)]
        for f, row in accuracy.items()
    ]
    columns = [_PROBES.get(p, p) for p in known]
    table = Table(
        ["features", *columns],
        rows,
        f"Accuracy in % on {test}, with 95 % intervals. Labels are used by the probe only; the best of each "
        "column is marked.",
        {c: "max" for c in columns},
    )
    return Section("Accuracy", _accuracy_sentence(accuracy, known), [table])


def _accuracy_sentence(accuracy: Mapping[str, Any], probes: Sequence[str]) -> str:
    probe = next((p for p in probes if math.isfinite(_value((accuracy.get("h") or {}).get(p)).value)), None)
    if probe is None:
        return "How well simple classifiers read the class from frozen features."
    ours = _value(accuracy["h"][probe], percent=True)
    rivals = {f: _value(row.get(probe), percent=True) for f, row in accuracy.items() if f not in _OWN}
    rivals = {f: v for f, v in rivals.items() if math.isfinite(v.value)}
    how = _PROBES.get(probe, probe)
    text = f"Read from the frozen embedding ({how}), the class is right for {ours.text} % of the images"
    if not rivals:
        return text + "."
    name, best = max(rivals.items(), key=lambda item: item[1].value)
    text += f"; the best baseline, {_BASELINES.get(name, name)}, reaches {best.text} %. "
    if _least(ours) > _most(best):
        return text + "The intervals do not overlap: training has added something that the baselines lack."
    if ours.value > best.value:
        return text + "The difference is within the intervals, so the gain is not established."
    return (
        text + "Training has not yet paid off on this set: train longer, or look at the collapse diagnostics."
    )


def _ood_section(
    ood: Mapping[str, Any], detector: str, test: str, colours: Mapping[str, str]
) -> Section | None:
    if not ood:
        return None
    auroc = {s: {d: _value(m.get("auroc")) for d, m in by.items()} for s, by in ood.items()}
    detectors = list(dict.fromkeys(d for row in auroc.values() for d in row))
    summary = Table(
        ["detector", *auroc],
        [[d, *(row.get(d, Value(math.nan)) for row in auroc.values())] for d in detectors],
        f"AUROC for telling each set from {test}, with 95 % intervals; the best of each column is marked.",
        {s: "max" for s in auroc},
    )
    least = min(
        (_least(v) for row in auroc.values() for v in row.values() if math.isfinite(v.value)), default=0.5
    )
    dots = [
        figures.detector_dots(
            s, {d: (v.value, v.low, v.high) for d, v in row.items()}, colour=colours[s], least=least
        )
        for s, row in auroc.items()
    ]
    text = _ood_sentence(auroc, detector)
    text += " In the plots, pale bars are 95 % intervals and the dashed line is chance."
    folded = [_ood_table(name, by) for name, by in ood.items()]
    return Section("Out-of-distribution detection", text, [*dots, summary, *folded])


def _ood_table(name: str, by_detector: Mapping[str, Any]) -> Table:
    known = [m for m in _OOD if any(m in metrics for metrics in by_detector.values())]
    return Table(
        ["detector", *(_OOD[m] for m in known)],
        [[d, *(_value(metrics.get(m)) for m in known)] for d, metrics in by_detector.items()],
        "AUPR-out and AUPR-in are average precision with the out- or the in-distribution set as positive; "
        "FPR is read where 95 % of the outside images are caught, or 95 % of the inside ones kept.",
        {_OOD[m]: "min" if m.startswith("fpr") else "max" for m in known},
        folded=f"All metrics against {name}",
    )


def _ood_sentence(auroc: Mapping[str, Mapping[str, Value]], detector: str) -> str:
    known = {
        s: row[detector] for s, row in auroc.items() if detector in row and math.isfinite(row[detector].value)
    }
    if not known:
        return "How well each detector tells other data from the held-out images."
    ranked = sorted(known, key=lambda s: known[s].value)
    hardest, easiest = ranked[0], ranked[-1]
    text = f"By the {detector} score, {easiest} is told apart with an AUROC of {known[easiest].text}"
    text += f" and {hardest}, the hardest set, with {known[hardest].text}. " if hardest != easiest else ". "
    if _most(known[hardest]) < 0.5:
        text += f"To this score, {hardest} looks more typical than the held-out images themselves. "
    elif _least(known[hardest]) <= 0.5:
        text += f"On {hardest} this score is no better than a coin toss. "
    beaten = [
        s for s in known if max(v.value for v in auroc[s].values() if math.isfinite(v.value)) > known[s].value
    ]
    if not beaten:
        return text + "No other detector does better on any set."
    count = "the only set" if len(known) == 1 else f"{len(beaten)} of {len(known)} sets"
    return text + f"Another detector does better on {count}."


def _scores_section(
    scores: Mapping[str, Any], test: str, sets: Sequence[str], colours: Mapping[str, str]
) -> Section | None:
    shown = [d for d in _leading(list(scores)) if IN in scores[d] and len(scores[d]) > 1]
    if not shown:
        return None
    items: list[Figure] = []
    renamed = {test: colours[IN], **{s: colours[s] for s in sets}}
    for name in shown:
        outside = {s: scores[name][s] for s in sets if s in scores[name]}
        inside = scores[name][IN]
        items.append(
            figures.score_histograms({test: inside, **outside}, name=f"{name} score", colours=renamed)
        )
        items.append(figures.roc_curves(inside, outside, name=name, colours=renamed))
    text = (
        f"How the scores of the held-out images and of the other sets overlap, for {_listing(shown)}. A good "
        "detector puts the other sets to the left, and its ROC curve runs close to the upper left corner."
    )
    return Section("Scores", text, items)


def _variance_section(arrays: Mapping[str, Any]) -> Section | None:
    if not has_rows(arrays.get("variance")):
        return None
    s2 = np.asarray(arrays["variance"], np.float64)
    mean = s2.mean(0)[np.isfinite(s2.mean(0))]
    informed, idle = int((mean < 0.9).sum()), int((mean >= 0.9).sum())
    text = (
        f"{informed} of {len(mean)} features have a mean posterior variance below 0.9, so they carry "
        f"information about the image; {idle or 'none'} {'stays' if idle == 1 else 'stay'} near the prior's "
        "variance of 1."
    )
    items = [figures.variance_spectrum(s2), figures.variance_histogram(s2)]
    return Section("Posterior variance", text, items)


def _collapse_section(
    collapse: Mapping[str, Any], variance: Mapping[str, Any], verdict: str
) -> Section | None:
    parts = (
        (collapse, _DIAGNOSTICS, "Embeddings of the held-out images"),
        (variance, _POSTERIOR, "Their posteriors"),
    )
    tables = [
        Table(
            ("diagnostic", "value"), [[names.get(k, k), v] for k, v in values.items()], caption, width="half"
        )
        for values, names, caption in parts
        if values
    ]
    return Section("Collapse", verdict, tables) if tables else None


def _settings_section(result: Mapping[str, Any]) -> Section | None:
    settings, sets, left_out, skipped = (
        result.get(key) or {} for key in ("settings", "sets", "left_out_as_in_train", "skipped")
    )
    items = [sets_table(sets, left_out, skipped)] if sets else []
    if settings:
        items += settings_tables(settings, "Settings of the model and of this evaluation")
    if not items:
        return None
    text = "What was measured, on what, and with which seed and settings: enough to run it again."
    if "reencode" in result:
        text += " " + codec_note(result["reencode"])
    return Section("Provenance", text, items)


def _subtitle(result: Mapping[str, Any], sets: Sequence[str]) -> str:
    parts = [f"Reference images: {result['train']}."] if result.get("train") else []
    return " ".join([*parts, *([f"Out of distribution: {_listing(list(sets))}."] if sets else [])])


def _value(entry: Any, percent: bool = False) -> Value:
    """A metric as the protocol writes it, {value, low, high} or a bare number; None is unknown."""
    if isinstance(entry, Mapping):
        value, low, high = (
            math.nan if entry.get(k) is None else float(entry[k]) for k in ("value", "low", "high")
        )
        return Value(value, low, high, percent)
    return Value(math.nan if entry is None else float(entry), percent=percent)


def _least(x: Value) -> float:
    return x.low if math.isfinite(x.low) else x.value


def _most(x: Value) -> float:
    return x.high if math.isfinite(x.high) else x.value


def _named(detector: str) -> str:
    """A detector's name in words; "knn, raw pixels" is a kNN on raw pixels."""
    kind, comma, features = detector.partition(", ")
    return _DETECTORS.get(kind, kind) + comma + features


def _leading(detectors: Sequence[str]) -> list[str]:
    """The three detectors that get figures: predictive, likelihood and kNN if there, then the others."""
    ranked = [key for key in ("predictive", "likelihood", "kNN") if key in detectors]
    return list(dict.fromkeys([*ranked, *detectors]))[:3]


def _main(detectors: Sequence[str]) -> str:
    """The score of the headline and the galleries."""
    return next((d for d in ("predictive", "likelihood", *detectors) if d in detectors), "")


def _listing(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
