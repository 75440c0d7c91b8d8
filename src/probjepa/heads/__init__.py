"""Networks on top of an embedding: the inference network."""

from probjepa.heads.inference import InferenceNetwork

__all__ = ["InferenceNetwork"]
