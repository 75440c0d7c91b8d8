"""Sections that evaluations of images and of tables share, each from a part of metrics.json."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from probjepa import plots
from probjepa.errors import few
from probjepa.evaluation.selective import lead
from probjepa.metrics.collapse import LEAST_ROWS, collapse_advice
from probjepa.metrics.selective import COVERAGES
from probjepa.report.figures import picture
from probjepa.report.page import Figure, Section, Table, Tone, Value, grid

Result = Mapping[str, Any]
SEEDS_ALONE = "over seeds, which leave out what other test rows would change"
RANDOM = "random"  # a source of uncertainty that is none: its curve is the dashed line
_NAMES = {
    "h": "h, the embedding", "mu": "μ, the posterior mean", "random-init": "random initialisation",
    "linear": "linear probe",
    "fisher": "Fisher's p", "bonferroni": "Bonferroni's p", "harmonic": "harmonic mean p",
    "knn": "kNN", "mahalanobis": "Mahalanobis", "gmm": "Gaussian mixture", "jepa": "JEPA-SCORE",
    "jepa + latent": "JEPA-SCORE + latent", "elbo": "ELBO", "nll": "NLL", "kl": "KL to the prior",
    "directional_nll": "directional NLL", "radial_nll": "radial NLL",
    "mean variance": "mean σ²", "mean_variance": "mean σ²", "trace": "trace of σ²",
    "anisotropy": "anisotropy of σ²", "h_norm": "‖h‖", "mu_norm": "‖μ‖",
    "effective_rank": "effective rank", "rank_me": "RankMe", "std_mean": "mean std of a feature of h/‖h‖",
    "std_min": "least std of a feature of h/‖h‖",
    "kl_per_dimension": "KL to the prior, nats per dimension",
}  # fmt: skip
_F1 = ("accuracy", "balanced accuracy", "macro F1", "weighted F1")


def named(key: str) -> str:
    """Return a key of metrics.json in words: "knn, raw pixels" is a kNN on raw pixels."""
    kind, comma, features = key.partition(", ")
    k = kind.removeprefix("knn")
    if k.isdigit():  # an evaluation weights the votes of more than 20 neighbours
        return f"kNN, k = {k}" + (", weighted" if int(k) > 20 else "") + comma + features
    return _NAMES.get(kind, kind) + comma + features


def labels_note(labels: Result) -> str:
    """Return what an evaluation's "labels" say of rows without a label and of classes train lacks, or ""."""
    left_out = [f"{n:,} of {name}" for name, n in (labels.get("unlabelled") or {}).items() if n]
    absent = labels.get("classes_not_in_train") or []
    said = [f"Without a label, and left out of what needs one: {', '.join(left_out)}."] if left_out else []
    if absent:
        shown = few(absent, 10)
        said.append(f"Classes that the training rows lack, so that their rows count as wrong: {shown}.")
    return " ".join(said)


def accuracy_of(entry: Any) -> Any:
    """Return the accuracy in the entry of one classifier, or why it was not run."""
    if isinstance(entry, Mapping) and "not run" in entry:
        return f"not run: {entry['not run']}"
    return entry["accuracy"] if isinstance(entry, Mapping) and "accuracy" in entry else entry


def accuracy_section(
    accuracy: Result, test: str, note: str = "", balanced: Result | None = None
) -> Section | None:
    """Return what classifiers read from frozen features, or None for an empty ``accuracy``.

    ``accuracy`` and ``balanced`` map features → classifier → a figure, or for tables, ``accuracy`` alone, to
    {"accuracy", "balanced accuracy", "macro F1", "weighted F1"}.
    """
    if not any(accuracy.values()):
        return None
    rows = {named(space): {k: accuracy_of(of) for k, of in row.items()} for space, row in accuracy.items()}
    columns = {key: f"{named(key)} ↑" for row in rows.values() for key in row}
    interval = "95 % intervals" + (f" {SEEDS_ALONE}" if _of_seeds(rows) else "")
    caption = f"Accuracy in % on {test}, with {interval}; the best of each column is marked."
    items = [grid("features", rows, columns, caption, percent=columns)]
    if balanced:
        caption = "In %: the mean over the classes of the share of a class that is answered right."
        rows = {named(space): row for space, row in balanced.items()}
        folded = "Balanced accuracy"
        items.append(grid("features", rows, columns, caption, percent=columns, folded=folded))
    scored = {
        f"{space}, {name}": of
        for space, row in accuracy.items()
        for name, of in row.items()
        if "macro F1" in of and (space != "majority class" or name == next(iter(columns)))
    }
    if scored:
        caption = (
            "In %. Balanced accuracy is the mean of the classes' recall, macro F1 of their F1, weighted F1 "
            "weights it by their sizes: published figures named macro F1 are weighted F1."
        )
        f1 = {key: f"{key} ↑" for key in _F1}
        items.append(
            grid("features, classifier", scored, f1, caption, percent=_F1, folded="Balanced accuracy and F1")
        )
    text = (
        "How well simple classifiers read the class from frozen features; only the classifiers are given "
        "labels. Where two intervals overlap, the difference is not established."
    )
    return Section("Accuracy", f"{text} {note}".rstrip(), items)


def _of_seeds(rows: Mapping[str, Result]) -> bool:
    """Whether figures are of several seeds."""
    entries = (of for row in rows.values() for of in row.values() if isinstance(of, Mapping))
    return any(len(of.get("seeds") or ()) > 1 for of in entries)


def selective_section(selective: Result, features: str = "embedding") -> Section | None:
    """Return what withholding the most uncertain answers gains, or None where nothing was measured.

    Parameters
    ----------
    selective
        classifier → source of uncertainty → {"aurc", "excess_aurc", "accuracy_at": {"1.0": ..., "0.9": ...},
        and "curve": {"coverage", "risk"}, or "risk" at ``COVERAGES``}, as
        ``metrics.risk_coverage`` measures them
    features
        what the classifiers read
    """
    selective = {name: by_source for name, by_source in selective.items() if by_source}
    if not selective:
        return None
    first = lead(selective)
    names = sorted(selective, key=lambda name: name != first)
    items: list[Figure | Table] = [
        _selective_table(name, selective[name], features, name != first) for name in names
    ]
    if any(_curve(of) for by_source in selective.values() for of in by_source.values()):
        items.insert(0, _risk_coverage(selective))
    text = (
        "The error that is left when the most uncertain answers are withheld. Lower is better; an "
        "uncertainty is of use where its curve lies below the dashed line."
    )
    return Section("Selective prediction", text, items)


def _curve(of: Result) -> tuple[Any, Any] | None:
    curve = of.get("curve") or {}
    if curve.get("coverage"):
        return curve["coverage"], curve["risk"]
    return (COVERAGES, of["risk"]) if of.get("risk") else None


def _risk_coverage(selective: Result) -> Figure:
    found = selective[lead(selective)]
    sources = sorted(  # the best first
        dict.fromkeys(s for by_source in selective.values() for s in by_source if s != RANDOM),
        key=lambda s: np.nan_to_num(Value.of((found.get(s) or {}).get("aurc")).value, nan=np.inf),
    )
    colours = plots.palette(map(named, sources))

    def draw(axes: Any) -> str:
        words = []
        for axis, (name, by_source) in zip(np.ravel(axes), selective.items(), strict=True):
            curves = {named(s): curve for s in sources if (curve := _curve(by_source.get(s) or {}))}
            last = name == list(selective)[-1]
            words.append(f"{name}, {plots.risk_coverage(axis, curves, colours=colours, legend=last)}")
            axis.set(title=plots.label(name, 21), ylabel="" if words[1:] else "wrong, %")
        axis.autoscale(axis="y")  # of all panels, and so after the last of them is drawn
        axis.set_ylim(0, None)
        return "; ".join(words)

    return picture(
        "Error by coverage",
        draw,
        "Error of the answers given, by coverage: the share of the inputs answered, the least uncertain "
        "first. Dashed: the error of all answers, which withholding at random leaves.",
        height=max(300, 64 + 17 * len(sources)),  # the legend has a line a source
        panels=len(selective),
    )


def _selective_table(classifier: str, by_source: Result, features: str, folded: bool) -> Table:
    shares = sorted({s for of in by_source.values() for s in of.get("accuracy_at") or {}}, key=float)[::-1]
    # all answered, there is nothing to choose
    titles = {s: f"accuracy, {100 * float(s):g} % coverage{' ↑' if float(s) < 1 else ''}" for s in shares}
    return grid(
        "uncertainty",
        {named(source): {**of, **(of.get("accuracy_at") or {})} for source, of in by_source.items()},
        {"aurc": "AURC ↓", "excess_aurc": "excess AURC ↓", **titles},
        f"{classifier} on the {features}. AURC is the mean error over all coverages, excess AURC "
        "what it has above that of the perfect order; accuracies are in %. The best of each column is "
        "marked.",
        percent=shares,
        folded=f"{classifier}: all sources of uncertainty" if folded else "",
    )


def collapse_section(
    collapse: Result,
    variance: Result,
    what: str,
    dim: int | None = None,
    settings: Collection[str] = (),
    rows: int | None = None,
) -> tuple[Section | None, Tone]:
    """Return the collapse diagnostics with what to do about a collapse, and the tone of their card.

    Parameters
    ----------
    collapse
        what ``metrics.collapse_summary`` returns, perhaps with intervals
    variance
        "mean", "kl_per_dimension" and "anisotropy" of the posteriors
    what
        what was embedded
    dim
        size D of the embedding
    settings
        names of the method's settings, of which the advice is
    rows
        how many rows were embedded
    """
    found = {key: Value.of(entry).value for key, entry in collapse.items()}
    posterior = {"mean_variance" if k == "mean" else k: Value.of(of).value for k, of in variance.items()}
    kl = {"kl_per_dim": posterior.get("kl_per_dimension")}
    text, tone = diagnosis({**found, **posterior, **kl}, dim, settings=settings, rows=rows)
    tables = [
        Table(("diagnostic", "value"), [[named(k), v] for k, v in of.items()], caption, width="half")
        for of, caption in ((found, f"Embeddings of {what}"), (posterior, "Their posteriors"))
        if of
    ]
    return Section("Collapse", text, tables) if tables else None, tone


def diagnosis(
    values: Mapping[str, float | None],
    dim: int | None = None,
    *,
    epochs: int | None = None,
    settings: Collection[str] = (),
    rows: int | None = None,
) -> tuple[str, Tone]:
    """Return what to do about a collapse, or else how to read the diagnostics, and a tone."""
    advice = collapse_advice(values, dim, epochs=epochs, settings=settings, rows=rows)
    if advice:
        return f"{advice[0].upper()}{advice[1:]}.", "warn"
    text = (
        "An effective rank near 1, or a feature std near 0, is a collapse of the embeddings. A mean σ² near "
        "0 is a posterior that has shrunk to a point; near 1 with a KL near 0, it is the prior."
    )
    if rows is not None and rows < LEAST_ROWS:
        return f"{text} Fewer than {LEAST_ROWS} rows do not tell whether the embeddings collapsed.", "plain"
    if any(Value.of(values.get(key)).known for key in ("effective_rank", "std_mean")):
        return text, "good"
    return f"{text} The spread was not recorded, so a collapse cannot be ruled out.", "plain"
