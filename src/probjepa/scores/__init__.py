"""Scores of inputs under a trained model: one contract, higher = more typical everywhere.

A score is one class and one line here, or an entry point of the group "probjepa.scores" of another package.
Reading the table, and the summaries of its entries, loads no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from probjepa.registry import Registry, lazy

if TYPE_CHECKING:
    from probjepa.scores.base import Score as Score
    from probjepa.scores.sets import SetScorer as SetScorer
    from probjepa.scores.sets import encode as encode
    from probjepa.scores.sets import score_set as score_set
    from probjepa.scores.table import score_class as score_class

#: name → a ``Score``, or a class in scikit-learn's manner (``fit``, ``score_samples``: higher = more typical)
SCORES = Registry(
    "score",
    {
        "likelihood": "probjepa.scores.own:Likelihood",
        "predictive": "probjepa.scores.own:Predictive",
        "jepa": "probjepa.scores.jepa:Jepa",
        "knn": "probjepa.scores.detectors:KNNScore",
        "mahalanobis": "probjepa.scores.detectors:MahalanobisScore",
        "gmm": "probjepa.scores.detectors:MixtureScore",
        "fisher": "probjepa.scores.combined:Fisher",
        "bonferroni": "probjepa.scores.combined:Bonferroni",
        "harmonic": "probjepa.scores.combined:Harmonic",
    },
    group="probjepa.scores",
)

# name → module it lives in
_LAZY = {
    "Score": "base", "SetScorer": "sets", "encode": "sets", "score_class": "table", "score_set": "sets",
}  # fmt: skip

__all__ = ["SCORES", *_LAZY]

__getattr__ = lazy(__name__, _LAZY)
