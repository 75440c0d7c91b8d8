"""Reading the table of scores: the class of a name, and which scores a model has."""

from __future__ import annotations

from typing import Any

from probjepa.scores import SCORES
from probjepa.scores.base import Score
from probjepa.scores.detectors import Detector


def score_class(score: str | type) -> type[Score]:
    """Return the class of a score, of its name or of a class itself; one in scikit-learn's manner is wrapped.

    Raises
    ------
    ConfigError
        for an unknown name, or what is no score
    """
    kind = SCORES.resolve(score)
    if isinstance(kind, type) and issubclass(kind, Score):
        return kind
    name = score if isinstance(score, str) else kind.__name__
    summary = (kind.__doc__ or "").strip().partition("\n")[0]
    return type(name, (Detector,), {"name": name, "summary": summary, "kind": staticmethod(kind)})


def available(model: Any, *, but: type[Score], gradients: bool = False) -> dict[str, type[Score]]:
    """Return the scores that a model has, by name, ``but`` those of a class.

    Those that need gradients are among them only where asked for.
    """
    kinds = {name: score_class(name) for name in SCORES}
    return {
        name: kind
        for name, kind in kinds.items()
        if not issubclass(kind, but)
        and (gradients or "gradients" not in kind.needs)
        and kind.lacking(model) is None  # last: it may ask the model
    }


def detectors() -> list[str]:
    """Return the names of the scores that any encoder has: of its embeddings and a reference set."""
    found = {name: score_class(name) for name in SCORES}
    return [name for name, kind in found.items() if kind.needs == {"reference"} and not kind.own]


def leaves_one_out(score: str | type) -> bool:
    """Whether a score can compare each row of a reference with the others."""
    if isinstance(score, str) and score not in SCORES:
        return False
    return score_class(score).left_out is not Score.left_out


def no_likelihood(model: Any, score: str) -> str:
    """Say that a model has no density for a score, and which scores it has."""
    name = type(getattr(model, "estimator", model)).__name__
    # of an encoder without a density of its own one is made
    made = ["predictive"] if hasattr(model, "embed") and not hasattr(model, "predictive") else []
    return f"{name} has no likelihood for the score '{score}': use {', '.join([*made, *detectors()])}"
