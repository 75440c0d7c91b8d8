"""Sections on what an uncertainty is worth where labels are known: the classes' geometry, and selection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from probjepa.report.page import Figure, Section, Table, Value
from probjepa.report.style import FULL, INK, MUTED, canvas, finish, label, palette, styled

_NAMES = {
    "mean_variance": "mean σ²", "nll": "NLL", "kl": "KL to the prior", "anisotropy": "anisotropy of σ²",
    "trace": "trace of σ²", "directional_nll": "directional NLL", "radial_nll": "radial NLL",
    "h_norm": "‖h‖", "mu_norm": "‖μ‖",
}  # fmt: skip
# sign of the correlation with the margin that arXiv 2602.05639 reports
_EXPECTED = {"mean_variance": -1, "nll": -1, "kl": 1, "anisotropy": 1}
_WORDS = {-1: "falls", 1: "rises", 0: "unclear"}
_LEAST_COVERAGE = 0.05  # with fewer answers the risk is that of a handful
_RANDOM = "random"  # the source that is no source: its curve is the dashed line
_MOST_POINTS = 400  # more than there are pixels only adds bytes
(_BLUE,) = palette(["in"]).values()

Rho = tuple[float, float, float]


def geometry_section(result: Mapping[str, Any]) -> Section | None:
    """Return how each measure goes with margin and radius, or None where nothing was correlated.

    ``result`` is what ``metrics.uncertainty_geometry`` returns. The measures that arXiv 2602.05639 correlates
    are known as ``mean_variance``, ``nll``, ``kl`` and ``anisotropy``; others are shown without expectation.
    """
    spearman = result.get("spearman") or {}
    if not spearman:
        return None
    margin = {name: _rho(of.get("margin")) for name, of in spearman.items()}
    radius = {name: _rho(of.get("radius")) for name, of in spearman.items()}
    tertiles = result.get("tertiles") or {}
    table = Table(
        ["measure", "expected", "found", "ρ with margin", "ρ with radius",
         "low margin", "middle", "high margin"],
        [
            [
                _NAMES.get(name, name),
                _WORDS[_EXPECTED[name]] if name in _EXPECTED else None,
                _WORDS[_trend(margin[name])],
                _written(margin[name]),
                _written(radius[name]),
                *(tertiles.get(name) or (None, None, None)),
            ]
            for name in spearman
        ],
        "What each measure does as the margin grows: in the paper, and here by the sign of ρ where its "
        "interval leaves out 0. ρ is Spearman's, with its 95 % interval; the last columns are the measure's "
        "means over the thirds of the inputs with the lowest, the middle and the highest margin.",
    )  # fmt: skip
    return Section(
        "Uncertainty and the classes", _geometry_text(result, margin), [_dots(margin, radius), table]
    )


def _geometry_text(result: Mapping[str, Any], margin: Mapping[str, Rho]) -> str:
    text = (
        f"An image's margin is its distance to the nearest other of {result['classes']} class centroids less "
        "that to its own. "
    )
    negative = (result.get("margin") or {}).get("negative")
    if negative is not None:
        text += f"It is negative for {100 * negative:.1f} % of the images. "
    trends = {name: _trend(margin[name]) for name in margin if name in _EXPECTED}

    def those(sign: int) -> str:
        return ", ".join(f"{_NAMES[n]} {_WORDS[t]}" for n, t in trends.items() if t == sign * _EXPECTED[n])

    unclear = ", ".join(_NAMES[n] for n, t in trends.items() if not t)
    parts = [f"{those(1)}, as expected"] if those(1) else []
    parts += [f"{those(-1)}, against expectation"] if those(-1) else []
    parts += [f"no clear trend in {unclear}"] if unclear else []
    return text + (f"As it grows: {'; '.join(parts)}." if parts else "")


@styled
def _dots(margin: Mapping[str, Rho], radius: Mapping[str, Rho]) -> Figure:
    figure = canvas(FULL, 76 + 30 * len(margin))
    panels = figure.subplots(1, 2, sharey=True)
    known = [abs(x) for rho in (*margin.values(), *radius.values()) for x in rho if np.isfinite(x)]
    reach = max(0.1, 1.08 * max(known, default=0.0))
    for axis, title, by in zip(panels, ("margin", "radius"), (margin, radius), strict=True):
        for at, (name, (value, low, high)) in enumerate(by.items()):
            side = _EXPECTED.get(name, 0)
            if side and title == "margin":
                axis.fill_between([0, side * reach], at - 0.4, at + 0.4, color=MUTED, alpha=0.14, lw=0)
            if np.isfinite(value):
                axis.plot([low, high], [at, at], color=_BLUE, lw=5, alpha=0.35)
                axis.plot([value], [at], "o", ms=6.5, color=_BLUE)
        axis.axvline(0, color=INK, lw=1)
        axis.set(xlim=(-reach, reach), ylim=(len(by) - 0.4, -0.6), title=f"Correlation with the {title}")
        axis.set_xlabel("Spearman's ρ")
        axis.grid(True, axis="x")
        axis.grid(False, axis="y")
        axis.spines["left"].set_visible(False)
        axis.locator_params(axis="x", nbins=5)
    panels[0].set_yticks(range(len(margin)), [label(_NAMES.get(name, name)) for name in margin])
    values = ", ".join(f"{_NAMES.get(name, name)} {_number(rho[0])}" for name, rho in margin.items())
    return finish(
        figure,
        "Dots: rank correlation over the images; pale bars: 95 % intervals. Grey: the side on which the "
        "paper finds the measure. The radius is the distance to the own class's centroid.",
        f"Spearman correlation with the margin: {values}",
    )


def _rho(entry: Mapping[str, Any] | None) -> Rho:
    value, low, high = (
        np.nan if entry is None or entry.get(k) is None else float(entry[k]) for k in ("value", "low", "high")
    )
    return value, low, high


def _trend(rho: Rho) -> int:
    """The sign of a correlation, or 0 where its interval holds 0 or is not known."""
    _, low, high = rho
    return 1 if low > 0 else -1 if high < 0 else 0


def _number(x: float) -> str:
    return f"{x:.2f}".replace("-", "−") if np.isfinite(x) else "–"


def _written(rho: Rho) -> str:
    value, low, high = map(_number, rho)
    return f"{value} ({low} to {high})" if value != "–" else value


def selective_section(result: Mapping[str, Any]) -> Section | None:
    """Return what withholding the least sure answers gains, or None for an empty ``result``.

    Parameters
    ----------
    result
        source of confidence → {"curve": {"coverage": [...], "risk": [...]}, "aurc", "excess_aurc",
        "accuracy_at": {"1.0": ..., "0.9": ..., ...}}, as ``metrics.risk_coverage`` measures them
    """
    if not result:
        return None
    shares = sorted(
        {s for of in result.values() for s in of.get("accuracy_at") or {}}, key=float, reverse=True
    )
    columns = {s: f"accuracy, {100 * float(s):g} % answered" for s in shares}
    best: dict[str, Literal["max", "min"]] = {"AURC ↓": "min", "excess AURC ↓": "min"}
    best |= {column: "max" for s, column in columns.items() if float(s) < 1}
    rows = [
        [
            _source(name),
            of.get("aurc"),
            of.get("excess_aurc"),
            *(Value(_or_nan((of.get("accuracy_at") or {}).get(s)), percent=True) for s in shares),
        ]
        for name, of in result.items()
    ]
    table = Table(
        ["confidence", "AURC ↓", "excess AURC ↓", *columns.values()],
        rows,
        "AURC is the mean error over all coverages, excess AURC what it has above that of the perfect order; "
        "accuracies are in %. The best of each column is marked.",
        best,
    )
    drawn = [
        name for name, of in result.items() if (of.get("curve") or {}).get("coverage") and name != _RANDOM
    ]
    drawn.sort(key=lambda name: float(result[name].get("aurc") or 0))
    curves = {name: result[name]["curve"] for name in drawn}
    items: list[Figure | Table] = [_risk_coverage(curves)] if curves else []
    return Section("Selective prediction", _selective_text(result), [*items, table])


def _selective_text(result: Mapping[str, Any]) -> str:
    plain = "The error that is left when the answers with the least confidence are withheld. "
    known = {name: float(of["aurc"]) for name, of in result.items() if of.get("aurc") is not None}
    if not known:
        return plain.strip()
    # at random, the error stays that of all answers, which is also the mean over coverages
    error = {name: _or_nan(_error_of_all(result[name])) for name in known}
    useless = [name for name in known if known[name] > error[name] - 1e-9]  # but for rounding
    best = min(known, key=lambda name: known[name])
    if best in useless:
        return plain + "By none of these confidences is that better than withholding answers at random."
    accuracy = result[best].get("accuracy_at") or {}
    text = plain + f"The best confidence here is {_source(best)}"
    share = next((s for s in ("0.5", "0.8", "0.9") if accuracy.get(s) is not None), None)
    if share and np.isfinite(error[best]):
        text += (
            f": answering the surest {100 * float(share):g} % takes accuracy from "
            f"{100 * (1 - error[best]):.1f} to {100 * accuracy[share]:.1f} %"
        )
    useless = [_source(name) for name in useless if name != _RANDOM]
    if useless:
        text += f"; no better than withholding at random: {', '.join(useless)}"
    return text + "."


@styled
def _risk_coverage(curves: Mapping[str, Mapping[str, Any]]) -> Figure:
    figure = canvas(FULL, 300)
    axis = figure.subplots()
    colours = palette(curves)
    for index, (name, curve) in enumerate(curves.items()):
        coverage, risk = np.asarray(curve["coverage"], float), np.asarray(curve["risk"], float)
        shown = np.flatnonzero(coverage >= min(_LEAST_COVERAGE, coverage.max()))
        shown = shown[np.unique(np.linspace(0, len(shown) - 1, _MOST_POINTS).astype(int))]
        axis.plot(
            100 * coverage[shown], 100 * risk[shown], color=colours[name], label=label(_source(name)),
            linestyle="-" if index < len(set(colours.values())) else (0, (1, 1.2)),
            marker="o" if len(shown) == 1 else None,
        )  # fmt: skip
    caption = f"Lower is better. Drawn from {100 * _LEAST_COVERAGE:g} % answered."
    of_all = {round(float(curve["risk"][-1]), 9) for curve in curves.values()}
    if len(of_all) == 1:  # the same answers, in different orders
        axis.axhline(100 * of_all.pop(), color=MUTED, lw=1, dashes=(4, 3), label="at random")
        caption += " Dashed: the error of all answers, which withholding at random does not change."
    axis.set(title="Error of the answers given", xlabel="answered, % of the images, the surest first",
             ylabel="wrong, %", xlim=(0, 100), ylim=(0, None))  # fmt: skip
    axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, frameon=False)
    ends = ", ".join(f"{_source(name)} {100 * curve['risk'][-1]:.1f} %" for name, curve in curves.items())
    return finish(
        figure,
        caption,
        f"Risk–coverage curves; error of all answers: {ends}",
    )


def _error_of_all(of: Mapping[str, Any]) -> float | None:
    accuracy = (of.get("accuracy_at") or {}).get("1.0")
    if accuracy is not None:
        return 1 - float(accuracy)
    risk = (of.get("curve") or {}).get("risk")
    return float(risk[-1]) if risk else None


def _or_nan(x: float | None) -> float:
    return np.nan if x is None else float(x)


def _source(name: str) -> str:
    return _NAMES.get(name.replace(" ", "_"), name.replace("_", " "))
