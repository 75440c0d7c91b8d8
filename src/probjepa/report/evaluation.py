"""The report of one evaluation: accuracy, out-of-distribution detection, typicality, uncertainty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probjepa.report import figures, maps
from probjepa.report.page import Card, Figure, Gallery, Section, Table, Value, render
from probjepa.report.style import palette
from probjepa.report.verdicts import collapse_verdict, settings_table

IN = "test"  # the key of the in-distribution set among a detector's scores
_TILES, _POINTS = 20, 4000  # images in a gallery, points on the map: more of either is not looked at
_ROWS = {"h": "h, the embedding", "mu": "μ, the posterior mean"}
_PROBES = {"knn20": "kNN, k = 20", "knn200": "kNN, k = 200, weighted", "linear": "linear probe"}
_DIAGNOSTICS = {
    "effective_rank": "effective rank",
    "rank_me": "RankMe",
    "std_mean": "mean std of a feature of h/‖h‖",
    "std_min": "least std of a feature of h/‖h‖",
    "variance/mean": "mean σ²",
    "variance/kl_per_dimension": "KL to the prior per dimension",
    "variance/anisotropy": "anisotropy of σ²",
}
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
        ``collapse``, ``variance``
    arrays
        what it does not hold: ``scores`` (detector → set → (N,), the held-out set under ``"test"``),
        ``variance`` (N, D), ``embeddings`` (N, D), ``labels`` (N,), ``classes``, ``images`` uint8 (N, C, H,
        W), ``ood_images`` (set → images)
    sections
        further sections, put before the settings

    Every part is optional: what is not there is not shown.
    """
    arrays = arrays or {}
    test = str(result.get("test", IN))
    accuracy, ood, collapse = (result.get(key) or {} for key in ("accuracy", "ood", "collapse"))
    scores = arrays.get("scores") or {}
    sets = list(dict.fromkeys([*ood, *(s for by_set in scores.values() for s in by_set if s != IN)]))
    colours = palette([IN, *sets])
    dim = next(
        (int(np.shape(arrays[k])[1]) for k in ("embeddings", "variance") if _rows(arrays.get(k))), None
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
        _scores_section(scores, test, sets, colours),
        _typical_section(arrays, detector, test),
        _map_section(arrays, detector),
        _variance_section(arrays),
        _collapse_section({**collapse, **{f"variance/{k}": v for k, v in variance.items()}}, verdict),
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
            note = f"95 % interval {value.interval}" if value.interval else ""
            cards.append(Card(f"AUROC against {name}, {detector} score", value.text, note))
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
        [_ROWS.get(f, f), *(_value(row.get(p), percent=True) for p in known)] for f, row in accuracy.items()
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
    rivals = {f: _value(row.get(probe), percent=True) for f, row in accuracy.items() if f not in _ROWS}
    rivals = {f: v for f, v in rivals.items() if math.isfinite(v.value)}
    how = _PROBES.get(probe, probe)
    text = f"Read from the frozen embedding ({how}), the class is right for {ours.text} % of the images"
    if not rivals:
        return text + "."
    name, best = max(rivals.items(), key=lambda item: item[1].value)
    text += f"; the best baseline, {name}, reaches {best.text} %. "
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
        (v.value for row in auroc.values() for v in row.values() if math.isfinite(v.value)), default=0.5
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
        f"How the scores of {test} and of the other sets overlap, for {_listing(shown)}. A good detector "
        "puts the other sets "
        "to the left, and its ROC curve runs close to the upper left corner."
    )
    return Section("Scores", text, items)


def _typical_section(arrays: Mapping[str, Any], detector: str, test: str) -> Section | None:
    scores, images = (arrays.get("scores") or {}).get(detector, {}), arrays.get("images")
    items = []
    if images is not None and len(images) and len(np.ravel(scores.get(IN, ()))) == len(images):
        order = _order(scores[IN])
        items.append(_gallery(f"Most typical of {test}", images, scores[IN], order[::-1][:_TILES]))
        items.append(_gallery(f"Least typical of {test}", images, scores[IN], order[:_TILES]))
    for name, other in (arrays.get("ood_images") or {}).items():
        if len(other) and len(np.ravel(scores.get(name, ()))) == len(other):
            best = _order(scores[name])[::-1][: _TILES // 2]
            items.append(
                _gallery(f"Most typical of {name}: the hardest to tell apart", other, scores[name], best)
            )
    if not items:
        return None
    text = (
        f"Images sorted by the {detector} score, which stands under each. If the score means something, the "
        "least typical "
        f"images look unusual, and the images of other sets that score highest resemble {test}."
    )
    return Section("Typical and unusual images", text, items)


def _map_section(arrays: Mapping[str, Any], detector: str) -> Section | None:
    if not _rows(arrays.get("embeddings")):
        return None
    embeddings = np.asarray(arrays["embeddings"], np.float64)
    keep = np.flatnonzero(np.isfinite(embeddings).all(1))
    if not len(keep):
        return None
    if len(keep) > _POINTS:
        keep = np.sort(np.random.default_rng(0).choice(keep, _POINTS, replace=False))
    labels, score = arrays.get("labels"), (arrays.get("scores") or {}).get(detector, {}).get(IN)
    coords = maps.pca_map(embeddings[keep])
    centred = embeddings[keep] - embeddings[keep].mean(0)
    share = float((coords**2).sum() / max(float((centred**2).sum()), 1e-300))
    items = []
    if labels is not None and len(labels) == len(embeddings):
        items.append(maps.class_map(coords, np.asarray(labels)[keep], arrays.get("classes")))
    if score is not None and len(score) == len(embeddings):
        items.append(maps.score_map(coords, np.asarray(score)[keep]))
    if not items:
        return None
    text = (
        f"The two main directions of the embedding (PCA) hold {share:.0%} of its variance. Classes that form "
        "separate clouds "
        "here are separate in the whole space; clouds that overlap here may still be apart in other "
        "directions."
    )
    return Section("Map of the embedding", text, items)


def _variance_section(arrays: Mapping[str, Any]) -> Section | None:
    if not _rows(arrays.get("variance")):
        return None
    s2 = np.asarray(arrays["variance"], np.float64)
    mean = s2.mean(0)[np.isfinite(s2.mean(0))]
    informed, idle = int((mean < 0.9).sum()), int((mean >= 0.9).sum())
    text = (
        f"{informed} of {len(mean)} features have a mean posterior variance below 0.9, so they carry "
        "information about the "
        f"image; {idle or 'none'} {'stays' if idle == 1 else 'stay'} near the prior's variance of 1."
    )
    items = [figures.variance_spectrum(s2), figures.variance_histogram(s2)]
    return Section("Posterior variance", text, items)


def _collapse_section(values: Mapping[str, Any], verdict: str) -> Section | None:
    if not values:
        return None
    rows = [[_DIAGNOSTICS.get(k, k), v] for k, v in values.items()]
    return Section(
        "Collapse diagnostics",
        verdict,
        [Table(("diagnostic", "value"), rows, "Measured on the held-out images.")],
    )


def _settings_section(result: Mapping[str, Any]) -> Section | None:
    kept = ("train", "test", "settings", "sets", "left_out_as_in_train", "skipped")
    settings = {key: result[key] for key in kept if result.get(key)}
    if not settings:
        return None
    text = "What was measured, on what, and with which seed and budget: enough to run it again."
    return Section(
        "Settings and provenance", text, [settings_table(settings, "Settings of this evaluation.")]
    )


def _subtitle(result: Mapping[str, Any], sets: Sequence[str]) -> str:
    parts = [f"Reference images: {result['train']}."] if result.get("train") else []
    return " ".join([*parts, *([f"Out of distribution: {_listing(list(sets))}."] if sets else [])])


def _gallery(title: str, images: NDArray[np.uint8], scores: Any, order: NDArray[np.intp]) -> Gallery:
    values = np.ravel(scores)
    return Gallery(np.asarray(images)[order], [f"{values[i]:.4g}".replace("-", "−") for i in order], title)


def _order(scores: Any) -> NDArray[np.intp]:
    """Indices from the lowest to the highest score; scores that are not finite are left out."""
    values = np.asarray(scores, np.float64).ravel()
    order = np.argsort(values, kind="stable")
    return order[np.isfinite(values[order])]


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


def _leading(detectors: Sequence[str]) -> list[str]:
    """The three detectors that get figures: predictive, likelihood and kNN if there, then the others."""
    ranked = [key for key in ("predictive", "likelihood", "knn") if key in detectors]
    return list(dict.fromkeys([*ranked, *detectors]))[:3]


def _main(detectors: Sequence[str]) -> str:
    return next(iter(_leading(detectors)), "likelihood")


def _rows(x: Any) -> bool:
    return x is not None and np.ndim(x) == 2 and np.size(x) > 0


def _listing(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
