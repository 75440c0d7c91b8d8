"""Tables: Var-T-JEPA and T-JEPA as scikit-learn transformers, and the schema of a table."""

from __future__ import annotations

from probjepa.tabular.presets import PRESETS
from probjepa.tabular.schema import TableSchema
from probjepa.tabular.t_jepa import TJEPA
from probjepa.tabular.var_t_jepa import Imputation, VarTJEPA

__all__ = ["PRESETS", "TJEPA", "Imputation", "TableSchema", "VarTJEPA"]
