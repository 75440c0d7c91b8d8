"""Tables: Var-T-JEPA and T-JEPA as scikit-learn transformers, and the schema of a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from probjepa.registry import Registry, lazy

if TYPE_CHECKING:
    from probjepa.tabular.imputation import Imputation as Imputation
    from probjepa.tabular.presets import PRESETS as PRESETS
    from probjepa.tabular.schema import TableSchema as TableSchema
    from probjepa.tabular.t_jepa import TJEPA as TJEPA
    from probjepa.tabular.var_t_jepa import VarTJEPA as VarTJEPA

TABLE_METHODS = Registry(
    "method",
    {
        "var-t-jepa": "probjepa.tabular.var_t_jepa:VarTJEPA",
        "t-jepa": "probjepa.tabular.t_jepa:TJEPA",
    },
    group="probjepa.table_methods",
)

# name → module it lives in
_LAZY = {
    "PRESETS": "presets",
    "TJEPA": "t_jepa",
    "Imputation": "imputation",
    "TableSchema": "schema",
    "VarTJEPA": "var_t_jepa",
}

__all__ = ["TABLE_METHODS", *_LAZY]

__getattr__ = lazy(__name__, _LAZY)
