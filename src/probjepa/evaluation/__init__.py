"""The evaluation protocol: accuracy, out-of-distribution detection, geometry and selective prediction."""

from probjepa.evaluation.openood import openood_sets, openood_summary
from probjepa.evaluation.protocol import Evaluation, describe, evaluate
from probjepa.evaluation.selective import selective_prediction

__all__ = [
    "Evaluation",
    "describe",
    "evaluate",
    "openood_sets",
    "openood_summary",
    "selective_prediction",
]
