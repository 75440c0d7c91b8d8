"""Training objectives: one file a method, one line here."""

from probjepa.methods.base import Method, ProbabilisticMethod
from probjepa.registry import Registry

METHODS = Registry("method", {"vje": "probjepa.methods.vje:VJE"})

__all__ = ["METHODS", "Method", "ProbabilisticMethod"]
