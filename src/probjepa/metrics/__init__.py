"""What embeddings and scores are worth: kNN and linear accuracy, OOD detection, decisions, collapse."""

from probjepa.metrics.collapse import collapse_summary, effective_rank, rank_me
from probjepa.metrics.conformal import combined_p_values, conformal_p_values, threshold
from probjepa.metrics.duplicates import duplicate_groups, nearest_twins
from probjepa.metrics.energy import energy_score
from probjepa.metrics.geometry import uncertainty_geometry
from probjepa.metrics.intervals import (
    Interval,
    McNemar,
    accuracy_interval,
    bootstrap_interval,
    mcnemar,
    seed_interval,
)
from probjepa.metrics.knn import knn_accuracy, knn_predict, knn_vote
from probjepa.metrics.linear import linear_predict, linear_probe
from probjepa.metrics.ood import ood_metrics
from probjepa.metrics.selective import RiskCoverage, risk_coverage

__all__ = [
    "Interval",
    "McNemar",
    "RiskCoverage",
    "accuracy_interval",
    "bootstrap_interval",
    "collapse_summary",
    "combined_p_values",
    "conformal_p_values",
    "duplicate_groups",
    "effective_rank",
    "energy_score",
    "knn_accuracy",
    "knn_predict",
    "knn_vote",
    "linear_predict",
    "linear_probe",
    "mcnemar",
    "nearest_twins",
    "ood_metrics",
    "rank_me",
    "risk_coverage",
    "seed_interval",
    "threshold",
    "uncertainty_geometry",
]
