"""Whether VJE's uncertainty follows the geometry of classes that it never saw."""

from __future__ import annotations

from probjepa.experiments.declare import Column, Experiment, Finding, Row

_MEASURES = {  # name → figure, sign of its correlation with the margin
    "NLL": ("nll", -1),
    "KL": ("kl", 1),
    "mean σ²": ("mean variance", -1),
    "anisotropy": ("anisotropy", 1),
}


def _sign(name: str, sign: int) -> Finding:
    return Finding(
        f"{name} {'rises' if sign > 0 else 'falls'} with the margin to the nearest other class",
        lambda r: sign * r("VJE", f"ρ of {name} with margin") > 0,
    )


EXPERIMENT = Experiment(
    name="vje-geometry",
    title="VJE: uncertainty and the geometry of the classes",
    paper="Joint Embedding Variational Bayes, arXiv 2602.05639",
    question="Is VJE less sure of an image the nearer it lies to another class?",
    rows=(Row("VJE"), Row("VJE-EMA", settings={"target": "ema"})),
    columns=tuple(
        Column(
            f"ρ of {name} with {place}", f"spearman/{figure}/{place}", plot=place == "margin", limits=(-1, 1)
        )
        for place in ("margin", "radius")
        for name, (figure, _) in _MEASURES.items()
    ),
    findings=tuple(_sign(name, sign) for name, (_, sign) in _MEASURES.items()),
    published_budget="signs alone: mean σ² and NLL fall with the margin, KL and anisotropy rise",
)
