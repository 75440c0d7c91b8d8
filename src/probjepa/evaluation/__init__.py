"""The evaluation protocol: accuracy, out-of-distribution detection, geometry and selective prediction."""

from probjepa.evaluation.any_model import evaluate
from probjepa.evaluation.figures import Evaluation
from probjepa.evaluation.images import describe
from probjepa.evaluation.openood import openood_sets, openood_summary
from probjepa.evaluation.selective import selective_prediction
from probjepa.evaluation.tables import evaluate_table

__all__ = [
    "Evaluation",
    "describe",
    "evaluate",
    "evaluate_table",
    "openood_sets",
    "openood_summary",
    "selective_prediction",
]
