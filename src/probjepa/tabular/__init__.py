"""Tables: Var-T-JEPA and T-JEPA as scikit-learn transformers, and the schema of a table."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from probjepa.registry import Registry

if TYPE_CHECKING:
    from probjepa.tabular.presets import PRESETS as PRESETS
    from probjepa.tabular.schema import TableSchema as TableSchema
    from probjepa.tabular.t_jepa import TJEPA as TJEPA
    from probjepa.tabular.var_t_jepa import Imputation as Imputation
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
    "Imputation": "var_t_jepa",
    "TableSchema": "schema",
    "VarTJEPA": "var_t_jepa",
}

__all__ = ["TABLE_METHODS", *_LAZY]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'probjepa.tabular' has no attribute '{name}'")
    return getattr(import_module(f"probjepa.tabular.{_LAZY[name]}"), name)
