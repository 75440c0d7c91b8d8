"""The evaluation protocol: accuracy, out-of-distribution detection, geometry and selective prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from probjepa.registry import lazy

if TYPE_CHECKING:
    from probjepa.evaluation.any_model import evaluate as evaluate
    from probjepa.evaluation.figures import Evaluation as Evaluation
    from probjepa.evaluation.image_sets import describe as describe
    from probjepa.evaluation.openood import openood_sets as openood_sets
    from probjepa.evaluation.openood import openood_summary as openood_summary
    from probjepa.evaluation.selective import selective_prediction as selective_prediction
    from probjepa.evaluation.tables import evaluate_table as evaluate_table

# name → module it lives in
_LAZY = {
    "Evaluation": "figures", "describe": "image_sets", "evaluate": "any_model", "evaluate_table": "tables",
    "openood_sets": "openood", "openood_summary": "openood", "selective_prediction": "selective",
}  # fmt: skip

__all__ = [*_LAZY]

__getattr__ = lazy(__name__, _LAZY)
